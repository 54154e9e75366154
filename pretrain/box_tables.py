"""Box tables: the rows that people and data sets keep, understood but not yet placed in a scan.

Three kinds are told apart by their columns:

- `DL_info.csv` of DeepLesion. Its coordinates are those of pixel centres counted from 1 ("coordinates in info file
  start from 1", rsummers11/CADLab, maskrcnn/data/datasets/DeepLesion.py), so 0.5 less is a position counted from the
  image's edge. Rows that are possibly noisy are left out, as its authors do.
- `boxes.csv` of the embedded cohort (`clear.phantoms.BOX_COLUMNS`), in canonical axes.
- a table of the user's own, see docs/slice-store.md: `scan_id`, `series_uid` or `file`, then x0, y0, x1, y1, `slice`
  (or slice0 and slice1), `label` and `axes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import polars as pl

from clear.datasets.assemble import whole_number
from clear.datasets.deeplesion import TYPES
from clear.errors import InputError
from clear.scans import Scan
from clear.tables import need_column, read_table, some

Key = Literal["scan_id", "series_uid", "file", "File_name"]
KEYS: tuple[Key, ...] = ("file", "scan_id", "series_uid")  # of a row that has several, the first counts
CORNERS = ("x0", "y0", "x1", "y1")
AXES = ("stored", "canonical")
_FROM_CENTRES_AT_1 = 0.5


class UnusableRow(Exception):
    """Why a row gives no box. reason: a short stable name; lost: whether a box is missing that one would expect."""

    def __init__(self, reason: str, message: str, lost: bool = True) -> None:
        super().__init__(message)
        self.reason, self.lost = reason, lost


@dataclass(frozen=True)
class Mark:
    """A row of a table.

    place: `boxes.csv row 7`; key, name: by what its scan is called; corners: x0, y0, x1, y1 in pixels from the edge of
    the image's first one; slices: first and last, both included, None where the row names none; label: "" for none;
    axes: `stored`, `canonical` or None where the table does not say; size: (columns, rows) of the image it was drawn on
    """

    place: str
    key: Key
    name: str
    corners: tuple[float, float, float, float]
    slices: tuple[int, int] | None
    label: str
    axes: str | None
    size: tuple[int, int] | None = None


def read_marks(path: Path) -> Iterator[tuple[str, Mark | UnusableRow]]:
    """(place, row) for each row of a table; row 2 is the first below the header, as spreadsheets count.

    Raises InputError for a table that cannot be read or lacks a column.
    """
    table = read_table(path)
    is_deeplesion = {"File_name", "Bounding_boxes"} <= set(table.columns)
    if not is_deeplesion:
        _check_columns(table, path)
    axes = _axes_of(table)
    for number, row in enumerate(table.iter_rows(named=True), start=2):
        place = f"{path.name} row {number}"
        try:
            yield place, _deeplesion_mark(place, row) if is_deeplesion else _own_mark(place, row, axes)
        except UnusableRow as error:
            yield place, error


def fill_spacing(scans: Sequence[Scan], tables: Iterable[Path]) -> list[Scan]:
    """The scans, those of DeepLesion whose spacing is unknown with that of a DL_info.csv among the tables.

    Their reader finds the table only in or above the folder of the slices, inside the input. Raises InputError for a
    table that cannot be read.
    """
    from clear.formats.deeplesion import NO_ORIGIN, NO_SPACING

    spacing: dict[str, tuple[float, float, float]] = {}
    for path in tables:
        table = read_table(path)
        if not {"File_name", "Spacing_mm_px_"} <= set(table.columns):
            continue
        for name, words in table.select("File_name", "Spacing_mm_px_").iter_rows():
            x, y, z = _numbers(words, 3) or (0.0, 0.0, 0.0)
            if name and min(x, y, z) > 0:
                spacing[name.rpartition("_")[0]] = (z, y, x)
    filled = []
    for scan in scans:
        series = scan.scan_id.rpartition("/")[2].rpartition("_")[0]
        if scan.format == "deeplesion" and scan.spacing_mm is None and series in spacing:
            remarks = tuple(NO_ORIGIN if remark == NO_SPACING else remark for remark in scan.remarks)
            scan = replace(scan, spacing_mm=spacing[series], remarks=remarks)
        filled.append(scan)
    return filled


def _axes_of(table: pl.DataFrame) -> str | None:
    """The axes of a whole table, where they are known without a column."""
    from clear.phantoms import BOX_COLUMNS

    return "canonical" if tuple(table.columns) == BOX_COLUMNS else None


def _check_columns(table: pl.DataFrame, path: Path) -> None:
    columns = set(table.columns)
    if not columns & set(KEYS):
        raise InputError(
            f"{path}: no column scan_id, series_uid or file, so its boxes belong to no scan. The columns are: "
            f"{some(table.columns, 20)}"
        )
    for column in CORNERS:
        need_column(table, column, path)
    if not columns & {"slice", "slice0", "file"}:
        raise InputError(f"{path}: no column slice (or slice0 and slice1), so its boxes lie in no slice. Add it")
    if ("slice0" in columns) != ("slice1" in columns):
        raise InputError(
            f"{path}: slice0 and slice1 (half-open) go together; or name one slice a row in a column slice"
        )


def _deeplesion_mark(place: str, row: Mapping[str, str | None]) -> Mark:
    name, words = row["File_name"] or "", row["Bounding_boxes"]
    corners = _numbers(words, 4)
    if corners is None:
        raise UnusableRow("unreadable", f"Bounding_boxes is {words!r}; expected x1, y1, x2, y2")
    if whole_number(row.get("Possibly_noisy")) not in (None, "0"):
        raise UnusableRow("possibly_noisy", f"{name} is marked as possibly noisy, and left out", lost=False)
    x0, y0, x1, y1 = (value - _FROM_CENTRES_AT_1 for value in corners)
    label = TYPES.get(whole_number(row.get("Coarse_lesion_type")) or "", "")
    size = _numbers(row.get("Image_size"), 2)
    drawn_on = None if size is None else (int(size[0]), int(size[1]))
    return Mark(place, "File_name", name, (x0, y0, x1, y1), None, label, "canonical", drawn_on)


def _own_mark(place: str, row: Mapping[str, str | None], axes: str | None) -> Mark:
    key = next((key for key in KEYS if row.get(key)), None)
    if key is None:
        raise UnusableRow("no_scan", "names no scan: scan_id, series_uid or file is empty")
    words = [row[column] or "" for column in CORNERS]
    corners = _numbers(", ".join(words), 4)
    if corners is None:
        raise UnusableRow("unreadable", f"x0, y0, x1, y1 are {', '.join(words)}; expected four numbers")
    axes = (row.get("axes") or "").lower() or axes
    if axes not in (None, *AXES):
        raise UnusableRow("unreadable", f"axes is {axes!r}; expected stored or canonical")
    x0, y0, x1, y1 = corners
    label = row.get("label") or row.get("finding") or ""
    return Mark(place, key, row[key] or "", (x0, y0, x1, y1), _slices(row), label, axes)


def _slices(row: Mapping[str, str | None]) -> tuple[int, int] | None:
    """First and last slice of a row, both included; None where it names none."""
    words = {column: word for column in ("slice", "slice0", "slice1") if (word := row.get(column))}
    if not words:
        return None
    numbers = _numbers(", ".join(words.values()), len(words))
    known = tuple(words) in (("slice",), ("slice0", "slice1"))
    if not known or numbers is None or not all(number.is_integer() for number in numbers):
        said = ", ".join(f"{column} {word}" for column, word in words.items())
        raise UnusableRow("unreadable", f"has {said}; expected a whole number as slice, or as slice0 and slice1")
    first, last = int(numbers[0]), int(numbers[-1]) - (len(numbers) == 2)
    if first > last:
        raise UnusableRow("empty_box", f"slice0 {first} to slice1 {last + 1} (half-open) holds no slice")
    return first, last


def _numbers(text: str | None, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, separated by commas; None for anything else."""
    try:
        numbers = tuple(float(word) for word in (text or "").split(","))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
