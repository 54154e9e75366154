"""Where a slice store is built: checked before anything is read, and one build's alone while it lasts."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clear.atomic import OutputError, output_errors
from clear.errors import InputError
from pretrain.store_tables import (
    LOCK_FILE,
    TABLES_FOLDER,
    SliceStoreError,
    begin,
    is_begun,
    is_store,
    read_root,
)
from pretrain.stored_scan import SCANS_FOLDER


def check_place(out: Path | str) -> Path:
    """Where the store goes. Raises OutputError before anything is read or written."""
    path = Path(out)
    if path.suffix != ".zarr":
        raise OutputError(f"{path}: a slice store is a folder named NAME.zarr. Name the output so")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; a slice store is a folder. Name another output")
    if path.is_dir() and not (is_store(path) or is_begun(path)):
        raise OutputError(f"{path}: exists and is no slice store, so nothing is added to it. Name another output")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist. Make it first, or name another output")
    if not os.access(path if path.is_dir() else path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: may not be written here (read-only or not permitted). Name another output")
    return path


@contextmanager
def building(store: Path) -> Iterator[None]:
    """The store's folder, ours alone while the block runs; a folder that gained nothing is removed again."""
    with output_errors(store):
        (store / TABLES_FOLDER).mkdir(parents=True, exist_ok=True)
        lock = os.open(store / TABLES_FOLDER / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(lock, store)
        with output_errors(store):
            begin(store)
        try:
            yield
        finally:
            _remove_if_empty(store)
    finally:
        os.close(lock)


def _lock(fd: int, store: Path) -> None:
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ImportError:  # Windows has none: two builds of one store are the user's to avoid there
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{store}: another clear is building it. Wait until it is done, or stop it") from None
    except OSError:  # some cluster file systems have no locks
        return


def _remove_if_empty(store: Path) -> None:
    """A new store without a finished scan leaves nothing behind."""
    with contextlib.suppress(OSError, SliceStoreError):
        if "digest" not in read_root(store) and all(path.is_file() for path in (store / SCANS_FOLDER).iterdir()):
            shutil.rmtree(store)
