"""Patients of scans: which source is believed first, and what cannot be one."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from clear.errors import InputError
from clear.patients import patients_of_scans

SCANS = pl.DataFrame({"scan_id": ["x1_a", "x2_a", "x3_a", "x4_a"], "patient_id": ["h1", "h2", None, None]})


def test_a_table_goes_before_headers_labels_and_the_pattern(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("scan_id,patient_id\nx1_a,t1\n")
    labelled = {"x1_a": "l1", "x2_a": "l2", "x3_a": "l3"}
    found = patients_of_scans(SCANS, tmp_path / "p.csv", r"^([^_]+)", labelled)
    assert found == {"x1_a": "t1", "x2_a": "h2", "x3_a": "l3", "x4_a": "x4"}
    assert patients_of_scans(SCANS) == {"x1_a": "h1", "x2_a": "h2", "x3_a": None, "x4_a": None}


@pytest.mark.parametrize(
    ("text", "pattern", "says"),
    [
        ("patient_id,age\nh1,3\n", None, "expected an id column"),
        ("scan_id,patient_id\nx1_a,a\nx1_a,b\n", None, "belongs to two patients"),
        ("scan_id,patient_id\nother,a\n", None, "none of its 1 scan_ids is in the bag file"),
        ("scan_id,patient_id\nx1_a,a\n", "^x", "expected a group in brackets"),
        ("scan_id,patient_id\nx1_a,a\n", "(", "not a regular expression"),
    ],
)
def test_what_says_no_patient_is_refused(tmp_path: Path, text: str, pattern: str | None, says: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        patients_of_scans(SCANS, tmp_path / "p.csv", pattern)


def test_a_patient_of_whom_only_some_scans_are_named_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("scan_id,patient_id\nx1_a,a\n")
    one = SCANS.with_columns(patient_id=pl.lit("h"))
    with pytest.raises(InputError, match="names some scans of patient 'h' and not others, first x2_a"):
        patients_of_scans(one, tmp_path / "p.csv")
    assert patients_of_scans(one, tmp_path / "p.csv", labelled={"x1_a": None})["x1_a"] == "a"  # the rest is not used
