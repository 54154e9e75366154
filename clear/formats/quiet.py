"""Quiet: some C++ libraries write about a file straight to file descriptor 2, past every setting of theirs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_STDERR = threading.Lock()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Nothing reaches standard error meanwhile: GDCM's JPEG library remarks on 12 bits, MetaIO on damaged headers.

    The descriptor belongs to the process, so this is for one thread at a time and for moments.
    """
    with _STDERR, contextlib.ExitStack() as stack:
        if sys.stderr is not None:
            sys.stderr.flush()
        try:
            saved = os.dup(2)
        except OSError:  # a process without standard error
            yield
            return
        stack.callback(os.close, saved)
        stack.callback(os.dup2, saved, 2)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        os.close(sink)
        yield
