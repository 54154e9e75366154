"""Finding scans in trees of every kind, and reading one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

import clear
from clear.errors import InputError, ScanRefused
from clear.scans import Scan, find_scans, read_volume, survey
from clear.volume import Volume

RNG = np.random.default_rng(7)


def dicom(folder: Path, series: str = "1.2.3", study: str = "1.2", n: int = 3, **tags: Any) -> list[Path]:
    """A tiny axial CT series, one file a slice, named against its order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(n):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{i + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{series}_{n - i:03d}"
        data = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = study, series, tags.get("PatientID", "P1")
        data.Modality, data.FrameOfReferenceUID = "CT", "1.2.9"
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.5 * i], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [0.8, 0.7], 2.5
        data.Rows, data.Columns, data.SamplesPerPixel = 8, 9, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = RNG.integers(0, 2000, (8, 9)).astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        data.save_as(path)
        paths.append(path)
    return paths


def nifti(path: Path, low: int = -1000, n: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(RNG.integers(low, 1500, (n, 12, 10)).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as people have them: two DICOM series, a NIfTI, a mask, notes, hidden and broken files."""
    root = tmp_path / "in"
    dicom(root / "p1" / "ct", "1.2.3", n=3)
    dicom(root / "p1" / "ct", "1.2.4", n=2)
    nifti(root / "p2" / "ct.nii.gz")
    mask = np.zeros((4, 12, 10), np.uint8)
    mask[1:3, 3:9, 3:9] = 1
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(root / "p2" / "mask.nrrd"))
    (root / "notes.txt").write_text("just text")
    (root / "labels.csv").write_text("a,b\n1,2\n")
    (root / ".hidden.nii").write_bytes(b"")
    (root / "p2" / "broken.nii.gz").write_bytes(b"\x1f\x8b broken")
    (root / "p2" / "empty.dcm").write_bytes(b"")
    return root


def outcome(scans: list[Scan]) -> dict[str, tuple[str, str]]:
    return {scan.scan_id: (scan.verdict, scan.reason) for scan in scans}


def test_one_look_finds_every_series_and_every_damaged_image(mixed: Path) -> None:
    found = survey(mixed, cache=False)
    assert outcome(found.scans) == {
        "1.2.3": ("use", ""),
        "1.2.4": ("use", ""),
        "p2/ct": ("use", ""),
        "p2/mask": ("set aside", "segmentation"),
        "p2/broken": ("refused", "unknown_content"),
        "p2/empty": ("refused", "empty_file"),
    }
    assert [scan.scan_id for scan in found.scans] == sorted(scan.scan_id for scan in found.scans)
    assert (found.n_files, found.n_not_images) == (11, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(mixed: Path, workers: int) -> None:
    assert find_scans(mixed, cache=False, workers=workers) == find_scans(mixed, cache=False)


def test_dicom_and_grids_are_read_through_the_same_door(mixed: Path) -> None:
    scans = {scan.scan_id: scan for scan in find_scans(mixed, cache=False)}
    volume = read_volume(scans["1.2.3"])
    assert isinstance(volume, Volume)
    assert_allclose(volume.z_mm, [0, 2.5, 5])
    assert scans["1.2.3"].files == tuple(f"p1/ct/1.2.3_{i:03d}" for i in (3, 2, 1))
    assert read_volume(scans["p2/ct"]).voxels.shape == (4, 12, 10)
    for name in ("p2/mask", "p2/broken"):
        with pytest.raises(ScanRefused):
            read_volume(scans[name])


def test_a_scan_id_does_not_depend_on_its_neighbours(mixed: Path) -> None:
    before = outcome(find_scans(mixed, cache=False))
    shutil.rmtree(mixed / "p1")
    after = outcome(find_scans(mixed, cache=False))
    assert after == {name: what for name, what in before.items() if name in after}


def test_two_files_of_one_id_are_both_refused(tmp_path: Path) -> None:
    nifti(tmp_path / "a" / "ct.nii.gz")
    nifti(tmp_path / "a" / "ct.nrrd")
    nifti(tmp_path / "b" / "ct.nii")
    scans = find_scans(tmp_path, cache=False)
    assert [(scan.scan_id, scan.reason) for scan in scans] == [
        ("a/ct", "ambiguous_scan_id"),
        ("a/ct", "ambiguous_scan_id"),
        ("b/ct", ""),
    ]
    assert "a/ct.nii.gz, a/ct.nrrd" in scans[0].message


def test_a_dicom_series_copied_into_two_folders_is_no_larger_scan(tmp_path: Path) -> None:
    dicom(tmp_path / "a", n=3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    scans = [scan for scan in find_scans(tmp_path, cache=False) if scan.verdict == "use"]
    assert [scan.n_slices for scan in scans] == [3]
    assert scans[0].remarks


def test_a_path_may_be_a_file_or_a_folder_with_one_scan(tmp_path: Path) -> None:
    path = nifti(tmp_path / "ct.nii.gz")
    (tmp_path / "notes.txt").write_text("x")
    assert read_volume(path).digest == read_volume(str(tmp_path)).digest
    dicom(tmp_path / "d", n=3)
    assert read_volume(tmp_path / "d").n_slices == 3
    assert read_volume(tmp_path / "d" / "1.2.3_001").n_slices == 1


def test_a_folder_with_several_series_names_them(mixed: Path) -> None:
    with pytest.raises(InputError, match=r"holds 3 series.*1\.2\.3, 1\.2\.4, p2/ct"):
        read_volume(mixed)
    assert read_volume(mixed, series="1.2.4").n_slices == 2
    with pytest.raises(InputError, match="no series '9'"):
        read_volume(mixed, series="9")


def test_missing_empty_and_imageless_folders_each_have_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_scans(tmp_path / "gone", cache=False)
    with pytest.raises(InputError, match="no such file or folder"):
        read_volume(tmp_path / "gone")
    with pytest.raises(InputError, match="the folder is empty"):
        find_scans(tmp_path, cache=False)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"none of its 1 file\(s\) is an image"):
        find_scans(tmp_path, cache=False)


def test_what_the_caller_says_of_the_modality_counts(tmp_path: Path) -> None:
    path = nifti(tmp_path / "mr.nii.gz", low=0)
    assert read_volume(path).modality == "MR"
    assert read_volume(nifti(tmp_path / "ct.nii.gz"), modality="MR").modality == "MR"
    with pytest.raises(ScanRefused) as refusal:
        read_volume(path, modality="CT")
    assert refusal.value.reason == "not_hu"


def test_a_scan_survives_json(mixed: Path) -> None:
    for scan in find_scans(mixed, cache=False):
        assert Scan.from_dict(json.loads(json.dumps(scan.as_dict())), scan.root) == scan


def test_a_notebook_shows_a_scan_and_why_it_is_refused(mixed: Path) -> None:
    shown = {scan.scan_id: scan._repr_html_() for scan in find_scans(mixed, cache=False)}
    for text in ("Scan 1.2.3", "CT axial (dicom)", "3 slices of"):
        assert text in shown["1.2.3"]
    assert "refused: empty_file" in shown["p2/empty"]
    assert "set aside: segmentation" in shown["p2/mask"]


def test_a_hostile_scan_stays_text_in_a_notebook() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    fields = dict.fromkeys(("scan_id", "patient_id", "study_uid", "format", "modality", "source", "kernel"), hostile)
    shown = Scan(**fields, remarks=(hostile,), root=Path())._repr_html_()  # type: ignore[arg-type]
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") == 8


def test_a_verdict_and_its_reason_go_together() -> None:
    with pytest.raises(ValueError, match="reason"):
        Scan(scan_id="a", format="nifti", source="a", root=Path(), verdict="refused")
    with pytest.raises(ValueError, match="verdict"):
        Scan(scan_id="a", format="nifti", source="a", root=Path(), verdict="maybe", reason="x")  # type: ignore[arg-type]


def test_a_name_that_is_not_utf8_is_refused_and_not_lost(tmp_path: Path) -> None:
    path = nifti(tmp_path / "ct.nii.gz")
    try:
        path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/ct\xff.nii.gz"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (scan,) = find_scans(tmp_path, cache=False)
    assert scan.reason == "unreadable_name"
    scan.scan_id.encode()


def test_tricky_ids_stay_what_they_are(tmp_path: Path) -> None:
    for name in ("=1+1", "<script>", "a b", "ünï", "'quote\""):
        nifti(tmp_path / f"{name}.nii")
    assert {scan.scan_id for scan in find_scans(tmp_path, cache=False)} == {
        "=1+1",
        "<script>",
        "a b",
        "ünï",
        "'quote\"",
    }


# what expected.json says of everything that is not DICOM

CASES = [
    ("ct_nifti", "example_ct.nii.gz", "CT", ""),
    ("ct_nifti", "example_ct_sm.nii.gz", "CT", ""),
    ("ct_nifti", "example_seg.nii.gz", "", "segmentation"),
    ("ct_nifti_traps", "CT_pitch.nii.gz", "MR", ""),
    ("ct_nifti_traps", "ct_perfusion.nii.gz", "", "colour"),
    ("mr_nrrd_lesion", "brain1_image.nrrd", "MR", ""),
    ("mr_nrrd_lesion", "brain1_label.nrrd", "", "segmentation"),
]


def expected(shared_data: Path) -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((shared_data / "data" / "expected.json").read_text())["cases"]
    return cases


def stored_order(volume: Volume, direction: list[float]) -> np.ndarray:
    """The voxels with the flips undone that the canonical orientation implies; all cases here are axial."""
    signs = [int(np.sign(direction[4 * axis])) for axis in (2, 1, 0)]
    return volume.voxels[tuple(slice(None, None, sign) for sign in signs)]


def sha(voxels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(voxels.astype("<i2"))).hexdigest()


@pytest.mark.parametrize(("folder", "name", "modality", "reason"), CASES)
def test_real_grids_are_what_the_truth_file_says(
    shared_data: Path, folder: str, name: str, modality: str, reason: str
) -> None:
    truth = expected(shared_data)[folder]["volumes"][name]
    path = shared_data / "data" / folder / name
    scan = next(scan for scan in find_scans(shared_data / "data" / folder, cache=False) if scan.source == name)
    assert (scan.modality, scan.reason) == (modality, reason)
    if reason == "colour":
        assert truth["components"] == 3
        return
    volume = read_volume(path, modality="MR" if reason else None)
    assert sha(stored_order(volume, truth["direction"])) == truth["sha256_int16_array_order_zyx"]
    assert_allclose(volume.spacing_mm[::-1], truth["spacing_xyz"], atol=1e-4)
    assert volume.voxels.shape[::-1] == tuple(truth["size_xyz"])
    steps = np.array(truth["direction"]).reshape(3, 3) * truth["spacing_xyz"]
    (i, j, _), (dx, dy, dz) = truth["size_xyz"], np.sign(np.diag(steps)).astype(int)
    first = truth["origin_lps"] + steps @ [0 if dx > 0 else i - 1, 0 if dy > 0 else j - 1, 0]
    positions = first + np.arange(volume.n_slices)[:, None] * steps[:, 2]
    assert_allclose(volume.positions_mm, positions[::dz], atol=0.06)  # the direction is given to four digits
    values = truth["values"]
    assert (volume.voxels.min(), volume.voxels.max()) == (values["min"], values["max"])
    if name == "CT_pitch.nii.gz":
        assert expected(shared_data)[folder]["expected_outcome"][name] == {"warning": "not_hu"}
        assert any(remark.startswith("not HU") for remark in volume.remarks)


def test_every_case_that_is_not_dicom_is_tested(shared_data: Path) -> None:
    cases = expected(shared_data)
    others = {name for name, case in cases.items() if case["kind"] in ("volume", "png16", "npz")}
    tested = {folder for folder, *_ in CASES}
    assert others == tested | {"format_examples/deeplesion_16bit_derived", "format_examples/radchestct_layout_derived"}
    for folder in tested:
        assert set(cases[folder]["volumes"]) == {name for other, name, *_ in CASES if other == folder}


def test_the_real_deeplesion_folder_is_what_the_truth_file_says(shared_data: Path) -> None:
    case = "format_examples/deeplesion_16bit_derived"
    truth = expected(shared_data)[case]["expected"]
    (scan,) = find_scans(shared_data / "data" / case, cache=False)
    assert scan.scan_id == "900001_01_01_011-016"
    volume = read_volume(scan)
    assert sha(volume.voxels[::-1]) == truth["sha256_int16_by_slice_number"]
    assert volume.n_slices == truth["slices"]
    assert scan.files[-1].endswith(truth["first"])  # the lowest number lies nearest the head
    assert np.all(np.diff(truth["ipp_z_mm_by_number"]) < 0)
    assert np.all(np.diff(volume.z_mm) > 0)


def test_the_real_radchestct_layout_is_what_the_truth_file_says(shared_data: Path) -> None:
    case = "format_examples/radchestct_layout_derived"
    truth = expected(shared_data)[case]["expected"]
    volume = read_volume(shared_data / "data" / case / truth["file"])
    assert sha(volume.voxels[::-1]) == truth["sha256_int16_array_order"]
    assert list(volume.voxels.shape) == truth["shape_zyx"]
    assert volume.spacing_mm == (0.8, 0.8, 0.8)


def test_every_nodule_crop_is_ct_and_every_mask_is_set_aside(shared_data: Path) -> None:
    scans = find_scans(shared_data / "data" / "labelled_lidc_nodules", cache=False)
    images = [scan for scan in scans if scan.source.startswith("image/")]
    masks = [scan for scan in scans if scan.source.startswith("nodule_mask/")]
    assert (len(images), len(masks)) == (414, 414)
    assert {(scan.verdict, scan.modality) for scan in images} == {("use", "CT")}
    assert {(scan.verdict, scan.reason) for scan in masks} == {("set aside", "segmentation")}


def test_no_file_of_the_shared_data_is_a_defect(shared_data: Path) -> None:
    scans = find_scans(shared_data / "data", cache=False)
    assert not [scan.message for scan in scans if scan.reason == "unexpected_error"]
    assert all(scan.message.strip() for scan in scans if scan.verdict != "use")


def test_every_reason_is_explained_to_users() -> None:
    package = Path(clear.__file__).parent
    code = "\n".join(
        path.read_text() for path in [*package.glob("formats/*.py"), package / "scans.py", package / "volume.py"]
    )
    code += (package / "headers.py").read_text()
    starts = r"ScanRefused\(|_broken\(|refused\(entry\.name,|reason=|_check_one\(images, \"\w+\","
    reasons = set(re.findall(rf"(?:{starts})\s*\"([a-z_]+)\"", code))
    assert {"time_series", "not_hu", "duplicate_positions", "mixed_patients"} <= reasons
    page = (package.parent / "docs" / "reading-scans.md").read_text()
    assert sorted(reason for reason in reasons if reason not in page) == []


def test_a_folder_that_cannot_be_opened_is_a_row_and_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("locked", "open"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "a.npz", ct=np.arange(-12, 12, dtype=np.int16).reshape(2, 3, 4))
    real = os.scandir

    def deny(path):  # type: ignore[no-untyped-def]
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", deny)
    locked, used = find_scans(tmp_path, cache=False)
    assert (locked.scan_id, locked.reason, used.scan_id) == ("locked/", "unreadable_folder", "open/a")
    assert locked.refusal == "locked/: the folder cannot be opened. Check access rights"
