"""Workers: scans are read and written in processes of their own, and one that kills its process costs itself alone.

Decoding is bound by Python and by libraries that hold its lock, so threads would wait for each other. What comes back
is small (facts, no voxels), and memory is bounded by a volume a worker. As in `clear.headers`, workers are started as
`python -c`, not through multiprocessing: a notebook or a script without a main guard works the same, nothing is forked
under threads, and a worker ends when its parent does, because its input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from clear.atomic import OutputError
from clear.errors import ClearError, ScanRefused
from clear.scans import Scan, read_volume
from pretrain.stored_scan import StoredScan, write_scan

Status = Literal["refused", "failed"]
_POLL_S = 0.2  # how often a waiting main thread looks for signals
_CODE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from pretrain.build_workers import serve; serve()"
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "BLOSC_NTHREADS"), "1"
)


@dataclass(frozen=True)
class Job:
    """A scan to read and store; only its digest is asked for without a store. The rest: see `StoredScan`."""

    store: Path | None
    scan: Scan
    origin: str = ""
    fingerprint: str = ""
    dataset: str | None = None


@dataclass(frozen=True)
class Problem:
    """Why a scan is not in: a short stable reason, and the sentence behind it."""

    status: Status
    reason: str
    message: str


Outcome = StoredScan | Problem | str  # a str is a digest


def store_scans(
    jobs: Sequence[Job], workers: int, check: Callable[[], None]
) -> Iterator[tuple[Job, StoredScan | Problem]]:
    """Each job with what came of it, in the order in which they are done. Raises OutputError.

    check: called between scans and while waiting; may raise to stop, and a scan at hand is then as if not begun.
    """
    for job, outcome in _outcomes(jobs, workers, check):
        assert not isinstance(outcome, str)
        yield job, outcome


def read_digests(scans: Sequence[Scan], workers: int, check: Callable[[], None]) -> set[str]:
    """Digests of the scans' voxels, whatever their verdict; none of those that cannot be read."""
    jobs = [Job(None, replace(scan, verdict="use", reason="", message="")) for scan in scans]
    return {outcome for _, outcome in _outcomes(jobs, workers, check) if isinstance(outcome, str)}


def _outcomes(jobs: Sequence[Job], workers: int, check: Callable[[], None]) -> Iterator[tuple[Job, Outcome]]:
    crowd = min(workers, len(jobs))
    if crowd <= 1 or not sys.executable:
        for job in jobs:
            check()
            yield job, store_scan(job)
        return
    tasks: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        tasks.put(job)
    finished: queue.SimpleQueue[tuple[Job, Outcome] | BaseException] = queue.SimpleQueue()
    attendants = [_Attendant(tasks, finished) for _ in range(crowd)]
    try:
        for _ in jobs:
            found = _wait_for(finished, check)
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        for attendant in attendants:
            attendant.end()


def store_scan(job: Job) -> Outcome:
    """Read one scan and write it to the store; whatever is wrong with it is its own problem. Raises OutputError."""
    scan = job.scan
    try:
        volume = read_volume(scan)
        if job.store is None:
            return volume.digest
        return write_scan(job.store, scan, volume, origin=job.origin, fingerprint=job.fingerprint, dataset=job.dataset)
    except OutputError:
        raise
    except ScanRefused as error:
        return Problem("refused", error.reason, str(error))
    except ClearError as error:
        return Problem("failed", "unusable", str(error))
    except MemoryError:
        return Problem("failed", "out_of_memory", f"{scan.source}: not enough memory; use fewer workers")
    except Exception as error:  # the barrier: one bad scan costs one scan; a library's own text may hold anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        message = f"{scan.source}: {type(error).__name__} at {place}. This is a defect of clear; please report it."
        return Problem("failed", "unexpected_error", message)


def serve() -> None:
    """What a worker process runs: a JSON line a job in, a JSON line an outcome out, until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach every process; the parent ends its workers
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    with contextlib.suppress(BrokenPipeError):
        for line in sys.stdin:
            answers.write(json.dumps(_answer(_job_from(json.loads(line)))) + "\n")
            answers.flush()


class _Attendant(threading.Thread):
    """Gives jobs to one process, and starts another when it dies."""

    def __init__(
        self, tasks: queue.SimpleQueue[Job], finished: queue.SimpleQueue[tuple[Job, Outcome] | BaseException]
    ) -> None:
        super().__init__(daemon=True)
        self._tasks, self._finished = tasks, finished
        self._stop_asked = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                try:
                    job = self._tasks.get_nowait()
                except queue.Empty:
                    break
                self._finished.put((job, self._ask(job)))
        except BaseException as error:  # the main thread shall know; it raises it
            self._finished.put(error)
        finally:
            self._close()

    def end(self) -> None:
        """Ends the process, whatever it is doing; what it had not finished is as if it had not begun."""
        self._stop_asked.set()
        process = self._process
        if process is not None:
            process.kill()
        self.join()

    def _ask(self, job: Job) -> Outcome:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ONE_THREAD},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._stop_asked.is_set():  # before there was a process to end
            self._process.kill()
        try:
            self._process.stdin.write(json.dumps(_job_data(job)).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # its output ended
            self._close()
            source = job.scan.source
            message = f"{source}: the process that read it died; the file may be damaged, or memory too small"
            return Problem("failed", "reader_died", message)
        return _outcome_from(answer)

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait()


def _wait_for(finished: queue.SimpleQueue[Any], check: Callable[[], None]) -> Any:
    while True:
        check()
        try:
            return finished.get(timeout=_POLL_S)
        except queue.Empty:
            continue


def _job_data(job: Job) -> dict[str, Any]:
    return {
        "store": None if job.store is None else os.fspath(job.store),
        "root": os.fspath(job.scan.root),
        "scan": job.scan.as_dict(),
        "origin": job.origin,
        "fingerprint": job.fingerprint,
        "dataset": job.dataset,
    }


def _job_from(data: dict[str, Any]) -> Job:
    scan = Scan.from_dict(data["scan"], Path(data["root"]))
    store = None if data["store"] is None else Path(data["store"])
    return Job(store, scan, data["origin"], data["fingerprint"], data["dataset"])


def _answer(job: Job) -> dict[str, Any]:
    try:
        outcome = store_scan(job)
    except OutputError as error:
        return {"output_error": str(error)}
    if isinstance(outcome, str):
        return {"digest": outcome}
    return {"stored" if isinstance(outcome, StoredScan) else "problem": asdict(outcome)}


def _outcome_from(answer: dict[str, Any]) -> Outcome:
    if "output_error" in answer:
        raise OutputError(answer["output_error"])
    if "digest" in answer:
        return str(answer["digest"])
    return StoredScan.from_dict(answer["stored"]) if "stored" in answer else Problem(**answer["problem"])
