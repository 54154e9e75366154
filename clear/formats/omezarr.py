"""OME-Zarr images, versions 0.4 (Zarr 2) and 0.5 (Zarr 3): https://ngff.openmicroscopy.org/0.5/.

A store is one scan: the first, highest resolution of its first multiscale image, axes z, y, x with t and c of
length 1. The axes are taken as LPS (the specification leaves anatomy open), which the remarks say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clear.errors import ScanRefused
from clear.formats.grid import Grid, check_size, grid_scan, grid_volume, look
from clear.scans import Scan
from clear.volume import Volume

UNIT_MM = {"millimeter": 1.0, "micrometer": 1e-3, "nanometer": 1e-6, "centimeter": 10.0, "meter": 1000.0}
METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
METADATA_MOST = 8 << 20
SLAB_BYTES = 1 << 29
# codecs that only decompress numbers; numcodecs also knows `pickle`, which would run what a file tells it to
CODECS = frozenset(
    ("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "bytes", "transpose", "crc32c")
)
# what JSON of another structure than expected raises, here and in zarr
MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
NO_ANATOMY = "OME-Zarr states no anatomy: axes taken as z to the head, y to the back, x to the left"


def kind(folder: Path) -> str | None:
    """What a folder is: "image" (has multiscales), "group", "array", or None when it is no part of a Zarr store."""
    if not any((folder / name).is_file() for name in METADATA):
        return None
    try:
        attributes = _attributes(folder)
        if isinstance(attributes.get("multiscales"), list):
            return "image"
        if (folder / ".zarray").is_file() or _json(folder / "zarr.json").get("node_type") == "array":
            return "array"
    except ScanRefused:
        return "image" if folder.name.lower().endswith(".ome.zarr") else "group"
    return "group"


def scans(path: Path, root: Path, modality: str | None = None) -> list[Scan]:
    """The one scan of a store. Raises ScanRefused."""
    name = path.relative_to(root).as_posix()
    grid, place, squeezed = _grid(path, name)
    array = _open(place, name)
    seen = look(slab.ravel() for _, slab in _slabs(array, squeezed, grid, name))
    scan = grid_scan(path, root, "omezarr", grid, seen, modality)
    absent = array.nchunks - array.nchunks_initialized
    remarks = (f"{absent} of {array.nchunks} chunks are not stored: fill value there",) if absent else ()
    return [replace(scan, files=(name,), remarks=(*scan.remarks, *remarks) if scan.verdict == "use" else ())]


def read(scan: Scan) -> Volume:
    """The volume of a store. Raises ScanRefused."""
    grid, place, squeezed = _grid(scan.root / scan.source, scan.source)
    array = _open(place, scan.source)
    stack = np.empty(grid.shape, grid.dtype.newbyteorder("="))
    for first, slab in _slabs(array, squeezed, grid, scan.source):
        stack[first : first + len(slab)] = slab
    return grid_volume(scan, stack, grid)


def _grid(path: Path, name: str) -> tuple[Grid, Path, tuple[int | slice, ...]]:
    """The highest resolution as a Grid, its folder, and how to index away the axes of length 1. Raises ScanRefused."""
    try:
        return _checked_grid(path, name)
    except MALFORMED:
        raise ScanRefused("bad_header", f"{name}: its metadata are damaged: not what OME-Zarr prescribes") from None


def _checked_grid(path: Path, name: str) -> tuple[Grid, Path, tuple[int | slice, ...]]:
    multiscale = _first(_attributes(path).get("multiscales"), name, "multiscales")
    dataset = _first(multiscale.get("datasets"), name, "datasets")
    place = path / str(dataset.get("path", ""))
    if not place.resolve().is_relative_to(path.resolve()):
        raise ScanRefused("bad_header", f"{name}: its metadata points outside the store")
    shape, dtype = _array_metadata(place, name)
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", [])]
    names = [str(axis.get("name")) for axis in axes]
    if len(names) != len(shape) or [n for n in names if n in "zyx"] != ["z", "y", "x"]:
        raise ScanRefused(
            "not_a_volume", f"{name}: axes {names} of lengths {list(shape)}; expected z, y, x in this order"
        )
    for axis, length in zip(names, shape, strict=True):
        if axis not in "zyx" and length != 1:
            reason = "time_series" if axis == "t" else "colour" if axis == "c" else "not_a_volume"
            raise ScanRefused(reason, f"{name}: axis {axis!r} has length {length}; expected one volume of one channel")
    scale, shift = _transforms(multiscale, dataset, len(shape), name)
    spatial = [names.index(n) for n in "zyx"]
    units = [str(axes[i].get("unit", "")) for i in spatial]
    factors = [UNIT_MM.get(unit, 1.0) for unit in units]
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for column, (i, factor) in enumerate(zip(spatial, factors, strict=True)):
        affine[2 - column, column] = scale[i] * factor
        affine[2 - column, 3] = shift[i] * factor
    remarks = [NO_ANATOMY]
    if not all(unit in UNIT_MM for unit in units):
        remarks.append("no unit of length: taken as millimetres")
    grid = Grid(
        shape=tuple(shape[i] for i in spatial),  # type: ignore[arg-type]  # three
        affine=affine,
        dtype=dtype,
        data=path,
        compression="zarr",  # unstored chunks are legal, so the size on disk says nothing
        remarks=tuple(remarks),
    )
    check_size(name, grid)
    return grid, place, tuple(slice(None) if i in spatial else 0 for i in range(len(shape)))


def _transforms(
    multiscale: dict[str, Any], dataset: dict[str, Any], n: int, name: str
) -> tuple[list[float], list[float]]:
    """Scale and translation of the array: the dataset's own, then those of the whole image (NGFF 0.5, 2.5)."""
    scale, shift = [1.0] * n, [0.0] * n
    for steps in (dataset.get("coordinateTransformations"), multiscale.get("coordinateTransformations")):
        for step in steps or []:
            values = step.get(step.get("type")) if isinstance(step, dict) else None
            if values is None and isinstance(step, dict) and step.get("type") == "identity":
                continue
            numbers = values if isinstance(values, list) else []
            if len(numbers) != n or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
                raise ScanRefused("bad_geometry", f"{name}: a coordinate transformation is not {n} finite numbers")
            if step["type"] == "scale":
                scale = [a * b for a, b in zip(scale, numbers, strict=True)]
                shift = [a * b for a, b in zip(shift, numbers, strict=True)]
            elif step["type"] == "translation":
                shift = [a + b for a, b in zip(shift, numbers, strict=True)]
    return scale, shift


def _array_metadata(place: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type, after checking chunks, type and codecs. Raises ScanRefused."""
    if (place / "zarr.json").is_file():
        meta = _json(place / "zarr.json")
        chunks = meta.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape", [])
        type_, codecs = meta.get("data_type"), _codec_names(meta.get("codecs", []))
        if meta.get("storage_transformers"):
            codecs.append("storage_transformers")
    elif (place / ".zarray").is_file():
        meta = _json(place / ".zarray")
        chunks, type_ = meta.get("chunks", []), meta.get("dtype")
        codecs = [str(c.get("id")) for c in [meta.get("compressor"), *(meta.get("filters") or [])] if c]
    else:
        raise ScanRefused("truncated_pixel_data", f"{name}: its highest resolution {place.name!r} is missing")
    strange = sorted(set(codecs) - CODECS)
    if strange:
        raise ScanRefused("unsupported_encoding", f"{name}: uses the Zarr codec {strange[0][:40]!r}, which is not read")
    try:
        dtype = np.dtype(str(type_))
        shape = tuple(int(n) for n in meta["shape"])
        chunk_bytes = int(np.prod([int(n) for n in chunks], dtype=object)) * dtype.itemsize
    except (TypeError, ValueError, KeyError):
        raise ScanRefused("bad_header", f"{name}: the array's metadata are damaged") from None
    if dtype.kind not in "iuf":
        raise ScanRefused("unsupported_values", f"{name}: values of type {str(type_)[:40]!r}, not real numbers")
    if chunk_bytes > 2 * 2**30 or chunk_bytes <= 0:
        raise ScanRefused("too_large", f"{name}: one chunk is declared as {chunk_bytes} bytes; at most 2 GiB are read")
    return shape, dtype


def _codec_names(codecs: Any) -> list[str]:
    names = []
    for codec in codecs if isinstance(codecs, list) else [codecs]:
        own = codec.get("name") if isinstance(codec, dict) else codec
        inner = codec.get("configuration", {}) if isinstance(codec, dict) else {}
        if own == "sharding_indexed":
            names += _codec_names(inner.get("codecs", [])) + _codec_names(inner.get("index_codecs", []))
        else:
            names.append(str(own))
    return names


def _open(place: Path, name: str) -> Any:
    import zarr

    try:
        return zarr.open_array(str(place), mode="r")
    except (*MALFORMED, OSError):
        raise ScanRefused("bad_header", f"{name}: the Zarr array cannot be opened; its metadata are damaged") from None


def _slabs(
    array: Any, squeezed: tuple[int | slice, ...], grid: Grid, name: str
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """(first slice, (n, y, x)) from the first slice on, a chunk deep each, so that no chunk is unpacked twice."""
    z = squeezed.index(slice(None))
    deep = max(1, min(int(array.chunks[z]), SLAB_BYTES // max(1, grid.n_bytes // grid.shape[0])))
    for first in range(0, grid.shape[0], deep):
        index = (*squeezed[:z], slice(first, first + deep), *squeezed[z + 1 :])
        try:
            yield first, np.asarray(array[index])
        except (*MALFORMED, OSError, MemoryError):
            raise ScanRefused("truncated_pixel_data", f"{name}: a chunk is damaged or cannot be unpacked") from None


def _attributes(folder: Path) -> dict[str, Any]:
    """User attributes: under `ome` in 0.5 (zarr.json), at the top in 0.4 (.zattrs)."""
    if (folder / "zarr.json").is_file():
        attributes = _json(folder / "zarr.json").get("attributes", {})
        ome = attributes.get("ome", attributes) if isinstance(attributes, dict) else {}
        return ome if isinstance(ome, dict) else {}
    return _json(folder / ".zattrs") if (folder / ".zattrs").is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    """A metadata file. Raises ScanRefused `bad_header` when it is not a JSON object of bearable size."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(METADATA_MOST))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ScanRefused("bad_header", f"{path.parent.name}: {path.name} is damaged")
    return data


def _first(value: Any, name: str, what: str) -> dict[str, Any]:
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        raise ScanRefused("bad_header", f"{name}: its metadata hold no {what}")
    return value[0]
