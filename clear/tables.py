"""Tables that people keep: CSV, TSV, Excel and Parquet, read as text.

Everything arrives as text, so that an id keeps its leading zeros and nothing is guessed before the meaning of a column
is known. What a cell means is decided where the column is used (`clear.labels`).
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from clear.errors import InputError, MissingExtra

SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".parquet")


def read_table(path: Path | str, columns: Iterable[str] | None = None) -> pl.DataFrame:
    """A table with every column as text; empty cells are null, header names and cells are stripped of blanks.

    columns: read only these where they exist. Raises InputError for a file that is absent, empty, damaged, or has two
    columns of one name.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: {kind}; expected a table ({', '.join(SUFFIXES)})")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: ends in {suffix or 'nothing'!r}; expected one of {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            table = pl.read_parquet(path)
        elif suffix in (".xlsx", ".xls"):
            table = _read_excel(path)
        else:
            table = _read_delimited(path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise InputError(f"{path}: {_what_is_wrong(path, suffix)}") from error
    table = table.rename({name: name.strip().lstrip("\ufeff") for name in table.columns})
    if columns is not None:
        wanted = set(columns)
        table = table.select([name for name in table.columns if name in wanted])
    elif table.height == 0 or table.width == 0:
        raise InputError(f"{path}: the table has no rows")
    return table.select(_as_text(table[name]) for name in table.columns)


def need_column(table: pl.DataFrame, column: str, source: Path | str) -> None:
    """Raises InputError, with the nearest names and the columns there are, when the column is absent."""
    if column in table.columns:
        return
    near = difflib.get_close_matches(column.lower(), [name.lower() for name in table.columns], n=1, cutoff=0.6)
    nearest = next((name for name in table.columns if near and name.lower() == near[0]), None)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    raise InputError(f"{source}: no column {column!r}; {hint}The columns are: {some(table.columns, 20)}")


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    listed = [str(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _as_text(column: pl.Series) -> pl.Series:
    """Text without surrounding blanks; whole numbers stored as floating point lose their `.0`; blank is null."""
    if column.dtype.is_float():
        whole = column.drop_nulls().drop_nans()
        if whole.len() and bool((whole == whole.round()).all()) and float(whole.abs().max()) < 2**53:  # type: ignore[arg-type]
            column = column.fill_nan(None).cast(pl.Int64)
    if column.dtype == pl.Boolean:
        column = column.cast(pl.Int8)
    if column.dtype == pl.Categorical or isinstance(column.dtype, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        column = column.cast(pl.String, strict=False)  # a list or a table in a cell is no label: it reads as unknown
    text = column.str.strip_chars()
    return text.set(text == "", None)


def _read_delimited(path: Path) -> pl.DataFrame:
    text = _text_of(path)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    if not header.strip():
        raise InputError(f"{path}: the table is empty")
    separator = _separator(header)
    names = [name.strip().strip('"') for name in header.rstrip("\r").split(separator)]
    doubled = sorted({name for name in names if names.count(name) > 1 and name})
    if doubled:
        raise InputError(f"{path}: two columns are named {doubled[0]!r}; rename one of them")
    return pl.read_csv(io.BytesIO(text.encode()), separator=separator, infer_schema=False)


def _separator(header: str) -> str:
    return max("\t;,", key=lambda mark: (header.count(mark), mark == ","))


def _text_of(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _read_excel(path: Path) -> pl.DataFrame:
    try:
        import fastexcel
    except ImportError:
        raise MissingExtra("fastexcel", "excel", f"Reading {path.name}") from None
    try:
        return fastexcel.read_excel(path).load_sheet(0, dtypes="string").to_polars()
    except fastexcel.FastExcelError as error:
        raise InputError(f"{path}: {_what_is_wrong(path, path.suffix.lower())}") from error


def _what_is_wrong(path: Path, suffix: str) -> str:
    """Why a table could not be read, in our words; for delimited text the first line that does not fit the header."""
    if suffix in (".xlsx", ".xls"):
        return "cannot be read as an Excel workbook; it is damaged or something else. Save it again, or as CSV"
    if suffix == ".parquet":
        return "cannot be read as a Parquet table; it is damaged or something else. Write it again"
    try:
        text = _text_of(path).lstrip("\r\n")
        lines = csv.reader(io.StringIO(text), delimiter=_separator(text.split("\n", 1)[0]), strict=True)
        columns = len(next(lines))
        for line in lines:
            if len(line) > columns:
                return f"line {lines.line_num} has {len(line)} cells and the header {columns}; make them equal"
    except (csv.Error, OSError, ValueError):
        pass
    return f"cannot be read as a {suffix[1:]} table; is a quotation mark open, or the file damaged?"
