"""Grids: what NIfTI, NRRD, MetaImage and OME-Zarr have in common.

They store one array with an affine and say nothing, or little, of what its values mean. So three things are decided
here from the values themselves, by rules that docs/reading-scans.md states: CT or not, image or segmentation, HU or
not. A value of -150 or less makes a CT: fat and air lie there, while MR magnitudes are positive up to interpolation
ringing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clear.errors import ScanRefused
from clear.formats import MAX_VOLUME_BYTES, without_ending
from clear.scans import Scan
from clear.volume import AIR_HU, Volume, grid_geometry

CT_BELOW = -150  # at or below: CT in HU
SEGMENTATION_LABELS = 256  # at most so many distinct values, and
SEGMENTATION_EQUAL = 0.75  # so large a share of neighbouring non-zero voxels that are equal
BLOCK_BYTES = 1 << 20
DEFLATE_MOST = 1032  # zlib cannot shrink by more than this (zlib technical details), so a larger claim is false
INT16 = np.iinfo(np.int16)
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Grid:
    """What a header says of one array.

    shape: of the C-ordered array (k, j, i), k the axis that varies slowest in the file
    affine: (4, 4) from index (k, j, i, 1) to LPS millimetres
    dtype: as stored, with its byte order; value = stored * slope + intercept
    data: the file that holds the values; offset: where they start in it, or in what `compression` ("", "gzip" or
        "zlib") gives of it; packed_from: where the compressed bytes start. "zarr": chunks in a folder
    modality: "" when the header does not say
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    dtype: np.dtype[np.generic]
    data: Path
    offset: int = 0
    compression: str = ""
    packed_from: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    modality: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of the stored values."""
        return int(np.prod([int(n) for n in self.shape], dtype=object)) * self.dtype.itemsize


@dataclass(frozen=True)
class Look:
    """What the values are: minimum and maximum of what was looked at (all of it unless CT), and labels or not."""

    low: float
    high: float
    is_segmentation: bool = False


def check_size(name: str, grid: Grid) -> None:
    """Raises ScanRefused when the declared array cannot be in the file, before any memory is asked for."""
    if min(grid.shape) < 1:
        raise ScanRefused("bad_header", f"{name}: the header declares an array of {_by(grid.shape)}; it is damaged")
    if grid.n_bytes > MAX_VOLUME_BYTES:
        raise ScanRefused(
            "too_large",
            f"{name}: the header declares {_by(grid.shape)} voxels, {grid.n_bytes / 2**30:.0f} GiB; the largest volume "
            f"read is {MAX_VOLUME_BYTES / 2**30:.0f} GiB. Crop it, or check the file for damage",
        )
    if grid.compression == "zarr":
        return
    on_disk = grid.data.stat().st_size - grid.packed_from
    room = on_disk * DEFLATE_MOST if grid.compression else on_disk
    if room < grid.n_bytes + grid.offset:
        raise truncated(name, grid)


def truncated(name: str, grid: Grid) -> ScanRefused:
    """The refusal of a file that ends before its values do."""
    return ScanRefused(
        "truncated_pixel_data",
        f"{name}: the file ends before its {_by(grid.shape)} voxels do; it was cut in a copy. Fetch it again",
    )


def blocks(path: Path, start: int, compression: str) -> Iterator[bytes]:
    """The file's bytes from `start`, unpacked, in blocks of at most 1 MiB; memory does not grow with what it claims.

    Raises zlib.error for damaged and EOFError for cut compressed data.
    """
    with path.open("rb") as file:
        file.seek(start)
        if not compression:
            while block := file.read(BLOCK_BYTES):
                yield block
            return
        bits = 31 if compression == "gzip" else 15
        unpack = zlib.decompressobj(bits)
        packed = b""
        while True:
            packed = packed or file.read(BLOCK_BYTES)
            if not packed:
                break
            block = unpack.decompress(packed, BLOCK_BYTES)
            packed = unpack.unconsumed_tail
            if block:
                yield block
            if unpack.eof:  # gzip files may have several members (RFC 1952, 2.2)
                packed = unpack.unused_data.lstrip(b"\0") or file.read(BLOCK_BYTES)
                if compression != "gzip" or not packed.startswith(b"\x1f"):
                    return
                unpack = zlib.decompressobj(bits)
        while block := unpack.decompress(b"", BLOCK_BYTES):
            yield block
        if not unpack.eof:
            raise EOFError


def value_blocks(name: str, grid: Grid) -> Iterator[NDArray[np.generic]]:
    """The stored values in file order, a flat array a block. Raises ScanRefused `truncated_pixel_data`."""
    skip, left, rest = grid.offset, grid.n_bytes, b""
    try:
        for block in blocks(grid.data, grid.packed_from, grid.compression):
            if skip >= len(block):
                skip -= len(block)
                continue
            block = rest + block[skip:]
            skip = 0
            block = block[:left]
            whole = len(block) - len(block) % grid.dtype.itemsize
            rest = block[whole:]
            left -= whole
            if whole:
                yield np.frombuffer(block[:whole], grid.dtype)
            if left == 0:
                return
    except (zlib.error, EOFError):
        raise truncated(name, grid) from None
    raise truncated(name, grid)


def read_array(name: str, grid: Grid) -> NDArray[np.generic]:
    """The stored array (k, j, i) in its own type. Raises ScanRefused."""
    check_size(name, grid)
    array = np.empty(int(np.prod(grid.shape)), grid.dtype)
    at = 0
    for block in value_blocks(name, grid):
        array[at : at + len(block)] = block
        at += len(block)
    return array.reshape(grid.shape)


def look(values: Iterable[NDArray[np.generic]], slope: float = 1.0, intercept: float = 0.0) -> Look:
    """What blocks of stored values hold; stops at the first value that only CT has."""
    low, high = np.inf, -np.inf
    counts: NDArray[np.int64] | None = np.zeros(1 << 16, np.int64)
    pairs = equal = 0
    for block in values:
        if block.dtype.kind == "f":
            block = block[np.isfinite(block)]
        if not len(block):
            continue
        ends = float(block.min()) * slope + intercept, float(block.max()) * slope + intercept
        low, high = min(low, *ends), max(high, *ends)
        if low <= CT_BELOW:
            return Look(low, high)
        if counts is not None:
            whole = low >= 0 and high < len(counts) and slope in (1, 0) and intercept == 0
            if whole and block.dtype.kind == "f":
                whole = bool((block == np.rint(block)).all())
            if whole:
                labels = block.astype(np.int64)
                counts += np.bincount(labels, minlength=len(counts))
                both = (labels[1:] != 0) & (labels[:-1] != 0)
                pairs += int(both.sum())
                equal += int((both & (labels[1:] == labels[:-1])).sum())
            else:
                counts = None
    if not np.isfinite(low):
        return Look(0.0, 0.0)
    few = counts is not None and np.count_nonzero(counts) <= SEGMENTATION_LABELS
    return Look(low, high, bool(few and pairs > 0 and equal >= SEGMENTATION_EQUAL * pairs))


def grid_scan(
    path: Path, root: Path, format: str, grid: Grid, seen: Look, modality: str | None, **facts: object
) -> Scan:
    """One grid as a row of the plan. `modality` overrides what header and values say. Raises ScanRefused."""
    source = path.relative_to(root).as_posix()
    axis, geometry = grid_geometry(grid.affine, grid.shape)
    rows, columns = (n for a, n in enumerate(grid.shape) if a != axis)
    shape = (columns, rows) if geometry.transpose else (rows, columns)
    scan = Scan(
        scan_id=without_ending(source),
        format=format,
        plane=geometry.plane,
        n_slices=grid.shape[axis],
        shape=shape,
        spacing_mm=geometry.spacing_mm,
        source=source,
        files=tuple(dict.fromkeys(p.relative_to(root).as_posix() for p in (path, grid.data))),
        root=root,
        **facts,  # type: ignore[arg-type]  # the caller's keyword arguments of Scan
    )
    told = modality or grid.modality
    if seen.low == seen.high:
        return replace(
            scan,
            verdict="set aside",
            reason="constant",
            message=f"{source}: every voxel is {seen.low:g}: an empty mask or a blank image",
        )
    if seen.is_segmentation and not told:
        return replace(
            scan,
            verdict="set aside",
            reason="segmentation",
            message=f"{source}: whole numbers from {seen.low:g} to {seen.high:g} in flat regions: labels, "
            "not an image. If it is one, name its modality",
        )
    name, remarks = _modality(source, grid, seen, told)
    return replace(scan, modality=name, remarks=(*remarks, *grid.remarks, *geometry.remarks))


def _modality(source: str, grid: Grid, seen: Look, told: str) -> tuple[str, tuple[str, ...]]:
    """The modality and what must be noted about it. Raises ScanRefused `not_hu`."""
    if told == "CT" and seen.low >= 0:
        raise ScanRefused(
            "not_hu",
            f"{source}: said to be CT, but its values run from {seen.low:g} to {seen.high:g}, and air in HU is about "
            "-1000. Convert it with its rescale slope and intercept",
        )
    if told:
        return told, ()
    if seen.low <= CT_BELOW:
        return "CT", (f"modality inferred: CT (values of {CT_BELOW} or less)",)
    if grid.dtype.itemsize == 1:
        note = f"not HU: 8-bit values, {seen.low:g} to {seen.high:g}"
        return "MR", ("modality inferred: MR (no value of -150 or less)", note)
    return "MR", (f"modality inferred: MR (no value of -150 or less; minimum {seen.low:g})",)


def grid_volume(scan: Scan, array: NDArray[np.generic], grid: Grid) -> Volume:
    """The stored array (k, j, i) as a canonical volume; CT becomes int16 HU, everything else float32."""
    axis, geometry = grid_geometry(grid.affine, grid.shape)
    values, remarks = values_of(array, scan.modality, grid.slope, grid.intercept)
    remarks = tuple(dict.fromkeys([*scan.remarks, *remarks]))
    return Volume.from_stack(np.moveaxis(values, axis, 0), geometry, scan.modality, remarks=remarks)


def values_of(
    array: NDArray[np.generic], modality: str, slope: float = 1.0, intercept: float = 0.0
) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Stored numbers as int16 HU (rounded half to even, clipped) or float32, and remarks on what had to give.

    Values that are not finite become air in CT and the smallest finite value elsewhere. Works slice by slice, so
    the temporary float copy is one slice.
    """
    kind = np.dtype(np.int16 if modality == "CT" else np.float32)
    plain = slope == 1 and intercept == 0
    if plain and array.dtype == kind and kind.kind == "i":
        return array, ()
    out = np.empty(array.shape, kind)
    clipped = odd = 0
    for stored, kept in zip(array, out, strict=True):
        if plain and stored.dtype.kind in "iu":
            values = stored
        else:
            values = stored.astype(np.float64)
            values = values if plain else values * slope + intercept
            bad = ~(np.abs(values) <= LARGEST)  # nan too
            if bad.any():
                odd += int(bad.sum())
                finite = values[~bad]
                values[bad] = AIR_HU if modality == "CT" else (finite.min() if len(finite) else 0.0)
        if modality == "CT":
            if values.dtype.kind == "f":
                values = np.rint(values)
            if values.dtype != np.int16:
                outside = int(((values < INT16.min) | (values > INT16.max)).sum())
                clipped += outside
                values = np.clip(values, INT16.min, INT16.max) if outside else values
        kept[...] = values
    remarks = []
    if odd:
        remarks.append(f"{odd} voxels are not finite: painted as {'air' if modality == 'CT' else 'the lowest value'}")
    if clipped:
        remarks.append(f"{clipped} voxels lie outside int16 and were clipped")
    return out, tuple(remarks)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
