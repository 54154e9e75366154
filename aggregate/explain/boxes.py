"""Boxes: lesions marked in a table, as voxels of the scans of a bag file.

Two tables are read (docs/explain.md): `boxes.csv` of the embedded cohort, and one of the user's own, as the slice
store takes it: `scan_id`, `series_uid` or `file`, then x0, y0, x1, y1, `slice` (or slice0 and slice1, half-open),
`label` and `axes`. Positions are canonical: columns and rows as `clear.read_volume` gives them, in pixels from the edge
of the first one, so that pixel i covers i to i + 1.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clear.errors import InputError
from clear.formats import without_ending
from clear.phantoms import BOX_COLUMNS
from clear.tables import need_column, read_table, some
from clear.volume import Volume

KEYS = ("file", "scan_id", "series_uid")  # of a row that has several, the first counts
CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Box:
    """A marked block of voxels in canonical axes.

    x, y: from and to, in pixels from the edge of the first column and row; slices: half-open range along Z
    label: what is marked, "" when the table does not say
    """

    x: tuple[float, float]
    y: tuple[float, float]
    slices: tuple[int, int]
    label: str = ""

    def pixels(self, columns: int, rows: int) -> tuple[slice, slice]:
        """(rows, columns) whose pixels' centres lie inside, at least one of each: the nearest."""
        return _centres(*self.y, rows), _centres(*self.x, columns)


@dataclass(frozen=True)
class Boxes:
    """The boxes of a table by scan_id. remarks: what of the table could not be used, as sentences."""

    path: Path
    of_scan: Mapping[str, tuple[Box, ...]]
    remarks: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What is marked, sorted."""
        return tuple(sorted({box.label for boxes in self.of_scan.values() for box in boxes}))

    def scans_with(self, labels: tuple[str, ...]) -> set[str]:
        """Ids of the scans in which one of these is marked."""
        return {scan for scan, boxes in self.of_scan.items() if any(box.label in labels for box in boxes)}

    def holds(self, scan_id: str, labels: tuple[str, ...], n_slices: int) -> NDArray[np.bool_]:
        """(Z,) which slices hold a box of these labels. Raises InputError where one lies outside the scan."""
        found = np.zeros(n_slices, dtype=bool)
        for box in self._boxes(scan_id, labels, n_slices):
            found[slice(*box.slices)] = True
        return found

    def region(self, scan_id: str, labels: tuple[str, ...], volume: Volume) -> NDArray[np.bool_]:
        """(Z, Y, X) the voxels inside a box of these labels. Raises InputError where one lies outside the scan."""
        n_slices, rows, columns = volume.voxels.shape
        found = np.zeros(volume.voxels.shape, dtype=bool)
        for box in self._boxes(scan_id, labels, n_slices):
            if box.x[0] >= columns or box.y[0] >= rows or min(box.x[1], box.y[1]) <= 0:
                raise InputError(
                    f"{self.path}: {scan_id}: the box x {box.x[0]:g} to {box.x[1]:g}, y {box.y[0]:g} to {box.y[1]:g} "
                    f"lies outside its {columns} columns and {rows} rows. Correct the table"
                )
            found[slice(*box.slices), *box.pixels(columns, rows)] = True
        return found

    def _boxes(self, scan_id: str, labels: tuple[str, ...], n_slices: int) -> Iterator[Box]:
        for box in self.of_scan.get(scan_id, ()):
            if box.label not in labels:
                continue
            if box.slices[0] < 0 or box.slices[1] > n_slices:
                raise InputError(
                    f"{self.path}: {scan_id}: a box in slices {box.slices[0]} to {box.slices[1] - 1}, but the scan has "
                    f"the slices 0 to {n_slices - 1}. Correct the table"
                )
            yield box


def read_boxes(path: Path | str, scans: pl.DataFrame) -> Boxes:
    """The boxes of a table, of those scans that a bag file has.

    scans: `scan_id`, `series_uid` and `source` of a bag file. Raises InputError for a table that is no table of boxes,
    a row that is none, and positions that are not in canonical axes.
    """
    path = Path(path)
    table = read_table(path)
    _check_columns(table, path)
    names = _Names(scans)
    axes = "canonical" if tuple(table.columns) == BOX_COLUMNS else None
    found: dict[str, list[Box]] = defaultdict(list)
    unknown: Counter[str] = Counter()
    for number, row in enumerate(table.iter_rows(named=True), start=2):
        place = f"{path} row {number}"
        key = next((key for key in KEYS if row.get(key)), None)
        if key is None:
            raise InputError(f"{place}: names no scan: scan_id, series_uid or file is empty. Fill it in")
        _check_axes(row.get("axes") or axes, place)
        box = _box(row, place)
        scan = names.find(key, row[key] or "")
        if scan is None:
            unknown[row[key] or ""] += 1
        else:
            found[scan].append(box)
    remarks: tuple[str, ...] = ()
    if unknown:
        remarks = (
            f"{path.name}: {sum(unknown.values())} boxes are of {len(unknown)} scans that the bag file does not have "
            f"(another kernel, or not extracted), first {some(unknown, 1)}",
        )
    if not found:
        raise InputError(
            f"{path}: none of its {table.height} boxes is of a scan of the bag file; the first names "
            f"{some(unknown, 1)!r}. Expected ids as `clear bags info` counts them: scan_id or series_uid"
        )
    return Boxes(path, {scan: tuple(boxes) for scan, boxes in found.items()}, remarks)


class _Names:
    """scan_id of a scan by any of the names that a table may use."""

    def __init__(self, scans: pl.DataFrame) -> None:
        self._exact: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._last: dict[tuple[str, str], set[str]] = defaultdict(set)
        for scan, series, source in scans.select("scan_id", "series_uid", "source").iter_rows():
            self._exact["scan_id", scan].add(scan)
            self._last["scan_id", scan.rpartition("/")[2]].add(scan)
            self._exact["series_uid", series or ""].add(scan)
            self._exact["file", source or ""].add(scan)
            self._last["file", (source or "").rpartition("/")[2]].add(scan)

    def find(self, key: str, name: str) -> str | None:
        """The only scan of this name; its last part decides where none has the whole."""
        for word in (name, without_ending(name)) if key == "scan_id" else (name,):
            for scans in (self._exact[key, word], self._last[key, word]):
                if len(scans) == 1:
                    return next(iter(scans))
        return None


def _check_columns(table: pl.DataFrame, path: Path) -> None:
    columns = set(table.columns)
    if {"File_name", "Bounding_boxes"} <= columns:
        raise InputError(
            f"{path}: DeepLesion's own table names slices, not scans, and is not read here. Expected scan_id, x0, y0, "
            "x1, y1, slice, label and axes (docs/explain.md)"
        )
    if not columns & set(KEYS):
        raise InputError(
            f"{path}: no column scan_id, series_uid or file, so its boxes belong to no scan. The columns are: "
            f"{some(table.columns, 20)}"
        )
    for column in CORNERS:
        need_column(table, column, path)
    if "slice" not in columns and not {"slice0", "slice1"} <= columns:
        raise InputError(f"{path}: no column slice (or slice0 and slice1, half-open), so its boxes lie in no slice")


def _check_axes(axes: str | None, place: str) -> None:
    if axes is None or axes.lower() != "canonical":
        said = f"says axes {axes}" if axes else "does not say in which axes its pixels are counted"
        raise InputError(
            f"{place}: {said}; explanations are judged in canonical ones, as clear.read_volume gives a scan. Bring the "
            "boxes there and add a column axes with the word canonical"
        )


def _box(row: Mapping[str, str | None], place: str) -> Box:
    x0, y0, x1, y1 = (_number(row, name, place) for name in CORNERS)
    if not (x0 < x1 and y0 < y1):
        raise InputError(f"{place}: the box x {x0:g} to {x1:g}, y {y0:g} to {y1:g} is empty; expected x0 < x1, y0 < y1")
    single = row.get("slice") is not None
    first, last = (_number(row, name, place) for name in (("slice", "slice") if single else ("slice0", "slice1")))
    low, high = int(first), int(last) + single
    if not (first.is_integer() and last.is_integer()) or low >= high:
        raise InputError(
            f"{place}: slices {first:g} to {last:g}; expected whole numbers, slice0 < slice1 (half-open), or one slice"
        )
    return Box((x0, x1), (y0, y1), (low, high), row.get("label") or row.get("finding") or "")


def _number(row: Mapping[str, str | None], name: str, place: str) -> float:
    text = row.get(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {name} is {text!r}; expected a number")
    return value


def _centres(low: float, high: float, count: int) -> slice:
    """Indices i of 0..count - 1 with low <= i + 0.5 < high; the nearest one where there is none."""
    first, after = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if first >= after:
        first = math.floor((low + high) / 2)
        after = first + 1
    return slice(min(max(first, 0), count - 1), min(max(after, 1), count))
