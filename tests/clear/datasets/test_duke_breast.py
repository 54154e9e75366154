"""Duke Breast Cancer MRI as downloaded: a sheet under three header rows, several series a patient."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.labels import read_labels
from clear.task import Task
from clear.tasks import TASKS

xlsxwriter = pytest.importorskip("xlsxwriter")

GROUPS = ["Patient Information", "", "Tumor Characteristics", "", "", "", "", "", "Near Complete Response", ""]
NAMES = ["Patient ID", "Days to MRI ", "ER", "PR", "HER2", "Mol Subtype", "Nottingham grade", "Oncotype score"]
NAMES += ["Staging(Nodes)#(Nx replaced by -1)[N]", "ER"]  # the second ER is another column
LEGEND = ["", "", "{0=neg, 1=pos}", "{0=neg, 1=pos}", "{0=neg, 1=pos, 2=borderline}", "{0=luminal-like, ...}"]
LEGEND += ["{1=low, ...}", "", "", "x"]
PATIENTS = [
    ["Breast_MRI_001", 6, 0, 0, 1, 2, 3, "NA", -1, 9],
    ["Breast_MRI_002", 12, 1, 1, 2, 0, 2, 15, 1, 9],
    ["Breast_MRI_003", 10, 0, 0, 0, 3, "NC", "NP", 0, 9],
    ["Breast_MRI_004", 10, "", "NA", "NC", "NP", 1, "", 0, 9],
]


def write_download(folder: Path, patients: list[list[object]] = PATIENTS, *, sheet: str = "Data") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    book = xlsxwriter.Workbook(folder / "Clinical_and_Other_Features.xlsx")
    page = book.add_worksheet(sheet)
    for number, row in enumerate([GROUPS, NAMES, LEGEND, *patients]):
        for column, cell in enumerate(row):
            if cell != "":
                page.write(number, column, cell)
    book.add_worksheet("Legend")
    book.close()
    return folder


def test_the_three_header_rows_are_understood_and_unknown_codes_masked(tmp_path: Path) -> None:
    labels = read_labels(write_download(tmp_path), TASKS["duke-breast"])
    assert labels.key == "patient_id"
    assert labels.frame.select("id", "er", "pr", "her2", "triple_negative").rows() == [
        ("Breast_MRI_001", 0, 0, 1, 0),
        ("Breast_MRI_002", 1, 1, None, 0),  # HER2 equivocal
        ("Breast_MRI_003", 0, 0, 0, 1),
        ("Breast_MRI_004", None, None, None, None),
    ]


def test_any_other_column_of_the_sheet_can_be_asked_for(tmp_path: Path) -> None:
    grade = Endpoint("grade", "ordinal", ("1", "2", "3"), column="Nottingham grade")
    nodes = Endpoint("nodes", "regression", column="Staging(Nodes)#(Nx replaced by -1)[N]")
    labels = read_labels(write_download(tmp_path), Task("own", "", (grade, nodes), labels="duke-breast"))
    assert labels.frame["grade"].to_list() == [2, 1, None, 0]
    assert labels.frame["nodes"].to_list() == [None, 1, 0, 0]


def test_the_series_of_a_patient_form_one_bag(tmp_path: Path, joined_of, dicom_series) -> None:
    root = write_download(tmp_path)
    place = root / "Duke-Breast-Cancer-MRI"
    for patient in ("Breast_MRI_001", "Breast_MRI_003"):
        number = int(patient[-1])
        for phase in (1, 2):
            series = f"1.2.{number}.{phase}"
            dicom_series(
                place / patient / f"1.2.{number}" / series, patient, series, modality="MR", study=f"1.2.{number}"
            )
    joined = joined_of(root, "duke-breast")
    assert (joined.rule, joined.frame.height, joined.flow["patients_used"]) == ("pool", 4, 2)
    assert joined.frame["triple_negative"].to_list() == [0, 0, 1, 1]


def test_what_is_not_as_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sheet 'Data'; it has Sheet7, Legend"):
        read_labels(write_download(tmp_path / "a", sheet="Sheet7"), TASKS["duke-breast"])
    strange = [["Breast_MRI_001", 6, 7, 0, 1, 2, 3, "NA", -1, 9]]
    with pytest.raises(InputError, match="ER holds 7; expected 0, 1 or unknown"):
        read_labels(write_download(tmp_path / "b", strange), TASKS["duke-breast"])
    task = Task("own", "", (Endpoint("Menopause"),), labels="duke-breast")
    with pytest.raises(InputError, match="no column 'Menopause'"):
        read_labels(write_download(tmp_path / "c"), task)
