"""Building: the same store however it came about, nothing dropped in silence, and nobody seen who shall not be."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import polars as pl
import pytest
import SimpleITK as sitk

from clear import atomic
from clear.atomic import OutputError
from clear.errors import InputError
from clear.headers import read_record
from clear.phantoms import Cohort, write_cohort
from clear.scans import find_scans, read_volume
from clear.stopping import Interrupted, stopping
from pretrain import build_workers, stored_scan
from pretrain.build import BuildResult, build_slices
from pretrain.store import SliceStore, SliceStoreError, describe
from pretrain.store_validation import validate

CRASH = Path(__file__).with_name("store_crash.py")
ROOT = Path(__file__).parents[2]
DL_HEADER = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)


def build(inputs: Path | Sequence[Path], out: Path, **settings: object) -> BuildResult:
    return build_slices(inputs, out, **{"workers": 1, "progress": False} | settings)  # type: ignore[arg-type]


def write_nifti(path: Path, seed: int = 0, *, low: int = -1000, n: int = 4) -> Path:
    values = np.random.default_rng(seed).integers(low, low + 2000, (10, 12, n)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.7, -0.9, 3.0, 1.0])), path)
    return path


def contents(store: Path) -> dict[str, bytes]:
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def record(store: Path) -> list[dict[str, str]]:
    with store.with_name(f"{store.stem}.qc.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Six patients of the embedded cohort, seven CT series and two localizers."""
    return write_cohort(tmp_path_factory.mktemp("cohort") / "c", patients=6, matrix=48, slices=6, workers=1)


@pytest.fixture(scope="module")
def whole(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's store; treat it as read-only."""
    out = tmp_path_factory.mktemp("whole") / "s.zarr"
    build(cohort.dicom, out, boxes=cohort.boxes)
    return out


def test_the_cohort_becomes_a_store_and_is_counted(cohort: Cohort, tmp_path: Path) -> None:
    result = build(cohort.dicom, tmp_path / "s.zarr", boxes=cohort.boxes)
    store = SliceStore(tmp_path / "s.zarr")
    assert (result.scans, result.new, result.patients, result.set_aside) == (7, 7, 6, cohort.localizers)
    assert (result.slices, result.boxes, result.digest) == (len(store), len(store.boxes), store.digest)
    assert result.exit_status == 0
    line = result.summary().splitlines()[0]
    assert line.startswith(f"{tmp_path / 's.zarr'}: {len(store)} slices of 7 scans (7 new) and 6 patients, ")
    with cohort.boxes.open() as file:
        expected = sum(int(row["slice1"]) - int(row["slice0"]) for row in csv.DictReader(file))
    assert len(store.boxes) == expected
    assert store.table["patient_id"].unique().sort().to_list() == [f"PHANTOM-{i:04d}" for i in range(1, 7)]
    assert {(row["status"], row["reason"]) for row in record(tmp_path / "s.zarr")} == {
        ("done", ""),
        ("set aside", "localizer"),
    }


def test_stored_padding_is_air(cohort: Cohort, whole: Path) -> None:
    store = SliceStore(whole)
    padded = 0
    for scan in find_scans(cohort.dicom, cache=False):
        if scan.verdict != "use":
            continue
        volume = read_volume(scan)
        rows = store.table.filter(pl.col("scan_id") == scan.scan_id)["row"]
        padding = volume.padding if volume.padding is not None else [None] * len(volume.hu)
        for image, row, limits in zip(volume.hu, rows, padding, strict=True):
            outside = np.zeros(image.shape, bool) if limits is None else (image >= limits[0]) & (image <= limits[1])
            padded += outside.sum()
            np.testing.assert_array_equal(store.read(row).hu, np.where(outside, -1000, image))
    assert padded > 0


def test_workers_and_the_order_of_inputs_change_no_byte(cohort: Cohort, whole: Path, tmp_path: Path) -> None:
    folders = sorted(path for path in cohort.dicom.iterdir())
    build(folders, tmp_path / "a.zarr", boxes=cohort.boxes, workers=1)
    build(folders[::-1], tmp_path / "b.zarr", boxes=cohort.boxes, workers=3)
    first, second = SliceStore(tmp_path / "a.zarr"), SliceStore(tmp_path / "b.zarr")
    assert contents(first.path) == contents(second.path)
    assert first.digest == SliceStore(whole).digest  # one folder above or several: the same scans


def test_adding_to_a_store_equals_building_at_once(cohort: Cohort, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    folders = sorted(path for path in cohort.dicom.iterdir())
    first = build(folders[4:], out, boxes=cohort.boxes)
    assert 0 < first.scans < 7
    assert {problem.reason for problem in first.box_problems} == {"no_scan"}
    second = build(folders[:4], out, boxes=cohort.boxes)
    assert second.new == 7 - first.scans
    assert {(problem.reason, problem.lost) for problem in second.box_problems} == {("stored", False)}
    assert SliceStore(out).digest == SliceStore(whole).digest
    assert SliceStore(out).table.drop("source").equals(SliceStore(whole).table.drop("source"))
    assert SliceStore(out).boxes.equals(SliceStore(whole).boxes)
    assert validate(out)


def test_what_is_finished_is_not_read_again(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "s.zarr"
    build(cohort.dicom, out)
    before = contents(out)

    def read(scan: object) -> None:
        raise AssertionError("a finished scan is read again")

    monkeypatch.setattr(build_workers, "read_volume", read)
    again = build(cohort.dicom, out)
    assert (again.scans, again.new, again.failed) == (7, 0, 0)
    assert contents(out) == before
    marked = build(cohort.dicom, out, boxes=cohort.boxes)  # boxes come later, and no scan is read for them
    assert (marked.new, marked.failed) == (0, 0)
    assert marked.boxes > 0
    assert build(cohort.dicom, out).boxes == marked.boxes  # and stay


def test_a_scan_whose_file_changed_is_stored_anew_and_loses_its_boxes(tmp_path: Path) -> None:
    out, path = tmp_path / "s.zarr", write_nifti(tmp_path / "in" / "a.nii", 1)
    write_nifti(tmp_path / "in" / "b.nii", 2)
    table = tmp_path / "boxes.csv"
    table.write_text("scan_id,slice,x0,y0,x1,y1\na,0,1,2,3,4\nb,0,1,2,3,4\n")
    build(tmp_path / "in", out, boxes=table)
    store = SliceStore(out)
    write_nifti(path, 3, n=5)
    assert build(tmp_path / "in", out).new == 1
    changed = SliceStore(out)
    assert changed.digest != store.digest
    np.testing.assert_array_equal(changed.read(0).hu, read_volume(path).hu[0])
    assert changed.boxes["row"].to_list() == [5]
    assert len(list((out / "scans").iterdir())) == 3  # two arrays and zarr.json: nothing old is left behind


def test_a_scan_of_the_same_id_from_elsewhere_does_not_replace_one(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    build(write_nifti(tmp_path / "x" / "case1.nii", 1), out)
    digest = SliceStore(out).digest
    result = build(write_nifti(tmp_path / "y" / "case1.nii", 2), out)
    assert result.problems["case1"].reason == "ambiguous_scan_id"
    assert result.exit_status == 3
    assert SliceStore(out).digest == digest
    with pytest.raises(InputError, match="2 ambiguous_scan_id"):
        build([tmp_path / "x", tmp_path / "y"], tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr").exists()
    assert build(tmp_path / "x", tmp_path / "t.zarr").scans == 1
    shutil.move(tmp_path / "x", tmp_path / "moved")  # the same scan at another place is the same scan
    assert build(tmp_path / "moved", tmp_path / "t.zarr").new == 0


def test_overlapping_inputs_count_once(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "in" / "a.nii")
    assert build([tmp_path / "in", path, tmp_path / "in"], tmp_path / "s.zarr").scans == 1


def test_mr_and_unreadable_scans_are_refused_and_the_others_go_on(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "ct.nii")
    write_nifti(tmp_path / "in" / "mr.nii", low=0)
    cut = write_nifti(tmp_path / "in" / "cut.nii", 5)
    cut.write_bytes(cut.read_bytes()[:-50])
    result = build(tmp_path / "in", tmp_path / "s.zarr")
    assert (result.scans, result.refused, result.failed, result.exit_status) == (1, 2, 0, 3)
    assert {name: problem.reason for name, problem in result.problems.items()} == {
        "mr": "modality",
        "cut": "truncated_pixel_data",
    }
    assert "mr.nii: MR; a slice store holds CT in HU" in result.problems["mr"].message
    rows = {row["name"]: row["status"] for row in record(tmp_path / "s.zarr")}
    assert rows == {"ct": "done", "mr": "refused", "cut": "refused"}
    with pytest.raises(InputError, match="no CT scan that can be used; 1 modality"):
        build(tmp_path / "in" / "mr.nii", tmp_path / "t.zarr")


def test_boxes_that_cannot_be_used_are_counted_listed_and_cost_nothing_else(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii")
    table = tmp_path / "boxes.csv"
    table.write_text("scan_id,slice,x0,y0,x1,y1\na,0,1,2,3,4\na,9,1,2,3,4\nb,0,1,2,3,4\na,0,3,2,3,4\n")
    result = build(tmp_path / "in", tmp_path / "s.zarr", boxes=table)
    assert (result.boxes, result.lost_boxes, result.exit_status) == (1, 3, 3)
    listed = [
        (row["name"], row["status"], row["reason"]) for row in record(tmp_path / "s.zarr") if row["what"] == "box"
    ]
    assert listed == [
        ("boxes.csv row 3", "lost", "outside"),
        ("boxes.csv row 4", "lost", "no_scan"),
        ("boxes.csv row 5", "lost", "empty_box"),
    ]
    assert "1 rows of boxes (no_scan), the first: boxes.csv row 4: no scan has the scan_id 'b'" in result.summary()


# patients who are left out


def test_patients_are_left_out_by_a_list_and_also_taken_out(cohort: Cohort, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    shutil.copytree(whole, out)
    result = build(cohort.dicom, out, boxes=cohort.boxes, leave_out=["PHANTOM-0003", "PHANTOM-0001"])
    seen = SliceStore(out).table["patient_id"].unique().to_list()
    assert sorted(seen) == ["PHANTOM-0002", "PHANTOM-0004", "PHANTOM-0005", "PHANTOM-0006"]
    assert result.left_out == 3  # one of the two has two series
    assert result.exit_status == 0
    assert {problem.reason for problem in result.box_problems} <= {"unused_scan"}
    fresh = build(cohort.dicom, tmp_path / "t.zarr", boxes=cohort.boxes, leave_out=["PHANTOM-0001", "PHANTOM-0003"])
    assert fresh.digest == result.digest
    assert len(list((out / "scans").iterdir())) == result.scans + 1  # their voxels are gone too


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("out.csv", "patient_id\nPHANTOM-0002\n"),
        ("out.txt", "PHANTOM-0002\n\n"),
        ("folds.csv", "patient_id,split\nPHANTOM-0002,test\nPHANTOM-0004,train\n"),
    ],
)
def test_a_file_says_who_is_left_out(cohort: Cohort, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    build(cohort.dicom, tmp_path / "s.zarr", leave_out=tmp_path / name)
    seen = set(SliceStore(tmp_path / "s.zarr").table["patient_id"])
    assert seen == {f"PHANTOM-{i:04d}" for i in (1, 3, 4, 5, 6)}


def test_an_id_spelled_almost_alike_lets_nobody_through(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii")
    scans = tmp_path / "scans.csv"
    scans.write_text("path,patient_id\na.nii,000091\n")
    with pytest.raises(InputError, match="patient '91' is to be left out, and scans are of a patient '000091'"):
        build(tmp_path / "in", tmp_path / "s.zarr", scans=scans, leave_out=["91"])
    assert build(tmp_path / "in", tmp_path / "s.zarr", scans=scans, leave_out=["17"]).scans == 1


def test_a_scan_of_an_unknown_patient_is_refused_while_anybody_is_left_out(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii")
    with pytest.raises(InputError, match=r"1 unknown_patient.*a: its patient is not known"):
        build(tmp_path / "in", tmp_path / "s.zarr", leave_out=["p1"])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Scans of four patients; `again` is `a` under another patient's id, whose other scan is `other`."""
    for i, name in enumerate(("a", "b", "c", "other")):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    shutil.copy(tmp_path / "in" / "a.nii", tmp_path / "in" / "again.nii")
    rows = ["a.nii,A", "b.nii,B", "c.nii,C", "again.nii,ANON-7", "other.nii,ANON-7"]
    (tmp_path / "scans.csv").write_text("\n".join(["path,patient_id", *rows]))
    return tmp_path


def test_a_copy_under_another_id_is_left_out_with_all_that_is_its_patients(copied: Path) -> None:
    result = build(copied / "in", copied / "s.zarr", scans=copied / "scans.csv", leave_out=["A"])
    assert SliceStore(copied / "s.zarr").scans["scan_id"].to_list() == ["b", "c"]
    assert (result.scans, result.new, result.left_out, result.left_out_copies, result.set_aside) == (2, 2, 1, 2, 0)
    assert "2 more scans are left out, since they or others of their patients have the very voxels" in result.summary()
    rows = {row["name"]: (row["status"], row["reason"]) for row in record(copied / "s.zarr")}
    assert rows["again"] == rows["other"] == ("set aside", "left_out_copy")
    assert rows["a"] == ("set aside", "left_out")
    assert len(list((copied / "s.zarr" / "scans").iterdir())) == 3  # with zarr.json: their voxels are gone


@pytest.mark.parametrize("there", [True, False], ids=["among the inputs", "in the store alone"])
def test_copies_are_taken_out_of_a_store_too(copied: Path, there: bool) -> None:
    assert build(copied / "in", copied / "s.zarr", scans=copied / "scans.csv").copies == 1
    if not there:
        for name in ("a", "again", "other"):
            (copied / "in" / f"{name}.nii").unlink()
        (copied / "scans.csv").write_text("path,patient_id\nb.nii,B\nc.nii,C\n")
    result = build(copied / "in", copied / "s.zarr", scans=copied / "scans.csv", leave_out=["A"])
    assert SliceStore(copied / "s.zarr").scans["scan_id"].to_list() == ["b", "c"]
    assert (result.new, result.left_out_copies) == (0, 2)


@pytest.mark.parametrize(("before", "now", "stays"), [("A", "B", True), ("X", "A", False)])
def test_the_inputs_say_whose_a_stored_scan_is(tmp_path: Path, before: str, now: str, stays: bool) -> None:
    table = tmp_path / "scans.csv"
    for i, name in enumerate("ac"):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    table.write_text(f"path,patient_id\na.nii,{before}\nc.nii,C\n")
    build(tmp_path / "in", tmp_path / "s.zarr", scans=table)
    table.write_text(f"path,patient_id\na.nii,{now}\nc.nii,C\n")
    build(tmp_path / "in", tmp_path / "s.zarr", scans=table, leave_out=["A"])
    assert SliceStore(tmp_path / "s.zarr").scans["patient_id"].to_list() == ([now, "C"] if stays else ["C"])


def test_boxes_of_a_copy_are_not_missed(copied: Path) -> None:
    rows = ["scan_id,slice,x0,y0,x1,y1,axes", "again,0,1,1,3,3,canonical", "b,0,1,1,3,3,canonical"]
    (copied / "boxes.csv").write_text("\n".join(rows))
    tables = {"scans": copied / "scans.csv", "boxes": copied / "boxes.csv"}
    result = build(copied / "in", copied / "s.zarr", leave_out=["A"], **tables)
    assert (result.boxes, result.lost_boxes, result.exit_status) == (1, 0, 0)
    assert [problem.message for problem in result.box_problems] == ["again: 1 boxes lie in it, but it is left out"]


def test_scans_left_out_are_not_read_where_nothing_looks_like_them(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(copied / "in" / "long.nii", 9, n=5)
    with (copied / "scans.csv").open("a") as file:
        file.write("\nlong.nii,L\n")
    read: list[str] = []
    real = build_workers.read_volume

    def reading(scan: object) -> object:
        read.append(scan.scan_id)  # type: ignore[attr-defined]
        return real(scan)  # type: ignore[arg-type]

    monkeypatch.setattr(build_workers, "read_volume", reading)
    assert build(copied / "in", copied / "s.zarr", scans=copied / "scans.csv", leave_out=["L", "B"]).scans == 4 - 1 + 1
    assert sorted(read) == ["a", "again", "b", "c", "other"]


# DeepLesion as downloaded


def deeplesion(folder: Path) -> Path:
    """Three patients in official sets train, val and test; slices of 12 x 16 pixels, as downloaded."""

    def lesion(series: str, number: int, box: str, span: str, split: int) -> str:
        return (
            f'{series}_{number:03d}.png,{int(series[:6])},1,1,{number},"1,1,2,2,3,3,4,4","{box}","1, 1",'
            f'"0.4, 0.2, 0.4",-1,0,"{span}","0.7, 0.8, 2.5","16, 12","-175, 275",F,62,{split}'
        )

    rows = [
        lesion("000001_01_01", 2, "3, 2, 9, 6", "1, 3", 1),
        lesion("000001_01_01", 2, "10, 2, 12, 6", "1, 3", 1),
        lesion("000001_01_01", 8, "3, 2, 9, 6", "7, 8", 1),
        lesion("000002_01_01", 3, "3, 2, 9, 6", "1, 3", 2),
        lesion("000003_01_01", 1, "3, 2, 9, 6", "1, 3", 3),
    ]
    rng = np.random.default_rng(1)
    for series, numbers in {
        "000001_01_01": (1, 2, 3, 7, 8),
        "000002_01_01": (1, 2, 3),
        "000003_01_01": (1, 2, 3),
    }.items():
        place = folder / "Images_png" / series
        place.mkdir(parents=True)
        for number in numbers:
            values = (rng.integers(-1000, 1000, (12, 16)) + 32768).astype(np.uint16)
            sitk.WriteImage(sitk.GetImageFromArray(values), str(place / f"{number:03d}.png"))
    (folder / "DL_info.csv").write_text("\n".join([DL_HEADER, *rows]) + "\n")
    return folder


def test_deeplesion_as_downloaded(tmp_path: Path) -> None:
    folder = deeplesion(tmp_path / "DeepLesion")
    result = build(folder, tmp_path / "s.zarr", boxes=folder / "DL_info.csv", task="deeplesion")
    assert (result.scans, result.slices, result.patients, result.boxes, result.exit_status) == (4, 11, 3, 5, 0)
    table = SliceStore(tmp_path / "s.zarr").table
    assert table["dataset"].unique().to_list() == ["deeplesion"]
    marked = table.filter(pl.col("n_boxes") > 0).select("scan_id", "slice", "n_boxes").rows()
    assert marked == [  # slices from feet to head, file numbers from head to feet
        ("000001_01_01_001-003", 1, 2),
        ("000001_01_01_007-008", 0, 1),
        ("000002_01_01_001-003", 0, 1),
        ("000003_01_01_001-003", 2, 1),
    ]
    store = SliceStore(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read(1).boxes, [[1.5, 2.5, 5.5, 8.5], [1.5, 9.5, 5.5, 11.5]])
    assert store.read(1).spacing_mm == (0.8, 0.7)
    png = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "Images_png/000001_01_01/003.png")))
    np.testing.assert_array_equal(store.read(0).hu, png.astype(np.int32) - 32768)


def test_a_table_that_comes_later_gives_the_spacing(tmp_path: Path) -> None:
    folder = deeplesion(tmp_path / "DeepLesion")
    table = (folder / "DL_info.csv").rename(tmp_path / "DL_info.csv")
    first = build(folder, tmp_path / "s.zarr")
    assert (first.scans, first.unknown_spacing) == (4, 4)
    again = build(folder, tmp_path / "s.zarr", boxes=table)
    assert (again.scans, again.unknown_spacing, again.boxes) == (4, 0, 5)
    assert SliceStore(tmp_path / "s.zarr").read(0).spacing_mm == (0.8, 0.7)
    validate(tmp_path / "s.zarr")


@pytest.mark.parametrize("place", [".", "Images_png"])
def test_the_official_test_patients_of_a_task_are_left_out(tmp_path: Path, place: str) -> None:
    folder = deeplesion(tmp_path / "DeepLesion")
    boxes = folder / "DL_info.csv"
    result = build(folder / place, tmp_path / "s.zarr", boxes=boxes, task="deeplesion", leave_out="test")
    assert set(SliceStore(tmp_path / "s.zarr").table["patient_id"]) == {"1", "2"}
    assert (result.left_out, result.boxes, result.exit_status) == (1, 4, 0)


def test_leaving_out_the_test_patients_needs_a_task_that_has_some(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii")
    with pytest.raises(InputError, match="whose test patients"):
        build(tmp_path / "in", tmp_path / "s.zarr", leave_out="test")
    with pytest.raises(InputError, match="no labels of deeplesion in or beside"):
        build(tmp_path / "in", tmp_path / "s.zarr", leave_out="test", task="deeplesion")


def test_real_slices_of_the_deeplesion_layout(shared_data: Path, tmp_path: Path) -> None:
    examples = shared_data / "data" / "format_examples"
    result = build(examples / "deeplesion_16bit_derived", tmp_path / "s.zarr")
    store = SliceStore(tmp_path / "s.zarr")
    assert (result.scans, len(store)) == (1, 6)
    assert store.table["spacing_x_mm"].to_list() == [None] * 6  # no table, so it is not known
    assert store.read(0).spacing_mm == (1.0, 1.0)
    assert result.unknown_spacing == 1
    assert "the pixel spacing of 1 scans is not known, so crops in mm cannot be cut from them" in result.summary()
    assert describe(tmp_path / "s.zarr")["spacing"] == "not known of 1 scans"
    png = examples / "deeplesion_16bit_derived" / "Images_png" / "900001_01_01" / "016.png"
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(png))).astype(np.int32) - 32768
    np.testing.assert_array_equal(store.read(0).hu, values)
    info = examples / "deeplesion_info" / "Kaggle_DL_info.csv"
    marked = build(examples / "deeplesion_16bit_derived", tmp_path / "s.zarr", boxes=info)
    assert {problem.reason for problem in marked.box_problems} == {"no_scan", "possibly_noisy"}
    assert len(marked.box_problems) == 1349


def test_a_windowed_copy_of_deeplesion_is_refused(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="eight_bit_png"):
        build(shared_data / "data" / "format_examples" / "deeplesion_8bit_trap", tmp_path / "s.zarr")


# dying and going on


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_in_the_middle_goes_on_to_the_same_store(cohort: Cohort, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "s.zarr"
    command = [sys.executable, str(CRASH), "run", str(cohort.dicom), str(out), "0.5", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "reading"
        while len(finished(out)) < 2:
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    if workers > 1:
        time.sleep(2)  # workers end when they have finished the scan at hand
    left = finished(out)
    assert 2 <= len(left) < 7
    with pytest.raises(SliceStoreError, match="not finished"):
        SliceStore(out)
    result = build(cohort.dicom, out)
    assert (result.scans, result.new) == (7, 7 - len(left))
    build(cohort.dicom, tmp_path / "t.zarr")
    assert contents(out) == contents(tmp_path / "t.zarr")


def finished(store: Path) -> list[str]:
    folder = store / "scans"
    return [path.name for path in folder.iterdir() if len(path.name) == 32] if folder.is_dir() else []


@pytest.mark.parametrize("every", [13, pytest.param(3, marks=pytest.mark.slow)])
def test_a_build_may_die_before_any_disk_call(tmp_path: Path, every: int) -> None:
    for i, name in enumerate("abc"):
        write_nifti(tmp_path / "scans" / f"{name}.nii", i)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, str(CRASH), "sweep", str(tmp_path), str(every)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(said.stdout)
    assert found["mismatches"] == [], said.stderr
    assert found["instants"] >= min(8, found["calls"] // every)


def test_two_builds_of_one_store_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "in" / "a.nii")
    real = build_workers.read_volume

    def read(scan: object) -> object:
        with pytest.raises(InputError, match="another clear is building it"):
            build(tmp_path / "in", tmp_path / "s.zarr")
        return real(scan)  # type: ignore[arg-type]

    monkeypatch.setattr(build_workers, "read_volume", read)
    assert build(tmp_path / "in", tmp_path / "s.zarr").scans == 1


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate("abc"):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    real = build_workers.read_volume

    def read(scan: object) -> object:
        if scan.scan_id == "b":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return real(scan)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(build_workers, "read_volume", read)
        with pytest.raises(Interrupted, match="Run the same command to go on") as stopped:
            build(tmp_path / "in", tmp_path / "s.zarr")
    assert stopped.value.exit_status == 130
    assert build(tmp_path / "in", tmp_path / "s.zarr").new == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_a_build_after_the_scan_at_hand_also_inside_a_run_that_has_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for i, name in enumerate("abc"):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    real = build_workers.read_volume

    def read(scan: object) -> object:
        if scan.scan_id == "b":  # type: ignore[attr-defined]
            os.kill(os.getpid(), number)
        return real(scan)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, stopping("the run ends", "at once"):
        patch.setattr(build_workers, "read_volume", read)
        with pytest.raises(Interrupted, match=r"s\.zarr: stopped; finished scans are kept\. Run the same command"):
            build(tmp_path / "in", tmp_path / "s.zarr")
    assert len(finished(tmp_path / "s.zarr")) == 2
    assert build(tmp_path / "in", tmp_path / "s.zarr").new == 1


def test_a_stop_while_headers_are_read_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate("abc"):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    read: list[object] = []

    def reading(*arguments: object) -> object:
        read.append(arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return read_record(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("clear.headers.read_record", reading)
    with pytest.raises(Interrupted, match="finished scans are kept"):
        build(tmp_path / "in", tmp_path / "s.zarr")
    assert len(read) == 1
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scheduler_that_tells_every_process_to_stop_costs_no_scan(
    cohort: Cohort, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "s.zarr"
    command = [sys.executable, str(CRASH), "run", str(cohort.dicom), str(out), "0.5", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "reading"
        while not finished(out):
            assert child.poll() is None
        os.killpg(child.pid, signal.SIGTERM)
        _, said = child.communicate(timeout=60)
    assert "Interrupted" in said
    assert not out.with_name("s.qc.csv").exists()
    left = finished(out)
    assert 1 <= len(left) < 7
    assert build(cohort.dicom, out).new == 7 - len(left)
    build(cohort.dicom, tmp_path / "t.zarr")
    assert contents(out) == contents(tmp_path / "t.zarr")


def test_a_file_that_kills_its_reader_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate("abcde"):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    dies_of_b = (
        "import pretrain.build_workers as w; real = w.read_volume; import os; "
        "w.read_volume = lambda scan: os._exit(9) if scan.scan_id == 'b' else real(scan); w.serve()"
    )
    code = build_workers._CODE.partition("from pretrain")[0]
    monkeypatch.setattr(build_workers, "_CODE", code + dies_of_b)
    result = build(tmp_path / "in", tmp_path / "s.zarr", workers=2)
    assert (result.scans, result.failed, result.problems["b"].reason) == (4, 1, "reader_died")
    assert SliceStore(tmp_path / "s.zarr").scans["scan_id"].to_list() == list("acde")


def test_an_error_of_the_disk_in_a_worker_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate("abc"):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    full = (
        "import pretrain.build_workers as w, pretrain.stored_scan as s, errno\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'full')\n"
        "s._write_array = full; w.serve()"
    )
    code = build_workers._CODE.partition("from pretrain")[0]
    monkeypatch.setattr(build_workers, "_CODE", f"{code}\n{full}")
    with pytest.raises(OutputError, match="the disk is full"):
        build(tmp_path / "in", tmp_path / "s.zarr", workers=2)
    assert not (tmp_path / "s.zarr").exists()  # nothing was finished, so nothing is left


# disks and places


def refuse(error: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    return call


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    for i, name in enumerate("ab"):
        write_nifti(tmp_path / "in" / f"{name}.nii", i)
    out = tmp_path / "s.zarr"
    build(tmp_path / "in" / "a.nii", out)
    digest = SliceStore(out).digest
    with monkeypatch.context() as patch:
        patch.setattr(stored_scan, "_write_array", refuse(errno.ENOSPC))
        with pytest.raises(OutputError, match="the disk is full"):
            build(tmp_path / "in", out)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "pwrite_all", refuse(errno.ENOSPC))
        with pytest.raises(OutputError, match="the disk is full"):
            build(tmp_path / "in", out)
    assert SliceStore(out).digest == digest
    assert build(tmp_path / "in", out).scans == 2


def test_places_that_cannot_be_a_store_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in" / "a.nii")
    (tmp_path / "file.zarr").write_text("")
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "notes.txt").write_text("")
    for out, says in [
        ("slices", "named NAME.zarr"),
        ("file.zarr", "is a file"),
        ("mine.zarr", "exists and is no slice store"),
        ("absent/s.zarr", "does not exist"),
    ]:
        with pytest.raises(OutputError, match=says):
            build(tmp_path / "in", tmp_path / out)
    assert [path.name for path in (tmp_path / "mine.zarr").iterdir()] == ["notes.txt"]


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "in" / "a.nii")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(OutputError, match="may not be written here"):
        build(tmp_path / "in", tmp_path / "s.zarr")


def test_inputs_without_a_scan_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder is empty"):
        build(tmp_path / "empty", tmp_path / "s.zarr")
    with pytest.raises(InputError, match="no such folder"):
        build(tmp_path / "absent", tmp_path / "s.zarr")
    with pytest.raises(InputError, match="expected a folder of scans"):
        build([], tmp_path / "s.zarr")
    with pytest.raises(InputError, match="expected 1 or more"):
        build(tmp_path / "empty", tmp_path / "s.zarr", workers=0)
    assert not (tmp_path / "s.zarr").exists()


def test_a_damaged_store_is_not_added_to(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    build(write_nifti(tmp_path / "in" / "a.nii"), out)
    (table,) = (out / "tables").glob("scans-*.parquet")
    table.unlink()
    with pytest.raises(SliceStoreError, match="is missing"):
        build(tmp_path / "in", out)


def test_a_store_inside_its_own_input_is_no_scan(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii")
    first = build(tmp_path, tmp_path / "s.zarr")
    again = build(tmp_path, tmp_path / "s.zarr")
    assert (again.scans, again.new, again.digest) == (1, 0, first.digest)
