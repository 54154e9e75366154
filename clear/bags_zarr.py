"""Bag files as Zarr (format 3), for object stores: the same groups, arrays and attributes as the HDF5 file.

Text columns are Zarr strings, everything else has the dtype of the HDF5 file; chunks are uncompressed as written, and
may be compressed when read. A Zarr folder from elsewhere is data of strangers: its metadata are read as JSON first, and
only plain codecs are allowed (some others run code), no links, and no array larger than its files can hold.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.atomic import OutputError, output_errors, rename_into_place, sync_folder
from clear.bag_format import (
    DAMAGED,
    FEATURE_TYPES,
    FORMAT,
    INSTANCE_ARRAYS,
    SCAN_COLUMNS,
    Bag,
    BagHeader,
    Column,
    Contents,
    ScanRow,
    check_contents,
    check_version,
    columns_of,
)
from clear.errors import BagFileError, MissingExtra

_CHUNK_BYTES = 8 << 20
_CODECS = {"bytes", "vlen-utf8", "zstd", "gzip", "blosc", "crc32c", "transpose", "sharding_indexed"}
_MOST_COMPRESSED = 2000  # no allowed codec packs more than about a thousand to one
_DTYPES = {"<f2": "float16", "<f4": "float32", "<f8": "float64", "<i4": "int32", "<i8": "int64", "|u1": "uint8"}


def write_zarr(
    path: Path, header: BagHeader, rows: Sequence[ScanRow], load: Callable[[ScanRow], Bag], *, name: Path | None = None
) -> None:
    """A whole bag folder at `path`, synced; arguments and errors as in `write_hdf5`."""
    zarr = _zarr()
    n = sum(row.length for row in rows)
    with output_errors(name or path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr remarks on string columns that other readers may not know
        if path.exists():
            shutil.rmtree(path)
        root = zarr.create_group(str(path), zarr_format=3, attributes=header.attributes())
        itemsize = np.dtype(header.dtype).itemsize
        arrays = {"features": _Appending(root, "features", header.dtype, (n, header.dim), header.dim * itemsize)}
        instances = root.create_group("instances")
        for key, (code, tail) in INSTANCE_ARRAYS.items():
            width = np.dtype(code).itemsize * int(np.prod(tail, dtype=int))
            arrays[key] = _Appending(instances, key, _DTYPES[code], (n, *tail), width)
        scans = root.create_group("scans")
        for column, values in columns_of(rows).items():
            _write_column(scans, column, values)
        for row in rows:
            bag = load(row)
            for key, array in arrays.items():
                array.append(getattr(bag, key))
        for array in arrays.values():
            array.finish()
        _sync_tree(path)


def replace_zarr(aside: Path, path: Path) -> None:
    """The folder `aside` becomes `path`. A folder cannot be renamed onto another, so the old one steps aside first;

    `recover_zarr` puts it back after an interruption between the two renames.
    """
    with output_errors(path):
        if path.exists():
            if not is_bag_folder(path):
                raise OutputError(f"{path}: exists and is no bag file, so it is not replaced. Remove it yourself.")
            old = _old(path)
            path.replace(old)
            rename_into_place(aside, path)
            shutil.rmtree(old)
        else:
            rename_into_place(aside, path)


def recover_zarr(path: Path) -> None:
    """Undoes or completes a replacement that was interrupted."""
    old = _old(path)
    if not old.exists():
        return
    with output_errors(path):
        if path.exists():
            shutil.rmtree(old)
        else:
            rename_into_place(old, path)


def read_zarr(path: Path) -> Contents:
    """A Zarr bag folder, checked; arrays are read when sliced. Raises BagFileError."""
    root = _metadata(path, path)
    attributes = root.get("attributes")
    if root.get("node_type") != "group" or not isinstance(attributes, dict):
        raise BagFileError(f"{path}: expected a Zarr group; {DAMAGED}")
    check_version(path, attributes)
    stored = _stored_bytes(path)
    for key in ("features", *(f"instances/{k}" for k in INSTANCE_ARRAYS), *(f"scans/{k}" for k in SCAN_COLUMNS)):
        _check_array(path, key, stored)
    zarr = _zarr()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(str(path), mode="r", zarr_format=3)
            features = group["features"]
            dtype, shape = str(features.dtype), features.shape
            if dtype not in FEATURE_TYPES or len(shape) != 2:
                raise BagFileError(f"{path}: /features is {shape} {dtype}; expected (N, d) float16; {DAMAGED}")
            header = BagHeader.from_attributes(path, attributes, dim=shape[1], dtype=dtype)
            instances = {key: group[f"instances/{key}"] for key in INSTANCE_ARRAYS}
            for key, (code, tail) in INSTANCE_ARRAYS.items():
                array = instances[key]
                if (str(array.dtype), array.shape) != (_DTYPES[code], (shape[0], *tail)):
                    raise BagFileError(f"{path}: /instances/{key} is {array.shape} {array.dtype}; {DAMAGED}")
            columns = {name: _read_column(path, name, group[f"scans/{name}"]) for name in SCAN_COLUMNS}
            contents = Contents(
                header=header,
                columns=columns,
                features=features,
                slice=instances["slice"],
                window=instances["window"],
                position_mm=instances["position_mm"],
                release=lambda: None,
            )
            check_contents(path, contents)
            return contents
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, MemoryError) as error:
        raise BagFileError(f"{path}: cannot be read as a bag file: {DAMAGED}") from error


class _Appending:
    """An array that is written in whole chunks while blocks of rows come in."""

    def __init__(self, group: Any, name: str, dtype: str, shape: tuple[int, ...], row_bytes: int) -> None:
        self.chunk = max(1, min(_CHUNK_BYTES // row_bytes, max(1, shape[0])))
        self.array = _create(group, name, dtype, shape, (self.chunk, *shape[1:]))
        self.shape, self.dtype, self.done = shape, np.dtype(dtype), 0
        self.waiting: list[NDArray[Any]] = []

    def append(self, block: NDArray[Any]) -> None:
        if block.shape[1:] != self.shape[1:]:
            raise ValueError(f"{self.array.name}: a block of {block.shape}; expected rows of {self.shape[1:]}")
        self.waiting.append(np.array(block, dtype=self.dtype))
        while sum(map(len, self.waiting)) >= self.chunk:
            rows = np.concatenate(self.waiting)
            self._write(rows[: self.chunk])
            self.waiting = [rows[self.chunk :]]

    def finish(self) -> None:
        if self.waiting and sum(map(len, self.waiting)):
            self._write(np.concatenate(self.waiting))
        if self.done != self.shape[0]:
            raise ValueError(f"{self.array.name}: {self.done} rows; expected {self.shape[0]}")

    def _write(self, rows: NDArray[Any]) -> None:
        self.array[self.done : self.done + len(rows)] = rows
        self.done += len(rows)


def _create(group: Any, name: str, dtype: Any, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Any:
    return group.create_array(
        name, shape=shape, chunks=chunks, dtype=dtype, compressors=None, config={"write_empty_chunks": True}
    )


def _write_column(group: Any, name: str, values: Column) -> None:
    n = len(values)
    if isinstance(values, list):
        array = _create(group, name, "string", (n,), (max(1, n),))
        data: Any = np.array(values, dtype=np.dtypes.StringDType())
    else:
        array = _create(group, name, str(values.dtype), values.shape, (max(1, n), *values.shape[1:]))
        data = values
    if n:
        array[...] = data


def _read_column(path: Path, name: str, array: Any) -> Column:
    kind = SCAN_COLUMNS[name]
    values = array[...]
    if kind in ("text", "remarks"):
        texts = list(values.tolist())
        if array.ndim != 1 or not all(isinstance(text, str) for text in texts):
            raise BagFileError(f"{path}: /scans/{name} is {array.shape} {array.dtype}; expected texts; {DAMAGED}")
        return texts
    wanted = np.dtype("f8" if kind == "spacing" else kind)
    if values.dtype != wanted or values.shape[1:] != ((3,) if kind == "spacing" else ()):
        raise BagFileError(f"{path}: /scans/{name} is {values.shape} {values.dtype}; expected {kind}; {DAMAGED}")
    return np.asarray(values)


def _metadata(path: Path, node: Path) -> dict[str, Any]:
    file = node / "zarr.json"
    try:
        if file.is_symlink() or file.stat().st_size > 16_000_000:
            raise BagFileError(f"{path}: {file.name} of {node.name} is a link or far too large; {DAMAGED}")
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BagFileError(f"{path}: not a bag file of clear ({file.relative_to(path)} is missing).") from None
    except (OSError, ValueError, RecursionError):
        raise BagFileError(f"{path}: {file.relative_to(path)} cannot be read; {DAMAGED}") from None
    if not isinstance(data, dict) or data.get("zarr_format") != 3:
        raise BagFileError(f"{path}: {file.relative_to(path)} is not Zarr format 3; {DAMAGED}")
    return data


def _check_array(path: Path, key: str, stored_bytes: int) -> None:
    """Raises BagFileError unless the array's metadata are harmless."""
    data = _metadata(path, path / key)
    shape = data.get("shape")
    if data.get("node_type") != "array" or not isinstance(shape, list) or not all(isinstance(v, int) for v in shape):
        raise BagFileError(f"{path}: /{key} is no array; {DAMAGED}")
    names = set(_codec_names(data.get("codecs")))
    if names - _CODECS or data.get("storage_transformers"):
        raise BagFileError(
            f"{path}: /{key} uses the codec {', '.join(sorted(names - _CODECS)) or 'storage_transformers'}; "
            f"clear reads {', '.join(sorted(_CODECS))} only, because others may run code."
        )
    cells = 1
    for extent in shape:
        cells *= extent
    if cells > stored_bytes * _MOST_COMPRESSED:
        raise BagFileError(f"{path}: /{key} claims {cells} values in a folder of {stored_bytes} bytes; {DAMAGED}")


def _codec_names(codecs: Any) -> list[str]:
    """Names of codecs, those inside shards too; '?' for what is no codec."""
    names: list[str] = []
    for codec in codecs if isinstance(codecs, list) else [None]:
        if not isinstance(codec, dict):
            names.append("?")
            continue
        names.append(str(codec.get("name")))
        configuration = codec.get("configuration")
        if isinstance(configuration, dict):
            for inner in {"codecs", "index_codecs"} & set(configuration):
                names.extend(_codec_names(configuration[inner]))
    return names


def _stored_bytes(path: Path) -> int:
    total = 0
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(folder, name)
            if entry.is_symlink():
                raise BagFileError(f"{path}: {entry.relative_to(path)} is a link; clear follows none. Copy the data.")
            total += entry.stat().st_size if name in files else 0
    return total


def _sync_tree(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            fd = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))


def is_bag_folder(path: Path) -> bool:
    """Whether a folder says of itself that it is a bag file, of any version."""
    try:
        return bool(_metadata(path, path)["attributes"]["format"] == FORMAT)
    except (BagFileError, KeyError, TypeError):
        return False


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _zarr() -> Any:
    try:
        import zarr
    except ImportError:
        raise MissingExtra("zarr", "zarr", "Reading or writing a .zarr bag file") from None
    return zarr
