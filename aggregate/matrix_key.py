"""What decides the numbers of a matrix's cell, as one short digest.

Of a bag file that is all that a model can read of it: features, windows, slices, the scan table, the encoder and its
provenance; of every other file its bytes; of a folder (of label files) the names, sizes and times of its files; of the
preset its values and not its name. The version of clear is part of it, for numbers may change between two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aggregate.record import versions
from aggregate.run import VERSION
from clear.atomic import write_aside
from clear.bag_format import canonical_json
from clear.bags import Bags
from clear.presets import Preset
from clear.tasks import Task

DIGITS = 12  # hexadecimal, that a cell's folder bears
CACHE = "digests.json"
_ROWS = 1 << 16  # features hashed at a time
# what may differ between machines without changing a number by more than its last digits
_IDLE = ("device", "progress", "overwrite", "output")


class Digests:
    """Digests of files, each read once, and again only where its size or time has changed.

    cache: a JSON file that keeps those of bag files from one call to the next; None keeps nothing.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._kept = _read(cache)
        self._files: dict[Path, str] = {}

    def of_bags(self, path: Path) -> str:
        """Of a bag file or store; raises BagFileError for what is none."""
        name, stamp = str(path.resolve()), _stamp(path)
        found = self._kept.get(name)
        if found is None or found[0] != stamp:
            self._kept[name] = found = [stamp, _content(path)]
        return str(found[1])

    def of_file(self, path: Path) -> str:
        """Of a file's bytes or a folder's listing; of nothing where there is none."""
        if path not in self._files:
            if path.is_file():
                with path.open("rb") as file:
                    self._files[path] = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                self._files[path] = _stamp(path)
        return self._files[path]

    def keep(self) -> None:
        """Writes the cache."""
        if self._cache is not None:
            write_aside(self._cache, (json.dumps(self._kept, indent=1, sort_keys=True) + "\n").encode())


def cell_key(
    digests: Digests,
    bags: Path,
    labels: Path,
    task: Task,
    preset: Preset,
    arguments: Mapping[str, Any],
    precision: str,
) -> str:
    """The key of the numbers that `train` gives for these arguments.

    labels: the file or folder that is read; preset: with its changes; arguments: the rest, paths as `Path`; precision:
    of the products in training, as `auto` turns out on this machine.
    """
    named = ("bags", "labels", "task", "preset", "precision", *_IDLE)
    deciding = {name: _plain(value, digests) for name, value in arguments.items() if name not in named}
    identity = {
        "version": VERSION,
        "clear": versions()["clear"],
        "bags": digests.of_bags(bags),
        "labels": digests.of_file(labels),
        "task": {name: value for name, value in task.as_dict().items() if name != "table"},
        "preset": {name: value for name, value in preset.as_dict().items() if name != "name"},
        "arguments": deciding,
        "precision": precision,
    }
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _plain(value: Any, digests: Digests) -> Any:
    """A value with files replaced by their digests."""
    if isinstance(value, Path):
        return digests.of_file(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each, digests) for name, each in value.items()}
    return [_plain(each, digests) for each in value] if isinstance(value, list | tuple) else value


def _content(path: Path) -> str:
    total = hashlib.sha256()
    with Bags(path) as bags:
        total.update(f"{bags.digest}\n{canonical_json(bags.provenance)}\n{bags.scans.rows()!r}\n".encode())
        for array in (bags.slice, bags.window, bags.features):
            for start in range(0, len(array), _ROWS):
                total.update(np.ascontiguousarray(array[start : start + _ROWS]).tobytes())
    return total.hexdigest()


def _stamp(path: Path) -> str:
    """Names, sizes and times of a file or of the files of a folder."""
    files: Iterable[Path] = sorted(path.rglob("*")) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            about = file.stat()
            name = file.relative_to(path) if path.is_dir() else ""
            total.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _read(cache: Path | None) -> dict[str, list[str]]:
    """What was kept; nothing where the file is absent or damaged."""
    try:
        data = json.loads(cache.read_text(encoding="utf-8")) if cache is not None else {}
    except (OSError, ValueError):
        return {}
    good = isinstance(data, dict) and all(isinstance(each, list) and len(each) == 2 for each in data.values())
    return data if good else {}
