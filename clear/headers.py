"""Headers: what each file of a folder is, read once and in parallel.

A record is plain data: {"kind": "none"} for what is no image, {"kind": "dicom", "header": …}, {"kind": "png",
"header": …} for formats grouped over many files, {"kind": "scan", "scan": …} for one file that is a scan or is refused.
It depends on the file alone, so any process can make it and `clear.header_cache` can keep it.

Header parsing is bound by Python, so a large folder is shared among worker processes. They are started as
`python -c`, not through multiprocessing: a notebook or a script without a main guard works the same, nothing is
forked under threads, and a file that kills a C library costs that file alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clear import formats
from clear.errors import ScanRefused
from clear.formats import deeplesion
from clear.scans import Scan
from clear.tree import Entry

Record = dict[str, Any]

BATCH = 24  # files a worker is asked about at once
ALONE_S = 0.5  # how long the calling process works before it judges whether to ask for help
HELP_FROM_S = 4.0  # work left, in seconds, that is worth starting workers for
NOTHING: Record = {"kind": "none"}
DICOM_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08", b"\x00\x02")  # group 2 or 8: files without a preamble


def read_record(root: Path, entry: Entry, modality: str | None = None) -> Record:
    """What one file is. Never raises: damage is a refused scan, a defect of ours one with `unexpected_error`."""
    path = root / entry.name
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers are refused, not warned about
            return _read_record(path, root, entry, modality)
    except ScanRefused as refusal:
        return refused(entry.name, refusal.reason, str(refusal))
    except FileNotFoundError:  # vanished since the walk
        return NOTHING
    except OSError as error:
        if not formats.may_be_an_image(entry.name):
            return NOTHING
        return refused(
            entry.name, "unreadable_file", f"{entry.name}: cannot be opened ({error.strerror or 'I/O error'})"
        )
    except Exception as error:  # the per-file barrier: one file must not cost the folder
        message = f"{entry.name}: reading its header failed in a way we did not foresee ({type(error).__name__})"
        return refused(entry.name, "unexpected_error", f"{message}. This is a defect of clear: please report it")


def refused(name: str, reason: str, message: str, format: str = "") -> Record:
    """The record of a file that is refused before it could become a scan."""
    safe = name.encode("utf-8", "backslashreplace").decode()
    scan = {"scan_id": formats.without_ending(safe), "format": format, "verdict": "refused", "reason": reason}
    return {"kind": "scan", "scan": {**scan, "message": message, "source": safe, "files": [safe]}}


def _read_record(path: Path, root: Path, entry: Entry, modality: str | None) -> Record:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        safe = entry.name.encode("utf-8", "backslashreplace").decode()
        if not formats.claims_to_be_an_image(safe):
            return NOTHING
        return refused(entry.name, "unreadable_name", f"{safe}: the file name is not valid UTF-8. Rename the file")
    if entry.is_store:
        return _scan_record("omezarr", formats.module("omezarr"), path, root, modality)
    with path.open("rb") as file:
        head = file.read(formats.HEAD_BYTES)
    if not head:
        if not formats.claims_to_be_an_image(entry.name):
            return NOTHING
        return refused(entry.name, "empty_file", f"{entry.name}: the file is empty. Fetch it again")
    if head[128:132] == b"DICM" or head[:2] in DICOM_STARTS:
        header = formats.module("dicom").read_header(path)
        if header is not None:
            return {"kind": "dicom", "header": header}
    png = deeplesion.png_header(head)
    if png is not None:
        return {"kind": "png", "header": png}
    for name in formats.ONE_FILE:
        module = importlib.import_module(name)
        if module.probe(head, path):
            format = name.rsplit(".", 1)[-1]
            if format == "itk":
                format = "nrrd" if head.startswith(b"NRRD") else "mha"
            return _scan_record(format, module, path, root, modality)
    if formats.claims_to_be_an_image(entry.name) and not _is_other_array(head):
        return refused(
            entry.name,
            "unknown_content",
            f"{entry.name}: named like an image, but its content is none that is known; it is damaged or misnamed",
        )
    return NOTHING


def _is_other_array(head: bytes) -> bool:
    """A zip archive that holds other arrays than a scan is no damage: MedMNIST's, or somebody's results."""
    return head.startswith(b"PK\x03\x04")


def _scan_record(format: str, module: Any, path: Path, root: Path, modality: str | None) -> Record:
    try:
        (scan,) = module.scans(path, root, modality)
    except ScanRefused as refusal:
        source = path.relative_to(root).as_posix()
        message = str(refusal) if source in str(refusal) else f"{source}: {refusal}"
        return refused(source, refusal.reason, message, format)
    return {"kind": "scan", "scan": scan.as_dict()}


def record_from_json(text: str | bytes) -> Record:
    """A record with every key and text shared among records: a million headers repeat few of them.

    Raises ValueError for text that is no JSON object.
    """
    record: Record = json.loads(text, object_pairs_hook=_shared)
    return record


def _shared(pairs: list[tuple[str, Any]]) -> Record:
    return {sys.intern(name): sys.intern(value) if type(value) is str else value for name, value in pairs}


def scan_from_record(record: Record, root: Path) -> Scan:
    """The scan of a record of kind "scan"."""
    return Scan.from_dict(record["scan"], root)


def read_records(
    root: Path,
    entries: Sequence[Entry],
    *,
    modality: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """The record of every entry, in their order.

    workers: processes to share the work; 1 keeps it in this one, None decides by what is left after half a second.
    progress: called with (files done, files in all), from this thread.
    """
    records: list[Record | None] = [None] * len(entries)
    crowd = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0] * (os.cpu_count() or 1))
    start = time.monotonic()
    done = 0
    for done, entry in enumerate(entries):
        left = len(entries) - done
        spent = time.monotonic() - start
        wanted = workers is not None or (spent > ALONE_S and spent / max(done, 1) * left > HELP_FROM_S)
        if crowd > 1 and wanted and left > 1 and sys.executable:
            _share(root, entries, records, done, min(crowd, -(-left // BATCH)), modality, progress)
            break
        records[done] = read_record(root, entry, modality)
        if progress:
            progress(done + 1, len(entries))
    return [record if record is not None else NOTHING for record in records]


def _share(
    root: Path,
    entries: Sequence[Entry],
    records: list[Record | None],
    first: int,
    crowd: int,
    modality: str | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill `records` from index `first` on with `crowd` worker processes, a thread attending to each."""
    tasks: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for at in range(first, len(entries), BATCH):
        tasks.put((at, min(at + BATCH, len(entries))))
    finished: queue.SimpleQueue[int] = queue.SimpleQueue()
    stop = threading.Event()

    def attend() -> None:
        worker: Worker | None = None
        try:
            while not stop.is_set():
                try:
                    low, high = tasks.get_nowait()
                except queue.Empty:
                    return
                at = low
                while at < high and not stop.is_set():
                    worker = worker or Worker(root, modality)
                    answers = worker.ask(entries[at:high])
                    for record in answers:
                        records[at] = record
                        at += 1
                    if at < high:  # the process died over entries[at]
                        worker.close()
                        worker = None
                        if stop.is_set():
                            return
                        records[at] = _killed(entries[at].name)
                        at += 1
                finished.put(high - low)
        finally:
            if worker is not None:
                worker.close()
            finished.put(0)

    threads = [threading.Thread(target=attend, daemon=True) for _ in range(crowd)]
    for thread in threads:
        thread.start()
    done, ended = first, 0
    try:
        while ended < crowd:
            step = finished.get()
            ended += step == 0
            done += step
            if progress and step:
                progress(done, len(entries))
    finally:
        stop.set()


def _killed(name: str) -> Record:
    if not formats.may_be_an_image(name):
        return NOTHING
    return refused(name, "unreadable_file", f"{name}: reading its header ended the process; the file is damaged")


class Worker:
    """A process that reads headers: a JSON line of entries in, a JSON line a record out."""

    def __init__(self, root: Path, modality: str | None) -> None:
        code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from clear.headers import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "POLARS_MAX_THREADS": "1",
                "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
            },
        )
        self.setting = {"root": str(root), "modality": modality}

    def ask(self, entries: Sequence[Entry]) -> list[Record]:
        """One record an entry; fewer when the process died over the next one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        files = [[entry.name, entry.size, entry.mtime_ns, entry.is_store] for entry in entries]
        answers: list[Record] = []
        try:
            self.process.stdin.write(json.dumps({**self.setting, "files": files}).encode() + b"\n")
            self.process.stdin.flush()
            for _ in entries:
                answers.append(record_from_json(self.process.stdout.readline()))
        except (OSError, ValueError):
            pass
        return answers

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.wait()


def serve() -> None:
    """What a worker process runs: answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    try:
        for line in sys.stdin:
            task = json.loads(line)
            for fields in task["files"]:
                answers.write(json.dumps(read_record(Path(task["root"]), Entry(*fields), task["modality"])) + "\n")
                answers.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        pass
