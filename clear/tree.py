"""The tree: every file below a folder, in a stable order, whatever links, locks and races it holds."""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from clear.formats import omezarr


@dataclass(frozen=True)
class Entry:
    """One file, or one Zarr store: path relative to the root, "/"-separated, size in bytes and time of change."""

    name: str
    size: int
    mtime_ns: int
    is_store: bool = False


@dataclass(frozen=True)
class Tree:
    """What lies below a folder: entries sorted by name, and the folders that could not be opened."""

    entries: list[Entry]
    unreadable: list[str]


def walk(root: Path) -> Tree:
    """Every regular file below `root`, hidden ones left out; a Zarr image is one entry.

    Links are followed. Each real folder is visited once, under its own path rather than a link's, so a circle of
    links ends and a linked copy is no second scan. Sockets, pipes and devices are left out: opening one can hang.
    Files that vanish meanwhile are left out.
    """
    entries: list[Entry] = []
    unreadable: list[str] = []
    seen: set[tuple[int, int]] = set()
    linked: deque[str] = deque()
    waiting = deque([""])
    while waiting or linked:
        name = waiting.popleft() if waiting else linked.popleft()
        folder = root / name
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as opened:
                items = sorted(opened, key=lambda item: item.name)
        except OSError:
            unreadable.append(name or ".")
            continue
        is_zarr = any(item.name in omezarr.METADATA for item in items)
        store = omezarr.kind(folder) if is_zarr else None
        if store == "image":
            entries.append(_store_entry(folder, name))
        if store in ("image", "array"):
            continue
        for item in items:
            if item.name.startswith("."):
                continue
            path = f"{name}/{item.name}" if name else item.name
            try:
                if item.is_dir():
                    (linked if item.is_symlink() else waiting).append(path)
                    continue
                status = item.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and store is None:
                entries.append(Entry(path, status.st_size, status.st_mtime_ns))
    return Tree(sorted(entries, key=lambda entry: entry.name), sorted(unreadable))


def _store_entry(folder: Path, name: str) -> Entry:
    """A store by the sizes and the latest change of its metadata files, those of its arrays included."""
    size = latest = 0
    for place in (folder, *(child for child in folder.iterdir() if child.is_dir())):
        for file in omezarr.METADATA:
            try:
                status = (place / file).stat()
            except OSError:
                continue
            size, latest = size + status.st_size, max(latest, status.st_mtime_ns)
    return Entry(name, size, latest, is_store=True)
