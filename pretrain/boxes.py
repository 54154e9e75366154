"""Boxes: where lesions are marked, in canonical pixels of the slices they lie in.

`place_boxes` takes the rows of tables (`pretrain.box_tables`) to the scans that they name (`pretrain.scan_names`) and
from the axes that they are given in to canonical ones (`pretrain.stored_axes`). Pixel i covers i to i + 1. Nothing is
dropped in silence: each row that cannot be used, or not as it stands, is a `BoxProblem` with one sentence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clear.errors import InputError, ScanRefused
from clear.scans import Scan
from pretrain.box_tables import Mark, UnusableRow, read_marks
from pretrain.scan_names import Found, ScanNames
from pretrain.stored_axes import StoredAxes, stored_axes


@dataclass(frozen=True, order=True)
class Box:
    """A marked region of one slice, in canonical axes.

    slice: index along Z; x0, y0, x1, y1: columns x0 to x1 and rows y0 to y1, in pixels from the edge of the first one
    label: what is marked, "" when the table does not say
    """

    slice: int
    x0: float
    y0: float
    x1: float
    y1: float
    label: str = ""


@dataclass(frozen=True)
class BoxProblem:
    """A row of a table that is not, or not as it stands, a box of the store.

    place: `boxes.csv row 7`; reason: its short stable name; message: the sentence. lost: whether a box is missing for
    it that one would expect (a clipped or repeated box is not, nor one of a scan that was left out on purpose).
    """

    place: str
    reason: str
    message: str
    lost: bool = True


@dataclass(frozen=True)
class PlacedBoxes:
    """The boxes of each scan by scan_id, sorted and distinct; what was odd or unusable; how many rows there were."""

    boxes: Mapping[str, tuple[Box, ...]]
    problems: tuple[BoxProblem, ...]
    rows: int


def place_boxes(tables: Iterable[Path], scans: Sequence[Scan], stored_ids: Iterable[str] = ()) -> PlacedBoxes:
    """The boxes of tables in canonical pixels of the scans.

    scans: all that were found, also those that will not be used. stored_ids: scan ids and series UIDs of a store that
    are not among them; their boxes stay as they are. Raises InputError for a table that cannot be read, and for one
    that does not say in which axes it is where that makes a difference.
    """
    names, elsewhere = ScanNames(scans), frozenset(stored_ids)
    boxes: dict[str, dict[Box, None]] = defaultdict(dict)
    problems: list[BoxProblem] = []
    axes: dict[str, StoredAxes] = {}
    rows = 0
    for path in tables:
        for place, row in read_marks(path):
            rows += 1
            try:
                if isinstance(row, UnusableRow):
                    raise row
                for found in _find(row, names, elsewhere):
                    placed, cut = _place(row, found, axes, path)
                    known = boxes[found.scan.scan_id]
                    problems += _remarks(place, found.scan, cut, any(box in known for box in placed))
                    known.update(dict.fromkeys(placed))
            except UnusableRow as error:
                problems.append(BoxProblem(place, error.reason, f"{place}: {error}", error.lost))
    sorted_boxes = {scan_id: tuple(sorted(known)) for scan_id, known in boxes.items() if known}
    return PlacedBoxes(sorted_boxes, tuple(problems), rows)


def _remarks(place: str, scan: Scan, cut: bool, repeated: bool) -> Iterator[BoxProblem]:
    if repeated:
        yield BoxProblem(place, "repeated", f"{place}: {scan.scan_id} has this very box already", lost=False)
    if cut:
        message = f"{place}: the box reaches beyond {scan.scan_id} and is cut at its border"
        yield BoxProblem(place, "clipped", message, lost=False)


def _find(mark: Mark, names: ScanNames, elsewhere: frozenset[str]) -> list[Found]:
    """The scan, and the slice where the name is that of one slice's file; several only for a slice of two blocks."""
    found = names.find(mark.key, mark.name)
    if not found:
        if mark.name in elsewhere:
            raise UnusableRow(
                "stored", f"{mark.name} lies in the store but not in the inputs; its boxes stay", lost=False
            )
        raise UnusableRow("no_scan", f"no scan has the {mark.key} {mark.name!r}")
    usable = [one for one in found if one.scan.verdict == "use"]
    if not usable:
        scan = found[0].scan
        why = f"its scan {scan.scan_id} is not used ({scan.reason})"
        raise UnusableRow("unused_scan", why, lost=scan.verdict != "set aside")
    if len(usable) > 1 and mark.key != "File_name":
        raise UnusableRow("several_scans", f"{mark.name!r} stands for {len(usable)} scans; name one by its scan_id")
    return usable


def _place(mark: Mark, found: Found, axes: dict[str, StoredAxes], path: Path) -> tuple[list[Box], bool]:
    """The box in each of its slices, and whether something had to be cut off."""
    scan, stored = found.scan, None
    assert scan.shape is not None
    if mark.axes != "canonical":
        if scan.scan_id not in axes:
            try:
                axes[scan.scan_id] = stored_axes(scan)
            except (ScanRefused, OSError) as error:
                raise UnusableRow("unreadable_scan", f"the header of {scan.scan_id} cannot be read ({error})") from None
        stored = axes[scan.scan_id]
        if mark.axes is None:
            _no_axes_needed(stored, found, path)
    shape = scan.shape[::-1] if stored is not None and stored.transpose else scan.shape
    corners = _inside(mark, scan, shape)
    if found.slice is not None:
        wanted, slices = 1, [found.slice]
    else:
        wanted, slices = _slices_inside(mark, scan)
        if stored is not None and mark.slices is not None:
            slices = _canonical_slices(slices, stored, mark, scan)
    cut = corners != mark.corners or len(slices) != wanted
    if stored is not None:
        corners = stored.box(*corners)
    return [Box(n, *corners, mark.label) for n in slices], cut


def _no_axes_needed(stored: StoredAxes, found: Found, path: Path) -> None:
    """Raises InputError where a table without `axes` could mean two different places."""
    ways = {
        "transposed": stored.transpose,
        "with flipped rows": stored.flip_rows,
        "with flipped columns": stored.flip_columns,
        "with its slices in another order": stored.changes_slices and found.slice is None,
    }
    differences = [way for way, differs in ways.items() if differs]
    if differences:
        raise InputError(
            f"{path}: {found.scan.scan_id} is stored {' and '.join(differences)} compared to how clear reads it, so it "
            "must be known which of the two its boxes mean. Add a column axes: stored (pixels as the file holds them, "
            "as other programs show them) or canonical (as clear.read_volume gives them)"
        )


def _inside(mark: Mark, scan: Scan, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """The corners cut to an image of (rows, columns), in the same axes; raises UnusableRow when nothing is left."""
    x0, y0, x1, y1 = mark.corners
    rows, columns = shape
    box = f"the box x {x0:g} to {x1:g}, y {y0:g} to {y1:g}"
    if not (x0 < x1 and y0 < y1):
        raise UnusableRow("empty_box", f"{box} is empty; expected x0 < x1 and y0 < y1")
    if mark.size not in (None, (columns, rows)):
        raise UnusableRow(
            "other_size", f"{box} was drawn on an image of {mark.size} pixels, but the slice has {(columns, rows)}"
        )
    kept = max(x0, 0.0), max(y0, 0.0), min(x1, float(columns)), min(y1, float(rows))
    if not (kept[0] < kept[2] and kept[1] < kept[3]):
        raise UnusableRow(
            "outside", f"{box} is outside {scan.scan_id}, whose slices have {columns} columns and {rows} rows"
        )
    return kept


def _slices_inside(mark: Mark, scan: Scan) -> tuple[int, list[int]]:
    """How many slices the row names, and those of them that the scan has; raises UnusableRow for none."""
    if mark.slices is None and scan.n_slices != 1:
        raise UnusableRow("no_slice", f"names no slice, and {scan.scan_id} has {scan.n_slices}")
    first, last = mark.slices or (0, 0)
    slices = list(range(max(first, 0), min(last + 1, scan.n_slices)))
    if not slices:
        text = f"{first}" if first == last else f"{first} to {last}"
        raise UnusableRow(
            "outside", f"slice {text} is outside {scan.scan_id}, whose slices are 0 to {scan.n_slices - 1}"
        )
    return last - first + 1, slices


def _canonical_slices(slices: list[int], stored: StoredAxes, mark: Mark, scan: Scan) -> list[int]:
    if stored.slices is not None:
        return [stored.slices[n] for n in slices]
    if mark.axes is None:  # only the canonical numbering exists
        return slices
    raise UnusableRow(
        "no_slice",
        f"{scan.scan_id} is one file a slice, and files have no stored number: name the slice's file, or give the box "
        "in canonical axes",
    )
