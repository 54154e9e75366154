"""NSCLC-Radiomics (Lung1): the clinical table of 422 patients, in the version that was corrected in October 2019.

The two published versions differ in outcome: LUNG1-013 has 646 days and no event in the older, 3614 days and an event
in the newer. Survival therefore needs the newer one; the stage is read from either, with a remark for the older.
Facts: dannyjanani/Lung-Cancer-Detection `Lung1.clinical.csv`, Rania22Mathlouthi/PulmoScan (version 3).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from clear.datasets.assemble import assemble, whole_number
from clear.datasets.files import need_files
from clear.errors import InputError
from clear.labels import Labels
from clear.tables import need_column, read_table, some
from clear.task import Task

FILES = ("*Lung1*clinical*.csv",)
ORIGIN = "NSCLC-Radiomics: NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv from the Cancer Imaging Archive"
STAGE = {"i": "I-II", "ii": "I-II", "iii": "III-IV", "iiia": "III-IV", "iiib": "III-IV", "iv": "III-IV"}
ODD = {"clinical.T.Stage": "5", "Clinical.N.Stage": "4", "Clinical.M.Stage": "3"}  # codes that the scale does not have
_WITNESS, _TIME_OF_V3, _TIME_OF_OLD = "LUNG1-013", "3614", "646"


def read(path: Path, task: Task) -> Labels:
    """The table's own columns, and `stage` (I-II or III-IV) made of Overall.Stage; ids are PatientID.

    Extra columns are accepted. Odd codes of T, N and M are unknown. Raises InputError for survival from the older
    version, or from one that cannot be told, and for a stage that is none.
    """
    files = need_files(path, FILES, ORIGIN)
    tables = {file: read_table(file) for file in files}
    versions = {file: _version(file, table) for file, table in tables.items()}
    file = max(files, key=lambda each: (versions[each] == 3, "version3" in each.name.lower()))
    table, version, remarks = tables[file], versions[file], []
    need_column(table, "PatientID", file)
    if version != 3:
        what = "is the older version of the table" if version == 1 else "does not tell its version"
        if any(endpoint.kind == "survival" for endpoint in task.endpoints):
            raise InputError(
                f"{file}: {what}, whose survival times may differ from those of version 3 (October 2019). Take "
                "NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv"
            )
        remarks.append(f"{file}: {what}; version 3 (October 2019) has corrected outcomes")
    columns = {"id": table["PatientID"], "patient_id": table["PatientID"]}
    for endpoint in task.endpoints:
        for name in filter(None, (endpoint.source_column, endpoint.event)):
            columns[name] = _stage(table, file) if name == "stage" else _column(table, name, file)
    return assemble(pl.DataFrame(columns), task, str(file), "patient_id", remarks)


def is_source(column: str, label: str) -> bool:
    """Whether the label follows from a column: the stage from its components too, as the T, N and M stages make it.

    >>> is_source("clinical.T.Stage", "stage"), is_source("clinical.T.Stage", "Survival.time")
    (True, False)
    """
    return label == "stage" and column.lower() in {"overall.stage", *(name.lower() for name in ODD)}


def _version(file: Path, table: pl.DataFrame) -> int:
    """3, 1 for the older one, 0 when the table cannot tell: by the outcome that was corrected, else by the name."""
    if {"PatientID", "Survival.time"} <= set(table.columns):
        found = table.filter(pl.col("PatientID") == _WITNESS)["Survival.time"].to_list()
        if found:
            return {_TIME_OF_V3: 3, _TIME_OF_OLD: 1}.get(whole_number(found[0]) or "", 0)
    return 3 if "version3" in file.name.lower() else 0


def _stage(table: pl.DataFrame, file: Path) -> pl.Series:
    need_column(table, "Overall.Stage", file)
    words = [_known(word) for word in table["Overall.Stage"]]
    strange = sorted({word for word in words if word is not None and word.lower() not in STAGE})
    if strange:
        raise InputError(f"{file}: Overall.Stage holds {some(strange, 3)}; expected I, II, IIIa, IIIb or NA")
    return pl.Series([None if word is None else STAGE[word.lower()] for word in words], dtype=pl.String)


def _column(table: pl.DataFrame, name: str, file: Path) -> pl.Series:
    need_column(table, name, file)
    odd = ODD.get(name)
    words = [_known(word) for word in table[name]]
    return pl.Series([None if odd and whole_number(word) == odd else word for word in words], dtype=pl.String)


def _known(word: str | None) -> str | None:
    return None if word is None or word.upper() == "NA" else word
