"""NSCLC-Radiomics as downloaded: the clinical table in two versions, and the tree that NBIA writes."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import join_labels
from clear.labels import read_labels
from clear.task import Task
from clear.tasks import TASKS

V3 = "NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv"
OLD = "Lung1.clinical.csv"
HEADER = (
    "PatientID,age,clinical.T.Stage,Clinical.N.Stage,Clinical.M.Stage,Overall.Stage,Histology,gender,Survival.time,"
    "deadstatus.event"
)
ROWS = [
    "LUNG1-001,78.75,2,3,0,IIIb,large cell,male,2165,1",
    "LUNG1-002,83.80,2,0,0,I,squamous cell carcinoma,male,155,1",
    "LUNG1-003,68.18,5,4,3,II,NA,female,256,0",  # T = 5, N = 4, M = 3 are no codes
    "LUNG1-013,,2,2,0,IIIa,nos,male,{outcome}",
    "LUNG1-200,70.1,NA,2,0,NA,adenocarcinoma,male,100,1",
]


def write_table(folder: Path, name: str = V3, *, outcome: str = "3614,1", extra: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    more = ",extra" if extra else ""
    lines = [HEADER + more, *(row.format(outcome=outcome) + (",x" if extra else "") for row in ROWS)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("extra", [False, True])
def test_the_stage_is_early_or_late_and_na_is_unknown(tmp_path: Path, extra: bool) -> None:
    labels = read_labels(write_table(tmp_path, extra=extra), TASKS["nsclc-radiomics"])
    assert labels.key == "patient_id"
    assert dict(labels.frame.select("id", "stage").iter_rows()) == {
        "LUNG1-001": 1,
        "LUNG1-002": 0,
        "LUNG1-003": 0,
        "LUNG1-013": 1,
        "LUNG1-200": None,
    }


def test_survival_has_a_time_and_an_event(tmp_path: Path) -> None:
    labels = read_labels(write_table(tmp_path), TASKS["nsclc-radiomics-survival"])
    (endpoint,) = labels.endpoints
    time, event = endpoint.label_columns
    assert dict(labels.frame.select("id", time).iter_rows())["LUNG1-013"] == 3614
    assert labels.frame[event].to_list() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize(("name", "outcome"), [(OLD, "646,0"), (V3, "646,0")])
def test_the_older_table_is_refused_for_survival_and_remarked_upon_for_the_stage(
    tmp_path: Path, name: str, outcome: str
) -> None:
    write_table(tmp_path, name, outcome=outcome)  # the corrected outcome tells, whatever the file is called
    with pytest.raises(InputError, match=r"is the older version.*Take NSCLC-Radiomics-Lung1\.clinical-version3"):
        read_labels(tmp_path, TASKS["nsclc-radiomics-survival"])
    labels = read_labels(tmp_path, TASKS["nsclc-radiomics"])
    assert any("version 3 (October 2019) has corrected outcomes" in remark for remark in labels.remarks)


def test_a_table_that_cannot_tell_its_version_is_refused_for_survival(tmp_path: Path) -> None:
    (tmp_path / OLD).write_text("\n".join([HEADER, ROWS[0], ROWS[1]]) + "\n")
    with pytest.raises(InputError, match="does not tell its version"):
        read_labels(tmp_path, TASKS["nsclc-radiomics-survival"])


def test_of_two_tables_the_newer_is_taken(tmp_path: Path) -> None:
    write_table(tmp_path, OLD, outcome="646,0")
    labels = read_labels(write_table(tmp_path), TASKS["nsclc-radiomics-survival"])
    assert labels.source.endswith(V3)


def test_odd_codes_of_t_n_and_m_are_unknown(tmp_path: Path) -> None:
    columns = ("clinical.T.Stage", "Clinical.N.Stage", "Clinical.M.Stage")
    endpoints = tuple(Endpoint(name[9:10], "ordinal", ("0", "1", "2", "3"), column=name) for name in columns)
    labels = read_labels(write_table(tmp_path), Task("tnm", "", endpoints, labels="nsclc-radiomics"))
    assert labels.frame.select("T", "N", "M").rows()[:3] == [(2, 3, 0), (2, 0, 0), (None, None, None)]


def test_a_stage_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / V3).write_text("\n".join([HEADER, ROWS[0].replace("IIIb", "limited")]) + "\n")
    with pytest.raises(InputError, match=r"Overall\.Stage holds limited"):
        read_labels(tmp_path, TASKS["nsclc-radiomics"])


def test_the_tree_of_nbia_joins_by_patient_and_a_follow_up_has_no_label(
    tmp_path: Path, joined_of, dicom_series
) -> None:
    root = write_table(tmp_path)
    place = root / "manifest-1603198545583" / "NSCLC-Radiomics"
    for patient, number in (("LUNG1-001", 1), ("LUNG1-002", 2), ("LUNG1-013", 13)):
        folder = place / patient / "09-18-2008-StudyID-NA-69331" / "0.000000-NA-82046"
        dicom_series(folder, patient, f"1.2.3.{number}")
    dicom_series(place / "LUNG1-001" / "10-18-2008-StudyID-NA-1" / "0-NA-2", "LUNG1-001", "1.2.3.99", day=28)
    joined = joined_of(root, "nsclc-radiomics")
    assert joined.frame.select("scan_id", "patient_id", "stage").rows() == [
        ("1.2.3.1", "LUNG1-001", 1),
        ("1.2.3.13", "LUNG1-013", 1),
        ("1.2.3.2", "LUNG1-002", 0),
    ]


def test_a_follow_up_alone_in_the_file_has_no_label_either(tmp_path: Path, scans_of, dicom_series) -> None:
    dicom_series(tmp_path / "a", "LUNG1-001", "1.2.3.1", day=1)
    dicom_series(tmp_path / "b", "LUNG1-001", "1.2.3.2", day=28)
    dicom_series(tmp_path / "c", "LUNG1-002", "1.2.3.3", day=1)
    scans = scans_of(tmp_path, "nsclc-radiomics").filter(pl.col("scan_id") != "1.2.3.1")  # the first study was refused
    labels = read_labels(write_table(tmp_path), TASKS["nsclc-radiomics"])
    joined = join_labels(labels, scans, rule="earliest")
    assert joined.frame["patient_id"].to_list() == ["LUNG1-002"]
    with pytest.raises(InputError, match="1 scans that they match are follow-ups"):
        join_labels(labels, scans)
