"""Pictures of single slices of many scans, for a page: each scan is read once, checked, and let go.

Reading is bound by Python and by decoders that hold its lock, so many scans are shared among processes. They are
started as `python -c`, as for headers (`clear.headers`): a notebook or a script without a main guard works the same,
and a file that kills a C library costs its scan alone. Each holds one volume at a time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clear.errors import InputError, ScanRefused
from clear.pictures import encoded, grey, settled
from clear.scans import Scan, read_volume
from clear.windows import Window

LADDER = ((256, 75), (224, 70), (192, 60), (160, 50), (128, 40), (96, 30))  # long side in pixels and WebP quality
READERS = 2
HELP_FROM = 6  # scans that are worth starting processes for

READ, NOT_THERE, OTHER_VOXELS, REFUSED = "read", "not there", "other voxels", "refused"


@dataclass(frozen=True)
class Job:
    """Pictures wanted of one scan.

    scans: what it may be, likeliest first; digest: of its voxels, which decides. wanted: (slice, window) of each
    picture; room: bytes that a picture may have.
    """

    scans: tuple[Scan, ...]
    digest: str
    wanted: tuple[tuple[int, Window], ...]
    room: int


@dataclass(frozen=True)
class Answer:
    """outcome: one of the four above; pictures: one for each wanted, WebP, None where there is none.

    digest: of the voxels that were read last, "" where none were.
    """

    outcome: str
    pictures: tuple[bytes | None, ...]
    digest: str = ""


def find_voxels(scans: Sequence[Scan], digests: set[str], *, readers: int = READERS) -> tuple[dict[str, Scan], int]:
    """(digest -> the first scan found to have these voxels, how many scans could not be read).

    Each scan is read once at most, and none any more when all digests are found.
    """
    found: dict[str, Scan] = {}
    unread = 0

    def take(number: int, answer: Answer) -> bool:
        nonlocal unread
        unread += answer.outcome == REFUSED
        if answer.digest in digests:
            found.setdefault(answer.digest, scans[number])
        return len(found) == len(digests)

    if digests:
        _each([Job((scan,), "", (), 0) for scan in scans], readers, take)
    return found, unread


def read_pictures(jobs: Sequence[Job], *, readers: int = READERS) -> list[Answer]:
    """The answer to each job, in order; several scans are read at a time where there are many."""
    answers: dict[int, Answer] = {}

    def take(number: int, answer: Answer) -> bool:
        answers[number] = answer
        return False

    _each(jobs, readers, take)
    return [answers[number] for number in range(len(jobs))]


def _each(jobs: Sequence[Job], readers: int, take: Callable[[int, Answer], bool]) -> None:
    """Hand each job's number and answer to `take`, one at a time, until it says that this is enough."""
    if len(jobs) < HELP_FROM or readers < 2:
        for number, job in enumerate(jobs):
            if take(number, answer(job)):
                return
        return
    rest = iter(enumerate(jobs))
    enough = threading.Event()
    lock = threading.Lock()

    def work() -> None:
        worker = _Worker()
        try:
            for number, job in _turns(rest, lock, enough):
                found = worker.ask(job)
                if found is None:  # it died over this scan
                    worker.close()
                    worker = _Worker()
                with lock:
                    if take(number, found or _none(job, REFUSED)):
                        enough.set()
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(min(readers, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def answer(job: Job) -> Answer:
    """The pictures of one scan: of the first that is readable and has these voxels."""
    outcome, digest = NOT_THERE, ""
    for scan in job.scans:
        try:
            volume = read_volume(scan)
        except (ScanRefused, InputError):
            outcome = REFUSED
            continue
        digest = volume.digest
        if digest != job.digest:
            outcome = OTHER_VOXELS
            continue
        windows = tuple({window: None for _, window in job.wanted})
        ranges = dict(zip(windows, settled(volume, windows), strict=True))
        return Answer(
            READ,
            tuple(_within(grey(volume, slice, ranges[window]), job.room) for slice, window in job.wanted),
            digest,
        )
    return _none(job, outcome, digest)


def serve() -> None:
    """What a reading process runs: a JSON line a job in, a JSON line an answer out, until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    for line in sys.stdin:
        found = answer(_job(json.loads(line)))
        pictures = [None if each is None else base64.b64encode(each).decode() for each in found.pictures]
        answers.write(json.dumps({"outcome": found.outcome, "pictures": pictures, "digest": found.digest}) + "\n")
        answers.flush()


class _Worker:
    """A process that runs `serve`."""

    def __init__(self) -> None:
        code = (
            "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from clear.picture_reader import serve; serve()"
        )
        alone = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(alone, "1")},
        )

    def ask(self, job: Job) -> Answer | None:
        """The answer; None when the process died over it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(_as_data(job)).encode() + b"\n")
            self.process.stdin.flush()
            data = json.loads(self.process.stdout.readline())
            pictures = tuple(None if each is None else base64.b64decode(each) for each in data["pictures"])
            return Answer(str(data["outcome"]), pictures, str(data["digest"]))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.wait()


def _turns(rest: Iterator[tuple[int, Job]], lock: threading.Lock, enough: threading.Event) -> Iterator[tuple[int, Job]]:
    """The jobs that no other thread has taken, until there is enough."""
    while True:
        with lock:
            taken = None if enough.is_set() else next(rest, None)
        if taken is None:
            return
        yield taken


def _none(job: Job, outcome: str, digest: str = "") -> Answer:
    return Answer(outcome, (None,) * len(job.wanted), digest)


def _within(image: Any, room: int) -> bytes | None:
    """The picture, as large as `room` bytes allow; None where even the smallest is larger."""
    for side, quality in LADDER:
        picture = encoded(image, side=side, quality=quality)
        if len(picture) <= room:
            return picture
    return None


def _as_data(job: Job) -> dict[str, Any]:
    """JSON has no nan but Python's reads and writes one: a single slice's spacing may be it."""
    return {
        "scans": [{"root": str(scan.root), **scan.as_dict()} for scan in job.scans],
        "digest": job.digest,
        "wanted": [[slice, window.as_dict()] for slice, window in job.wanted],
        "room": job.room,
    }


def _job(data: dict[str, Any]) -> Job:
    scans = tuple(Scan.from_dict(scan, Path(scan.pop("root"))) for scan in data["scans"])
    wanted = tuple((int(slice), Window.from_dict(window)) for slice, window in data["wanted"])
    return Job(scans, data["digest"], wanted, data["room"])
