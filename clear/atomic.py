"""Writing that is all or nothing: aside, synced, renamed.

A reader sees the old file or the new one, never half of one, and a power cut after the rename loses nothing: data
first, then the name (`fsync` of the file, `rename`, `fsync` of the folder). What the disk refuses becomes an
`OutputError` that says what to do.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clear.errors import ClearError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class OutputError(ClearError):
    """The disk is full, the folder is read-only, or an output path cannot be used."""


def write_aside(path: Path, data: bytes, *, aside: Path | None = None) -> None:
    """`data` becomes the file `path` at once or not at all; raises OutputError.

    aside: the name used until the rename, on the same file system (default: a hidden one beside `path`).
    """
    aside = aside or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with output_errors(path):
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                pwrite_all(fd, data, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            rename_into_place(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def rename_into_place(aside: Path, path: Path) -> None:
    """The synced file or folder `aside` becomes `path`; the rename itself is on disk when this returns."""
    aside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync of a folder: names in it are on disk. A no-op where the system has no such thing."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems refuse it for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def pwrite_all(fd: int, data: Any, offset: int) -> None:
    """All bytes of a buffer at an offset; `os.pwrite` may write fewer at a time."""
    rest = memoryview(data).cast("B")
    while len(rest):
        written = os.pwrite(fd, rest[: 1 << 30], offset)
        rest, offset = rest[written:], offset + written


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """OSErrors of writing `path`, as OutputErrors."""
    try:
        yield
    except OSError as error:
        raise OutputError(_sentence(path, error)) from error


def _sentence(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        free = free_bytes(path.parent)
        left = "" if free is None else f" ({as_size(free)} free)"
        return f"{path}: the disk is full or a quota is used up{left}. Free space and run the same command again."
    if error.errno == errno.EFBIG:
        return f"{path}: larger than this system allows a file to be (ulimit -f). Raise the limit and run again."
    if error.errno in _FORBIDDEN:
        return f"{path}: may not be written here (read-only or not permitted). Choose another output folder."
    if error.errno == errno.ENOENT:
        return f"{path}: its folder {path.parent} does not exist (any more). Make it, or choose another output."
    return f"{path}: could not be written ({os.strerror(error.errno) if error.errno else type(error).__name__})."


def free_bytes(folder: Path) -> int | None:
    """What this user may still write to the file system of `folder`; None when it does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def as_size(n_bytes: float) -> str:
    """
    >>> as_size(3_400_000_000)
    '3.4 GB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
