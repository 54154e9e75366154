"""Several tiles at a time: threads of Python, each computing with one thread of torch.

Torch's own threads meet at the end of every operation, however small, and wait for the slowest; on a machine with other
work that costs more than it brings. Tiles know nothing of each other, so whole tiles are handed out instead. What is
computed does not depend on how many there are: results come back in order, and a tile's arithmetic is that of one
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`map` over tiles with as many threads as torch had; a GPU gets one tile after the other. See `workers`."""

    def __init__(self, pool: ThreadPoolExecutor | None) -> None:
        self._pool = pool

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """function(item) for each item, in order; a single item is done here and now."""
        if self._pool is None or len(items) < 2:
            return map(function, items)
        return self._pool.map(function, items)


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """Workers for tensors on this device; torch's number of threads is 1 meanwhile (CPU) and restored after."""
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield Workers(None)
        return
    _keep_freed_memory()
    torch.set_num_threads(1)
    try:
        if threads == 1:
            yield Workers(None)
        else:  # every thread has a number of its own, and the matrix library's is the processor's until it is told
            with ThreadPoolExecutor(threads, "tile", torch.set_num_threads, (1,)) as pool:
                yield Workers(pool)
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Lets each tile have the memory of the last one; fetched anew, page by page, it costs 5 to 20 % of an epoch.

    glibc gives the free end of a heap back to the system when that is larger than twice the largest block freed so far
    that had memory of its own (mallopt(3), M_TRIM_THRESHOLD). A block of just under the 32 MB that count is enough,
    and it need not be touched. Other systems' allocators take no notice.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
