"""The case list as the page shows it: rows, and of the first of them what opens below.

At most OPENED scans open, in the order of the list (errors first), each once, at its worst endpoint: those of whom
there is more to show, attention or other endpoints. Beyond ROWS rows the list ends: predictions.csv has all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aggregate.report.attended import Attended, AttentionOfRun, top_slices
from aggregate.report.attention_summary import effective, profile_svg
from aggregate.report.cases import Case, cases
from aggregate.report.ids import Ids
from aggregate.report.material import Material
from aggregate.report.pictures import BUDGET, Pictures, Wanted, find_pictures
from clear.bags import Bags
from clear.thumbnails import thumbnail_windows
from clear.windows import Window

OPENED = 60
ROWS = 3000
SLICES = 4  # pictures of a case
_OTHERS = 20  # endpoints in the panel of a case


@dataclass(frozen=True)
class SliceView:
    """A most attended slice. number: along Z, 0 the first, `last` the last. picture: text for `src`, or ""."""

    number: int
    last: int
    z_mm: float
    window: str
    share: float
    picture: str
    scan: str


@dataclass(frozen=True)
class CaseView:
    """A row of the list; slices, profiles and others belong to what opens below, with `opens`."""

    scan: str
    patient: str
    case: Case
    fold: str
    effective: float | None
    opens: bool = False
    slices: tuple[SliceView, ...] = ()
    profiles: tuple[str, ...] = ()
    others: tuple[Case, ...] = ()


@dataclass(frozen=True)
class CaseList:
    """The rows; total: how many there are in all; opened: how many open; notes: on pictures."""

    rows: tuple[CaseView, ...]
    total: int
    opened: int
    notes: tuple[str, ...]


def case_list(
    material: Material,
    attention: AttentionOfRun | None,
    ids: Ids,
    mark: str,
    *,
    scans: Path | str | None = None,
    runs: int = 1,
) -> CaseList:
    """The cases of a run. scans: the folder that pictures are made from; runs: how many share the page's room.

    Raises InputError where `scans` has no scans.
    """
    if material.complete is None:
        return CaseList((), 0, 0, ())
    found = cases(material.scored_scans, material.complete)
    listed = found[: ROWS // runs]
    of_scan: dict[str, list[Case]] = {}
    for case in found:
        of_scan.setdefault(case.scan, []).append(case)
    attended = {} if attention is None else {case.scan: attention.of(case.scan) for case in listed}
    worth = [case.scan for case in listed if attended.get(case.scan) or len(of_scan[case.scan]) > 1]
    chosen = list(dict.fromkeys(worth))[: max(1, OPENED // runs)]
    wanted: dict[str, list[Wanted]] = {}
    pictures = Pictures({}, ())
    if material.bags is not None and attended:
        wanted = {scan: _wanted(attended[scan], material.bags) for scan in chosen}
        flat = [each for here in wanted.values() for each in here]
        pictures = find_pictures(flat, material.bags, scans=scans, budget=BUDGET // runs)
    waiting, rows = set(chosen), list[CaseView]()
    for case in listed:
        here = attended.get(case.scan, ())
        view = CaseView(ids(case.scan), ids(case.patient), case, _fold(case), effective(here) if here else None)
        if case.scan in waiting:
            waiting.discard(case.scan)
            view = replace(
                view,
                opens=True,
                slices=tuple(_slices(here, wanted.get(case.scan, ()), pictures, ids)),
                profiles=tuple(profile_svg(here, SLICES, f"{mark}-k{len(rows)}")),
                others=tuple(other for other in of_scan[case.scan] if other is not case)[:_OTHERS],
            )
        rows.append(view)
    return CaseList(tuple(rows), len(found), len(chosen), pictures.notes)


def _wanted(attended: tuple[Attended, ...], bags: Bags) -> list[Wanted]:
    return [
        Wanted(one.scan, one.digest, slice, _shown_in(one, window, bags))
        for one, slice, window, _ in top_slices(attended, SLICES)
    ]


def _shown_in(one: Attended, window: int, bags: Bags) -> Window:
    """The window of a picture: the slice's own, or the first that its encoder makes something else of."""
    own = one.windows[window]
    return own if own.kind != "encoder" else thumbnail_windows(bags.header, one.modality)[0]


def _slices(
    attended: tuple[Attended, ...], wanted: Sequence[Wanted], pictures: Pictures, ids: Ids
) -> Iterator[SliceView]:
    for (one, slice, _, share), asked in zip(top_slices(attended, SLICES), wanted, strict=True):
        place = int((one.slice == slice).argmax())
        yield SliceView(
            number=slice,
            last=one.n_slices - 1,
            z_mm=float(one.z_mm[place]),
            window=asked.window.name,
            share=share,
            picture=pictures.found.get(asked, ""),
            scan=ids(one.scan) if len(attended) > 1 else "",
        )


def _fold(case: Case) -> str:
    """Which models scored the case: `2`, `1.0` (repeat.fold) or `5 models`."""
    if len(case.models) == 1:
        repeat, fold = case.models[0]
        return str(fold) if repeat == 0 else f"{repeat}.{fold}"
    return f"{len(case.models)} models"
