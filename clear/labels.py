"""Labels: what is known about scans or patients, one column an endpoint, and the files that hold it.

A label table has one id column and one column an endpoint. The id column is the first of scan_id, series_uid,
study_uid, patient_id that the table has (also as `PatientID`, `Study Instance UID`, ...). A cell that says nothing
(empty, NA, nan, unknown, ...) is masked, never a zero, and counted.

Joined labels may live beside the bag file, `feats.labels/<task>.parquet`: scan_id, patient_id where the bag file does
not know it, `split` where there is an official one, and one column an endpoint: the class name, of an Enum of all
classes in code order, or the value, or the time with a column `<endpoint>.event` beside it; null = masked.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from clear.atomic import output_errors, write_aside
from clear.endpoints import Endpoint, Kind
from clear.errors import InputError
from clear.label_values import UNKNOWN as UNKNOWN
from clear.label_values import is_unknown, parse_endpoint, parse_survival
from clear.tables import need_column, read_table, some
from clear.tasks import Task

ID_COLUMNS = ("scan_id", "series_uid", "study_uid", "patient_id")
_ALIASES = {
    "scan_id": {"scanid", "scan"},
    "series_uid": {"seriesuid", "seriesinstanceuid"},
    "study_uid": {"studyuid", "studyinstanceuid"},
    "patient_id": {"patientid", "patient", "subjectid"},
}


@dataclass(frozen=True)
class Labels:
    """A label table, read but not joined.

    frame: `id` (text), `patient_id` (text or null), the columns of each endpoint (`Endpoint.label_columns`: class code
    or event Int64, value or time Float64, null = masked), and `split` where the table has such a column; one row an id.
    key: which id of a scan `id` is, one of ID_COLUMNS. endpoints: with kinds and classes settled. remarks: what was
    noticed on the way, as sentences. source: for messages.
    """

    frame: pl.DataFrame
    key: str
    endpoints: tuple[Endpoint, ...]
    remarks: tuple[str, ...]
    source: str


def read_labels(path: Path | str, task: Task, *, id_column: str | None = None) -> Labels:
    """The labels of a task from the files its reader understands; raises InputError saying what is wrong with them."""
    from clear.label_readers import READERS

    if task.labels not in READERS:
        raise InputError(f"task {task.name}: no label reader {task.labels!r}; expected one of {', '.join(READERS)}")
    return READERS[task.labels](Path(path), task, id_column)


def labels_from_table(path: Path, task: Task, id_column: str | None = None) -> Labels:
    """The labels of a task from one table. id_column: the column that holds the ids, when its name does not say so."""
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder; the labels of {task.name} come as one table, such as labels.csv")
    return labels_from_frame(read_table(path), task, str(path), id_column)


def labels_from_frame(
    table: pl.DataFrame, task: Task, source: str, id_column: str | None = None, key: str | None = None
) -> Labels:
    """The labels of a task from a table of text.

    Raises InputError for an absent column, for endpoints that cannot be used, and for an id with two different labels.
    """
    if id_column is not None:
        need_column(table, id_column, source)
        column, key = id_column, key or id_of(id_column) or "any"
    else:
        column, key = find_id_column(table, source)
    settled: list[Endpoint] = []
    codes: list[pl.Series] = []
    remarks: list[str] = []
    for endpoint in task.endpoints:
        one, columns, noted = _read_endpoint(endpoint, table, source)
        settled.append(one)
        codes += columns
        remarks += noted
    patient = next((name for name in table.columns if id_of(name) == "patient_id"), None)
    frame = pl.DataFrame(
        [
            known_ids(table[column]).alias("id"),
            known_ids(table[patient] if patient else pl.Series([None] * table.height)).alias("patient_id"),
            *codes,
        ]
    )
    nameless = frame["id"].null_count()
    if nameless:
        remarks.append(f"{source}: {nameless} of {frame.height} rows have no {column} and are left out")
        frame = frame.drop_nulls("id")
    frame, dropped = _one_row_an_id(frame, column, source)
    if dropped:
        remarks.append(f"{source}: {dropped} rows repeat an id with the same labels; one of each is used")
    if "split" in table.columns:
        frame, noted = _with_split(frame, table, column, source)
        remarks += noted
    return Labels(frame, key, tuple(settled), tuple(remarks), source)


def find_id_column(table: pl.DataFrame, source: Path | str) -> tuple[str, str]:
    """(column, which id of a scan it is); the first of ID_COLUMNS that the table has. Raises InputError for none."""
    for key in ID_COLUMNS:
        for name in table.columns:
            if id_of(name) == key:
                return name, key
    raise InputError(
        f"{source}: no id column; expected one of {', '.join(ID_COLUMNS)}, or the name of yours with --id-column. "
        f"The columns are: {some(table.columns, 20)}"
    )


def id_of(column: str) -> str | None:
    """Which of ID_COLUMNS a column is by its name, None for no id.

    >>> id_of("Patient ID"), id_of("StudyInstanceUID"), id_of("age")
    ('patient_id', 'study_uid', None)
    """
    plain = re.sub(r"[^a-z]", "", column.lower())
    return next((key for key, names in _ALIASES.items() if plain in names), None)


def known_ids(column: pl.Series) -> pl.Series:
    """Ids as text; `nan`, `unknown` and the like are no ids, or they would make one patient of many."""
    return pl.Series([None if word is None or is_unknown(word) else word for word in column], dtype=pl.String)


def _read_endpoint(endpoint: Endpoint, table: pl.DataFrame, source: str) -> tuple[Endpoint, list[pl.Series], list[str]]:
    """(endpoint with kind and classes, the columns of `Endpoint.label_columns`, remarks)."""
    need_column(table, endpoint.source_column, source)
    if endpoint.kind != "survival":
        settled, codes, remarks = parse_endpoint(endpoint, table[endpoint.source_column], source)
        return settled, [codes.alias(endpoint.name)], remarks
    need_column(table, endpoint.event, source)
    times, events, remarks = parse_survival(endpoint, table[endpoint.source_column], table[endpoint.event], source)
    names = endpoint.label_columns
    return endpoint, [times.alias(names[0]), events.alias(names[1])], remarks


def _with_split(frame: pl.DataFrame, table: pl.DataFrame, column: str, source: str) -> tuple[pl.DataFrame, list[str]]:
    """The frame with the table's own `split` beside it, where that says one thing of an id."""
    splits = pl.DataFrame({"id": known_ids(table[column]), "split": known_ids(table["split"])}).drop_nulls().unique()
    torn = splits.filter(pl.col("id").is_duplicated())["id"].n_unique()
    if torn:
        return frame, [f"{source}: column split says two things of {torn} ids and is not used"]
    return frame.join(splits, on="id", how="left", maintain_order="left"), []


def _one_row_an_id(frame: pl.DataFrame, column: str, source: str) -> tuple[pl.DataFrame, int]:
    unique = frame.unique(maintain_order=True)
    doubled = unique.filter(pl.col("id").is_duplicated())
    if doubled.height:
        ids = doubled["id"].unique(maintain_order=True).to_list()
        first = doubled.filter(pl.col("id") == ids[0]).drop("id")
        differ = [name for name in first.columns if first[name].n_unique() > 1]
        raise InputError(
            f"{source}: {len(ids)} ids have several rows with different labels, first {column} {ids[0]!r} "
            f"({first.height} rows differ in {some(differ, 3)}). Give each id one row, or a column that tells the "
            "rows apart (study_uid, series_uid or scan_id)"
        )
    return unique, frame.height - unique.height


def labels_path(bags: Path | str, task: str) -> Path:
    """Where the joined labels of a task live beside a bag file: `feats.labels/<task>.parquet`."""
    bags = Path(bags)
    return bags.with_suffix(".labels") / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', task)}.parquet"


def write_labels(bags: Path | str, task: str, frame: pl.DataFrame, endpoints: Sequence[Endpoint]) -> Path:
    """Writes joined labels beside the bag file, replacing those of the same task at once; returns the path.

    frame: scan_id, patient_id, the endpoints' columns as `clear.label_join.join_labels` gives them, and `split` if
    there is one. Raises OutputError.
    """
    path = labels_path(bags, task)
    columns = [frame["scan_id"]]
    if "patient_id" in frame.columns and frame["patient_id"].null_count() < frame.height:
        columns.append(frame["patient_id"])
    if "split" in frame.columns:
        columns.append(frame["split"])
    for endpoint in endpoints:
        if not endpoint.is_classes:
            columns += [frame[name] for name in endpoint.label_columns]
            continue
        names = [None if code is None else endpoint.classes[code] for code in frame[endpoint.name]]
        columns.append(pl.Series(endpoint.name, names, dtype=pl.Enum(endpoint.classes)))
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    pl.DataFrame(columns).sort("scan_id").write_parquet(buffer)
    write_aside(path, buffer.getvalue())
    return path


def read_saved_labels(bags: Path | str, task: Task) -> Labels:
    """The labels that lie beside a bag file for this task; raises InputError saying how to give them otherwise."""
    path = labels_path(bags, task.name)
    if not path.is_file():
        raise InputError(
            f"no labels for {task.name}: {path} does not exist. Give them with --labels "
            + ("TABLE" if task.labels == "table" else "FOLDER, the label files as downloaded")
        )
    table, types = read_table(path), pl.read_parquet_schema(path)
    endpoints = tuple(_settled(endpoint, types.get(endpoint.name)) for endpoint in task.endpoints)
    for endpoint in endpoints:
        if endpoint.kind == "binary" and endpoint.name in types and types[endpoint.name].is_integer():
            code_of = {str(code): name for code, name in enumerate(endpoint.classes)}  # codes, as they once were saved
            table = table.with_columns(pl.col(endpoint.name).replace(code_of))
    return labels_from_frame(table, replace(task, endpoints=endpoints), str(path))


def _settled(endpoint: Endpoint, saved: pl.DataType | None) -> Endpoint:
    """The endpoint under its own name, with the kind and classes that it had when its column was saved."""
    one = replace(endpoint, column="", event=endpoint.label_columns[-1] if endpoint.event else "")
    if isinstance(saved, pl.Enum) and not one.classes:
        classes = tuple(saved.categories)
        kind: Kind = "ordinal" if one.kind == "ordinal" else "binary" if len(classes) == 2 else "multiclass"
        return replace(one, kind=kind, classes=classes)
    if one.kind == "auto" and saved is not None and saved.is_float():
        return replace(one, kind="regression")
    return one
