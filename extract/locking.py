"""One writer of an output at a time, or many shards of it: a lock that the system drops when a process dies."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from pathlib import Path
from typing import Any

from clear.atomic import output_errors
from clear.errors import InputError

fcntl: Any = None  # Windows has none: two runs on one output are the user's to avoid there
with contextlib.suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

LOCK_FILE = "lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


class FolderLock:
    """Holds `folder/lock` until `release`: alone, or shared with others that share.

    Raises InputError when somebody else holds it, OutputError when the folder cannot be made. File systems without
    locks (some cluster file systems) give none: `held` is False then.
    """

    def __init__(self, folder: Path, output: Path, *, shared: bool) -> None:
        self.folder, self.held = folder, False
        while True:
            with output_errors(output):
                folder.mkdir(exist_ok=True)
                try:
                    self._fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
                except FileNotFoundError:  # somebody finished and removed the folder just now
                    continue
            if self._lock(output, shared) and not self._is_current():
                os.close(self._fd)
                self.held = False
                continue
            return

    def _lock(self, output: Path, shared: bool) -> bool:
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            os.close(self._fd)
            raise InputError(
                f"{output}: another clear is writing it. Wait until it is done, or stop it; several can work together "
                "with --shard i/n."
            ) from None
        self.held = True
        return True

    def _is_current(self) -> bool:
        """Whether the file we hold is still the one of that name: its last holder may have removed it."""
        try:
            now = (self.folder / LOCK_FILE).stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._fd)
        return (ours.st_dev, ours.st_ino) == (now.st_dev, now.st_ino)

    def release(self) -> None:
        """Lets go; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self.held = -1, False
