"""Stopping: the first Ctrl-C (or SIGTERM) ends a run between two steps, a second Ctrl-C at once.

Slurm and Docker send SIGTERM some seconds before they kill, which is enough for a run that keeps what is finished;
some send it twice, so only a person's second Ctrl-C is taken as impatience.
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
        """Raises Interrupted when a stop was asked for; called between steps and while waiting."""
        if self.requested:
            raise Interrupted("stopped")


@contextmanager
def stopping(first: str, second: str, *, several: bool = False, quiet: bool = False) -> Iterator[Stop]:
    """A Stop that signals set while the block runs; in a thread other than the main one signals stay as they are.

    first, second: what comes of a stop and of one at once, for the messages, such as "the run is saved after this step"
    and "the last checkpoint is kept". several: this is one of several processes whose launcher repeats every signal, so
    that none is a second one. quiet: another process speaks.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            if number == signal.SIGINT and not several:
                raise KeyboardInterrupt
            return
        stop.requested = True
        again = "" if several else " (Ctrl-C again stops at once)"
        if not quiet:
            os.write(2, f"\nclear: stopping; {first}{again}\n".encode())  # print() may be interrupted inside itself

    previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield stop
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped at once; {second}. Run the same command to go on.") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
