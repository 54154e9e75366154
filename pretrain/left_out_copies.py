"""Copies of scans left out, found while a store is built: under another id they would get into it.

A scan that is left out is not stored, so its voxels are read for this alone, and only where a stored scan has as many
slices of the same size and spacing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clear.scans import Scan
from pretrain.build_workers import read_digests
from pretrain.copies import with_copies
from pretrain.left_out import COPY, REASON, UNKNOWN, LeftOut
from pretrain.stored_scan import StoredScan

_NEAR_MM = 0.002  # of spacings; digests round them to 0.001


def taken_out(known: Mapping[str, StoredScan], found: Sequence[Scan], left: LeftOut) -> tuple[set[str], set[str]]:
    """(ids of a store's scans whose patients are left out or not known, digests of those who are left out).

    known: by scan_id. found: the inputs, judged already; where they say whose a scan is, the store's word does not
    count.
    """
    if not left:
        return set(), set()
    reasons = {scan.scan_id: scan.reason for scan in found if scan.verdict == "use" or scan.reason in (REASON, UNKNOWN)}
    rest = [_as_scan(scan) for scan_id, scan in known.items() if scan_id not in reasons]
    reasons |= {plan.scan_id: plan.reason for plan in left.apply(rest)}
    gone = {scan_id for scan_id in known if reasons[scan_id]}
    return gone, {known[scan_id].digest for scan_id in gone if reasons[scan_id] == REASON}


def set_aside_copies(
    stored: Sequence[StoredScan], found: Sequence[Scan], digests: set[str], workers: int, check: Callable[[], None]
) -> tuple[list[StoredScan], list[Scan]]:
    """The stored scans that stay, and the inputs with copies of scans left out, and their patients' others, set aside.

    digests: of scans left out that are known; those of the inputs are read where a stored scan looks like them.
    check: may raise to stop.
    """
    alike: dict[tuple[int, int, int], list[tuple[float, float]]] = defaultdict(list)
    for scan in stored:
        alike[scan.n_slices, scan.height, scan.width].append(_in_plane(scan.spacing_mm))
    suspects = [
        scan
        for scan in found
        if scan.reason == REASON
        and scan.shape is not None
        and any(_near(_in_plane(scan.spacing_mm), other) for other in alike.get((scan.n_slices, *scan.shape), ()))
    ]
    voxels = digests | read_digests(suspects, workers, check)
    people, voxels_of_people = with_copies((), voxels, [(scan.patient_id, scan.digest) for scan in stored])
    copies = {scan.scan_id for scan in stored if scan.digest in voxels_of_people or scan.patient_id in people}
    return [scan for scan in stored if scan.scan_id not in copies], [
        _set_aside(scan) if scan.scan_id in copies and scan.verdict == "use" else scan for scan in found
    ]


def _set_aside(scan: Scan) -> Scan:
    message = (
        f"{scan.scan_id}: it, or another scan of its patient, has the very voxels of a scan that is left out; one "
        "person may have several ids"
    )
    return replace(scan, verdict="set aside", reason=COPY, message=message, remarks=())


def _in_plane(spacing_mm: tuple[float | None, float | None, float | None] | None) -> tuple[float, float]:
    _, y, x = spacing_mm or (None, None, None)
    return y or 1.0, x or 1.0  # unknown is read as 1 mm


def _near(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(a[0] - b[0]) < _NEAR_MM and abs(a[1] - b[1]) < _NEAR_MM


def _as_scan(scan: StoredScan) -> Scan:
    return Scan(
        scan_id=scan.scan_id,
        patient_id=scan.patient_id,
        study_uid=scan.study_uid,
        series_uid=scan.series_uid,
        format="",
        source=scan.source or "",
        root=Path(),
    )
