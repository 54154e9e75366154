"""DICOM against the real cases, and what a scan says about itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clear.errors import ScanRefused
from clear.formats import dicom
from clear.volume import Volume

CASES = [
    "ct_dicom/covidctmd_P002_chest",
    "ct_dicom/tcga_contrast_slices_small",
    "dicom_hard_cases/enhanced_multiframe_ct",
    "dicom_hard_cases/flipped_y_no_thickness_j2k",
    "dicom_hard_cases/gantry_tilt_siemens_4_slices",
    "dicom_hard_cases/legacy_converted_enhanced_ct",
    "dicom_hard_cases/legacy_converted_enhanced_ct_singleframe",
    "dicom_hard_cases/localizer_and_report_mixed_in",
    "dicom_hard_cases/missing_slice_ge_4_slices",
    "mr_dicom/per_slice_rescale_nonsquare",
]
# folder: what its series come to, as (verdict, reason, number of slices, words that the remarks hold)
VERDICTS: dict[str, list[tuple[str, str, int, str]]] = {
    "ct_dicom/covidctmd_P002_chest": [("use", "", 92, "")],
    "dicom_hard_cases/bad_private_sequence_jpegll": [("use", "", 1, "single slice")],
    "dicom_hard_cases/colour_secondary_capture": [("set aside", "dose_report", 0, "")],
    "dicom_hard_cases/enhanced_multiframe_ct": [("use", "", 2, "not HU? a computed map")],
    "dicom_hard_cases/flipped_rows_and_columns": [("use", "", 17, "")],
    "dicom_hard_cases/flipped_y_no_thickness_j2k": [("use", "", 1, "single slice")],
    "dicom_hard_cases/gantry_tilt_siemens_4_slices": [("use", "", 4, "gantry tilt 14.0 degrees")],
    "dicom_hard_cases/legacy_converted_enhanced_ct": [("use", "", 3, "not HU?")],
    "dicom_hard_cases/legacy_converted_enhanced_ct_singleframe": [("use", "", 3, "not HU?")],
    "dicom_hard_cases/localizer_and_report_mixed_in": [
        ("set aside", "localizer", 0, ""),
        ("set aside", "dose_report", 0, ""),
        ("use", "", 6, ""),
    ],
    "dicom_hard_cases/missing_slice_ge_4_slices": [("use", "", 4, "1 slice(s) of 5 mm missing")],
    "dicom_hard_cases/no_position_no_spacing": [("refused", "no_geometry", 1, "")],
    "dicom_hard_cases/oblique_nonsquare_pixels_tiny": [("use", "", 3, "")],
    "dicom_hard_cases/same_position_bolus_tracking_4_slices": [("refused", "not_a_volume", 4, "")],
    "dicom_hard_cases/tiny_valid_ct": [("use", "", 1, "single slice")],
    "dicom_hard_cases/truncated_mr": [("refused", "truncated_pixel_data", 1, "")],
    "dicom_hard_cases/truncated_slice_in_series_derived": [("refused", "truncated_pixel_data", 4, "")],
    "dicom_hard_cases/two_series_and_rtstruct_one_folder": [
        ("set aside", "rtstruct", 0, ""),
        ("use", "", 2, ""),
        ("use", "", 3, ""),
    ],
    "mr_dicom/jpeg2000_sagittal_4_slices": [("use", "", 4, "")],
    "mr_dicom/mixed_orientations_4_slices": [("refused", "mixed_orientation", 4, "")],
    "mr_dicom/per_slice_rescale_nonsquare": [("use", "", 4, "")],
    "mr_dicom/philips_coronal_4_slices": [("use", "", 4, "")],
    "mr_dicom/siemens_enhanced_multiframe": [("use", "", 8, "")],
}


def records(folder: Path, root: Path | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Records as they come back from a cache: through JSON."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [(path.relative_to(root or folder).as_posix(), dicom.read_header(path)) for path in files]
    return [(name, json.loads(json.dumps(record))) for name, record in found if record is not None]


def expected(shared_data: Path, case: str) -> list[dict[str, Any]]:
    return json.loads((shared_data / "data" / "expected.json").read_text())["cases"][case]["series"]


def as_stored(volume: Volume, orientation: list[float]) -> np.ndarray:
    """The voxels with canonical flips undone: slices along row x column direction, rows and columns as stored."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    voxels = volume.voxels
    if abs(row @ volume.row_direction) < abs(row @ volume.column_direction):
        voxels = voxels.swapaxes(1, 2)
    if row @ (volume.row_direction + volume.column_direction) < 0:
        voxels = voxels[:, :, ::-1]
    if column @ (volume.row_direction + volume.column_direction) < 0:
        voxels = voxels[:, ::-1]
    return voxels if np.cross(row, column) @ volume.normal > 0 else voxels[::-1]


def check_against(truth: dict[str, Any], volume: Volume) -> None:
    stored = as_stored(volume, truth["orientation"])
    assert stored.shape[1:] == (truth["rows"], truth["columns"])
    values = np.clip(np.rint(stored), -32768, 32767).astype("<i2")
    assert hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() == truth["sha256_int16_zyx"]
    normal = np.cross(truth["orientation"][:3], truth["orientation"][3:])
    assert np.sort(volume.positions_mm @ normal) == pytest.approx(truth["z_mm"], abs=2e-3)
    assert (np.diff(volume.z_mm) > 0).all()
    if "gaps_mm" in truth:
        assert volume.spacing_mm[0] == pytest.approx(truth["gaps_mm"]["median"], abs=1e-3)
    if "pixel_spacing_row_col_mm" in truth:
        assert sorted(volume.spacing_mm[1:]) == pytest.approx(sorted(truth["pixel_spacing_row_col_mm"]), abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_real_series_read_exactly_as_expected(shared_data: Path, case: str) -> None:
    folder = shared_data / "data" / case
    scans = [scan for scan in dicom.series_from_headers(records(folder), folder) if scan.verdict == "use"]
    by_file = {file: scan for scan in scans for file in scan.files}
    checked = set()
    for truth in expected(shared_data, case):
        scan = by_file.get(truth["files"][0])
        if scan is None:
            continue  # set aside, or the second of two equal files
        check_against(truth, dicom.read_series(scan))
        checked.add(scan.scan_id)
    assert checked == {scan.scan_id for scan in scans}


def test_every_transfer_syntax_gives_the_expected_values(shared_data: Path) -> None:
    folder = shared_data / "data" / "dicom_hard_cases" / "transfer_syntaxes_one_image"
    truths = {truth["files"][0]: truth for truth in expected(shared_data, "dicom_hard_cases/" + folder.name)}
    found = records(folder)
    assert len(found) == len(truths) == 15
    for name, record in found:
        (scan,) = dicom.series_from_headers([(name, record)], folder)
        volume = dicom.read_series(scan)
        check_against(truths[name], volume)
        retired = any(name.endswith(f".4.{number}.dcm") for number in (51, 53, 55))
        assert any("SimpleITK" in remark for remark in volume.remarks) == retired


@pytest.mark.parametrize("case", VERDICTS)
def test_hard_cases_are_judged_by_name(shared_data: Path, case: str) -> None:
    folder = shared_data / "data" / case
    scans = dicom.series_from_headers(records(folder), folder)
    found = sorted((scan.verdict, scan.reason, scan.n_slices) for scan in scans)
    assert found == sorted(row[:3] for row in VERDICTS[case])
    remarks = " ".join(remark for scan in scans for remark in scan.remarks)
    for *_, words in VERDICTS[case]:
        assert words in remarks
    for scan in scans:
        assert scan.verdict == "use" or any(file in scan.message for file in (*scan.files, scan.source))


def test_the_truncated_file_is_named(shared_data: Path) -> None:
    folder = shared_data / "data" / "dicom_hard_cases" / "truncated_slice_in_series_derived"
    (scan,) = dicom.series_from_headers(records(folder), folder)
    assert scan.message.startswith("IM0062.dcm")
    with pytest.raises(ScanRefused, match=r"IM0062\.dcm") as caught:
        dicom.read_series(scan)
    assert caught.value.reason == "truncated_pixel_data"


def test_a_damaged_copy_does_not_spoil_a_whole_series_elsewhere(shared_data: Path) -> None:
    root = shared_data / "data"
    both = records(root / "ct_dicom" / "covidctmd_P002_chest", root)
    both += records(root / "dicom_hard_cases" / "truncated_slice_in_series_derived", root)
    (scan,) = dicom.series_from_headers(both, root)
    assert (scan.verdict, scan.n_slices) == ("use", 92)
    assert any("damaged" in remark for remark in scan.remarks)
    assert any("3 duplicate" in remark for remark in scan.remarks)


def test_multi_frame_and_single_frame_twins_give_one_volume(shared_data: Path) -> None:
    volumes = []
    for name in ("legacy_converted_enhanced_ct", "legacy_converted_enhanced_ct_singleframe"):
        folder = shared_data / "data" / "dicom_hard_cases" / name
        (scan,) = dicom.series_from_headers(records(folder), folder)
        volumes.append(dicom.read_series(scan))
    assert volumes[0].digest == volumes[1].digest


@pytest.mark.parametrize("case", ["flipped_rows_and_columns", "oblique_nonsquare_pixels_tiny", "tiny_valid_ct"])
def test_values_that_may_not_be_hu_are_flagged_when_read(shared_data: Path, case: str) -> None:
    folder = shared_data / "data" / "dicom_hard_cases" / case
    (scan,) = dicom.series_from_headers(records(folder), folder)
    flagged = any(remark.startswith("not HU?") for remark in dicom.read_series(scan).remarks)
    assert flagged == (case != "tiny_valid_ct")


def test_padding_of_a_signed_image_is_signed(shared_data: Path) -> None:
    folder = shared_data / "data" / "ct_dicom" / "tcga_contrast_slices_small"
    scans = dicom.series_from_headers(records(folder), folder)
    padding = [dicom.read_series(scan).padding for scan in scans]
    assert [p.tolist() for p in padding if p is not None] == [[[-3024, -3024]]] * 3  # stored as 63536


def test_a_directory_file_is_no_series(shared_data: Path) -> None:
    record = dicom.read_header(shared_data / "data" / "dicom_hard_cases" / "localizer_and_report_mixed_in" / "DIRFILE")
    assert record is not None
    assert dicom.series_from_headers([("DIRFILE", record)], shared_data) == []
