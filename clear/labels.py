"""Labels: what is known about scans or patients, one column an endpoint, and the files that hold it.

A label table has one id column and one column an endpoint. The id column is the first of scan_id, series_uid,
study_uid, patient_id that the table has (also as `PatientID`, `Study Instance UID`, ...). A cell that says nothing
(empty, NA, nan, unknown, ...) is masked, never a zero, and counted.

Joined labels may live beside the bag file, `feats.labels/<task>.parquet`: scan_id, patient_id where the bag file does
not know it, and one column an endpoint (0 or 1 when binary, the class name when multi-class, null = masked).
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import polars as pl

from clear.atomic import output_errors, write_aside
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tables import need_column, read_table, some
from clear.tasks import Task

ID_COLUMNS = ("scan_id", "series_uid", "study_uid", "patient_id")
_ALIASES = {
    "scan_id": {"scanid", "scan"},
    "series_uid": {"seriesuid", "seriesinstanceuid"},
    "study_uid": {"studyuid", "studyinstanceuid"},
    "patient_id": {"patientid", "patient", "subjectid"},
}
UNKNOWN = frozenset({"", "na", "n/a", "nan", "<na>", "null", "unknown", "missing", "?", "-", "."})
_TRUE = frozenset({"1", "1.0", "true", "yes", "y", "t", "positive", "pos", "present"})
_FALSE = frozenset({"0", "0.0", "false", "no", "n", "f", "negative", "neg", "absent"})
MAX_CLASSES = 20


@dataclass(frozen=True)
class Labels:
    """A label table, read but not joined.

    frame: `id` (text), `patient_id` (text or null) and one column an endpoint holding the class code (Int64, null =
    masked); one row an id. key: which id of a scan `id` is, one of ID_COLUMNS. endpoints: with kinds and classes
    settled. remarks: what was noticed on the way, as sentences. source: for messages.
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
        column, key = id_column, key or _id_name(id_column) or "any"
    else:
        column, key = find_id_column(table, source)
    settled, codes, remarks = [], [], []
    for endpoint in task.endpoints:
        need_column(table, endpoint.source_column, source)
        one, coded, noted = parse_endpoint(endpoint, table[endpoint.source_column], source)
        settled.append(one)
        codes.append(coded.alias(one.name))
        remarks += noted
    patient = next((name for name in table.columns if _id_name(name) == "patient_id"), None)
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
    return Labels(frame, key, tuple(settled), tuple(remarks), source)


def find_id_column(table: pl.DataFrame, source: Path | str) -> tuple[str, str]:
    """(column, which id of a scan it is); the first of ID_COLUMNS that the table has. Raises InputError for none."""
    for key in ID_COLUMNS:
        for name in table.columns:
            if _id_name(name) == key:
                return name, key
    raise InputError(
        f"{source}: no id column; expected one of {', '.join(ID_COLUMNS)}, or the name of yours with --id-column. "
        f"The columns are: {some(table.columns, 20)}"
    )


def _id_name(column: str) -> str | None:
    plain = re.sub(r"[^a-z]", "", column.lower())
    return next((key for key, names in _ALIASES.items() if plain in names), None)


def parse_endpoint(endpoint: Endpoint, column: pl.Series, source: str) -> tuple[Endpoint, pl.Series, list[str]]:
    """(endpoint with kind and classes, class codes with null = masked, remarks) for a column of text.

    0/1, true/false, yes/no and the like are binary; two other values are binary with the later one (by number, else by
    alphabet) as the positive class; 3 to 20 values are multi-class. Raises InputError for what is none of these. An
    endpoint whose classes are declared may have no known value at all: every code is null.
    """
    words = _one_spelling([None if value is None else value.strip() for value in column])
    said_nothing = Counter(word for word in words if word is not None and _is_unknown(word))
    known = sorted({word for word in words if word is not None and not _is_unknown(word)}, key=_order)
    where = f"{source}: column {endpoint.source_column!r}"
    _no_two_cases(known, endpoint, where)
    if not known and endpoint.kind == "auto":
        raise InputError(f"{where} holds no known value ({len(words)} rows are empty or unknown)")
    folded = {word.lower() for word in known}
    remarks = []
    if said_nothing:
        listed = ", ".join(f"{word!r} ({count})" for word, count in said_nothing.most_common(4))
        remarks.append(f"{endpoint.name}: unknown and left out: {listed}")
    yes_or_no = folded <= _TRUE | _FALSE
    if endpoint.kind != "auto":
        code_of = {word: code for word in known if (code := _code(word, endpoint)) is not None}
        strange = [word for word in known if word not in code_of]
        if strange:
            raise InputError(
                f"{where} holds {some(strange, 3)}; expected {some(endpoint.classes, 20)}"
                + (", 0/1, true/false or yes/no" if endpoint.kind == "binary" else "")
            )
    elif yes_or_no:
        negative = next((word for word in known if word.lower() in _FALSE), None)
        positive = next((word for word in known if word.lower() in _TRUE), None)
        if negative is None or positive is None:
            _one_class(where, known[0], len(words) - sum(word is None or _is_unknown(word) for word in words))
        endpoint = replace(endpoint, kind="binary", classes=(negative, positive))
        code_of = {word: int(word.lower() in _TRUE) for word in known}
    else:
        endpoint, code_of = _infer(endpoint, known, where, words, remarks)
    codes = [None if word is None else code_of.get(word) for word in words]
    return endpoint, pl.Series(endpoint.name, codes, dtype=pl.Int64), remarks


def _infer(
    endpoint: Endpoint, known: list[str], where: str, words: Sequence[str | None], remarks: list[str]
) -> tuple[Endpoint, dict[str, int]]:
    numbers = [_number(word) for word in known]
    if len(known) == 1:
        _one_class(where, known[0], sum(word == known[0] for word in words))
    if all(number is not None for number in numbers):
        fractional = any(number is not None and number != int(number) for number in numbers)
        if len(known) > MAX_CLASSES or (fractional and len(known) > 2):
            raise InputError(
                f"{where} holds {len(known)} different numbers ({some(known, 3)}): a quantity, not classes. Regression "
                "arrives later; until then cut it into classes in a column of its own"
            )
    elif len(known) > MAX_CLASSES:
        raise InputError(
            f"{where} holds {len(known)} different texts ({some(known, 3)}); expected at most {MAX_CLASSES} classes. "
            "Is it an id or a free text?"
        )
    if len(known) == 2:
        remarks.append(f"{endpoint.name}: the positive class is {known[1]!r}, the negative {known[0]!r}")
    else:
        counts = Counter(word for word in words if word in known)
        remarks.append(
            f"{endpoint.name}: {len(known)} classes, " + ", ".join(f"{word!r} ({counts[word]})" for word in known)
        )
        if (numbers[0] or 0) < 0:
            remarks.append(f"{endpoint.name}: {known[0]!r} counts as a class; empty the cells where it means unknown")
    settled = replace(endpoint, kind="binary" if len(known) == 2 else "multiclass", classes=tuple(known))
    return settled, {word: code for code, word in enumerate(known)}


def _one_spelling(words: Sequence[str | None]) -> list[str | None]:
    """Numbers that are written in several ways (`1` and `1.0`) in the shortest of them; the rest as it is."""
    shortest: dict[float, str] = {}
    for word in words:
        number = None if word is None else _number(word)
        if word is not None and number is not None and len(word) < len(shortest.get(number, word + " ")):
            shortest[number] = word
    numbers = {word: _number(word) for word in set(words) if word is not None}
    return [None if word is None else shortest.get(numbers[word], word) for word in words]  # type: ignore[arg-type]


def _no_two_cases(known: Sequence[str], endpoint: Endpoint, where: str) -> None:
    spellings: dict[str, str] = {}
    for word in known:
        other = spellings.setdefault(word.lower(), word)
        if other != word and word not in endpoint.classes and word.lower() not in _TRUE | _FALSE:
            raise InputError(f"{where} holds both {other!r} and {word!r}; write one class in one way")


def _code(word: str, endpoint: Endpoint) -> int | None:
    """The class that a cell of a declared endpoint names; yes and no will do for a binary one."""
    if word in endpoint.classes:
        return endpoint.classes.index(word)
    if endpoint.kind == "binary" and word.lower() in _TRUE | _FALSE:
        return int(word.lower() in _TRUE)
    return None


def _one_class(where: str, value: str, count: int) -> NoReturn:
    raise InputError(
        f"{where} holds one class only: {value!r} in all {count} known rows; nothing can be learnt from it"
    )


def known_ids(column: pl.Series) -> pl.Series:
    """Ids as text; `nan`, `unknown` and the like are no ids, or they would make one patient of many."""
    return pl.Series([None if word is None or _is_unknown(word) else word for word in column], dtype=pl.String)


def _is_unknown(word: str) -> bool:
    return word == "None" or word.lower() in UNKNOWN


def _number(word: str) -> float | None:
    try:
        return float(word) if math.isfinite(float(word)) else None
    except ValueError:
        return None


def _order(word: str) -> tuple[bool, float, str]:
    number = _number(word)
    return (number is None, number or 0.0, word)


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

    frame: scan_id, patient_id, and class codes as `clear.label_join.join_labels` gives them. Raises OutputError.
    """
    path = labels_path(bags, task)
    columns = [frame["scan_id"]]
    if "patient_id" in frame.columns and frame["patient_id"].null_count() < frame.height:
        columns.append(frame["patient_id"])
    for endpoint in endpoints:
        codes = frame[endpoint.name].cast(pl.Int8)
        if endpoint.kind == "multiclass":
            names: Mapping[int, str] = dict(enumerate(endpoint.classes))
            codes = pl.Series(endpoint.name, [None if code is None else names[code] for code in codes], dtype=pl.String)
        columns.append(codes.alias(endpoint.name))
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
    table = read_table(path)
    by_name = replace(task, endpoints=tuple(replace(endpoint, column="") for endpoint in task.endpoints))
    return labels_from_frame(table, by_name, str(path))
