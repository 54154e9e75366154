"""RAD-ChestCT: 84 x 52 columns `abnormality*location` of three files become one column a finding.

A finding's rule is the column of its endpoint: `opacity*lung` is one location, `emphysema` (or `emphysema*`) any of
them, and alternatives are joined by ` or `; the largest value counts. The part before `*` matches exactly, so nodule is
not nodulegr1cm. Facts: zenodo.org/records/6406114; rachellea/explainable-ct-ai `src/load_dataset/`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from clear.datasets.assemble import assemble, split_name
from clear.datasets.files import find_files, folder_of, need_files
from clear.errors import InputError
from clear.labels import Labels
from clear.tables import need_column, read_table, some
from clear.task import Task

FILES = ("*_Abnormality_and_Location_Labels.csv",)
PATIENTS = ("CT_Scan_Metadata_Complete_*.csv",)
ORIGIN = "RAD-ChestCT, as downloaded from zenodo.org/records/6406114"


def read(path: Path, task: Task) -> Labels:
    """Findings of each scan from img{train,valid,test}_Abnormality_and_Location_Labels.csv, in the folder or below it.

    Scan ids are NoteAcc_DEID (`trn12547`), the name of the scan's file without its ending; patients are MRN_DEID of
    CT_Scan_Metadata_Complete_*.csv. Raises InputError for absent files or columns and for values other than 0 and 1.
    """
    files = need_files(path, FILES, ORIGIN)
    labels = pl.concat([_findings(file, task) for file in files])
    tables = find_files(folder_of(path), PATIENTS)
    remarks = [] if tables else [f"no {PATIENTS[0]} beside the label files: the patients of the scans are unknown"]
    if tables:
        patients = read_table(tables[0], ["NoteAcc_DEID", "MRN_DEID"])
        for column in ("NoteAcc_DEID", "MRN_DEID"):
            need_column(patients, column, tables[0])
        pairs = patients.rename({"NoteAcc_DEID": "id", "MRN_DEID": "patient_id"}).drop_nulls().unique()
        labels = labels.join(pairs, on="id", how="left", maintain_order="left")
    return assemble(labels, task, str(path), "scan_id", remarks)


def is_source(column: str, label: str) -> bool:
    """Whether a column `abnormality*location` is one of those that the finding is made of."""
    return _fits(column, label)


def _findings(file: Path, task: Task) -> pl.DataFrame:
    table = read_table(file)
    need_column(table, "NoteAcc_DEID", file)
    notes = table["NoteAcc_DEID"]
    columns = {"id": notes, "split": pl.Series([split_name((note or "")[:3]) for note in notes], dtype=pl.String)}
    for endpoint in task.endpoints:
        rule = endpoint.source_column
        used = [name for name in table.columns if _fits(name, rule)]
        if not used:
            raise InputError(f"{file}: no column for {rule!r}; expected 84 x 52 columns named abnormality*location")
        strange = {value for name in used for value in table[name].unique().to_list()} - {"0", "1", "0.0", "1.0"}
        if strange:
            raise InputError(f"{file}: {some(used, 2)} hold {some(map(str, strange), 3)}; expected only 0 and 1")
        largest = table.select(pl.max_horizontal(pl.col(name).cast(pl.Float64) for name in used)).to_series()
        columns[rule] = largest.cast(pl.Int8).cast(pl.String)
    return pl.DataFrame(columns)


def _fits(column: str, rule: str) -> bool:
    """Whether a column `abnormality*location` is one of those that a rule names.

    >>> _fits("nodulegr1cm*lung", "nodule*lung"), _fits("emphysema*right_lower", "emphysema")
    (False, True)
    """
    name, star, place = column.partition("*")
    for alternative in rule.split(" or "):
        abnormality, _, location = alternative.strip().partition("*")
        if star and name == abnormality and location in ("", place):
            return True
    return False
