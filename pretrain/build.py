"""Building a slice store: every usable CT scan of the inputs, once; run again, it goes on where it stopped.

A finished scan is an array of the store that appeared by rename (`pretrain.stored_scan`), so a build may die at any
moment. Tables and digest are committed last (`pretrain.store_tables`): until then a new store is unfinished, and one
that is added to is still what it was. Scans are ordered by scan_id, so neither workers nor restarts nor the order of
inputs change a byte of the tables or the digest.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clear.errors import InputError
from clear.scans import Scan
from clear.stopping import Interrupted, stopping
from pretrain.box_tables import fill_spacing
from pretrain.boxes import Box, BoxProblem, PlacedBoxes, place_boxes
from pretrain.build_inputs import find_inputs, fingerprint, origin
from pretrain.build_place import building, check_place
from pretrain.build_record import BuildResult, write_record
from pretrain.build_workers import Job, Problem, store_scans
from pretrain.left_out import read_left_out
from pretrain.left_out_copies import set_aside_copies, taken_out
from pretrain.store_tables import Tables, commit, is_store, read_root, read_tables, sweep
from pretrain.stored_scan import SCANS_FOLDER, StoredScan, plan_facts, read_attributes

if TYPE_CHECKING:
    from clear.task import Task

__all__ = ["BuildResult", "Interrupted", "build_slices"]

_KEPT = "finished scans are kept"


def build_slices(
    inputs: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    boxes: Path | str | Sequence[Path | str] | None = None,
    task: str | Path | Task | None = None,
    leave_out: Path | str | Sequence[str] | None = None,
    select: str | None = None,
    scans: Path | str | None = None,
    modality: str | None = None,
    workers: int = 2,
    progress: bool | None = None,
) -> BuildResult:
    """Write the slices of all usable CT scans of the inputs to a store, or add them to one.

    inputs: folders, files, or plans that `clear inspect --out` wrote. out: NAME.zarr, new or a store already.
    boxes: tables of marked regions (DL_info.csv, the cohort's boxes.csv, or one's own, see docs/slice-store.md).
    task: names the scans' data set, its modality, its selection of series, and patients that only its labels know.
    leave_out: a table with patient_id (of one with a column split only its test rows), a .txt of ids, ids, or "test":
    the official test patients of the task. They are taken out of the store too, and so is who shares the voxels of a
    scan with them (`pretrain.copies`).
    select, scans, modality: as in `clear.find_scans`. workers: processes that read scans.
    progress: a bar on standard error; None shows it in a terminal only.

    What cannot be used is a row of `NAME.qc.csv`, with the reason. Raises InputError for arguments and inputs that
    cannot be used, OutputError when the disk fails, Interrupted after Ctrl-C and SIGTERM.
    """
    started = time.monotonic()
    if workers < 1:
        raise InputError(f"--workers {workers}: expected 1 or more")
    store, places, tables = check_place(out), _paths(inputs), _paths(boxes)
    if not places:
        raise InputError("expected a folder of scans")
    one = _task(task)
    with _stoppable(store) as check:
        found = find_inputs(places, one, select, None if scans is None else Path(scans), modality, check)
        folders = [place if place.is_dir() else place.parent for place in places]
        left = read_left_out(leave_out, one, folders, tables)
        found = left.apply(fill_spacing(found, tables))
        if not any(scan.verdict == "use" for scan in found) and not is_store(store):
            raise InputError(f"{places[0]}: no CT scan that can be used; {_reasons(found)}")
        with building(store):
            old = _committed(store)
            known = _known(store, old)
            elsewhere = known.keys() - {scan.scan_id for scan in found}
            series = {scan.series_uid for scan in known.values() if scan.scan_id in elsewhere and scan.series_uid}
            placed = place_boxes(tables, found, {*elsewhere, *series})
            dataset = None if one is None else one.name
            stored, problems, new = _store_all(store, found, known, dataset, workers, progress, check)
            gone, gone_digests = taken_out(known, found, left)
            kept = {scan_id: scan for scan_id, scan in known.items() if scan_id not in stored and scan_id not in gone}
            everything, copies = [*stored.values(), *kept.values()], 0
            if left:
                before = len(everything)
                everything, found = set_aside_copies(everything, found, gone_digests, workers, check)
                copies = before - len(everything)
            if not everything:
                write_record(store, found, problems, placed)
                raise InputError(f"{store}: no scan could be stored; {_reasons(found, problems)}")
            check()
            marks, lost = _boxes(everything, found, placed, old)
            committed = commit(store, everything, marks)
            sweep(store, committed)
        placed = replace(placed, problems=(*placed.problems, *lost))
        write_record(store, found, problems, placed)
        check()
    n_new = len(new & set(committed.scans["scan_id"]))
    return BuildResult.of(store, committed, found, problems, placed, n_new, copies, time.monotonic() - started)


@contextmanager
def _stoppable(store: Path) -> Iterator[Callable[[], None]]:
    """A check that ends the block once a stop was asked for."""
    with stopping(_KEPT, _KEPT) as stop:
        try:
            yield stop.check
        except Interrupted as error:
            raise Interrupted(f"{store}: stopped; {_KEPT}. Run the same command to go on.") from error


def _paths(paths: Path | str | Sequence[Path | str] | None) -> list[Path]:
    if paths is None:
        return []
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _task(task: str | Path | Task | None) -> Task | None:
    if task is None:
        return None
    from clear.tasks import load_task

    return load_task(task)


def _committed(store: Path) -> Tables | None:
    """What the store holds; None for one that was never finished. Raises SliceStoreError for a damaged one."""
    return read_tables(store) if "digest" in read_root(store) else None


def _known(store: Path, old: Tables | None) -> dict[str, StoredScan]:
    """Scans that are finished, by scan_id: committed ones, and arrays that a build left behind before it was killed."""
    committed = {} if old is None else {scan.scan_id: scan for scan in old.stored_scans()}
    keys = {scan.key for scan in committed.values()}
    known = {}
    for folder in sorted((store / SCANS_FOLDER).iterdir()):
        if not folder.name.startswith(".") and folder.is_dir() and folder.name not in keys:
            scan = read_attributes(folder)
            if scan is not None and not _is_another(scan, committed.get(scan.scan_id)):
                known[scan.scan_id] = scan  # newer than what is committed under this id
    present = {scan_id: scan for scan_id, scan in committed.items() if (store / SCANS_FOLDER / scan.key).is_dir()}
    return present | known


def _store_all(
    store: Path,
    found: Sequence[Scan],
    known: Mapping[str, StoredScan],
    dataset: str | None,
    workers: int,
    progress: bool | None,
    check: Callable[[], None],
) -> tuple[dict[str, StoredScan], dict[str, Problem], set[str]]:
    """The inputs' scans as they are stored, what is wrong with the others, and the ids of those that are new."""
    stored: dict[str, StoredScan] = {}
    problems: dict[str, Problem] = {}
    jobs = []
    for scan in found:
        if scan.verdict != "use":
            continue
        check()
        now, old = fingerprint(scan), known.get(scan.scan_id)
        if old is not None and now and old.fingerprint == now:
            stored[scan.scan_id] = replace(old, **plan_facts(scan), dataset=dataset or old.dataset)  # type: ignore[arg-type]  # texts
        else:
            jobs.append(Job(store, scan, origin(scan), now, dataset))
    new: set[str] = set()
    with _progress_bar(len(jobs), progress) as bar:
        for job, result in store_scans(jobs, workers, check):
            scan_id = job.scan.scan_id
            old = known.get(scan_id)
            if isinstance(result, Problem):
                problems[scan_id] = result
            elif _is_another(result, old):
                message = (
                    f"{scan_id}: the store holds another scan of this id, from another folder. Give the folder above "
                    "both, or names with --scans TABLE"
                )
                problems[scan_id] = Problem("refused", "ambiguous_scan_id", message)
            else:
                if old is None or old.digest != result.digest:
                    new.add(scan_id)
                stored[scan_id] = result
            bar.update(1)
    return stored, problems, new


def _is_another(scan: StoredScan, old: StoredScan | None) -> bool:
    """Whether two scans of one id differ and come from different places: then it is not one that changed."""
    return old is not None and old.digest != scan.digest and old.origin != scan.origin


def _boxes(
    scans: Sequence[StoredScan], found: Sequence[Scan], placed: PlacedBoxes, old: Tables | None
) -> tuple[dict[str, tuple[Box, ...]], list[BoxProblem]]:
    """The boxes of each scan: of the tables where they name it, else those that it had; and boxes without a scan."""
    digests = {} if old is None else dict(old.scans.select("scan_id", "scan_digest").iter_rows())
    before = {} if old is None else old.boxes_by_scan()
    marks = {}
    for scan in scans:
        same = digests.get(scan.scan_id) == scan.digest  # else its boxes are of other voxels
        marks[scan.scan_id] = placed.boxes.get(scan.scan_id) or (before.get(scan.scan_id, ()) if same else ())
    aside = {scan.scan_id for scan in found if scan.verdict == "set aside"}  # copies, since boxes were placed
    lost = []
    for scan_id, boxes in placed.boxes.items():
        if scan_id not in marks:
            why = "is left out" if scan_id in aside else "could not be stored"
            message = f"{scan_id}: {len(boxes)} boxes lie in it, but it {why}"
            lost.append(BoxProblem(scan_id, "unused_scan", message, lost=scan_id not in aside))
    return marks, lost


def _reasons(scans: Sequence[Scan], problems: Mapping[str, Problem] | None = None) -> str:
    """Counts of reasons, and the first sentence behind them."""
    said = [(scan.reason, scan.message) for scan in scans if scan.reason]
    said += [(problem.reason, problem.message) for problem in (problems or {}).values()]
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(reason for reason, _ in said).most_common())
    return f"{counts}. The first: {said[0][1]}" if said else "nothing was found"


def _progress_bar(n_scans: int, progress: bool | None) -> Any:
    """Scans/s and time left, on standard error; seldom redrawn where that is no terminal."""
    from tqdm import tqdm

    in_terminal = sys.stderr.isatty()
    hidden = (progress is None and not in_terminal) or progress is False or not n_scans
    return tqdm(
        total=n_scans,
        unit=" scans",
        disable=hidden,
        mininterval=0.2 if in_terminal else 30.0,
        bar_format="{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left",
    )
