"""Bag files as HDF5: contiguous, uncompressed, and the same bytes for the same content.

libhdf5 only ever sees a small image in memory: it lays the file out, and the arrays themselves are written to their
places with `pwrite`. So bytes do not depend on buffers or on the order of writing, a 30 GB file needs little memory,
and a full disk is an ordinary error. Reading asks libhdf5 for the layout, follows no link out of the file, and maps
the arrays. The bytes also depend on the version of libhdf5, as far as it lays out files differently.
"""

from __future__ import annotations

import io
import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from clear.atomic import output_errors, pwrite_all
from clear.bag_format import (
    DAMAGED,
    FEATURE_TYPES,
    HEADER_TEXTS,
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
from clear.errors import BagFileError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_ATTRIBUTE_BYTES = 16_000_000
_LIBRARY = ("v108", "v108")  # the file format of HDF5 1.8: every reader of the last fifteen years knows it
_PAGE = 4096


def write_hdf5(
    path: Path,
    header: BagHeader,
    rows: Sequence[ScanRow],
    load: Callable[[ScanRow], Bag],
    *,
    name: Path | None = None,
    note: str = "",
) -> None:
    """A whole bag file at `path`, synced; rows are sorted by scan_id, and `load` gives one bag at a time.

    name: the path that error messages speak of, when `path` is only its place until the rename. note: kept in the
    attribute `part` if not empty. Raises OutputError.
    """
    columns = columns_of(rows)
    arrays = {f"scans/{column}": _stored(values) for column, values in columns.items()}
    n = sum(row.length for row in rows)
    sizes = {
        "features": (np.dtype(header.dtype).newbyteorder("<"), (n, header.dim)),
        **{f"instances/{key}": (np.dtype(code), (n, *tail)) for key, (code, tail) in INSTANCE_ARRAYS.items()},
        **{key: (array.dtype, array.shape) for key, array in arrays.items()},
    }
    image, size, places = _lay_out(header, sizes, note)
    with output_errors(name or path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            os.ftruncate(fd, size)
            for offset, page in image:
                pwrite_all(fd, page, offset)
            for key, array in arrays.items():
                pwrite_all(fd, array.tobytes(), places[key])
            start = 0
            for row in rows:
                bag = load(row)
                blocks = {"features": bag.features}
                blocks.update((f"instances/{key}", getattr(bag, key)) for key in INSTANCE_ARRAYS)
                for key, block in blocks.items():
                    dtype, shape = sizes[key]
                    if block.shape != (row.length, *shape[1:]):
                        raise ValueError(
                            f"{row.scan_id}: {key} is {block.shape}; expected {row.length} rows of {shape}"
                        )
                    width = dtype.itemsize * int(np.prod(shape[1:], dtype=int))
                    pwrite_all(fd, np.ascontiguousarray(block, dtype=dtype), places[key] + start * width)
                start += row.length
            os.fsync(fd)
        finally:
            os.close(fd)


def read_hdf5(path: Path) -> Contents:
    """An HDF5 bag file, checked and mapped; raises BagFileError."""
    try:
        handle = path.open("rb")
    except OSError as error:
        raise BagFileError(f"{path}: cannot be opened ({os.strerror(error.errno or 0)}).") from None
    with handle:
        if handle.read(len(_SIGNATURE)) != _SIGNATURE:
            raise BagFileError(f"{path}: expected an HDF5 bag file; found something else, or {DAMAGED}")
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        header, columns, places, note = _read_layout(path, handle, mapped)

    arrays = {key: _mapped_array(mapped, place) for key, place in places.items()}
    dont_need = getattr(mmap, "MADV_DONTNEED", None)

    def release() -> None:
        if dont_need is not None:
            mapped.madvise(dont_need)

    contents = Contents(
        header=header,
        columns=columns,
        features=arrays["features"],
        slice=arrays["instances/slice"],
        window=arrays["instances/window"],
        position_mm=arrays["instances/position_mm"],
        release=release,
        note=note,
    )
    check_contents(path, contents)
    return contents


class _Image(io.RawIOBase):
    """A file in memory that keeps only the pages which were written, so that gaps of gigabytes cost nothing."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        data = bytes(data)
        for page, inside, done, count in self._spans(len(data)):
            self.pages.setdefault(page, bytearray(_PAGE))[inside : inside + count] = data[done : done + count]
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        total = max(0, min(len(buffer), self.size - self._at))
        for page, inside, done, count in self._spans(total):
            buffer[done : done + count] = self.pages.get(page, bytes(_PAGE))[inside : inside + count]
        self._at += total
        return total

    def _spans(self, total: int) -> Iterator[tuple[int, int, int, int]]:
        done = 0
        while done < total:
            page, inside = divmod(self._at + done, _PAGE)
            count = min(_PAGE - inside, total - done)
            yield page, inside, done, count
            done += count


def _lay_out(
    header: BagHeader, sizes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]], note: str
) -> tuple[list[tuple[int, bytearray]], int, dict[str, int]]:
    """The file but for its arrays: pages (offset, bytes), the file's size, and where each array goes."""
    image = _Image()
    places: dict[str, int] = {}
    with h5py.File(
        image, "w", libver=_LIBRARY, track_order=False, alignment_threshold=_PAGE, alignment_interval=64
    ) as file:
        attributes = {**header.attributes(), **({"part": note} if note else {})}
        for name, value in attributes.items():
            _write_attribute(file, name, value)
        for key, (dtype, shape) in sizes.items():
            group, _, leaf = key.rpartition("/")
            parent = file.require_group(group) if group else file
            places[key] = _allocate(parent, leaf, dtype, shape)
    pages = [(page * _PAGE, content) for page, content in sorted(image.pages.items())]
    if pages and pages[-1][0] + _PAGE > image.size:
        offset, content = pages[-1]
        pages[-1] = offset, content[: image.size - offset]
    return pages, image.size, places


def _write_attribute(file: h5py.File, name: str, value: str | int) -> None:
    if isinstance(value, int):
        file.attrs.create(name, np.int64(value))
        return
    text = value.encode()  # of fixed length: variable ones lie in a heap that damaged files can point anywhere
    file.attrs.create(name, np.array(text, dtype=h5py.string_dtype("utf-8", max(1, len(text)))))


def _allocate(parent: h5py.Group, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """A contiguous dataset whose place is fixed now and whose bytes come later; 0 for an empty one."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    kind = h5py.string_dtype("utf-8", dtype.itemsize) if dtype.kind == "S" else dtype
    dataset = h5py.h5d.create(
        parent.id, name.encode(), h5py.h5t.py_create(kind, logical=True), h5py.h5s.create_simple(shape), creation
    )
    return int(dataset.get_offset() or 0) if shape[0] else 0


def _stored(values: Column) -> NDArray[Any]:
    if not isinstance(values, list):
        return values.astype(values.dtype.newbyteorder("<"), copy=False)
    encoded = [text.encode() for text in values]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


Place = tuple[np.dtype[Any], tuple[int, ...], int]


def _read_layout(
    path: Path, handle: BinaryIO, mapped: mmap.mmap
) -> tuple[BagHeader, dict[str, Column], dict[str, Place], str]:
    """Header, columns, where the arrays lie, and a part's note; no link is followed, nothing outside is opened."""
    with _damage(path), h5py.File(handle, "r") as file:  # a handle: neither locks nor a rename come between
        size = os.fstat(handle.fileno()).st_size
        attributes = {name: _read_attribute(path, file, name) for name in ("format", "version")}
        check_version(path, attributes)
        attributes.update((name, _read_attribute(path, file, name)) for name in HEADER_TEXTS)
        if file.userblock_size:
            raise BagFileError(f"{path}: expected no user block; found {file.userblock_size} bytes; {DAMAGED}")
        groups: dict[str, Any] = {"": file.id}
        dtype, shape, offset = _place(path, file, groups, "features", size)
        if str(dtype) not in FEATURE_TYPES or len(shape) != 2:
            raise BagFileError(f"{path}: /features is {shape} {dtype}; expected (N, d) float16 or float32; {DAMAGED}")
        header = BagHeader.from_attributes(path, attributes, dim=shape[1], dtype=str(dtype))
        places: dict[str, Place] = {"features": (dtype, shape, offset)}
        for key, (code, tail) in INSTANCE_ARRAYS.items():
            place = _place(path, file, groups, f"instances/{key}", size)
            if (place[0], place[1]) != (np.dtype(code), (shape[0], *tail)):
                raise BagFileError(f"{path}: /instances/{key} is {place[1]} {place[0]}; {DAMAGED}")
            places[f"instances/{key}"] = place
        columns: dict[str, Column] = {}
        for name, kind in SCAN_COLUMNS.items():
            found, rows, at = _place(path, file, groups, f"scans/{name}", size)
            text = kind in ("text", "remarks")
            wanted = "S" if text else np.dtype("f8" if kind == "spacing" else kind)
            if (found.kind if text else found) != wanted or rows[1:] != ((3,) if kind == "spacing" else ()):
                raise BagFileError(f"{path}: /scans/{name} is {rows} {found}; expected {kind}; {DAMAGED}")
            values = _mapped_array(mapped, (found, rows, at))
            columns[name] = [value.decode() for value in values.tolist()] if text else values.copy()
        note = _read_attribute(path, file, "part")
        return header, columns, places, note if isinstance(note, str) else ""


def _read_attribute(path: Path, file: h5py.File, name: str) -> str | int | None:
    if name not in file.attrs:
        return None
    attribute = h5py.h5a.open(file.id, name.encode())
    if attribute.shape != () or attribute.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
        raise BagFileError(f"{path}: the attribute {name!r} is no single value of moderate size; {DAMAGED}")
    value = file.attrs[name]
    if isinstance(value, bytes):
        return value.decode()
    return int(value) if isinstance(value, np.integer) else value if isinstance(value, str) else None


def _place(path: Path, file: h5py.File, groups: dict[str, Any], key: str, file_size: int) -> Place:
    """dtype, shape and offset of a dataset that lies in this file in one piece; raises BagFileError for any other.

    groups: those opened so far ("" is the root).
    """
    group, _, name = key.rpartition("/")
    if group not in groups:
        _check_link(path, groups[""], group)
        groups[group] = h5py.h5g.open(file.id, group.encode())
    _check_link(path, groups[group], name, key)
    if h5py.h5o.get_info(groups[group], name.encode()).type != h5py.h5o.TYPE_DATASET:
        raise BagFileError(f"{path}: /{key} is no dataset; {DAMAGED}")
    dataset = h5py.h5d.open(groups[group], name.encode())
    creation = dataset.get_create_plist()
    shape = tuple(int(v) for v in dataset.shape or ())
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_external_count() or not shape:
        raise BagFileError(
            f"{path}: /{key} is chunked, compressed or kept in another file; a bag file is contiguous and complete. "
            "Extract it again, or repack it with `h5repack -l CONTI -f NONE`."
        )
    dtype = dataset.dtype
    offset = int(dataset.get_offset() or 0)
    n_bytes = dtype.itemsize * math.prod(shape)
    if n_bytes and (offset <= 0 or offset + n_bytes > file_size):
        raise BagFileError(f"{path}: /{key} reaches beyond the end of the file; {DAMAGED}")
    return dtype, shape, offset


def _check_link(path: Path, group: Any, name: str, key: str = "") -> None:
    if not group.links.exists(name.encode()):
        raise BagFileError(f"{path}: /{key or name} is missing; {DAMAGED}")
    if group.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise BagFileError(
            f"{path}: /{key or name} is a link to another place; a bag file holds its own data and clear follows no "
            "links. Copy the data into one file (h5repack), or extract again."
        )


def _mapped_array(mapped: mmap.mmap, place: Place) -> NDArray[Any]:
    dtype, shape, offset = place
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What h5py raises on a damaged or hostile file, as BagFileError."""
    try:
        yield
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        RuntimeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        if "truncated" in str(error):
            raise BagFileError(
                f"{path}: shorter than it says it is, probably cut off while it was copied. Copy it again."
            ) from error
        raise BagFileError(f"{path}: cannot be read as a bag file: {DAMAGED}") from error
