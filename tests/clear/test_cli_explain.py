"""`clear explain` from files alone: scans, an encoder card, a bag file, a run; and how a newcomer's mistakes end."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from clear.__main__ import run
from clear.encoders import ENCODERS
from clear.export import export_encoder
from pretrain.initialise import random_network

CARD = replace(
    ENCODERS["mambaout-femto"],
    name="tiny",
    dim=24,
    settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
    input_size=32,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ct/, card/, labels.csv, boxes.csv, feats.h5 and run/: half of 12 patients have a bright square in one slice."""
    place = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    (place / "ct").mkdir()
    labels, boxes = (
        [["scan_id", "patient_id", "square"]],
        [["scan_id", "x0", "y0", "x1", "y1", "slice", "label", "axes"]],
    )
    for i in range(12):
        voxels = rng.normal(-800, 30, (4, 32, 32))
        if i % 2:
            voxels[i % 4, 8:20, 8:20] = 300
            boxes.append([f"s{i:02d}", "8", "8", "20", "20", str(i % 4), "square", "canonical"])
        labels.append([f"s{i:02d}", f"p{i:02d}", str(i % 2)])
        image = sitk.GetImageFromArray(voxels.astype(np.int16))
        image.SetSpacing((1.0, 1.0, 5.0))
        sitk.WriteImage(image, str(place / "ct" / f"s{i:02d}.nii.gz"))
    for name, rows in (("labels.csv", labels), ("boxes.csv", boxes)):
        with (place / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    export_encoder(CARD, random_network(CARD, seed=0), place / "card")
    extract = ["extract", str(place / "ct"), str(place / "feats.h5"), "--model", str(place / "card"), "--device", "cpu"]
    assert run([*extract, "--workers", "1"]) == 0
    train = [
        "train",
        str(place / "feats.h5"),
        "--labels",
        str(place / "labels.csv"),
        "--target",
        "square",
        "--folds",
        "2",
    ]
    train += ["--patients", str(place / "labels.csv"), "--epochs", "5", "--batch", "4", "--baseline", "none"]
    assert run([*train, "--device", "cpu", "--out", str(place / "run")]) == 0
    return place


def test_a_scan_is_explained_into_the_run_folder(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_pixels = ["--scans", str(cohort / "ct"), "--model", str(cohort / "card"), "--device", "cpu", "--nifti"]
    assert run(["explain", str(cohort / "run"), "--scan", "s03", *with_pixels]) == 0
    said = capsys.readouterr().out
    assert "s03: square = 1, score" in said
    assert "by 1 model that did not train on it" in said
    assert "in-slice map: gradcam" in said
    files = {file.name for file in (cohort / "run" / "explain" / "s03").iterdir()}
    written = {"attention.svg", "attention.png", "attention.csv", "montage.png", "saliency.nii.gz"}
    assert files == {*written, "explanation.json"}


def test_a_cohort_is_judged_with_its_sanity_checks(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = ["--scans", str(cohort / "ct"), "--model", str(cohort / "card"), "--device", "cpu"]
    marked = ["--evaluate", "--boxes", str(cohort / "boxes.csv"), "--out", str(cohort / "judged")]
    assert run(["explain", str(cohort / "run"), *marked, *pixels]) == 0
    said = capsys.readouterr().out
    assert "square = 1: 6 scans of 6 patients with it marked" in said
    for method in ("abmil", "aggregator randomised", "encoder randomised", "labels permuted", "centre", "random"):
        assert method in said
    assert (cohort / "judged" / "evaluation.csv").is_file()
    assert run(["explain", str(cohort / "run"), *marked, *pixels]) == 2, "what is there is not replaced unasked"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected the id of one scan, or --evaluate"),
        (["--scan", "s03", "--evaluate"], "expected the id of one scan, or --evaluate"),
        (["--scan", "s99"], "no scan 's99' among its 12"),
        (["--evaluate"], "--boxes TABLE or --masks DIR"),
        (["--evaluate", "--boxes", "boxes.csv", "--nifti"], "goes with --scan"),
        (["--scan", "s03", "--boxes", "boxes.csv"], "goes with --evaluate"),
        (["--scan", "s03", "--scans", "ct"], "is a card of one's own"),
        (["--scan", "s03", "--nifti"], "--nifti: needs the scan's pixels"),
    ],
)
def test_a_newcomers_mistakes_end_in_a_sentence(
    cohort: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(cohort)
    assert run(["explain", "run", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
