"""The user's table of scans: finding them and renaming them."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.errors import InputError
from clear.scans import Scan
from clear.scans_table import apply_scans_table

ROOT = Path("/data")
SCANS = [
    Scan(scan_id="1.2", series_uid="1.2", format="dicom", source="p1/ct", files=("p1/ct/a", "p1/ct/b"), root=ROOT),
    Scan(
        scan_id="1.3", series_uid="1.3", format="dicom", source="p1/flat", files=("p1/flat/a", "p1/flat/b"), root=ROOT
    ),
    Scan(
        scan_id="1.4", series_uid="1.4", format="dicom", source="p1/flat", files=("p1/flat/c", "p1/flat/d"), root=ROOT
    ),
    Scan(scan_id="p2/ct", format="nifti", source="p2/ct.nii.gz", files=("p2/ct.nii.gz",), root=ROOT),
    Scan(
        scan_id="p2/seg",
        format="nifti",
        source="p2/seg.nii.gz",
        root=ROOT,
        verdict="set aside",
        reason="segmentation",
        message="m",
    ),
]


def apply(tmp_path: Path, text: str) -> list[Scan]:
    path = tmp_path / "scans.csv"
    path.write_text(text)
    return apply_scans_table(SCANS, path)


def used(scans: list[Scan]) -> dict[str, str | None]:
    return {scan.scan_id: scan.patient_id for scan in scans if scan.verdict == "use"}


def test_paths_find_scans_and_ids_rename_them(tmp_path: Path) -> None:
    table = "path,scan_id,patient_id\np1/ct,first,007\n/data/p2/ct.nii.gz,second,008\np1/flat/d,third,\n"
    scans = apply(tmp_path, table)
    assert used(scans) == {"first": "007", "second": "008", "third": None}
    assert [scan.scan_id for scan in scans] == sorted(scan.scan_id for scan in scans)
    reasons = {scan.scan_id: scan.reason for scan in scans if scan.verdict != "use"}
    assert reasons == {"1.3": "not_in_table", "p2/seg": "segmentation"}


def test_series_uids_and_scan_ids_find_scans_too(tmp_path: Path) -> None:
    assert used(apply(tmp_path, "series_uid,patient_id\n1.2,A\n1.4,B\n")) == {"1.2": "A", "1.4": "B"}
    assert used(apply(tmp_path, "scan_id,patient_id,age\np2/ct,A,50\n")) == {"p2/ct": "A"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path\np9\n", "'p9' finds no scan"),
        ("path\np1/flat\n", "'p1/flat' finds 2 scans"),
        ("path\np1/ct\np1/ct/a\n", "a scan named before"),
        ("path,scan_id\np1/ct,x\np2/ct.nii.gz,x\n", "'x' to 2 scans"),
        ("patient\nA\n", "needs a column path, series_uid or scan_id; found patient"),
        ("path\n/elsewhere/p1/ct\n", "finds no scan"),
    ],
)
def test_what_does_not_fit_is_one_clear_message(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(InputError, match=r"scans\.csv") as error:
        apply(tmp_path, table)
    assert message in str(error.value)
