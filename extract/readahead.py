"""Reading ahead: threads decode the next volumes while the encoder works, and never more than a few.

What is in memory is bounded by number and by bytes: volumes being decoded, waiting, and in use. Order is kept, so
the head of the queue is always being worked on and nothing can wait for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

POLL_S = 0.1  # how often a waiting main thread looks whether it shall stop
_FAREWELL_S = 3.0  # how long running reads are waited for when a run ends early


class ReadAhead(Generic[Job, Result]):
    """Iterates over (job, result) in the order of the jobs; use it as a context manager.

    read: runs in a thread and must not raise; size: bytes that its result will hold, as well as one can tell
    beforehand. max_items, max_bytes: bounds on what is in memory; a single result larger than max_bytes is read alone.
    check: called while waiting; may raise to stop. A result counts as in use until the next one is asked for.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        read: Callable[[Job], Result],
        size: Callable[[Job], int],
        *,
        workers: int,
        max_items: int,
        max_bytes: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._jobs, self._read, self._check = jobs, read, check
        self._sizes = [max(0, size(job)) for job in jobs]
        self._max_items, self._max_bytes = max(1, max_items), max_bytes
        self._changed = threading.Condition()
        self._next = self._items = self._bytes = 0
        self._ended = False
        self._results: dict[int, Result] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"clear-read-{i}", daemon=True)
            for i in range(min(max(1, workers), len(jobs)))
        ]

    def __enter__(self) -> Iterator[tuple[Job, Result]]:
        for thread in self._threads:
            thread.start()
        self._results_in_order = self._in_order()
        return self._results_in_order

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._ended = True
            self._results.clear()
            self._changed.notify_all()
        with closing(self._results_in_order):
            deadline = time.monotonic() + _FAREWELL_S
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _in_order(self) -> Generator[tuple[Job, Result], None, None]:
        for i, job in enumerate(self._jobs):
            with self._changed:
                while i not in self._results:
                    self._check()
                    self._changed.wait(POLL_S)
                result = self._results.pop(i)
            yield job, result
            del result
            with self._changed:
                self._items -= 1
                self._bytes -= self._sizes[i]
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._ended and self._next < len(self._jobs) and not self._has_room():
                    self._changed.wait()
                if self._ended or self._next >= len(self._jobs):
                    return
                i = self._next
                self._next += 1
                self._items += 1
                self._bytes += self._sizes[i]
            result = self._read(self._jobs[i])
            with self._changed:
                if not self._ended:
                    self._results[i] = result
                self._changed.notify_all()
            del result

    def _has_room(self) -> bool:
        if not self._items:
            return True
        return self._items < self._max_items and self._bytes + self._sizes[self._next] <= self._max_bytes
