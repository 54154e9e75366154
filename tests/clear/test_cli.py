"""The command line as a user meets it: exit status and message, in a process of its own where that matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import SimpleITK as sitk

import clear
from clear.__main__ import run
from clear.phantoms import write_cohort
from clear.thumbnails import Thumbnails


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, patients=4, seed=1, matrix=64, slices=6, workers=1)
    return folder


@pytest.fixture(scope="module")
def bags(cohort: Path) -> Path:
    file = cohort / "feats.h5"
    assert run(["extract", str(cohort / "dicom"), str(file), "--window", "lung", "--device", "cpu"]) == 0
    return file


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clear", "--help"], capture_output=True, text=True, check=True
    )
    assert "extract" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "polars", "numpy"}


def test_inspect_prints_a_row_a_series_and_its_json(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(cohort / "dicom")]) == 0
    text = capsys.readouterr().out
    assert "PHANTOM-0001" in text
    assert "series:" in text
    assert run(["inspect", str(cohort / "dicom"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["patient_id"] for row in rows} == {f"PHANTOM-{i:04d}" for i in range(1, 5)}


def test_a_plan_is_what_extraction_reads(cohort: Path, tmp_path: Path, bags: Path) -> None:
    plan = tmp_path / "scans.parquet"
    assert run(["inspect", str(cohort / "dicom"), "--out", str(plan)]) == 0
    again = tmp_path / "feats.h5"
    assert run(["extract", str(plan), str(again), "--window", "lung", "--device", "cpu"]) == 0
    assert again.read_bytes() == bags.read_bytes()


def test_extract_says_what_the_weights_are_and_sums_up_in_a_line(
    cohort: Path, bags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["extract", str(cohort / "dicom"), str(bags), "--window", "lung", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "not for clinical conclusions" in out
    assert "Nothing was new" in out
    assert run(["bags", "info", str(bags)]) == 0
    assert "mambaout-lecl" in capsys.readouterr().out
    assert run(["bags", "validate", str(bags)]) == 0


def test_extract_keeps_thumbnails_when_asked_to(cohort: Path, bags: Path, tmp_path: Path) -> None:
    again = tmp_path / "feats.h5"
    command = ["extract", str(cohort / "dicom"), str(again), "--window", "lung", "--device", "cpu"]
    assert run([*command, "--thumbnails"]) == 0
    assert again.read_bytes() == bags.read_bytes()
    assert Thumbnails.of(bags) is None
    thumbnails = Thumbnails.of(again)
    assert thumbnails is not None
    for row in clear.Bags(again).scans.iter_rows(named=True):
        pictures = [thumbnails.get(row["digest"], z, 0) for z in range(row["n_slices"] + 1)]
        assert [picture is None for picture in pictures] == [False] * row["n_slices"] + [True]


def test_training_by_a_table_prints_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cohort(tmp_path / "cohort", patients=8, seed=1, matrix=64, slices=4, workers=1)
    bags, labels = tmp_path / "feats.h5", tmp_path / "labels.csv"
    assert run(["extract", str(tmp_path / "cohort" / "dicom"), str(bags), "--window", "lung", "--device", "cpu"]) == 0
    patients = clear.Bags(bags).scans["patient_id"].unique().sort()
    pl.DataFrame({"patient_id": patients, "sick": [0, 1] * 4}).write_csv(labels)
    command = ["train", str(bags), "--labels", str(labels), "--target", "sick", "--folds", "2", "--epochs", "2"]
    status = run([*command, "--join", "all", "--out", str(tmp_path / "run")])
    out = capsys.readouterr()
    assert status == 0, out.err
    assert "sick" in out.out
    assert "not for clinical conclusions" in out.out
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.json", "folds.csv", "history.csv", "predictions.csv", "metrics.csv", "attention.h5"} <= written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "absent", "x.h5"], "absent: no such"),
        (["extract", ".", "x.h5", "--model", "resnet999"], "--model resnet999: no such encoder"),
        (["extract", ".", "x.h5", "--window", "bone"], "--window bone: expected one of"),
        (["extract", ".", "x.h5", "--shard", "3/2"], "expected I/N with 1 <= I <= N"),
        (["extract", ".", "x.txt"], "ends in .h5"),
        (["extract", ".", "x.h5", "--model", "mambaout-lecl", "--model", "vit-s"], "{model}"),
        (["extract", ".", "x.h5", "--device", "tpu"], "expected auto, cpu"),
        (["inspect", "."], "empty"),
        (["train", "x.h5"], "expected --task NAME, or --labels TABLE with --target COLUMN"),
        (["train", "absent.h5", "--labels", "x.csv", "--target", "y"], "absent.h5"),
        (["bags", "info", "absent.h5"], "no such bag file"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_arguments_end_in_one_message_and_status_two(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_an_unreadable_scan_goes_on_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(-300, 300, (5, 32, 32)).astype(np.int16))
    image.SetSpacing((1, 1, 4))
    sitk.WriteImage(image, str(folder / "good.nii.gz"))
    (folder / "cut.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:500])
    status = run(["extract", str(folder), str(tmp_path / "f.h5"), "--device", "cpu", "--window", "lung"])
    out = capsys.readouterr()
    assert status == 3
    assert "Traceback" not in out.err
    quality = pl.read_csv(tmp_path / "f.qc.csv")
    assert dict(zip(quality["scan_id"], quality["status"], strict=True)) == {"cut": "refused", "good": "done"}
    assert list(clear.Bags(tmp_path / "f.h5")) == ["good"]


def test_ids_that_do_not_join_and_wrong_columns_are_explained(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    pl.DataFrame({"patient_id": ["X1", "X2"], "sick": [0, 1]}).write_csv(labels)
    assert run(["train", str(bags), "--labels", str(labels), "--target", "sick"]) == 2
    error = capsys.readouterr().err
    assert "X1" in error
    assert "PHANTOM-0001" in error
    assert run(["train", str(bags), "--labels", str(labels), "--target", "sik"]) == 2
    error = capsys.readouterr().err
    assert "sik" in error
    assert "sick" in error


def test_a_defect_is_shown_as_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import clear.bags

    def broken(_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(clear.bags, "bags_info", broken)
    assert run(["bags", "info", "x.h5"]) == 1
    error = capsys.readouterr().err
    assert "unexpected ZeroDivisionError in clear itself" in error
    assert "secret detail" not in error


def test_bare_clear_in_a_terminal_hands_over_to_the_systems_own(tmp_path: Path) -> None:
    own, system = tmp_path / "own", tmp_path / "system"
    for folder in (own, system):
        folder.mkdir()
    script = own / "clear"
    script.write_text(f"#!{sys.executable}\nfrom clear.__main__ import main\nmain()\n")
    (system / "clear").write_text("#!/bin/sh\necho the screen is clear\n")
    for path in (script, system / "clear"):
        path.chmod(0o755)
    leader, follower = os.openpty()
    environment = {**os.environ, "PATH": f"{own}:{system}", "PYTHONPATH": str(Path(clear.__file__).parent.parent)}
    done = subprocess.run([script], stdout=follower, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(follower)
    shown = os.read(leader, 1000).decode()
    os.close(leader)
    assert done.returncode == 0, done.stderr
    assert shown.strip() == "the screen is clear"
    piped = subprocess.run([script], capture_output=True, text=True, env=environment, check=False)
    assert "Usage" in piped.stdout + piped.stderr
