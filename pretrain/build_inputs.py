"""Inputs of a slice store: which scans they hold, each once, and by what a scan is known again."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clear.bag_format import clean_text
from clear.scans import Scan

if TYPE_CHECKING:
    from clear.task import Task


def find_inputs(
    places: Sequence[Path],
    task: Task | None,
    select: str | None,
    scans: Path | None,
    modality: str | None,
    check: Callable[[], None],
) -> list[Scan]:
    """Every series of all inputs once, named by table and task, with what is no CT refused; sorted by scan_id.

    places: folders, files, or plans of `clear inspect --out`; the rest as in `pretrain.build.build_slices`. check:
    called while headers are read; may raise to stop. Raises InputError for a place without an image, and for a
    selection or table that cannot be used.
    """
    from clear.plan import apply_scans_table, read_plan, select_series
    from clear.scans import find_scans
    from clear.task_scans import name_scans

    modality = modality or (task.modality if task else "") or None
    found: dict[tuple[str, Path, str], Scan] = {}
    for place in places:
        is_plan = place.is_file() and place.suffix == ".parquet"
        for scan in read_plan(place) if is_plan else find_scans(place, modality=modality, progress=lambda *_: check()):
            first = (scan.root / (scan.files or (scan.source,))[0]).resolve()
            found.setdefault((scan.scan_id, first, scan.source.partition("#")[2]), scan)  # inputs may overlap
    named = [replace(scan, scan_id=clean_text(scan.scan_id)) for scan in _unambiguous(list(found.values()))]
    if scans is not None:
        named = apply_scans_table(named, scans)
    if task is not None:
        named = name_scans(named, task)
    rule = select or (task.select if task else "")
    named = select_series(named, rule) if rule else named
    return sorted((_only_ct(scan) for scan in named), key=lambda scan: (scan.scan_id, scan.source))


def origin(scan: Scan) -> str:
    """Where the scan's files lay, as a hash: two scans of one id from different places are not one that changed."""
    place = (scan.root / scan.source).resolve()
    return hashlib.sha256(os.fsencode(place)).hexdigest()[:16]


def fingerprint(scan: Scan) -> str:
    """Names, sizes and times of a scan's files, and what the plan adds to them, as one short hash; "" when unknown."""
    sha = hashlib.sha256(repr((scan.source, scan.spacing_mm, scan.modality)).encode("utf-8", "backslashreplace"))
    try:
        for name in scan.files or (scan.source,):
            path = scan.root / name
            for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
                status = file.stat()
                line = f"\n{file.relative_to(scan.root)} {status.st_size} {status.st_mtime_ns}"
                sha.update(line.encode("utf-8", "backslashreplace"))
    except (OSError, ValueError):
        return ""
    return sha.hexdigest()[:32]


def _unambiguous(scans: Sequence[Scan]) -> list[Scan]:
    """Scans of several inputs that share an id cannot be told apart later."""
    places: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.verdict == "use":
            places[scan.scan_id].append(scan)
    result = []
    for scan in scans:
        same = places[scan.scan_id]
        if scan.verdict == "use" and len(same) > 1:
            where = ", ".join(sorted(str(other.root / other.source) for other in same)[:3])
            message = (
                f"{scan.scan_id}: {len(same)} scans have this id ({where}). Give the folder above both, or --scans"
            )
            scan = replace(scan, verdict="refused", reason="ambiguous_scan_id", message=message, remarks=())
        result.append(scan)
    return result


def _only_ct(scan: Scan) -> Scan:
    if scan.verdict != "use" or (scan.modality == "CT" and scan.format != "medmnist"):
        return scan
    what = "8-bit values without HU" if scan.modality == "CT" else scan.modality or "of unknown modality"
    message = f"{scan.source}: {what}; a slice store holds CT in HU. Where it is CT, say so with --modality CT"
    return replace(scan, verdict="refused", reason="modality", message=message, remarks=())
