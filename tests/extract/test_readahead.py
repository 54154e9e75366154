from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from extract.readahead import ReadAhead


class Gauge:
    """Reads numbers, and keeps the most that were in memory: from the begin of a read to the next result's request."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.lock, self.delay_s = threading.Lock(), delay_s
        self.started: list[int] = []

    def read(self, job: int) -> int:
        with self.lock:
            self.started.append(job)
        time.sleep(self.delay_s)
        return -job


def ahead(jobs: list[int], gauge: Gauge, **changes: Any) -> ReadAhead[int, int]:
    settings: dict[str, Any] = {"workers": 3, "max_items": 4, "max_bytes": 100, "size": lambda job: job, **changes}
    return ReadAhead(jobs, gauge.read, **settings)


def test_results_come_in_the_order_of_the_jobs():
    jobs = [9, 1, 8, 2, 7, 3]
    with ahead(jobs, Gauge(0.001)) as results:
        assert list(results) == [(job, -job) for job in jobs]


def test_no_jobs_give_no_results():
    with ahead([], Gauge()) as results:
        assert list(results) == []


def test_no_more_than_the_allowed_number_is_read_ahead():
    gauge = Gauge()
    with ahead(list(range(20)), gauge, max_items=4) as results:
        for n, _ in enumerate(results):
            time.sleep(0.005)
            assert len(gauge.started) <= n + 4


def test_no_more_than_the_allowed_bytes_are_read_ahead():
    gauge = Gauge()
    with ahead([40] * 12, gauge, max_items=10, max_bytes=100) as results:
        for n, _ in enumerate(results):
            time.sleep(0.005)
            assert len(gauge.started) <= n + 2  # two of 40 fit into 100


def test_a_result_larger_than_the_bound_is_read_alone():
    gauge = Gauge()
    with ahead([500, 500, 500], gauge) as results:
        for n, _ in enumerate(results):
            time.sleep(0.005)
            assert len(gauge.started) == n + 1


def test_stopping_while_waiting_leaves_threads_behind_within_seconds():
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    started = time.monotonic()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(KeyboardInterrupt), ahead([1, 2, 3], Gauge(0.8), check=check) as results:
        list(results)
    assert time.monotonic() - started < 3


def test_leaving_early_reads_no_further():
    gauge = Gauge(0.001)
    with ahead(list(range(50)), gauge) as results:
        next(results)
    time.sleep(0.02)
    assert len(gauge.started) <= 5
