"""Explaining one scan: the lesion's slice and place come out, and only models that did not train on it speak."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import polars as pl
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from aggregate import train
from aggregate.explain.explain import explain, safe_name
from aggregate.explain.saliency import MAPS
from aggregate.explain.target import targets_of
from aggregate.run import Run
from clear.atomic import OutputError
from clear.bags import Bags, write_bags
from clear.errors import InputError, MissingExtra
from clear.scans import find_scans, read_volume

CELL = 8


def test_the_most_attended_slice_and_the_brightest_place_are_the_lesions(known: Any) -> None:
    for scan, (z, row, column) in known.places.items():
        found = explain(known.run, scan, scans=known.scans, outputs=(), device="cpu")
        assert found.top_slices(1) == [z], scan
        assert found.saliency is not None
        at = np.unravel_index(int(found.saliency.argmax()), found.saliency.shape)
        assert (at[0], at[1] // CELL, at[2] // CELL) == (z, row, column), scan


def test_a_run_that_weighs_no_slice_is_explained_by_what_each_contributed(known: Any, tmp_path: Path) -> None:
    run = train(
        known.folder / "feats.h5",
        labels=known.folder / "labels.csv",
        target="checks",
        patients=known.folder / "labels.csv",
        aggregator="mean",
        folds=3,
        epochs=40,
        batch=8,
        lr=3e-3,
        output=tmp_path / "run",
        baselines=(),
        device="cpu",
        progress=False,
    )
    hits = 0
    for scan, (z, row, column) in known.places.items():
        found = explain(run, scan, scans=known.scans, outputs=(), device="cpu", class_name="1", endpoint="checks")
        assert found.attention.kind == "contribution"
        assert found.saliency is not None
        at = np.unravel_index(int(found.saliency.argmax()), found.saliency.shape)
        hits += (at[0], at[1] // CELL, at[2] // CELL) == (z, row, column)
    assert hits >= 4  # of 12; a place drawn at random is the lesion's once in 96 times
    written = explain(run, "scan03", out=tmp_path / "out")
    table = pl.read_csv(tmp_path / "out" / "attention.csv")
    assert table["contribution"].sum() == pytest.approx(1)
    assert "attention" not in table.columns
    assert "slices of highest contribution, of 6: " in written.summary()
    assert any(remark.startswith("mean weighs no slice: in place of attention") for remark in written.remarks)


def test_a_nested_run_names_the_aggregators_that_its_folds_chose(known: Any, tmp_path: Path) -> None:
    run = train(
        known.folder / "feats.h5",
        labels=known.folder / "labels.csv",
        target="checks",
        patients=known.folder / "labels.csv",
        protocol="nested-cv",
        grid={"aggregator": ["linear"]},
        folds=3,
        epochs=1,
        output=tmp_path / "run",
        baselines=(),
        device="cpu",
        progress=False,
    )
    found = explain(run, "scan03", outputs=())
    assert found.attention.kind == "contribution"
    assert found.remarks[0].startswith("linear weighs no slice: in place of attention")
    assert "other folds" not in found.remarks[0]
    run.settings["fits"][0]["aggregator"] = "abmil"
    assert explain(run, "scan03", outputs=()).remarks[0].endswith("for the models of other folds as well")


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
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names, "explanation.json"}
    assert {file.name for file in found.files} == names
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert set(record["files"]) == names
    said = {"scan_id": "scan03", "endpoint": "checks", "class": "1", "map": "gradcam", "slices": "attention"}
    assert record | said == record
    assert record["score"] == found.score
    assert record["models"] == [list(pair) for pair in found.attention.pairs]
    with Bags(known.folder / "feats.h5") as bags:
        assert record["source_digest"] == bags.row("scan03").digest
        assert record["bags"] == bags.digest
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


def test_files_of_another_explanation_do_not_stay_beside_this_one(known: Any, tmp_path: Path) -> None:
    place = tmp_path / "out"
    outputs = ("csv", "nifti")
    explain(known.run, "scan01", scans=known.scans, out=place, outputs=outputs, device="cpu")
    (place / "notes.txt").write_text("my own")
    found = explain(known.run, "scan03", out=place, outputs=("csv",))
    assert {file.name for file in place.iterdir()} == {"attention.csv", "explanation.json", "notes.txt"}
    assert json.loads((place / "explanation.json").read_text())["scan_id"] == "scan03"
    assert found.files == (place / "attention.csv",)


def test_what_a_failed_explanation_leaves_is_never_taken_for_the_next_one(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError(28, "the disk is full", "stack.webp")

    place, outputs = tmp_path / "out", ("csv", "nifti", "animation")
    explain(known.run, "scan01", scans=known.scans, out=place, outputs=("png", "csv"), device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("aggregate.explain.animation.write_animation", full)
        with pytest.raises(OutputError, match="the disk is full"):
            explain(known.run, "scan03", scans=known.scans, out=place, outputs=outputs, device="cpu")
    assert {file.name for file in place.iterdir()} == {"attention.csv", "saliency.nii.gz"}  # no record: half written
    explain(known.run, "scan05", out=place, outputs=("csv",))
    assert {file.name for file in place.iterdir()} == {"attention.csv", "explanation.json"}


def test_a_run_of_several_answers_has_a_folder_for_each(known: Any, tmp_path: Path) -> None:
    labels = pl.read_csv(known.folder / "labels.csv").with_columns(other=pl.Series([0, 1] * 12).shuffle(seed=1))
    labels.write_csv(tmp_path / "labels.csv")
    (tmp_path / "two.yaml").write_text("name: two\nendpoints:\n  - {name: checks}\n  - {name: other}\n")
    run = train(
        known.folder / "feats.h5",
        labels=tmp_path / "labels.csv",
        task=str(tmp_path / "two.yaml"),
        patients=tmp_path / "labels.csv",
        folds=2,
        epochs=1,
        output=tmp_path / "run",
        baselines=(),
        device="cpu",
        progress=False,
    )
    places = {explain(run, "scan03", endpoint=name, outputs=("csv",)).files[0].parent for name in ("checks", "other")}
    assert places == {tmp_path / "run" / "explain" / "scan03" / name for name in ("checks", "other")}


def test_a_bag_file_that_moved_with_its_run_is_found(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(known.folder / "run", tmp_path / "study" / "run")
    shutil.copy(known.folder / "feats.h5", tmp_path / "study" / "feats.h5")
    run = Run(tmp_path / "study" / "run")
    run.settings["bags"]["path"] = "elsewhere/feats.h5"
    assert explain(run, "scan03", outputs=()).scan_id == "scan03"


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


def test_another_scan_of_a_patient_of_the_run_is_explained_by_models_that_did_not_see_the_patient(
    known: Any, tmp_path: Path
) -> None:
    # the run knows the patient of scan03 by another scan: to it scan03 is a sibling that was left out
    shutil.copytree(known.folder / "run", tmp_path / "run")
    for table in ("folds.csv", "predictions.csv"):
        rows = pl.read_csv(tmp_path / "run" / table, infer_schema=False)
        rows.with_columns(pl.col("scan_id").replace("scan03", "sibling")).write_csv(tmp_path / "run" / table)
    run = Run(tmp_path / "run")
    run.settings["scan_digests"].pop("scan03")
    found = explain(run, "scan03", outputs=())
    assert found.attention.pairs == explain(known.run, "scan03", outputs=()).attention.pairs
    assert len(found.attention.pairs) == 1
    assert "2 of 3 models are left out: they were fitted on another scan of this patient" in found.remarks
    rows = pl.read_csv(tmp_path / "run" / "folds.csv", infer_schema=False)
    seen = pl.when(pl.col("scan_id") == "sibling").then(pl.lit("train")).otherwise("split").alias("split")
    rows.with_columns(seen).write_csv(tmp_path / "run" / "folds.csv")
    run = Run(tmp_path / "run")
    run.settings["scan_digests"].pop("scan03")
    with pytest.raises(InputError, match="every model of the run was fitted on the patient of scan scan03"):
        explain(run, "scan03", outputs=())


def test_a_sibling_is_known_where_the_run_has_its_patients_from_a_table(known: Any, tmp_path: Path) -> None:
    shutil.copytree(known.folder / "run", tmp_path / "run")
    for table in ("folds.csv", "predictions.csv"):  # the run never heard of scan03, and calls its patients otherwise
        rows = pl.read_csv(tmp_path / "run" / table, infer_schema=False).filter(pl.col("scan_id") != "scan03")
        rows.with_columns(pl.col("patient_id").str.replace("patient", "T-")).write_csv(tmp_path / "run" / table)
    run = Run(tmp_path / "run")
    run.settings["scan_digests"].pop("scan03")
    with Bags(known.folder / "feats.h5") as bags:  # scan05 is of the same patient
        rows = [bags.row(scan) for scan in bags]
        rows = [replace(row, patient_id="patient05") if row.scan_id == "scan03" else row for row in rows]
        write_bags(tmp_path / "feats.h5", bags.header, rows, lambda row: bags[row.scan_id])
    found = explain(run, "scan03", bags=tmp_path / "feats.h5", outputs=())
    assert found.attention.pairs == explain(known.run, "scan05", outputs=()).attention.pairs
    assert "2 of 3 models are left out: they were fitted on another scan of this patient" in found.remarks


def test_a_stranger_without_a_patient_id_is_explained_with_a_remark(known: Any, tmp_path: Path) -> None:
    with Bags(known.folder / "feats.h5") as bags:
        rows = [replace(bags.row("scan03"), scan_id="new", digest="0" * 64, patient_id=None)]
        write_bags(tmp_path / "new.h5", bags.header, rows, lambda row: replace(bags["scan03"], scan_id="new"))
    found = explain(known.run, "new", bags=tmp_path / "new.h5", outputs=())
    assert found.attention.pairs == tuple(known.run.pairs)
    assert any("the bag file has no patient id of this scan" in remark for remark in found.remarks)


def as_dicom(known: Any, scan_id: str, folder: Path) -> Path:
    """A scan of the cohort as a DICOM series with the same voxels, of a patient with a name."""
    (scan,) = [each for each in find_scans(known.scans, cache=False, modality="CT") if each.scan_id == scan_id]
    volume = read_volume(scan)
    folder.mkdir()
    for i, (position, voxels) in enumerate(zip(volume.positions_mm, volume.voxels, strict=True)):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = f"1.2.3.4.{i + 1}"
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
        made.Modality, made.PatientID, made.PatientName = "CT", "P7", "Doe^Jane"
        made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.Rows, made.Columns = voxels.shape
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.RescaleSlope, made.RescaleIntercept, made.PixelSpacing = 1, 0, list(volume.spacing_mm[1:])
        made.ImagePositionPatient = [float(v) for v in position]
        made.ImageOrientationPatient = [float(v) for v in (*volume.row_direction, *volume.column_direction)]
        made.PixelData = np.ascontiguousarray(voxels, dtype="<i2").tobytes()
        made.save_as(folder / f"{i}.dcm", enforce_file_format=True)
    return folder


def test_dicom_of_a_scan_under_a_pseudonym_says_that_it_names_the_patient(known: Any, tmp_path: Path) -> None:
    scans = as_dicom(known, "scan03", tmp_path / "dicom")
    outputs = ("csv", "dicom", "segmentation")
    found = explain(known.run, "scan03", scans=scans, out=tmp_path / "out", outputs=outputs, device="cpu")
    assert {file.name for file in found.files} == {"attention.csv", "parametric-map.dcm", "segmentation.dcm"}
    assert pydicom.dcmread(tmp_path / "out" / "parametric-map.dcm").PatientName == "Doe^Jane"
    assert any("copies patient name" in remark for remark in found.remarks)
    plain = explain(known.run, "scan03", scans=scans, out=tmp_path / "plain", outputs=("csv", "nifti"), device="cpu")
    assert not any("copies patient name" in remark for remark in plain.remarks)


def test_a_map_of_zeros_leaves_the_segmentation_out_and_writes_the_rest(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any, **__: Any) -> np.ndarray:
        return np.zeros((6, 1, 4, 4), dtype=np.float32)

    monkeypatch.setattr("aggregate.explain.explain.MAPS", {"gradcam": nothing})
    scans = as_dicom(known, "scan03", tmp_path / "dicom")
    outputs = ("png", "csv", "dicom", "segmentation")
    found = explain(known.run, "scan03", scans=scans, out=tmp_path / "out", outputs=outputs, device="cpu")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("attention.svg", "attention.png", "attention.csv", "montage.png", "parametric-map.dcm", "explanation.json")
    }
    assert "segmentation.dcm is not written: the saliency is 0 everywhere" in found.remarks


@pytest.mark.parametrize("output", ["dicom", "segmentation"])
def test_an_output_that_a_scan_cannot_have_is_refused_before_maps_are_made(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr("aggregate.explain.explain.MAPS", {})
    with pytest.raises(InputError, match="has no DICOM instances"):
        explain(known.run, "scan03", scans=known.scans, out=tmp_path / "out", outputs=("csv", output), device="cpu")
    assert not (tmp_path / "out").exists()


def test_without_highdicom_a_dicom_output_is_refused_before_anything_is_read(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.setattr("aggregate.explain.explain.ScanFolder", None)
    with pytest.raises(MissingExtra, match="highdicom"):
        explain(known.run, "scan03", scans=known.scans, out=tmp_path / "out", outputs=("csv", "dicom"))
    assert not (tmp_path / "out").exists()


def test_slices_off_the_grid_of_a_nifti_are_said_with_their_distance(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"scans": known.scans, "outputs": ("nifti",), "device": "cpu"}
    found = explain(known.run, "scan03", out=tmp_path / "even", **asked)
    assert not any("off the even grid" in remark for remark in found.remarks)
    monkeypatch.setattr("aggregate.explain.nifti.off_grid", lambda volume: 0.048)
    found = explain(known.run, "scan03", out=tmp_path / "rounded", **asked)
    assert any("slices lie up to 0.05 mm off the even grid" in remark for remark in found.remarks)


def test_slices_that_are_unevenly_spaced_stop_a_nifti_before_any_file(known: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("clear.volume.Volume.has_even_gaps", property(lambda self: False))
    monkeypatch.setattr("aggregate.explain.explain.MAPS", {})
    with pytest.raises(InputError, match="NIfTI"):
        explain(known.run, "scan03", scans=known.scans, out=tmp_path / "out", outputs=("png", "nifti"), device="cpu")
    assert not (tmp_path / "out").exists()
