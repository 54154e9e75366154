"""MedMNIST 3D: one `.npz` holds all volumes of a data set, `{train,val,test}_images` of shape (N, side, side, side).

Values are 8-bit and have no unit, and no file says what was scanned, so the modality is OT (other) unless it is given
(the tasks of CT sets give it, as encoders of CT take nothing else). There is no spacing, no position and no statement
of axes: the first is taken as slices. One file is many scans: `unfold` lists them. Numbers of volumes are taken from
the file, as newer files dropped duplicates. The 2D sets (one axis fewer) are no scans.
Facts: MedMNIST/MedMNIST `medmnist/{dataset,info}.py`.
"""

from __future__ import annotations

import dataclasses
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.errors import ScanRefused
from clear.formats import MAX_VOLUME_BYTES, without_ending
from clear.formats.grid import DEFLATE_MOST
from clear.formats.mrnet import nominal_geometry
from clear.formats.radchestct import npy_header
from clear.scans import Scan
from clear.volume import Volume

SPLITS = ("train", "val", "test")
MODALITY = "OT"
REMARKS = (
    "no geometry in the file: 1 mm assumed, first axis taken as slices",
    "8-bit values without a unit: no HU, whatever the modality",
)
MAX_CODES = 8 * 2**20  # bytes of labels: a million of the widest integers; the sets have some thousand volumes
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError, NotImplementedError, RuntimeError)
_LOCK = threading.Lock()
_last: tuple[tuple[Any, ...], NDArray[np.uint8]] | None = None  # one array of one file: its volumes are read in a row


def probe(head: bytes, path: Path) -> bool:
    """Whether it is a zip archive with an array of volumes called train_images, val_images or test_images.

    One whose arrays cannot be looked at is claimed too, so that it is refused rather than passed over.
    """
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for split in SPLITS if (name := f"{split}_images.npy") in archive.namelist()]
            if not names:
                return False
            with archive.open(names[0]) as file:
                shape, dtype = npy_header(file, path.name)
    except (zipfile.BadZipFile, zlib.error, ScanRefused, EOFError, RuntimeError, NotImplementedError):
        return zipfile.is_zipfile(path)
    return len(shape) == 4 and shape[1] == shape[2] == shape[3] and dtype == np.uint8


def scans(path: Path, root: Path, modality: str | None = None) -> list[Scan]:
    """One scan that stands for all volumes of the file; `unfold` makes them of it. Raises ScanRefused."""
    name = path.relative_to(root).as_posix()
    shapes = _shapes(path, name)
    side = next(iter(shapes.values()))[1]
    return [
        Scan(
            scan_id=without_ending(name),
            format="medmnist",
            modality=modality or MODALITY,
            plane="axial",
            n_slices=side,
            shape=(side, side),
            remarks=REMARKS,
            source=name,
            files=(name,),
            root=root,
        )
    ]


def unfold(whole: Scan) -> list[Scan]:
    """The volumes of a file, `organmnist3d_train_00000` and so on; the file itself, refused, when it changed."""
    try:
        shapes = _shapes(whole.paths[0], whole.source)
    except (ScanRefused, OSError) as error:
        reason = error.reason if isinstance(error, ScanRefused) else "unreadable_file"
        message = f"{whole.source}: {error}"
        return [dataclasses.replace(whole, verdict="refused", reason=reason, message=message, remarks=())]
    return [
        dataclasses.replace(
            whole, scan_id=volume_id(whole.scan_id, split, index), source=f"{whole.source}#{split}/{index}"
        )
        for split, shape in shapes.items()
        for index in range(shape[0])
    ]


def read(scan: Scan) -> Volume:
    """One volume of the file. Raises ScanRefused."""
    split, _, number = scan.source.rpartition("#")[2].partition("/")
    array = _images(scan.paths[0], scan.files[0], split)
    if not number.isdigit() or int(number) >= len(array):
        raise ScanRefused(
            "changed_since_plan", f"{scan.source}: {split}_images now has {len(array)} volumes. List the scans again"
        )
    values = array[int(number)].astype(np.int16 if scan.modality == "CT" else np.float32)
    geometry = nominal_geometry(values.shape, scan.plane or "axial")
    return Volume.from_stack(values, geometry, scan.modality, remarks=scan.remarks)


def volume_id(name: str, split: str, index: int) -> str:
    """The id of a volume; five digits, so that ids sort as the file does.

    >>> volume_id("organmnist3d", "train", 12)
    'organmnist3d_train_00012'
    """
    return f"{name}_{split}_{index:05d}"


def read_labels(path: Path, split: str) -> list[int]:
    """Class codes of the volumes of one official set. Raises ScanRefused for an array that is absent or damaged, and
    for one that is not a code a volume, before it is unpacked."""
    array = f"{split}_labels"
    try:
        with zipfile.ZipFile(path) as archive:
            shape, dtype = _declared(archive, array, path.name, MAX_CODES)
            images = f"{split}_images.npy" in archive.namelist()
            expected = _declared(archive, f"{split}_images", path.name, MAX_VOLUME_BYTES)[0][0] if images else shape[0]
        if shape not in ((expected,), (expected, 1)) or dtype.kind not in "iu":
            raise ScanRefused(
                "bad_header", f"{path.name}: {array} is {shape} of {str(dtype)[:40]}; expected one code a volume"
            )
        with np.load(path, allow_pickle=False) as loaded:
            codes = loaded[array]
    except _BROKEN:
        raise _damaged(path.name, array) from None
    return [int(code) for code in codes.reshape(-1)]


def _shapes(path: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Official set -> shape of its images, checked against what the archive can hold. Raises ScanRefused."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for split in SPLITS:
                if f"{split}_images.npy" not in archive.namelist():
                    continue
                shape, dtype = _declared(archive, f"{split}_images", name, MAX_VOLUME_BYTES)
                if len(shape) != 4 or dtype != np.uint8 or min(shape[1:]) < 1:
                    raise ScanRefused("not_a_volume", f"{name}: {split}_images is {shape} of {str(dtype)[:40]}")
                shapes[split] = shape
    except _BROKEN:
        raise _damaged(name, "images") from None
    if not shapes or len({shape[1:] for shape in shapes.values()}) != 1:
        raise ScanRefused("mixed_shapes", f"{name}: its official sets hold volumes of different sizes")
    return shapes


def _declared(archive: zipfile.ZipFile, array: str, name: str, most: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, from its header. Raises ScanRefused for one of no axis, of more than `most` bytes, or
    of other than the archive can hold."""
    member = archive.getinfo(f"{array}.npy")
    with archive.open(member) as file:
        shape, dtype = npy_header(file, name)
        room = member.file_size - file.tell()
    n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if not shape:
        raise ScanRefused("bad_header", f"{name}: {array} is a single value; expected one a volume")
    if n_bytes > most:
        raise ScanRefused("too_large", f"{name}: {array} declares {shape}; too much to hold in memory")
    if room != n_bytes or member.file_size > max(member.compress_size, 1) * DEFLATE_MOST:
        raise _damaged(name, array)
    return shape, dtype


def _images(path: Path, name: str, split: str) -> NDArray[np.uint8]:
    """(N, side, side, side) of one official set; the last one stays in memory, as its volumes are read in a row."""
    global _last
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns, split)
    with _LOCK:
        if _last is None or _last[0] != key:
            _last = None  # free it before the next is read
            if split not in _shapes(path, name):
                raise ScanRefused("changed_since_plan", f"{name}: no {split}_images any more. List the scans again")
            try:
                with np.load(path, allow_pickle=False) as archive:
                    _last = key, archive[f"{split}_images"]
            except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError, MemoryError):
                raise _damaged(name, f"{split}_images") from None
        return _last[1]


def _damaged(name: str, array: str) -> ScanRefused:
    stem = PurePosixPath(name).name
    return ScanRefused("truncated_pixel_data", f"{stem}: cut off or damaged; {array} cannot be read. Fetch it again")
