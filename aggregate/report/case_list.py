"""The case list as the page shows it: rows, and of the first of them what opens below.

At most OPENED scans open, in the order of the list (errors first), each once, at its worst endpoint: those of whom
there is more to show, attention or other endpoints. Beyond ROWS rows the list ends: predictions.csv has all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aggregate.report.attended import Attended, AttentionOfRun, top_slices
from aggregate.report.attention_summary import effective, profile_svg
from aggregate.report.cases import Case, cases
from aggregate.report.ids import Ids
from aggregate.report.material import Material
from aggregate.report.pictures import Pictures, Wanted, find_pictures

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
    opens: bool
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
    opened: int = OPENED,
) -> CaseList:
    """The cases of a run. scans: the folder that pictures are made from. Raises InputError where that has no scans."""
    if material.predictions is None:
        return CaseList((), 0, 0, ())
    found = cases(material.scored_scans, material.predictions)
    listed = found[:ROWS]
    of_scan: dict[str, list[Case]] = {}
    for case in found:
        of_scan.setdefault(case.scan, []).append(case)
    attended = {} if attention is None else {case.scan: attention.of(case.scan) for case in listed}
    worth = [case.scan for case in listed if attended.get(case.scan) or len(of_scan[case.scan]) > 1]
    chosen = list(dict.fromkeys(worth))[:opened]
    wanted = [each for scan in chosen for each in _wanted(attended.get(scan, ()))]
    pictures = Pictures({}, ())
    if material.bags is not None and wanted:
        pictures = find_pictures(wanted, material.bags, scans=scans)
    waiting, rows = set(chosen), list[CaseView]()
    for case in listed:
        opens = case.scan in waiting
        waiting.discard(case.scan)
        rows.append(
            _view(case, opens, attended.get(case.scan, ()), of_scan[case.scan], pictures, ids, f"{mark}-k{len(rows)}")
        )
    return CaseList(tuple(rows), len(found), len(chosen), pictures.notes)


def _wanted(attended: tuple[Attended, ...]) -> list[Wanted]:
    return [
        Wanted(one.scan, one.digest, slice, one.windows[window])
        for one, slice, window, _ in top_slices(attended, SLICES)
    ]


def _view(
    case: Case,
    opens: bool,
    attended: tuple[Attended, ...],
    same_scan: Sequence[Case],
    pictures: Pictures,
    ids: Ids,
    mark: str,
) -> CaseView:
    view = CaseView(
        scan=ids(case.scan),
        patient=ids(case.patient),
        case=case,
        fold=_fold(case),
        effective=effective(attended) if attended else None,
        opens=opens,
    )
    if not opens:
        return view
    slices = []
    for one, slice, window, share in top_slices(attended, SLICES):
        place = int((one.slice == slice).argmax())
        slices.append(
            SliceView(
                slice,
                one.n_slices - 1,
                float(one.z_mm[place]),
                one.windows[window].name,
                share,
                pictures.found.get(Wanted(one.scan, one.digest, slice, one.windows[window]), ""),
                ids(one.scan) if len(attended) > 1 else "",
            )
        )
    others = tuple(other for other in same_scan if other is not case)[:_OTHERS]
    return replace(view, slices=tuple(slices), profiles=tuple(profile_svg(attended, SLICES, mark)), others=others)


def _fold(case: Case) -> str:
    """Which models scored the case: `2`, `1.0` (repeat.fold) or `5 models`."""
    if len(case.models) == 1:
        repeat, fold = case.models[0]
        return str(fold) if repeat == 0 else f"{repeat}.{fold}"
    return f"{len(case.models)} models"
