"""From scans to an encoder on the command line: what each command shows, and how mistakes end."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from clear.__main__ import run
from clear.card import EncoderCard, WeightSource, write_card
from clear.phantoms import Cohort, write_cohort

CARD = EncoderCard(
    name="small",
    architecture="timm:mambaout_femto",
    dim=24,
    source=WeightSource("file", "weights.safetensors"),
    trained_on="nothing",
    settings={"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]},
    input_size=32,
    pooling="mean_norm",
    resize="bilinear",
)
FAST = ["--option", "hidden=16", "--option", "dim=8", "--batch", "8", "--epochs", "1", "--workers", "0"]
QUICK = [*FAST, "--device", "cpu", "--precision", "float32", "--no-tensorboard"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "c", patients=8, matrix=48, slices=6, workers=1)


@pytest.fixture(scope="module")
def slices(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the cohort with its boxes."""
    path = tmp_path_factory.mktemp("slices") / "slices.zarr"
    assert run(["slices", "build", str(cohort.dicom), str(path), "--boxes", str(cohort.boxes), "--workers", "1"]) == 0
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card of a small encoder; its folder is the working folder."""
    monkeypatch.chdir(tmp_path)
    write_card(CARD, tmp_path / "small")
    return tmp_path / "small"


def answer(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """What a command that must work prints."""
    capsys.readouterr()
    status = run([str(word) for word in command])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    return shown.out


def refusal(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """The one sentence of a command that must not."""
    capsys.readouterr()
    assert run([str(word) for word in command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
    return error


def test_a_store_is_built_described_and_checked(
    cohort: Cohort, slices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = answer(capsys, "slices", "build", cohort.dicom, slices, "--boxes", cohort.boxes, "--workers", "1")
    assert "(0 new)" in again
    info = dict(line.split(None, 1) for line in answer(capsys, "slices", "info", slices).splitlines())
    assert info["patients"] == "8"
    assert int(info["slices"]) >= 40
    assert "boxes" in info
    assert answer(capsys, "slices", "validate", slices).startswith(f"{slices}: sound; ")


def test_several_inputs_and_patients_left_out_reach_the_store(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.txt").write_text("PHANTOM-0002\n")
    folders = sorted(path for path in cohort.dicom.iterdir() if path.is_dir())
    store = tmp_path / "s.zarr"
    answer(capsys, "slices", "build", *folders[:2], store, "--leave-out", tmp_path / "out.txt", "--workers", "1")
    assert "patients" in answer(capsys, "slices", "info", store)
    assert "absent.zarr: no such folder" in refusal(capsys, "slices", "info", tmp_path / "absent.zarr")


def test_an_encoder_is_trained_described_and_gone_on_with(
    slices: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", slices, "run", "--objective", "lecl", "--model", "small", *QUICK, "--option", "lambda=3"]
    shown = answer(capsys, *command, "--name", "mine", "--note", "for a test", "--augment", "flips=left_right")
    assert shown.splitlines()[0].startswith("epoch 1 of 1: loss ")
    assert shown.splitlines()[-1].startswith("run/card.json: lecl on mambaout_femto, 1 epochs, ")
    card = json.loads(Path("run/card.json").read_text())
    assert card["name"] == "mine"
    assert card["trained_on"].endswith("1 epochs from random weights; for a test")
    options = card["training"]["settings"]["options"]
    assert {name: options[name] for name in ("hidden", "dim", "lambda_", "own_key", "tau")} == {
        "hidden": 16, "dim": 8, "lambda_": 3, "own_key": True, "tau": 0.2
    }  # fmt: skip
    assert card["training"]["settings"]["augmentation"]["flips"] == "left_right"
    assert "trained on    trained by LeCL on" in answer(capsys, "models", "show", "run")
    again = answer(capsys, *command, "--name", "mine", "--note", "for a test", "--augment", "flips=left_right")
    assert "done before" in again
    assert "lambda was 3 and is 5" in refusal(capsys, *command, "--option", "lambda=5", "--augment", "flips=left_right")
    assert "flips was left_right and is none" in refusal(capsys, *command)


def test_settings_come_from_a_file_and_options_stand_before_them(
    slices: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("settings.yaml").write_text(
        "objective: moco-v3\nmodel: small\nlr: 1e-3\nbatch: 4\nepochs: 1\nworkers: 0\nprecision: float32\n"
        "options: {hidden: 16, dim: 8}\naugmentation: paper\n"
    )
    answer(capsys, "pretrain", slices, "run", "--settings", "settings.yaml", "--batch", "8", "--device", "cpu")
    recorded = json.loads(Path("run/settings.json").read_text())["settings"]
    assert (recorded["objective"], recorded["lr"], recorded["batch"]) == ("moco-v3", 1e-3, 8)
    assert recorded["augmentation"]["flips"] == "left_right"
    Path("settings.yaml").write_text("rate: 1\n")
    assert "settings.yaml: unknown setting rate" in refusal(
        capsys, "pretrain", slices, "other", "--settings", "settings.yaml"
    )


def test_a_judge_says_how_good_the_encoder_is(slices: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "out.csv").write_text("patient_id\nPHANTOM-0001\n")
    shown = answer(
        capsys, "pretrain", slices, "run", "--model", "small", *QUICK, "--judge", slices, "--leave-out", "out.csv"
    )
    assert "left out: 1 patients" in shown
    assert "of the 8 judged patients are trained on too" in shown
    assert "judged: knn auc " in shown
    assert "best of epoch 1 (kNN AUC " in shown


def test_training_is_told_whom_the_encoder_knows(
    cohort: Cohort, slices: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the store to the report of a training: a warning about patients of the pretraining."""
    answer(capsys, "pretrain", slices, "run", "--model", "small", *QUICK)
    answer(capsys, "extract", cohort.dicom, "feats.h5", "--model", "run/card.json", "--device", "cpu")
    labels = pl.read_csv(cohort.labels).select("patient_id").with_columns(sick=pl.Series([0, 1] * 4))
    labels.write_csv("sick.csv")
    shown = answer(
        capsys, "train", "feats.h5", "--labels", "sick.csv", "--target", "sick", "--folds", "2", "--epochs", "1",
        "--several", "pool", "--device", "cpu", "--out", "answers",
    )  # fmt: skip
    assert "8 of 8 patients were seen in the encoder's training" in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--objective", "simclr"], "--objective simclr: no such objective"),
        (["--model", "mambaut-lecl"], "no such encoder. Did you mean mambaout-lecl"),
        (["--batch", "1"], "--batch 1: slices are contrasted"),
        (["--option", "lambda"], "--option lambda: expected NAME=VALUE"),
        (["--option", "lambda=-1"], "lambda is -1"),
        (["--augmentation", "strong"], "augmentation 'strong' is unknown"),
        (["--augment", "flips=up"], "flips is 'up'"),
        (["--init", "absent.pth"], "absent.pth: no such file"),
        (["--judge-target", "label"], "expected --judge"),
        (["--micro-batch", "0"], "--micro-batch 0"),
        (["--leave-out", "absent.csv"], "absent.csv: does not exist"),
        (["--settings", "absent.yaml"], "absent.yaml: does not exist"),
        (["--tensorboard"], "pip install 'clear-mil[pretrain]'"),
    ],
)
def test_arguments_that_cannot_be_stop_before_anything_is_written(
    slices: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    says: str,
) -> None:
    if options == ["--tensorboard"]:
        monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    given = [*QUICK[:-1], *([] if "--tensorboard" in options else ["--no-tensorboard"])]
    chosen = [] if "--model" in options else ["--model", "small"]
    assert says in refusal(capsys, "pretrain", slices, "run", *chosen, *given, *options)
    assert not Path("run").exists()


def test_a_store_that_is_none_and_lecl_without_boxes_are_one_sentence(
    cohort: Cohort, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "small: no slice store" in refusal(capsys, "pretrain", "small", "run", "--model", "small", *QUICK)
    answer(capsys, "slices", "build", cohort.dicom, "plain.zarr", "--workers", "1")
    error = refusal(capsys, "pretrain", "plain.zarr", "run", "--model", "small", *QUICK)
    assert "none of the" in error
    assert "Build the store with --boxes, or train with moco-v3" in error


def test_one_process_of_several_speaks_for_all(
    slices: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")  # without torchrun there is one process, whatever a scheduler sets
    assert run(["pretrain", str(slices), "run", "--model", "small", "--batch", "1"]) == 2
    assert "a step needs 2 of them" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["pretrain", str(slices), "run", "--model", "small", "--batch", "1"]) == 2
    assert capsys.readouterr().err == ""


def test_a_card_of_another_architecture_on_resume_is_one_sentence(
    slices: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "pretrain", slices, "run", "--model", "small", *QUICK)
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    other = replace(CARD, architecture="timm:vit_tiny_patch16_224", dim=16, settings=vit, pooling="class_token")
    write_card(other, Path("vit"))
    before = {path.name: path.read_bytes() for path in Path("run").iterdir() if path.is_file()}
    error = refusal(capsys, "pretrain", slices, "run", "--model", "vit", *QUICK)
    assert "run: trains timm:mambaout_femto (small), and --model vit is timm:vit_tiny_patch16_224" in error
    assert before == {path.name: path.read_bytes() for path in Path("run").iterdir() if path.is_file()}


def test_the_commands_of_the_manual_have_arguments_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0] for line in text.replace("\\\n", " ").splitlines() if line.startswith("clear ")]
    assert len(lines) > 5
    for line in lines:
        status = run([*shlex.split(line)[1:], "--help"])
        assert status == 0, line + capsys.readouterr().err
