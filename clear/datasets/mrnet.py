"""MRNet: `{train,valid}-{abnormal,acl,meniscus}.csv`, without a header: the exam's number and 0 or 1.

Numbers are read as text and padded to four digits, the name of the exam's arrays, which `clear.formats.mrnet` takes as
study_uid: the axial, coronal and sagittal series of an exam are one study. There are no patient ids.
"""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from clear.datasets.assemble import assemble
from clear.datasets.files import need_files
from clear.errors import InputError
from clear.labels import Labels
from clear.task import Task

FILES = ("train-*.csv", "valid-*.csv")
ORIGIN = "MRNet-v1.0 (Stanford): train-abnormal.csv, valid-abnormal.csv and the like"
SPLIT = {"train": "train", "valid": "test"}  # the official `valid` is what results are reported on


def read(path: Path, task: Task) -> Labels:
    """Endpoints of each exam, `valid` as the test set; every exam counts as a patient of its own.

    Raises InputError when an endpoint has no file, for a line that is not `id,0` or `id,1`, and for an exam twice.
    """
    files = need_files(path if path.is_dir() else path.parent, FILES, ORIGIN)
    if path.is_file():
        files = [file for file in files if file.parent == path.parent]
    of_exam: dict[str, dict[str, str]] = {}
    for endpoint in task.endpoints:
        name = endpoint.source_column
        used = [file for file in files if file.stem.lower() in (f"train-{name}", f"valid-{name}")]
        if not used:
            raise InputError(f"{path}: no train-{name}.csv or valid-{name}.csv; expected the files of {ORIGIN}")
        for file in used:
            split = SPLIT[file.stem.lower().partition("-")[0]]
            for exam, value in _rows(file):
                row = of_exam.setdefault(exam, {"id": exam, "patient_id": exam, "split": split})
                if name in row or row["split"] != split:
                    raise InputError(f"{file}: exam {exam} occurs twice, or in train and valid; expected once")
                row[name] = value
    columns = ["id", "patient_id", "split", *(endpoint.source_column for endpoint in task.endpoints)]
    table = pl.DataFrame(list(of_exam.values()), schema=dict.fromkeys(columns, pl.String))
    noted = ["no patient ids are published: every exam counts as a patient of its own"]
    return assemble(table, task, str(path), "study_uid", noted)


def _rows(file: Path) -> list[tuple[str, str]]:
    """(exam number of four digits, 0 or 1) of each line."""
    rows = []
    with file.open(newline="", encoding="utf-8-sig") as opened:
        for number, line in enumerate(csv.reader(opened), 1):
            if not line:
                continue
            exam, value = ([word.strip() for word in line] + ["", ""])[:2]
            if len(line) != 2 or not exam.isdigit() or value not in ("0", "1"):
                found = ",".join(line)[:60]
                raise InputError(f"{file}: line {number} is {found!r}; expected an exam number and 0 or 1")
            rows.append((exam.zfill(4), value))
    return rows
