"""LIDC-IDRI: one XML file a scan, with what up to four radiologists outlined and how malignant they rated it.

A file is `LidcReadMessage` (chest films have another root): the series in its header, a `readingSession` a reader, an
`unblindedReadNodule` an outline of a nodule of 3 mm or more with `characteristics/malignancy` 1..5, and a `roi` a
slice. The files do not say which outlines are of one nodule. Here outlines of different readers are one nodule where
the boxes around them overlap on a slice, which needs no voxel size (pylidc uses a distance in millimetres).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from clear.datasets.assemble import assemble
from clear.datasets.files import find_files, folder_of, need_files
from clear.errors import InputError
from clear.labels import Labels
from clear.tables import read_table
from clear.task import Task

FILES = ("*.xml",)
ORIGIN = "LIDC-IDRI (the Cancer Imaging Archive): the XML files beside the slices, or LIDC-XML-only"
MIN_READERS, INDETERMINATE = 3, 3.0
MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Outline:
    """What one reader outlined: rating 1..5, and slice -> (lowest x, highest x, lowest y, highest y) in pixels."""

    reader: int
    rating: int
    boxes: dict[str, tuple[int, int, int, int]]

    def overlaps(self, other: Outline) -> bool:
        """Whether the boxes share a pixel on a slice."""
        for key in self.boxes.keys() & other.boxes.keys():
            x0, x1, y0, y1 = self.boxes[key]
            u0, u1, v0, v1 = other.boxes[key]
            if max(x0, u0) <= min(x1, u1) and max(y0, v0) <= min(y1, v1):
                return True
        return False


def read(path: Path, task: Task) -> Labels:
    """The malignancy of each scan's most suspicious nodule; ids are SeriesInstanceUIDs, also those LUNA16 names by.

    Nodules with fewer than three readers do not count; a mean rating above 3 is suspicious, below benign, exactly 3
    unknown. Patients come from a metadata.csv of NBIA, if there is one. Raises InputError when no file is of LIDC.
    """
    if len(task.endpoints) != 1 or len(task.endpoints[0].classes) != 2:
        raise InputError(f"task {task.name}: these files answer one binary question (benign, suspicious)")
    (endpoint,) = task.endpoints
    rows: dict[str, str | None] = {}
    for file in need_files(path, FILES, ORIGIN):
        found = _scan(file)
        if found is not None:
            series, outlines = found
            if series in rows and rows[series] != _label(outlines, endpoint.classes):
                raise InputError(f"{file}: a second file for series {series}, with other ratings; keep one of them")
            rows[series] = _label(outlines, endpoint.classes)
    if not rows:
        raise InputError(f"{path}: none of its XML files is a LidcReadMessage; expected those of {ORIGIN}")
    table = pl.DataFrame(
        {"id": list(rows), endpoint.source_column: list(rows.values())},
        schema={"id": pl.String, endpoint.source_column: pl.String},
    )
    patients = _patients(path)
    if patients:
        known = pl.Series("patient_id", [patients.get(series) for series in rows], dtype=pl.String)
        table = table.with_columns(known)
    return assemble(table, task, str(path), "any")


def nodules(outlines: Iterable[Outline]) -> list[list[Outline]]:
    """Outlines grouped by nodule: connected where those of two readers overlap."""
    groups: list[list[Outline]] = []
    for outline in outlines:
        touching = [group for group in groups if any(o.reader != outline.reader and o.overlaps(outline) for o in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([outline, *(other for group in touching for other in group)])
    return groups


def _label(outlines: list[Outline], classes: tuple[str, ...]) -> str | None:
    means = [
        sum(outline.rating for outline in nodule) / len(nodule)
        for nodule in nodules(outlines)
        if len({outline.reader for outline in nodule}) >= MIN_READERS
    ]
    if not means or max(means) == INDETERMINATE:
        return None
    return classes[int(max(means) > INDETERMINATE)]


def _scan(file: Path) -> tuple[str, list[Outline]] | None:
    """(series, outlines with a rating) of a LidcReadMessage; None for any other file."""
    if file.stat().st_size > MOST_BYTES:
        return None
    raw = file.read_bytes()
    if b"LidcReadMessage" not in raw:
        return None
    try:  # one encoding alone: in another the words below would not be seen, and the parser would find them
        text = raw.decode("utf-8-sig")
        if "\0" in text:  # UTF-16 without a mark, which expat finds out by itself
            raise UnicodeError
    except UnicodeError:
        raise InputError(f"{file}: is not UTF-8, as the files of LIDC are. Fetch it again") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise InputError(f"{file}: the XML is damaged ({error}). Fetch it again") from None
    series = next((each.text for each in root.iter() if _tag(each).lower() == "seriesinstanceuid"), None)
    if _tag(root) != "LidcReadMessage" or not series:
        return None
    sessions = [each for each in root if _tag(each) == "readingSession"]
    try:
        return series.strip(), [outline for number, each in enumerate(sessions) for outline in _outlines(each, number)]
    except _NoPixel as found:
        raise InputError(f"{file}: has {found}; expected two whole numbers. Fetch it again") from None


class _NoPixel(Exception):
    """An edgeMap that names no pixel."""


def _outlines(session: ET.Element, reader: int) -> Iterator[Outline]:
    for nodule in session:
        if _tag(nodule) != "unblindedReadNodule":
            continue
        ratings = [each.text or "" for each in nodule.iter() if _tag(each) == "malignancy"]
        boxes = {}
        for roi in (each for each in nodule if _tag(each) == "roi"):
            words = {_tag(each): (each.text or "").strip() for each in roi}
            points = [_pixel(edge) for edge in roi if _tag(edge) == "edgeMap"]
            place = words.get("imageSOP_UID") or words.get("imageZposition")
            if points and place and words.get("inclusion", "TRUE").upper() == "TRUE":
                xs, ys = [point[0] for point in points], [point[1] for point in points]
                boxes[place] = (min(xs), max(xs), min(ys), max(ys))
        if ratings and ratings[0].strip() in ("1", "2", "3", "4", "5") and boxes:
            yield Outline(reader, int(ratings[0]), boxes)


def _pixel(edge: ET.Element) -> tuple[int, int]:
    """(x, y) of an edgeMap."""
    words = {_tag(each): (each.text or "").strip() for each in edge}
    x, y = words.get("xCoord", ""), words.get("yCoord", "")
    try:
        return int(x), int(y)
    except ValueError:
        raise _NoPixel(f"an edgeMap of {x[:20]!r} and {y[:20]!r}") from None


def _tag(element: ET.Element) -> str:
    """The name without its namespace, http://www.nih.gov."""
    return element.tag.rpartition("}")[2]


def _patients(path: Path) -> dict[str, str]:
    """Series UID -> Subject ID of NBIA's metadata.csv, in the folder or below it."""
    found: dict[str, str] = {}
    for file in find_files(folder_of(path), ("metadata.csv",)):
        table = read_table(file)
        if {"Series UID", "Subject ID"} <= set(table.columns):
            found |= dict(table.select("Series UID", "Subject ID").drop_nulls().iter_rows())
    return found
