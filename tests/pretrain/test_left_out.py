"""Who is left out: test scans, their patients' other scans, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.errors import InputError
from clear.scans import Scan
from pretrain.left_out import LeftOut, read_left_out


def scan(scan_id: str, patient: str | None = None) -> Scan:
    return Scan(
        scan_id=scan_id, patient_id=patient, format="nifti", modality="CT", source=f"{scan_id}.nii", root=Path()
    )


def verdicts(scans: list[Scan]) -> dict[str, str]:
    return {one.scan_id: one.reason or one.verdict for one in scans}


def test_the_other_scans_of_a_test_patient_go_with_the_test_scan() -> None:
    left = LeftOut(frozenset({"M9"}), frozenset({"tst1"}), {"tst1": "M1", "trn1": "M1", "trn2": "M2"})
    found = left.apply([scan("a/tst1"), scan("a/trn1"), scan("a/trn2"), scan("a/x")])
    assert verdicts(found) == {
        "a/tst1": "left_out",
        "a/trn1": "left_out",  # another scan of M1, whom only the labels know
        "a/trn2": "use",
        "a/x": "unknown_patient",
    }
    assert [one.patient_id for one in found] == ["M1", "M1", "M2", None]


def test_labels_without_patients_still_tell_test_scans_apart() -> None:
    left = LeftOut(ids=frozenset({"t1"}), patient_of={"t1": None, "t2": None})
    assert verdicts(left.apply([scan("t1"), scan("t2"), scan("t3")])) == {
        "t1": "left_out",
        "t2": "use",
        "t3": "unknown_patient",
    }


def test_nobody_left_out_leaves_all_as_they_are_but_named() -> None:
    left = LeftOut(patient_of={"t1": "M1"})
    found = left.apply([scan("t1"), scan("t2"), scan("t3", "P3")])
    assert verdicts(found) == {"t1": "use", "t2": "use", "t3": "use"}
    assert [one.patient_id for one in found] == ["M1", None, "P3"]


@pytest.mark.parametrize(("wanted", "there"), [("91", "000091"), ("91.0", "91"), ("p7", "P7")])
def test_an_almost_equal_id_is_an_error_unless_it_is_left_out_too(wanted: str, there: str) -> None:
    with pytest.raises(InputError, match="spell them alike"):
        LeftOut(frozenset({wanted})).apply([scan("a", there)])
    assert verdicts(LeftOut(frozenset({wanted, there})).apply([scan("a", there)])) == {"a": "left_out"}
    assert verdicts(LeftOut(frozenset({there})).apply([scan("a", there), scan("b", wanted)])) == {
        "a": "left_out",
        "b": "use",  # another patient, when both spellings occur
    }


def test_a_table_without_patients_or_without_anybody_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text("scan_id\na\n")
    with pytest.raises(InputError, match=r"ids\.csv: no column patient_id"):
        read_left_out(tmp_path / "ids.csv", None, [])
    (tmp_path / "ids.csv").write_text("PatientID,split\np1,train\n")
    with pytest.raises(InputError, match="names no patient"):
        read_left_out(tmp_path / "ids.csv", None, [])
