"""Files of a downloaded tree: found by name, in one walk, with an error that says what was looked for."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from clear.errors import InputError


def find_files(path: Path, patterns: Sequence[str], *, depth: int | None = None) -> list[Path]:
    """The file itself, or the files below a folder, whose name fits a pattern (case does not matter); sorted.

    depth: how many levels of folders below `path` are looked into; all of them when None. Hidden files do not count.
    """
    if path.is_file():
        return [path] if fits(path.name, patterns) else []
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        below = len(Path(folder).relative_to(path).parts)
        folders[:] = [] if depth is not None and below >= depth else sorted(folders)
        found += [Path(folder) / name for name in names if fits(name, patterns)]
    return sorted(found)


def need_files(path: Path, patterns: Sequence[str], origin: str) -> list[Path]:
    """As `find_files`; raises InputError naming the patterns and where such files come from when there is none."""
    found = find_files(path, patterns)
    if not found:
        raise InputError(f"{path}: no file named {' or '.join(patterns)}; expected the label files of {origin}")
    return found


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file name fits one of the patterns.

    >>> fits("DL_info.csv", ["*dl_info*.csv"]), fits("._DL_info.csv", ["*dl_info*.csv"])
    (True, False)
    """
    lower = name.lower()
    return not lower.startswith(".") and any(fnmatch.fnmatchcase(lower, pattern.lower()) for pattern in patterns)


def folder_of(path: Path) -> Path:
    """The folder in which the other tables of a data set are looked for."""
    return path if path.is_dir() else path.parent
