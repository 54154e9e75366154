"""Explaining one scan: the lesion's slice and place come out, and only models that did not train on it speak."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import polars as pl
import pytest
from PIL import Image

from aggregate.explain.explain import explain, safe_name
from aggregate.explain.saliency import MAPS
from aggregate.explain.target import targets_of
from aggregate.run import Run
from clear.errors import InputError

CELL = 8


def test_the_most_attended_slice_and_the_brightest_place_are_the_lesions(known: Any) -> None:
    for scan, (z, row, column) in known.places.items():
        found = explain(known.run, scan, scans=known.scans, outputs=(), device="cpu")
        assert found.top_slices(1) == [z], scan
        assert found.saliency is not None
        at = np.unravel_index(int(found.saliency.argmax()), found.saliency.shape)
        assert (at[0], at[1] // CELL, at[2] // CELL) == (z, row, column), scan


def test_an_explanation_is_of_the_models_that_did_not_train_on_the_scan(known: Any) -> None:
    run = known.run
    found = explain(run, "scan03", scans=known.scans, outputs=(), device="cpu")
    scored = run.predictions.filter(pl.col("scan_id") == "scan03")
    assert found.attention.pairs == tuple(scored.select("repeat", "fold").rows())
    assert found.out_of_fold
    assert found.score == pytest.approx(scored["y_score"].item(), abs=1e-6)
    assert (found.endpoint, found.class_name, found.map_name) == ("checks", "1", "gradcam")
    assert found.slice_weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["gradcam", "occlusion"])
def test_the_saliency_of_a_slice_sums_to_its_attention(known: Any, name: str) -> None:
    found = explain(known.run, "scan03", scans=known.scans, map=name, outputs=(), device="cpu")
    assert found.map_name == name
    assert found.saliency is not None
    model = known.run.model(*found.attention.pairs[0])
    (target,) = targets_of(known.run.endpoints)
    maps = MAPS[name](known.encoder, found.volume, found.attention.windows, [model], target.output)
    cells = found.saliency.reshape(6, 4, CELL, 4, CELL).mean(axis=(2, 4))  # of the encoder's grid: 4 x 4, or 7 x 7
    if maps.shape[2:] == (4, 4):
        expected = found.attention.weights[:, 0, None, None] * maps[:, 0]
        assert np.corrcoef(cells.ravel(), expected.ravel())[0, 1] > 0.9
    shares = found.saliency.sum(axis=(1, 2), dtype=np.float64)
    has_map = maps[:, 0].any(axis=(1, 2))
    assert (shares[~has_map] == 0).all()
    density = shares[has_map] / found.slice_weights[has_map]  # the same for all, but for what bilinear edges keep
    assert density.max() < 2 * density.min()


def test_a_scan_that_the_run_does_not_know_is_explained_by_all_models(known: Any, tmp_path: Path) -> None:
    # the run is cut down to the folds of other patients: to it scan03 is a stranger
    shutil.copytree(known.folder / "run", tmp_path / "run")
    for table in ("folds.csv", "predictions.csv"):
        rows = pl.read_csv(tmp_path / "run" / table, infer_schema=False)
        rows.filter(pl.col("scan_id") != "scan03").write_csv(tmp_path / "run" / table)
    run = Run(tmp_path / "run")
    run.settings["scan_digests"].pop("scan03")
    found = explain(run, "scan03", outputs=())
    assert found.attention.pairs == tuple(run.pairs)
    assert not found.out_of_fold
    assert "does not know the scan" in found.summary()


def test_without_pixels_there_is_attention_alone_and_it_is_said(known: Any, tmp_path: Path) -> None:
    found = explain(known.run, "scan03", out=tmp_path / "out")
    assert found.saliency is None
    assert found.volume is None
    assert found.map_name == ""
    assert {file.name for file in found.files} == {"attention.svg", "attention.png", "attention.csv"}
    assert any("without --scans" in remark for remark in found.remarks)


def test_everything_that_is_asked_for_is_written_and_nothing_else(known: Any, tmp_path: Path) -> None:
    outputs = ("png", "csv", "nifti", "animation")
    found = explain(known.run, "scan03", scans=known.scans, out=tmp_path / "out", outputs=outputs, device="cpu")
    names = {"attention.svg", "attention.png", "attention.csv", "montage.png", "saliency.nii.gz", "stack.webp"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert {file.name for file in found.files} == names
    table = pl.read_csv(tmp_path / "out" / "attention.csv")
    assert table["attention"].to_list() == pytest.approx(found.attention.weights.ravel().tolist())
    with Image.open(tmp_path / "out" / "montage.png") as picture:
        assert min(picture.size) > 300
    image = nib.load(tmp_path / "out" / "saliency.nii.gz")
    assert image.shape == (32, 32, 6)
    assert np.asarray(image.dataobj).max() == pytest.approx(float(found.saliency.max()), rel=1e-6)
    for text in ("checks = 1", "did not train on it", "saliency.nii.gz", "encoder: checks-by-hand, by hand"):
        assert text in found.summary()


def test_the_run_folder_holds_explanations_by_default(known: Any, tmp_path: Path) -> None:
    shutil.copytree(known.folder / "run", tmp_path / "run")
    found = explain(tmp_path / "run", "scan03", outputs=("csv",))
    assert found.files == (tmp_path / "run" / "explain" / "scan03" / "attention.csv",)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "", "<img src=x>", "x" * 300, "é"])
def test_a_folder_name_is_plain_whatever_the_id_and_two_ids_never_share_one(name: str) -> None:
    plain = safe_name(name)
    assert plain not in ("", ".", "..")
    assert set(plain) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert len(plain) < 100
    assert len({plain, safe_name(name + "!"), safe_name(name + "?")}) == 3
    assert safe_name("1.2.840.10008") == "1.2.840.10008"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"outputs": ("pdf",)}, "no such output 'pdf'; expected some of png, csv, nifti"),
        ({"outputs": ("nifti",)}, "--nifti: needs the scan's pixels; name their folder with --scans DIR"),
        ({"map": "gradcam"}, "--map: needs the scan's pixels"),
        ({"map": "magic", "scans": "."}, "--map magic: no such map; expected one of attention"),
        ({"endpoint": "stripes"}, "--endpoint stripes: the run has no such endpoint; it has checks"),
        ({"class_name": "0"}, "--class 0: maps of checks .binary. speak for 1"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    known: Any, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        explain(known.run, "scan03", out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_scan_that_the_bag_file_lacks_and_a_bag_file_that_has_moved_are_refused(known: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scan 'scan99' among its 24"):
        explain(known.run, "scan99")
    run = known.run
    run.settings["bags"]["path"] = str(tmp_path / "gone.h5")
    with pytest.raises(InputError, match=r"its bag file .*gone.h5 is no longer there. Say where it is now with --bags"):
        explain(run, "scan03")
    assert explain(run, "scan03", bags=known.folder / "feats.h5", outputs=()).scan_id == "scan03"


def test_slices_that_are_unevenly_spaced_stop_a_nifti_before_any_file(known: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("clear.volume.Volume.has_even_gaps", property(lambda self: False))
    with pytest.raises(InputError, match="NIfTI"):
        explain(known.run, "scan03", scans=known.scans, out=tmp_path / "out", outputs=("png", "nifti"), device="cpu")
    assert not list((tmp_path / "out").iterdir())
