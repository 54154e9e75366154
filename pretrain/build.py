"""Building a slice store: every usable CT scan of the inputs, once; run again, it goes on where it stopped.

A finished scan is an array of the store that appeared by rename (`pretrain.stored_scan`), so a build may die at any
moment. Tables and digest are committed last (`pretrain.store_tables`): until then a new store is unfinished, and one
that is added to is still what it was. Scans are ordered by scan_id, so neither workers nor restarts nor the order of
inputs change a byte of the tables or the digest.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clear.atomic import OutputError, output_errors
from clear.errors import InputError
from clear.scans import Scan
from clear.stopping import Interrupted
from pretrain.box_tables import fill_spacing
from pretrain.boxes import Box, BoxProblem, PlacedBoxes, place_boxes
from pretrain.build_inputs import find_inputs, fingerprint, origin
from pretrain.build_record import BuildResult, write_record
from pretrain.build_workers import Job, Problem, store_scans
from pretrain.left_out import LeftOut, read_left_out
from pretrain.store_tables import (
    LOCK_FILE,
    TABLES_FOLDER,
    SliceStoreError,
    Tables,
    begin,
    commit,
    is_begun,
    is_store,
    read_root,
    read_tables,
    sweep,
)
from pretrain.stored_scan import SCANS_FOLDER, StoredScan, plan_facts, read_attributes

if TYPE_CHECKING:
    from clear.task import Task

__all__ = ["BuildResult", "Interrupted", "build_slices"]


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
    the official test patients of the task; they are taken out of the store too.
    select, scans, modality: as in `clear.find_scans`. workers: processes that read scans.
    progress: a bar on standard error; None shows it in a terminal only.

    What cannot be used is a row of `NAME.qc.csv`, with the reason. Raises InputError for arguments and inputs that
    cannot be used, OutputError when the disk fails, Interrupted after Ctrl-C.
    """
    started = time.monotonic()
    if workers < 1:
        raise InputError(f"--workers {workers}: expected 1 or more")
    store, places, tables = _check_place(out), _paths(inputs), _paths(boxes)
    if not places:
        raise InputError("expected a folder of scans")
    one = _task(task)
    found = find_inputs(places, one, select, None if scans is None else Path(scans), modality)
    folders = [place if place.is_dir() else place.parent for place in places]
    left = read_left_out(leave_out, one, folders, tables)
    found = left.apply(fill_spacing(found, tables))
    if not any(scan.verdict == "use" for scan in found) and not is_store(store):
        raise InputError(f"{places[0]}: no CT scan that can be used; {_reasons(found)}")
    with _building(store):
        old = _committed(store)
        known = _known(store, old)
        elsewhere = known.keys() - {scan.scan_id for scan in found}
        series = {scan.series_uid for scan in known.values() if scan.scan_id in elsewhere and scan.series_uid}
        placed = place_boxes(tables, found, {*elsewhere, *series})
        stored, problems, new = _store_all(store, found, known, None if one is None else one.name, workers, progress)
        kept = {scan_id: scan for scan_id, scan in known.items() if scan_id not in stored and not _gone(scan, left)}
        everything = [*stored.values(), *kept.values()]
        if not everything:
            write_record(store, found, problems, placed)
            raise InputError(f"{store}: no scan could be stored; {_reasons(found, problems)}")
        marks, lost = _boxes(everything, placed, old)
        committed = commit(store, everything, marks)
        sweep(store, committed)
    placed = replace(placed, problems=(*placed.problems, *lost))
    write_record(store, found, problems, placed)
    return BuildResult.of(store, committed, found, problems, placed, new, time.monotonic() - started)


def _check_place(out: Path | str) -> Path:
    """Where the store goes. Raises OutputError before anything is read or written."""
    path = Path(out)
    if path.suffix != ".zarr":
        raise OutputError(f"{path}: a slice store is a folder named NAME.zarr. Name the output so")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; a slice store is a folder. Name another output")
    if path.is_dir() and not (is_store(path) or is_begun(path)):
        raise OutputError(f"{path}: exists and is no slice store, so nothing is added to it. Name another output")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist. Make it first, or name another output")
    if not os.access(path if path.is_dir() else path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: may not be written here (read-only or not permitted). Name another output")
    return path


def _paths(paths: Path | str | Sequence[Path | str] | None) -> list[Path]:
    if paths is None:
        return []
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


def _task(task: str | Path | Task | None) -> Task | None:
    if task is None:
        return None
    from clear.tasks import load_task

    return load_task(task)


@contextmanager
def _building(store: Path) -> Iterator[None]:
    """The store's folder, ours alone while the block runs; a folder that gained nothing is removed again."""
    with output_errors(store):
        (store / TABLES_FOLDER).mkdir(parents=True, exist_ok=True)
        lock = os.open(store / TABLES_FOLDER / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(lock, store)
        with output_errors(store):
            begin(store)
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(f"{store}: stopped. Finished scans are kept; run the same command to go on.") from None
        finally:
            _remove_if_empty(store)
    finally:
        os.close(lock)


def _lock(fd: int, store: Path) -> None:
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ImportError:  # Windows has none: two builds of one store are the user's to avoid there
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{store}: another clear is building it. Wait until it is done, or stop it") from None
    except OSError:  # some cluster file systems have no locks
        return


def _remove_if_empty(store: Path) -> None:
    """A new store without a finished scan leaves nothing behind."""
    with contextlib.suppress(OSError, SliceStoreError):
        if "digest" not in read_root(store) and all(path.is_file() for path in (store / SCANS_FOLDER).iterdir()):
            shutil.rmtree(store)


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
) -> tuple[dict[str, StoredScan], dict[str, Problem], int]:
    """The inputs' scans as they are stored, what is wrong with the others, and how many were new."""
    stored: dict[str, StoredScan] = {}
    problems: dict[str, Problem] = {}
    jobs = []
    for scan in found:
        if scan.verdict != "use":
            continue
        now, old = fingerprint(scan), known.get(scan.scan_id)
        if old is not None and now and old.fingerprint == now:
            stored[scan.scan_id] = replace(old, **plan_facts(scan), dataset=dataset or old.dataset)  # type: ignore[arg-type]  # texts
        else:
            jobs.append(Job(store, scan, origin(scan), now, dataset))
    new = 0
    with _progress_bar(len(jobs), progress) as bar:
        for job, result in store_scans(jobs, workers):
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
                new += old is None or old.digest != result.digest
                stored[scan_id] = result
            bar.update(1)
    return stored, problems, new


def _is_another(scan: StoredScan, old: StoredScan | None) -> bool:
    """Whether two scans of one id differ and come from different places: then it is not one that changed."""
    return old is not None and old.digest != scan.digest and old.origin != scan.origin


def _boxes(
    scans: Sequence[StoredScan], placed: PlacedBoxes, old: Tables | None
) -> tuple[dict[str, tuple[Box, ...]], list[BoxProblem]]:
    """The boxes of each scan: of the tables where they name it, else those that it had; and boxes without a scan."""
    digests = {} if old is None else dict(old.scans.select("scan_id", "scan_digest").iter_rows())
    before = {} if old is None else old.boxes_by_scan()
    marks = {}
    for scan in scans:
        same = digests.get(scan.scan_id) == scan.digest  # else its boxes are of other voxels
        marks[scan.scan_id] = placed.boxes.get(scan.scan_id) or (before.get(scan.scan_id, ()) if same else ())
    lost = [
        BoxProblem(scan_id, "unused_scan", f"{scan_id}: {len(boxes)} boxes lie in it, but it could not be stored")
        for scan_id, boxes in placed.boxes.items()
        if scan_id not in marks
    ]
    return marks, lost


def _gone(scan: StoredScan, left: LeftOut) -> bool:
    """Whether a scan of the store is that of a patient who is left out now, or may be."""
    if not left:
        return False
    plan = Scan(
        scan_id=scan.scan_id,
        patient_id=scan.patient_id,
        study_uid=scan.study_uid,
        series_uid=scan.series_uid,
        format="",
        source=scan.source or "",
        root=Path(),
    )
    return left.apply([plan])[0].verdict != "use"


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
