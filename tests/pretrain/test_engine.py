"""Pretraining as one call: refused before anything is written, judged while it trains, run again for nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file

import pretrain.engine as engine
import pretrain.loop as loop_module
from clear.card import read_card
from clear.errors import InputError, WeightsError
from clear.frozen import load_encoder
from clear.stopping import Interrupted
from clear.training_record import seen_in_pretraining
from pretrain.history import read_history
from pretrain.settings import PretrainSettings


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_file(folder / "weights.safetensors").items()}


def equal(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_a_finished_run_is_opened_and_not_trained_again(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    first = small.train(store, tmp_path / "run", model, epochs=2)
    assert first.new_steps == 6
    assert first.summary().startswith(
        f"{tmp_path / 'run' / 'card.json'}: lecl on mambaout_femto, 2 epochs, 6 steps, loss "
    )
    assert len(first.summary().splitlines()) == 1
    before = (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns
    again = small.train(store, tmp_path / "run", model, epochs=2, workers=1)
    assert again.new_steps == 0
    assert "done before" in again.summary()
    assert (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns == before


def test_the_same_options_in_another_spelling_are_the_same_run(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    heads = {"hidden": 16, "dim": 8}
    small.train(store, tmp_path / "run", model, epochs=1, options={**heads, "lambda": 1, "crop": (0.2, 1.0)})
    for options in (
        {**heads, "crop": [0.2, 1.0]},
        {**heads, "lambda_": 1.0, "crop": (0.2, 1)},
        {**heads, "own_key": True, "crop": (0.2, 1.0)},
    ):
        assert small.train(store, tmp_path / "run", model, epochs=1, options=options).new_steps == 0
    with pytest.raises(InputError, match="lambda was 1 and is 3"):
        small.train(store, tmp_path / "run", model, epochs=1, options={**heads, "lambda": 3, "crop": (0.2, 1.0)})


def test_a_run_that_began_with_other_weights_is_another_run(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    one, two = (small.train(store, tmp_path / name, model, epochs=1, seed=i).path for i, name in enumerate("ab"))
    small.train(store, tmp_path / "run", one, epochs=1, init="own")
    with pytest.raises(InputError, match="it began with other weights"):
        small.train(store, tmp_path / "run", two, epochs=1, init="own")
    assert small.train(store, tmp_path / "run", one, epochs=1, init="own").new_steps == 0


@pytest.mark.parametrize("how", ["own", "folder", "file"])
def test_whoever_was_seen_in_an_earlier_training_stays_seen(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, how: str
) -> None:
    before = small.train(store, tmp_path / "one", model, epochs=1).path
    other = small.write_store(tmp_path / "other.zarr", prefix="Q")
    init = {"own": "own", "folder": str(before), "file": str(before / "weights.safetensors")}[how]
    second = small.train(other, tmp_path / "two", before if how == "own" else model, epochs=1, init=init)
    assert seen_in_pretraining(second.encoder.as_dict(), ["P-1", "Q-1", "R-1"]) == {"P-1", "Q-1"}
    assert "one (trained by LeCL" in second.encoder.trained_on
    third = small.train(other, tmp_path / "three", second.path, epochs=1, init="own", leave_out=["Q-1"])
    assert seen_in_pretraining(third.encoder.as_dict(), ["P-1", "Q-1", "R-1"]) == {"P-1", "Q-1"}
    assert len(third.encoder.training["earlier"]) == 2


def test_weights_given_beside_their_card_bring_whom_they_have_seen(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    run = small.train(store, tmp_path / "one", model, epochs=1).path
    loaded = load_encoder(str(model), run / "weights.safetensors", device="cpu")
    assert seen_in_pretraining(loaded.card.as_dict(), ["P-1", "R-1"]) == {"P-1"}
    assert "trained by LeCL" in loaded.weights_note


def test_other_settings_need_another_folder(small: ModuleType, store: Path, model: Path, tmp_path: Path) -> None:
    small.train(store, tmp_path / "run", model, epochs=1)
    with pytest.raises(InputError, match=r"run: was begun with other settings: epochs was 1 and is 2; lr was 0.05 and"):
        small.train(store, tmp_path / "run", model, epochs=2, lr=0.1)
    vit = small.write_model(tmp_path / "vit", small.VIT)
    with pytest.raises(InputError, match=r"trains timm:mambaout_femto \(small\), and --model .*vit is timm:vit_tiny"):
        small.train(store, tmp_path / "run", vit, epochs=1)
    other = small.write_store(tmp_path / "other.zarr", patients=4)
    with pytest.raises(InputError, match="the slices were others"):
        small.train(other, tmp_path / "run", model, epochs=1)
    with pytest.raises(InputError, match="other patients were left out"):
        small.train(store, tmp_path / "run", model, epochs=1, leave_out=["P-1"])


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"batch": 1}, InputError, "a step needs 2 of them or more"),
        ({"batch": 64}, InputError, "24 slices do not fill one batch of 64"),
        ({"options": {"heads": 3}}, InputError, "unknown setting 'heads'"),
        ({"options": {"tau": -1}}, InputError, "tau is -1"),
        ({"colour": "red"}, InputError, "pretrain: unknown setting colour"),
        ({"init": "absent.pth"}, WeightsError, "--weights absent.pth: no such file"),
        ({"leave_out": [f"P-{i}" for i in range(6)]}, InputError, "no slice of .* is left"),
        ({"freeze_patch_embed": True}, InputError, "--freeze-patch-embed"),
        ({"device": "cuda:9"}, InputError, "--device cuda:9"),
        ({"judge": "absent"}, InputError, "--judge absent: is no slice store"),
        ({"annotated_share": 1.0, "batch": 24}, InputError, "needs 24 annotated slices"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, changes: dict[str, Any], kind: type, says: str
) -> None:
    with pytest.raises(kind, match=says):
        small.train(store, tmp_path / "run", model, **changes)
    assert not (tmp_path / "run").exists()


def test_lecl_without_boxes_is_refused_and_told_what_to_do(small: ModuleType, model: Path, tmp_path: Path) -> None:
    plain = small.write_store(tmp_path / "plain.zarr", boxes=False)
    with pytest.raises(InputError, match=r"none of the 24 slices has a lesion's box.*--boxes, or train with moco-v3"):
        small.train(plain, tmp_path / "run", model)
    assert not (tmp_path / "run").exists()
    small.train(plain, tmp_path / "run", model, objective="moco-v3", epochs=1)


def test_a_batch_must_be_shared_evenly(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "world_size", lambda: 3)
    with pytest.raises(InputError, match="--batch 8: is shared among 3 processes; give a multiple of 3"):
        small.train(store, tmp_path / "run", model)


def test_patients_left_out_are_not_seen(small: ModuleType, store: Path, model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    result = small.train(store, tmp_path / "run", model, epochs=1, leave_out=["P-5"], report=told.append)
    assert "left out: 1 patients with 4 slices" in told
    assert seen_in_pretraining(result.encoder.as_dict(), [f"P-{i}" for i in range(6)]) == {f"P-{i}" for i in range(5)}
    assert result.encoder.training["data"]["slices"] == 20
    assert result.encoder.training["data"]["slices_left_out"] == 4


@pytest.fixture
def judged(small: ModuleType, tmp_path: Path) -> Path:
    """Other patients, labelled by their boxes."""
    return small.write_store(tmp_path / "judged.zarr", patients=6, prefix="J")


def test_the_best_epoch_is_the_encoder_and_the_last_lies_beside_it(
    small: ModuleType, store: Path, model: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.6, 0.8, 0.7])

    def planted(*_: Any, **__: Any) -> dict[str, float]:
        value = next(figures)
        return {"knn_auc": value, "linear_auc": value, "judged": value}

    monkeypatch.setattr(engine, "judge", planted)
    told: list[str] = []
    result = small.train(store, tmp_path / "run", model, epochs=5, judge=str(judged), judge_every=2, report=told.append)
    rows = read_history(tmp_path / "run" / "epochs.csv")
    assert [row["judged"] for row in rows if not np.isnan(row["judged"])] == [0.6, 0.8, 0.7]
    assert [int(row["epoch"]) for row in rows if not np.isnan(row["judged"])] == [2, 4, 5]
    assert "best of epoch 4 (kNN AUC 0.800, linear AUC 0.800)" in result.summary()
    assert result.encoder.training["epoch"]["epoch"] == 4
    assert read_card(tmp_path / "run" / "last").training["epoch"]["epoch"] == 5
    assert equal(tmp_path / "run", tmp_path / "run" / "best")
    assert not equal(tmp_path / "run", tmp_path / "run" / "last")
    assert "judged on 24 slices of 6 patients" in "\n".join(told)


def test_judging_changes_nothing_of_the_training(
    small: ModuleType, store: Path, model: Path, judged: Path, tmp_path: Path
) -> None:
    small.train(store, tmp_path / "plain", model, epochs=2)
    small.train(store, tmp_path / "watched", model, epochs=2, judge=str(judged), judge_every=1)
    assert (tmp_path / "plain" / "history.csv").read_bytes() == (tmp_path / "watched" / "history.csv").read_bytes()
    assert equal(tmp_path / "plain", tmp_path / "watched" / "last")
    row = read_history(tmp_path / "watched" / "epochs.csv")[-1]
    assert 0 <= row["knn_auc"] <= 1
    assert row["judged"] == pytest.approx((row["knn_auc"] + row["linear_auc"]) / 2)


def test_a_run_killed_while_it_is_judged_is_judged_again(
    small: ModuleType, store: Path, model: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"epochs": 2, "judge": str(judged), "judge_every": 1}
    small.train(store, tmp_path / "whole", model, **asked)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "judge", killed)
        with pytest.raises(Exception, match="Stopped at once"):
            small.train(store, tmp_path / "run", model, **asked)
    small.train(store, tmp_path / "run", model, **asked)
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_s")}
            for row in read_history(run / "epochs.csv")
        ]
        for run in (tmp_path / "whole", tmp_path / "run")
    ]
    assert rows[0] == rows[1]
    assert equal(tmp_path / "whole", tmp_path / "run")


def test_a_finish_that_was_cut_short_is_finished(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_finish", killed)
        with pytest.raises(Exception, match="Stopped at once"):
            small.train(store, tmp_path / "run", model, epochs=1)
    result = small.train(store, tmp_path / "run", model, epochs=1)
    assert result.new_steps == 0
    assert (tmp_path / "run" / "card.json").is_file()


def test_scans_with_a_table_of_labels_are_stored_once_and_judged(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    from clear.phantoms import write_cohort

    cohort = write_cohort(tmp_path / "cohort", patients=6, matrix=48, slices=6, workers=1)
    pl.DataFrame({"patient_id": [f"PHANTOM-{i + 1:04d}" for i in range(6)], "sick": [0, 1] * 3}).write_csv(
        tmp_path / "labels.csv"
    )
    told: list[str] = []
    asked = {"judge": str(cohort.dicom), "judge_labels": str(tmp_path / "labels.csv"), "judge_target": "sick"}
    small.train(store, tmp_path / "run", model, epochs=1, report=told.append, **asked)
    assert any(line.startswith("judged on ") and " scans of 6 patients (" in line for line in told)
    assert "judged" in read_history(tmp_path / "run" / "epochs.csv")[0]
    assert (tmp_path / "run" / "judged.zarr").is_dir()
    pl.DataFrame({"patient_id": [f"PHANTOM-{i + 1:04d}" for i in range(6)], "sick": [1, 0] * 3}).write_csv(
        tmp_path / "labels.csv"
    )
    with pytest.raises(InputError, match="the labelled set of --judge was another one"):
        small.train(store, tmp_path / "run", model, epochs=1, **asked)


def test_scans_that_cannot_be_judged_are_counted(small: ModuleType, store: Path, model: Path, tmp_path: Path) -> None:
    from clear.phantoms import write_cohort

    cohort = write_cohort(tmp_path / "cohort", patients=5, matrix=48, slices=6, workers=1)
    for damaged in sorted(next(cohort.dicom.glob("*0005*")).rglob("*.dcm")):
        damaged.write_bytes(damaged.read_bytes()[:-1000])
    pl.DataFrame({"patient_id": [f"PHANTOM-{i + 1:04d}" for i in range(4)], "sick": [0, 1] * 2}).write_csv(
        tmp_path / "labels.csv"
    )
    told: list[str] = []
    asked = {"judge": str(cohort.dicom), "judge_labels": str(tmp_path / "labels.csv"), "judge_target": "sick"}
    small.train(store, tmp_path / "run", model, epochs=1, report=told.append, **asked)
    (line,) = [line for line in told if line.startswith("--judge: ")]
    lost = [int(number) for number in re.findall(r"(\d+) (?:refused|failed)", line)]
    assert sum(lost) == len(list(next(cohort.dicom.glob("*0005*")).iterdir())) > 0
    assert any(line.startswith("judged on ") and " of 4 patients (" in line for line in told)


def test_patients_that_are_judged_and_trained_on_are_counted(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    small.train(store, tmp_path / "run", model, epochs=1, judge=str(store), leave_out=["P-0"], report=told.append)
    assert any(line.startswith("5 of the 6 judged patients are trained on too") for line in told)


def test_precision_is_settled_at_the_start(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_native_bfloat16", lambda device: True)
    asked = {"epochs": 1, "precision": "auto"}
    result = small.train(store, tmp_path / "run", model, **asked)
    assert result.encoder.training["precision"] == "bfloat16"
    assert np.isfinite(result.epochs[0]["loss"])
    monkeypatch.setattr(engine, "has_native_bfloat16", lambda device: False)
    assert small.train(store, tmp_path / "run", model, **asked).new_steps == 0  # another machine: the same run
    recorded = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert recorded["precision"] == "bfloat16"


def test_activations_and_patch_embeddings_are_settings_of_the_run(
    small: ModuleType, store: Path, tmp_path: Path
) -> None:
    vit = small.write_model(tmp_path / "vit", small.VIT)
    told: list[str] = []
    small.train(store, tmp_path / "run", vit, epochs=2, checkpoint_grads=True, report=told.append)
    assert any(line.startswith("the patch embedding keeps its start") for line in told)
    settings = PretrainSettings(objective="lecl", model=str(vit))
    card = engine.starting_point(settings).card
    from pretrain.initialise import random_network

    begun = random_network(card).state_dict()
    ended = weights(tmp_path / "run")
    assert np.array_equal(ended["patch_embed.proj.weight"], begun["network.patch_embed.proj.weight"].numpy())
    assert not np.array_equal(ended["blocks.0.attn.qkv.weight"], begun["network.blocks.0.attn.qkv.weight"].numpy())


def test_a_bar_shows_loss_rate_momentum_and_images(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.train(store, tmp_path / "run", model, epochs=1, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 1 of 1" in shown
    assert "loss " in shown
    assert "lr " in shown
    assert "momentum 0.99" in shown
    assert "images/s" in shown


def test_lars_and_an_uneven_share_of_lesions_train_too(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    real = loop_module.backward

    def watched(objective: Any, views: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(float(views.lesion.float().mean()))
        return real(objective, views, *arguments, **options)

    monkeypatch.setattr(loop_module, "backward", watched)
    result = small.train(
        store, tmp_path / "run", model, epochs=1, optimizer="lars", annotated_share=0.75, clip=1.0, lr=None
    )
    assert set(seen) == {0.75}
    assert np.isfinite(result.epochs[0]["loss"])


def test_a_stop_before_the_judges_scans_are_stored_is_a_stop(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    monkeypatch.setattr(engine, "build_slices", lambda *_, **__: built.append(tmp_path))
    real = engine.check_folder

    def signalled(path: Path) -> Any:
        if any(path.glob(".lock")):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(path)

    monkeypatch.setattr(engine, "check_folder", signalled)
    with pytest.raises(Interrupted):
        small.train(store, tmp_path / "run", model, judge=str(tmp_path), judge_labels="x.csv", judge_target="y")
    assert not built


def test_judged_copies_of_what_is_trained_on_are_counted(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    copies = small.write_store(tmp_path / "copies.zarr", prefix="OTHER")  # the same voxels under other names
    told: list[str] = []
    small.train(store, tmp_path / "run", model, epochs=1, judge=str(copies), report=told.append)
    assert any("6 of the 6 judged patients are trained on too" in line for line in told)


def test_a_judges_store_may_grow_by_what_is_not_judged(
    small: ModuleType, store: Path, model: Path, judged: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    pl.DataFrame({"patient_id": [f"J-{i}" for i in range(6)], "sick": [0, 1] * 3}).write_csv(labels)
    asked = {"judge": str(judged), "judge_labels": str(labels), "judge_target": "sick", "epochs": 1}
    small.train(store, tmp_path / "run", model, **asked)
    grown = small.write_store(tmp_path / "grown.zarr", patients=8, prefix="J")
    assert small.train(store, tmp_path / "run", model, **{**asked, "judge": str(grown)}).new_steps == 0
