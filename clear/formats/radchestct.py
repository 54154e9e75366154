"""RAD-ChestCT: one `.npz` a scan, key `ct`, resampled to 0.8 mm, without any header.

The array is (Z, Y, X) with index 0 superior, then anterior, then patient right (rachellea/ct-volume-preprocessing,
preprocess_volumes.py): Z runs head to foot. Values are HU clipped to -1000..1000, int16 in the release and int32 in
the authors' examples.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from clear.errors import ScanRefused
from clear.formats import MAX_VOLUME_BYTES, without_ending
from clear.formats.grid import DEFLATE_MOST, values_of
from clear.scans import Scan
from clear.volume import Geometry, Volume, stack_geometry

KEY = "ct.npy"
SPACING_MM = 0.8
REMARKS = ("no origin in the file: positions start at 0",)


def probe(head: bytes, path: Path) -> bool:
    """Whether it is a zip archive with a member ct.npy, or one named .npz whose directory is cut off."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return KEY in archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return path.name.lower().endswith(".npz")


def scans(path: Path, root: Path, modality: str | None = None) -> list[Scan]:
    """The one scan of a file. Raises ScanRefused."""
    name = path.relative_to(root).as_posix()
    shape, _ = _header(path, name)
    return [
        Scan(
            scan_id=without_ending(name),
            format="radchestct",
            modality=modality or "CT",
            plane="axial",
            n_slices=shape[0],
            shape=(shape[1], shape[2]),
            spacing_mm=(SPACING_MM,) * 3,
            remarks=REMARKS,
            source=name,
            files=(name,),
            root=root,
        )
    ]


def read(scan: Scan) -> Volume:
    """The volume of a file. Raises ScanRefused."""
    _header(scan.paths[0], scan.source)
    try:
        with np.load(scan.paths[0], allow_pickle=False) as archive:
            array = archive["ct"]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError, MemoryError):
        raise _damaged(scan.source) from None
    if scan.modality == "CT" and array.min() >= 0:
        raise ScanRefused(
            "not_hu", f"{scan.source}: values run from {array.min()} to {array.max()}; HU of a chest has air near -1000"
        )
    values, remarks = values_of(array, scan.modality)
    return Volume.from_stack(values, _geometry(array.shape), scan.modality, remarks=(*scan.remarks, *remarks))


def _geometry(shape: tuple[int, ...]) -> Geometry:
    positions = np.zeros((shape[0], 3))
    positions[:, 2] = -SPACING_MM * np.arange(shape[0])
    return stack_geometry(
        positions, (1, 0, 0), (0, 1, 0), (shape[1], shape[2]), (SPACING_MM, SPACING_MM), slice_spacing_mm=SPACING_MM
    )


def _header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array, checked against what the archive can hold; nothing large is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(KEY)
            with archive.open(member) as file:
                shape, dtype = npy_header(file, name)
                room = member.file_size - file.tell()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, NotImplementedError, RuntimeError):
        raise _damaged(name) from None
    check_array(name, shape, dtype)
    n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if room != n_bytes or member.file_size > max(member.compress_size, 1) * DEFLATE_MOST:
        raise _damaged(name)
    return shape, dtype


def npy_header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type from the start of a .npy stream (numpy.lib.format). Raises ScanRefused."""
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ScanRefused("bad_header", f"{name}: the header of its array is damaged. Fetch it again") from None
    return shape, dtype


def check_array(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raises ScanRefused for anything but three axes of real numbers of bearable size."""
    if dtype.kind not in "iuf":
        raise ScanRefused("unsupported_values", f"{name}: an array of type {str(dtype)[:40]}, not of real numbers")
    if len(shape) != 3 or min(shape) < 1:
        raise ScanRefused("not_a_volume", f"{name}: an array of shape {shape}; expected (slices, rows, columns)")
    if int(np.prod(shape, dtype=object)) * dtype.itemsize > MAX_VOLUME_BYTES:
        raise ScanRefused(
            "too_large", f"{name}: declares {shape}; the largest volume read is {MAX_VOLUME_BYTES >> 30} GiB"
        )


def _damaged(name: str) -> ScanRefused:
    return ScanRefused(
        "truncated_pixel_data",
        f"{name}: the archive is cut off or damaged; its array `ct` cannot be read. Fetch it again",
    )
