"""Stopping: the first Ctrl-C (or SIGTERM) ends a run between two batches, the second at once.

Slurm and Docker send SIGTERM some seconds before they kill, which is enough: finished scans are on disk already.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from clear.errors import ClearError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(ClearError):
    """The run was stopped from outside; what is finished is kept, and the same command goes on from there."""

    exit_status = 130


class Stop:
    """Whether somebody asked this run to stop."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raises Interrupted when a stop was asked for; called between batches and while waiting."""
        if self.requested:
            raise Interrupted("stopped")


@contextmanager
def stopping() -> Iterator[Stop]:
    """A Stop that signals set while the block runs; in a thread other than the main one signals stay as they are."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        text = b"\nclear: stopping; finished scans are kept (Ctrl-C again stops at once)\n"
        os.write(2, text)  # print() may be interrupted inside itself

    previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield stop
    except KeyboardInterrupt:
        raise Interrupted("Stopped at once. Finished scans are kept; run the same command to go on.") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
