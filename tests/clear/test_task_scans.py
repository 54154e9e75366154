"""Ids that a data set writes into file names."""

from __future__ import annotations

from pathlib import Path

from clear.endpoints import Endpoint
from clear.scans import Scan
from clear.task import Task
from clear.task_scans import name_scans

TASK = Task("t", "", (Endpoint("a"),), ids=r"(?P<patient_id>P\d+)_(?P<study_uid>S\d+)")


def scan(source: str, **ids: str) -> Scan:
    return Scan(scan_id=source, format="nifti", source=source, root=Path(), **ids)


def test_ids_come_from_the_path_where_the_file_says_none() -> None:
    named = name_scans([scan("x/P1_S2_a.nii"), scan("P3_S4.nii", patient_id="header"), scan("other.nii")], TASK)
    assert [(each.patient_id, each.study_uid) for each in named] == [("P1", "S2"), ("header", "S4"), (None, None)]
    assert [each.scan_id for each in named] == ["x/P1_S2_a.nii", "P3_S4.nii", "other.nii"]


def test_a_task_without_an_expression_changes_nothing() -> None:
    scans = [scan("P1_S2.nii")]
    assert name_scans(scans, Task("t", "", (Endpoint("a"),))) == scans
