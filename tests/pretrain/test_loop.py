"""The loop: stopped, killed, resumed or shared among processes, it trains the same network."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pretrain.loop as loop_module
from clear.atomic import OutputError
from clear.errors import ClearError, InputError
from clear.stopping import Interrupted
from pretrain.checkpoints import read_checkpoint
from pretrain.history import read_history
from pretrain.loop import Diverged

TIMES = ("seconds", "images_per_s")


@pytest.fixture(scope="module")
def undisturbed(small: ModuleType, store: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs of three steps."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    small.train(store, run, model)
    return run


def same_weights(one: Path, other: Path, within: float = 0.0) -> bool:
    mine, theirs = (load_file(run / "weights.safetensors") for run in (one, other))
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine) <= within


def same_run(one: Path, other: Path) -> None:
    """Steps, epochs but for times, weights and card to the last bit."""
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()
    epochs = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_history(run / "epochs.csv")]
        for run in (one, other)
    ]
    assert epochs[0] == epochs[1]
    assert same_weights(one, other)
    cards = [json.loads((run / "card.json").read_text()) for run in (one, other)]
    assert {**cards[0], "name": ""} == {**cards[1], "name": ""}


def test_a_run_leaves_a_row_a_step_a_row_an_epoch_and_an_encoder(undisturbed: Path) -> None:
    steps = read_history(undisturbed / "history.csv")
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert [row["epoch"] for row in steps] == [1] * 3 + [2] * 3 + [3] * 3
    assert all(math.isfinite(value) for row in steps for value in row.values())
    epochs = read_history(undisturbed / "epochs.csv")
    assert epochs[0]["loss"] == pytest.approx(sum(row["loss"] for row in steps[:3]) / 3)
    assert all(0 < row["spread"] < 1.2 and 1 < row["effective_rank"] <= 23 for row in epochs)
    assert {path.name for path in undisturbed.iterdir()} == {
        *("settings.json", "checkpoint.pt", "history.csv", "epochs.csv", "card.json", "weights.safetensors", ".lock")
    }


def test_training_changes_the_student_and_the_loss_falls(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    small.train(store, tmp_path / "run", model, objective="moco-v3", epochs=12, lr=0.02)
    losses = [row["loss"] for row in read_history(tmp_path / "run" / "epochs.csv")]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_same_seed_is_the_same_run_and_another_is_another(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    small.train(store, tmp_path / "again", model, workers=1)
    same_run(undisturbed, tmp_path / "again")
    small.train(store, tmp_path / "other", model, seed=1)
    assert not same_weights(undisturbed, tmp_path / "other")


@pytest.mark.parametrize("at", [5, 6], ids=["within an epoch", "at its end"])
def test_sigterm_finishes_the_step_and_the_run_goes_on_from_there(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path, at: int
) -> None:
    stopped = small.start(store, tmp_path / "run", model, stop_at=at)
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert f"run: stopped after step {at} of 9; run the same command to go on" in stopped.stdout
    assert len(read_history(tmp_path / "run" / "history.csv")) == at
    kept = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert kept is not None
    assert (kept.step, kept.step_in_epoch) == (at, at % 3)
    small.train(store, tmp_path / "run", model)
    same_run(undisturbed, tmp_path / "run")


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    killed = small.start(store, tmp_path / "run", model, die_at=6)
    assert killed.returncode == -9
    assert not (tmp_path / "run" / "card.json").exists()
    whole = (undisturbed / "history.csv").read_bytes()
    assert whole.startswith((tmp_path / "run" / "history.csv").read_bytes())
    told: list[str] = []
    small.train(store, tmp_path / "run", model, report=told.append)
    assert told[0].endswith("run: going on after step 3 of 9")
    same_run(undisturbed, tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert small.start(store, tmp_path / "run", model, die_at=2).returncode == -9
    small.train(store, tmp_path / "run", model)
    same_run(undisturbed, tmp_path / "run")


def test_two_processes_train_the_network_that_one_trains(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    """Ten steps and more under torchrun and gloo: the same losses, and the same weights to 1e-5."""
    small.train(store, tmp_path / "one", model, epochs=4)
    both = small.start(store, tmp_path / "two", model, processes=2, epochs=4)
    assert both.returncode == 0, both.stdout + both.stderr
    assert both.stdout.count("epoch 1 of 4") == 1  # the first process speaks for all
    one, two = (read_history(tmp_path / name / "history.csv") for name in ("one", "two"))
    assert len(two) == 12
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)
        assert {k: theirs[k] for k in ("step", "epoch", "lr", "momentum")} == {
            k: mine[k] for k in ("step", "epoch", "lr", "momentum")
        }
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)
    assert same_weights(tmp_path / "one", tmp_path / "two", within=1e-5)


def test_what_one_process_alone_knows_is_said(small: ModuleType, store: Path, model: Path, tmp_path: Path) -> None:
    failed = small.start(store, tmp_path / "run", model, processes=2, fails_in=1)
    assert failed.returncode != 0
    assert "process 1: what only this process knows" in failed.stderr, failed.stdout + failed.stderr
    assert "unexpected" not in failed.stdout + failed.stderr


def test_a_run_goes_on_with_another_number_of_processes(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    stopped = small.start(store, tmp_path / "run", model, processes=2, stop_at=5)
    assert "stopped after step 5 of 9" in stopped.stdout, stopped.stdout + stopped.stderr
    assert not (tmp_path / "run" / "card.json").exists()
    small.train(store, tmp_path / "run", model)
    assert same_weights(undisturbed, tmp_path / "run", within=1e-5)


def test_micro_batches_train_the_same_network(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    small.train(store, tmp_path / "run", model, micro_batch=3)
    assert same_weights(undisturbed, tmp_path / "run", within=1e-5)


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    broken = small.start(store, tmp_path / "run", model, nan_at=5)
    assert broken.returncode == 2
    assert "run: the loss is no number at step 5 (epoch 2, learning rate" in broken.stdout
    assert "The last good checkpoint is kept" in broken.stdout
    assert "lower --lr" in broken.stdout
    kept = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert kept is not None
    assert kept.step == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.objective.values())
    small.train(store, tmp_path / "run", model)  # what broke it is gone: it goes on
    same_run(undisturbed, tmp_path / "run")


def test_weights_never_see_a_gradient_that_is_no_number(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop_module.backward

    def broken(objective: Any, *arguments: Any, **options: Any) -> Any:
        computed = real(objective, *arguments, **options)
        next(objective.student.parameters()).grad.fill_(math.inf)
        return computed

    monkeypatch.setattr(loop_module, "backward", broken)
    with pytest.raises(Diverged, match=r"the gradient is no number at step 1 .* No epoch was finished before"):
        small.train(store, tmp_path / "run", model)


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(
    small: ModuleType, store: Path, model: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = torch.save, 0

    def full(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OutputError, match=r"checkpoint\.pt: the disk is full .* run the same command again"):
            small.train(store, tmp_path / "run", model)
    kept = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert kept is not None
    assert kept.step == 3
    small.train(store, tmp_path / "run", model)
    same_run(undisturbed, tmp_path / "run")


def test_embeddings_that_collapse_are_warned_of(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.collapse.LEAST_RANK", 1000.0)
    told: list[str] = []
    result = small.train(store, tmp_path / "run", model, epochs=1, report=told.append)
    assert any(line.startswith("warning: collapse: embeddings vary in one direction only") for line in told)
    assert result.warnings[0].startswith("epoch 1: collapse")


@pytest.mark.parametrize("name", ["moco-v3", "dino"])
def test_every_objective_resumes_to_the_last_bit(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = {"hidden": 16, "dim": 8}
    if name == "dino":
        options = {"hidden": 16, "bottleneck": 8, "prototypes": 12, "local_views": 1, "local_size": 32}
    changes = {"objective": name, "options": options, "epochs": 2, "lr": 0.01}
    small.train(store, tmp_path / "whole", model, **changes)
    real = loop_module.Loop._take_step

    def stopped(self: Any, views: Any, epoch: int) -> Any:
        row, _ = real(self, views, epoch)
        return row, self.step == 2

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Loop, "_take_step", stopped)
        with pytest.raises(Interrupted):
            small.train(store, tmp_path / "parted", model, **changes)
    small.train(store, tmp_path / "parted", model, **changes)
    same_run(tmp_path / "whole", tmp_path / "parted")


def test_a_checkpoint_of_another_network_in_the_folder_is_refused(
    small: ModuleType, store: Path, model: Path, tmp_path: Path
) -> None:
    small.train(store, tmp_path / "run", model, epochs=1)
    (tmp_path / "run" / "card.json").unlink()
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    content["objective"].pop(next(iter(content["objective"])))
    torch.save({**content, "architecture": "vmamba:tiny"}, tmp_path / "run" / "checkpoint.pt")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="of vmamba:tiny, and this run trains timm:mambaout_femto"):
        small.train(store, tmp_path / "run", model, epochs=1)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_gpu_that_is_too_small_is_a_sentence(
    small: ModuleType, store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop_module, "backward", full)
    with pytest.raises(ClearError, match="Give --micro-batch N"):
        small.train(store, tmp_path / "run", model)
