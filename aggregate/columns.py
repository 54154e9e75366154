"""Columns that say something of scans: of the bag file's own scan table, or of a user's table joined on ids.

Sites, official splits and the inputs of baselines come from here. Nothing is guessed: a table is joined on its id
column (`clear.labels.find_id_column`), never on row order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from clear.datasets.assemble import split_name
from clear.errors import InputError
from clear.labels import find_id_column, known_ids
from clear.tables import need_column, read_table, some


def scan_column(
    name: str,
    scans: pl.DataFrame,
    table: Path | str | None = None,
    id_column: str | None = None,
    option: str = "--group",
) -> dict[str, str | None]:
    """scan_id -> what the column says of it, as text, None where nothing.

    scans: `Bags.scans`, looked at first; table: a table with an id column. Raises InputError when neither has it.
    """
    if name in scans.columns and scans[name].dtype != pl.List and not isinstance(scans[name].dtype, pl.Array):
        values = scans[name].cast(pl.String)
        if values.null_count() < scans.height:
            return dict(zip(scans["scan_id"], known_ids(values), strict=True))
    if table is None or not Path(table).is_file():
        raise InputError(
            f"{option} {name}: no such column, or an empty one, in the bag file's scan table (it has "
            f"{some(scans.columns, 20)}); to take it from the label table, give that with --labels TABLE"
        )
    joined = table_of_scans(table, scans, id_column)
    need_column(joined, name, table)
    return dict(zip(joined["scan_id"], known_ids(joined[name]), strict=True))


def table_of_scans(path: Path | str, scans: pl.DataFrame, id_column: str | None = None) -> pl.DataFrame:
    """The table's columns, as text, for every scan: one row a scan, ordered as `scans`, null where none of its rows is.

    Raises InputError when nothing joins, or an id has several rows that differ.
    """
    table = read_table(path)
    if id_column is not None:
        need_column(table, id_column, path)
        column, keys = id_column, ["scan_id", "series_uid", "study_uid", "patient_id"]
    else:
        column, key = find_id_column(table, path)
        keys = [key]
    table = (
        table.with_columns(pl.Series(column, known_ids(table[column]))).drop_nulls(column).unique(maintain_order=True)
    )
    doubled = table.filter(pl.col(column).is_duplicated())
    if doubled.height:
        count = doubled.filter(pl.col(column) == doubled[column][0]).height
        raise InputError(
            f"{path}: {column} {doubled[column][0]!r} has {count} rows that differ; expected one row an id"
        )
    known = set(table[column].to_list())
    for key in keys:
        ids = scans[key].cast(pl.String)
        if not any(value in known for value in ids) and key == "scan_id":
            ids = pl.Series([str(value).rsplit("/", 1)[-1] for value in ids], dtype=pl.String)
        if any(value in known for value in ids):
            left = pl.DataFrame({"scan_id": scans["scan_id"], " id": ids})
            # the ids found may be of another column than the table's own scan_id, which it need not have
            right = table.rename({column: " id"}).drop("scan_id", strict=False)
            found = left.join(right, on=" id", how="left", maintain_order="left")
            return found.drop(" id") if column == "scan_id" else found.rename({" id": column})
    raise InputError(
        f"{path}: none of its {table.height} ids is a {' or '.join(keys)} of the bag file ({some(sorted(known), 3)}); "
        "is it the table of another cohort?"
    )


def official_split(values: Sequence[str | None], source: str) -> list[str | None]:
    """`train`, `val`, `test` or None for the words that people use; raises InputError for another one."""
    strange = sorted({value for value in values if value is not None and split_name(value) is None})
    if strange:
        raise InputError(f"{source}: split is {some(strange, 3)}; expected train, val or test")
    return [split_name(value) for value in values]
