"""Scan names: by which words a table may name a scan, or one slice of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clear.formats import without_ending
from clear.scans import Scan
from pretrain.stored_axes import ONE_FILE_A_SLICE

_PNG = re.compile(r"^(.*?)_?(\d{1,9})$")


@dataclass(frozen=True)
class Found:
    """A scan that a name stands for; slice: its canonical index where the name is that of one slice's file."""

    scan: Scan
    slice: int | None = None


class ScanNames:
    """Finds scans by `scan_id` (whole, or its last part), `series_uid`, `file` and `File_name` (DeepLesion)."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        self._exact: dict[tuple[str, str], list[Found]] = defaultdict(list)
        self._last: dict[tuple[str, str], list[Found]] = defaultdict(list)
        for scan in scans:
            self._add(scan)

    def find(self, key: str, name: str) -> list[Found]:
        """What a name stands for; its last part decides where nothing has the whole name."""
        if key == "file":
            name = Path(name).as_posix()
        elif key == "scan_id" and not self._exact.get((key, name)):
            name = without_ending(name)
        return self._exact.get((key, name)) or self._last.get((key, name), [])

    def _add(self, scan: Scan) -> None:
        self._exact["scan_id", scan.scan_id].append(Found(scan))
        self._last["scan_id", scan.scan_id.rpartition("/")[2]].append(Found(scan))
        if scan.series_uid:
            self._exact["series_uid", scan.series_uid].append(Found(scan))
        one_each = scan.format in ONE_FILE_A_SLICE and len(scan.files) == scan.n_slices
        for i, file in enumerate(scan.files or (scan.source,)):
            found = Found(scan, i if one_each else None)
            for name in {file, (scan.root / file).as_posix(), (scan.root.resolve() / file).as_posix()}:
                self._exact["file", name].append(found)
            self._last["file", PurePosixPath(file).name].append(found)
            if scan.format == "deeplesion":
                self._exact["File_name", _png_name(file)].append(found)


def _png_name(file: str) -> str:
    """`000091_03_01_050.png`, as DL_info.csv names a slice, for `Images_png/000091_03_01/050.png` or a flat file."""
    path = PurePosixPath(file)
    numbered = _PNG.match(path.stem)
    if numbered is None:
        return path.name
    series = numbered[1] or path.parent.name
    return f"{series}_{int(numbered[2]):03d}.png"
