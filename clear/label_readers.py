"""Label files exactly as downloaded, one reader a source; `clear.tasks` names the reader of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import polars as pl

from clear.errors import InputError
from clear.labels import Labels, labels_from_frame, labels_from_table
from clear.tables import need_column, read_table, some
from clear.tasks import Task

Reader = Callable[[Path, Task, str | None], Labels]

# finding -> (abnormality, locations; empty = any). The part before `*` matches exactly: nodule is not nodulegr1cm
_RAD_CHESTCT: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType(
    {
        "emphysema": [("emphysema", "")],
        "bronchiectasis": [("bronchiectasis", "")],
        "pleural_effusion": [("pleural_effusion", "")],
        "atelectasis": [("atelectasis", "")],
        "fibrosis": [("fibrosis", "")],
        "calcification": [("calcification", "")],
        "opacity": [("opacity", "lung")],
        "lung_nodule": [("nodule", "lung"), ("nodulegr1cm", "lung")],
    }
)
_RAD_CHESTCT_FILES = "*_Abnormality_and_Location_Labels.csv"
_RAD_CHESTCT_PATIENTS = "CT_Scan_Metadata_Complete_*.csv"


def rad_chestct(path: Path, task: Task, id_column: str | None = None) -> Labels:
    """The labels of RAD-ChestCT (zenodo.org/records/6406114) for the findings of the task.

    path: the folder with img{train,valid,test}_Abnormality_and_Location_Labels.csv and
    CT_Scan_Metadata_Complete_*.csv (patients, MRN_DEID), searched with its sub-folders; or one of the label files,
    with the metadata beside it. A table with a scan_id column is taken as labels that were prepared already.
    Scan ids are NoteAcc_DEID (`trn12547`), the name of the scan's file without its ending.
    """
    if path.is_file() and not path.match(_RAD_CHESTCT_FILES):
        return labels_from_table(path, task, id_column)
    files = [path] if path.is_file() else sorted(path.rglob(_RAD_CHESTCT_FILES)) if path.is_dir() else []
    if not files:
        raise InputError(
            f"{path}: no file named {_RAD_CHESTCT_FILES}; expected the label files as downloaded from "
            "zenodo.org/records/6406114"
        )
    parts = [_rad_chestct_findings(file, task) for file in files]
    labels = pl.concat(parts)
    folder = path if path.is_dir() else path.parent
    tables = sorted(folder.rglob(_RAD_CHESTCT_PATIENTS))
    if tables:
        patients = read_table(tables[0], ["NoteAcc_DEID", "MRN_DEID"])
        for column in ("NoteAcc_DEID", "MRN_DEID"):
            need_column(patients, column, tables[0])
        pairs = patients.rename({"NoteAcc_DEID": "scan_id", "MRN_DEID": "patient_id"}).drop_nulls().unique()
        labels = labels.join(pairs, on="scan_id", how="left", maintain_order="left")
    return labels_from_frame(labels, task, str(path))


def _rad_chestct_findings(file: Path, task: Task) -> pl.DataFrame:
    table = read_table(file)
    need_column(table, "NoteAcc_DEID", file)
    columns = {"scan_id": table["NoteAcc_DEID"]}
    for endpoint in task.endpoints:
        rules = _RAD_CHESTCT.get(endpoint.name)
        if rules is None:
            raise InputError(
                f"task {task.name}: no rule for the finding {endpoint.name}; known: {some(_RAD_CHESTCT, 20)}"
            )
        used = [name for name in table.columns if any(_is(name, *rule) for rule in rules)]
        if not used:
            wanted = " or ".join(f"{finding}*{location or '...'}" for finding, location in rules)
            raise InputError(f"{file}: no column {wanted}; expected 84 x 52 columns named abnormality*location")
        strange = {value for name in used for value in table[name].unique().to_list()} - {"0", "1", "0.0", "1.0"}
        if strange:
            raise InputError(f"{file}: {some(used, 2)} hold {some(map(str, strange), 3)}; expected only 0 and 1")
        largest = table.select(pl.max_horizontal(pl.col(name).cast(pl.Float64) for name in used)).to_series()
        columns[endpoint.source_column] = largest.cast(pl.Int8).cast(pl.String)
    return pl.DataFrame(columns)


def _is(column: str, abnormality: str, location: str) -> bool:
    name, star, place = column.partition("*")
    return bool(star) and name == abnormality and location in ("", place)


READERS: Mapping[str, Reader] = MappingProxyType({"table": labels_from_table, "rad-chestct": rad_chestct})
