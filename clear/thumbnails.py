"""Thumbnails: small pictures of every slice in every window, beside the bag file.

    Thumbnails.of("feats.h5").get(digest, slice=12, window=bags.windows[0])     # WebP bytes, or None

`feats.thumbnails/` (docs/bag-format.md) has one file a scan, named by the scan's digest: voxels and geometry decide,
so shards, restarts, merges and new ids change nothing. A file is in the safetensors format: it holds numbers and bytes,
and nothing in it can run. Where the folder holds no picture the answer is None; a damaged file is an error.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clear.bag_format import BagHeader
from clear.errors import InputError
from clear.pictures import encoded, grey, settled
from clear.volume import Volume
from clear.windows import Window, default_windows

ENDING = ".safetensors"
FORMAT = "clear-thumbnails"
VERSION = 1
SIDE = 160  # pixels of the long side
QUALITY, EFFORT = 75, 2  # bytes of effort 4 and a twentieth, in half the time
MAX_BYTES = 1 << 30  # of a file: 10,000 slices in 30 windows stay below
MAX_HEADER_BYTES = 1 << 20  # of its header: so do 256 windows
_DAMAGE = (SafetensorError, OSError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError, InputError)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Thumbnails:
    """The thumbnails of a bag file. `of` gives those that there are; a folder that is not there has none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @classmethod
    def of(cls, bags: Path | str) -> Thumbnails | None:
        """Those beside the bag file of this path; None where extraction kept none."""
        folder = thumbnails_folder(Path(bags))
        return cls(folder) if folder.is_dir() else None

    def get(self, digest: str, slice: int, window: int | Window) -> bytes | None:
        """The slice's picture as WebP; None where there is none of this scan, slice or window.

        digest: of the scan (`/scans/digest`). window: an index into `windows(digest)`, or better the window itself,
        which finds only a picture of the same kind and range, whatever its name.
        Raises InputError for a damaged file.
        """
        with self._opened(digest) as contents:
            if contents is None:
                return None
            at = contents.index_of(window) if isinstance(window, Window) else window
            if at is None or not (0 <= slice < contents.n_slices and 0 <= at < len(contents.windows)):
                return None
            return contents.picture(slice * len(contents.windows) + at)

    def windows(self, digest: str) -> tuple[Window, ...]:
        """The windows of a scan's pictures; none where it has no pictures. Raises InputError for a damaged file."""
        with self._opened(digest) as contents:
            return () if contents is None else contents.windows

    def holds(self, digest: str, windows: Sequence[Window]) -> bool:
        """Whether the scan has pictures in exactly these windows; a damaged file is as good as none."""
        try:
            return bool(windows) and self.windows(digest) == tuple(windows)
        except InputError:
            return False

    def path(self, digest: str) -> Path:
        """Where the scan's file is, or would be. Raises InputError for what is no sha256 in hexadecimal digits."""
        if not _DIGEST.fullmatch(digest):
            raise InputError(f"expected a scan's digest, 64 hexadecimal digits; found {digest[:80]!r}")
        return self.folder / digest[:2] / f"{digest}{ENDING}"

    @contextmanager
    def _opened(self, digest: str) -> Iterator[_Contents | None]:
        """The scan's file, its layout checked; None without one."""
        path = self.path(digest) if _DIGEST.fullmatch(digest) else None
        if path is None or not path.is_file():
            yield None
            return
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("it is larger than thumbnails are")
            with path.open("rb") as file:
                if int.from_bytes(file.read(8), "little") > MAX_HEADER_BYTES:
                    raise ValueError("its header is larger than one of thumbnails is")
            with safe_open(path, framework="np") as file:
                yield _Contents.of(file)
        except _DAMAGE as error:
            reason = str(error) if type(error) is ValueError else "it cannot be read as one"
            raise InputError(
                f"{path}: expected the thumbnails of a scan; {reason}. Remove the file; `clear extract --thumbnails` "
                "makes it again."
            ) from error


@dataclass(frozen=True)
class _Contents:
    """An open file. index: (slices * windows, 3) int64, each picture's start, length and CRC-32."""

    file: Any
    windows: tuple[Window, ...]
    n_slices: int
    index: NDArray[np.int64]

    @classmethod
    def of(cls, file: Any) -> _Contents:
        head = json.loads((file.metadata() or {})[FORMAT])
        if head["version"] != VERSION:
            raise ValueError(f"its version is {str(head['version'])[:20]}, this clear reads version {VERSION}")
        windows = tuple(Window.from_dict(window) for window in head["windows"])
        index = file.get_tensor("index")
        n_slices = index.shape[0] // max(1, len(windows))
        if index.dtype != np.int64 or index.shape != (n_slices * len(windows), 3):
            raise ValueError("its index has another shape")
        return cls(file, windows, n_slices, index)

    def index_of(self, window: Window) -> int | None:
        """Which window shows the same as this one."""
        ranges = [(w.kind, w.low, w.high) for w in self.windows]
        wanted = (window.kind, float(window.low), float(window.high))
        return ranges.index(wanted) if wanted in ranges else None

    def picture(self, i: int) -> bytes:
        start, length, checksum = (int(v) for v in self.index[i])
        pictures = self.file.get_slice("pictures")
        (n_bytes,) = pictures.get_shape()
        if pictures.get_dtype() != "U8" or not 0 <= start <= start + length <= n_bytes:
            raise ValueError("its index points beyond its pictures")
        webp: bytes = pictures[start : start + length].tobytes()
        if zlib.crc32(webp) != checksum or max(_size_of(webp)) > SIDE:
            raise ValueError(f"picture {i} is damaged")
        return webp


def packed(volume: Volume, windows: Sequence[Window]) -> bytes:
    """The file of one scan: every slice in every window, slice by slice, windows inside a slice."""
    views = settled(volume, windows)
    pictures = [
        encoded(grey(volume, z, view, side=SIDE), quality=QUALITY, effort=EFFORT)
        for z in range(volume.n_slices)
        for view in views
    ]
    lengths = np.array([len(picture) for picture in pictures], dtype=np.int64)
    checksums = np.array([zlib.crc32(picture) for picture in pictures], dtype=np.int64)
    index = np.stack([np.cumsum(lengths) - lengths, lengths, checksums], axis=1)
    head = {"version": VERSION, "windows": [window.as_dict() for window in windows]}
    arrays = {"index": index, "pictures": np.frombuffer(b"".join(pictures), dtype=np.uint8)}
    return save(arrays, metadata={FORMAT: json.dumps(head, sort_keys=True)})


def thumbnail_windows(header: BagHeader, modality: str) -> tuple[Window, ...]:
    """In which windows the scans of a bag file are shown: its own, or those that its encoder stacks into channels.

    An encoder that standardises slices or takes whole volumes has no window to show; it gets the modality's defaults.
    """
    if header.windows[0].kind != "encoder":
        return header.windows
    stacked = header.preprocessing.get("channel_windows") or ()
    return tuple(Window.from_dict(window) for window in stacked) or default_windows(modality)


def shown_window(window: Window, header: BagHeader, modality: str) -> Window:
    """The window in which a slice is shown: its own, or the first where its encoder makes something else of it."""
    return window if window.kind != "encoder" else thumbnail_windows(header, modality)[0]


def thumbnails_folder(bags: Path) -> Path:
    """`feats.thumbnails` for `feats.h5` or `feats.zarr`."""
    return bags.with_name(f"{bags.stem}.thumbnails")


def _size_of(webp: bytes) -> tuple[int, int]:
    """Width and height of a lossy WebP picture (RFC 9649, 2.5, and RFC 6386, 9.1), the only kind written here."""
    if len(webp) < 30 or webp[:4] != b"RIFF" or webp[8:16] != b"WEBPVP8 ":
        raise ValueError("a picture is no lossy WebP")
    return int.from_bytes(webp[26:28], "little") & 0x3FFF, int.from_bytes(webp[28:30], "little") & 0x3FFF
