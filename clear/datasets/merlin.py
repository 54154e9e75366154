"""Merlin abdominal CT: zero_shot_findings_disease_cls.csv, the study in its first column, 1 / 0 / -1 = not assessed.

The split lies in another table, reports_final.xlsx (`study id`, `Split`). Facts: lmb-freiburg/radfinder README and
loaders. No patient id is known.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from clear.datasets.assemble import assemble, split_name, whole_number
from clear.datasets.files import find_files, folder_of, need_files
from clear.errors import InputError, MissingExtra
from clear.formats import without_ending
from clear.labels import Labels
from clear.tables import need_column, read_table, some
from clear.task import Task

FILES = ("zero_shot_findings_disease_cls*.csv",)
REPORTS = ("reports_final*.xlsx",)
ORIGIN = "the Merlin abdominal CT data set (Stanford AIMI): zero_shot_findings_disease_cls.csv"
_VALUES = {"1": "1", "0": "0", "-1": None}


def read(path: Path, task: Task) -> Labels:
    """Findings of each study, -1 masked; every study counts as a patient of its own. Raises InputError for others."""
    (file, *_) = need_files(path, FILES, ORIGIN)
    table = read_table(file)
    studies = [None if word is None else without_ending(word) for word in table[table.columns[0]]]
    columns: dict[str, list[str | None]] = {"id": studies, "patient_id": studies}
    for endpoint in task.endpoints:
        need_column(table, endpoint.source_column, file)
        words = [whole_number(word) for word in table[endpoint.source_column]]
        strange = {word for word in words if word is not None and word not in _VALUES}
        if strange:
            raise InputError(f"{file}: {endpoint.source_column} holds {some(sorted(strange), 3)}; expected 1, 0 or -1")
        columns[endpoint.source_column] = [None if word is None else _VALUES[word] for word in words]
    splits, remarks = _splits(path)
    if splits:
        columns["split"] = [splits.get(study or "") for study in studies]
    remarks.append("no patient ids are known: every study counts as a patient of its own")
    text = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    return assemble(text, task, str(file), "scan_id", remarks)


def _splits(path: Path) -> tuple[dict[str, str | None], list[str]]:
    """(study -> train, val or test; remarks) of reports_final.xlsx, which may be absent."""
    tables = find_files(folder_of(path), REPORTS)
    if not tables:
        return {}, [f"no {REPORTS[0]} beside the findings: the official split is unknown"]
    try:
        table = read_table(tables[0], ["study id", "Split"])
    except MissingExtra as error:
        return {}, [f"the official split is unknown: {error}"]
    for column in ("study id", "Split"):
        need_column(table, column, tables[0])
    pairs = zip(table["study id"], table["Split"], strict=True)
    found = {without_ending(study): split_name(word) for study, word in pairs if study is not None}
    strange = sorted({word for word in table["Split"] if word is not None and split_name(word) is None})
    return found, [f"{tables[0]}: Split holds {some(strange, 3)}, which is no known set"] if strange else []
