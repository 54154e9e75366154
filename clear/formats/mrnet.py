"""MRNet: `.npy` arrays of knee MR, (slices, 256, 256), in folders named axial, coronal and sagittal.

The release (MRNet-v1.0) removed every header: there is no spacing, no position and no statement of which end is
first. Slices keep their stored order and orientation, and the remark says so. The three series of an exam have one
number, the file's name, which is the study_uid here; there are no patient ids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clear.errors import ScanRefused
from clear.formats import without_ending
from clear.formats.grid import values_of
from clear.formats.radchestct import check_array, npy_header
from clear.scans import Scan
from clear.volume import CANONICAL_AXES, Geometry, Volume, stack_geometry

PLANES = ("axial", "coronal", "sagittal")
SIDE = 256
REMARKS = ("no geometry in the file: 1 mm assumed, slices kept in stored order",)


def probe(head: bytes, path: Path) -> bool:
    """Whether it is an .npy array that lies in a plane's folder or has MRNet's slices of 256 x 256."""
    if not head.startswith(b"\x93NUMPY"):
        return False
    try:
        with path.open("rb") as file:
            shape, dtype = npy_header(file, path.name)
    except ScanRefused:
        return _plane(path.as_posix()) is not None
    if len(shape) != 3 or dtype.kind not in "iuf":
        return False
    return _plane(path.as_posix()) is not None or (shape[1:] == (SIDE, SIDE) and dtype == np.uint8)


def scans(path: Path, root: Path, modality: str | None = None) -> list[Scan]:
    """The one scan of a file. Raises ScanRefused."""
    name = path.relative_to(root).as_posix()
    shape = _checked_shape(path, name)
    plane = _plane(path.as_posix())
    if plane is None:
        raise ScanRefused(
            "unknown_plane",
            f"{name}: no folder above it is named axial, coronal or sagittal, and the file does not say",
        )
    return [
        Scan(
            scan_id=without_ending(name),
            study_uid=exam.zfill(4) if (exam := path.stem).isdigit() else None,
            format="mrnet",
            modality=modality or "MR",
            plane=plane,
            n_slices=shape[0],
            shape=(shape[1], shape[2]),
            remarks=REMARKS,
            source=name,
            files=(name,),
            root=root,
        )
    ]


def read(scan: Scan) -> Volume:
    """The volume of a file, with nominal 1 mm steps. Raises ScanRefused."""
    _checked_shape(scan.paths[0], scan.source)
    try:
        array = np.load(scan.paths[0], allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError):
        raise _cut(scan.source) from None
    values, remarks = values_of(array, scan.modality)
    geometry = nominal_geometry(array.shape, scan.plane or "axial")
    return Volume.from_stack(values, geometry, scan.modality, remarks=(*scan.remarks, *remarks))


def nominal_geometry(shape: tuple[int, ...], plane: str) -> Geometry:
    """Slices kept as stored, taken to be canonical, with steps of 1 mm from 0."""
    z, y, x = CANONICAL_AXES[plane]  # type: ignore[index]  # one of PLANES
    positions = np.arange(shape[0])[:, None] * np.array(z, dtype=np.float64)
    return stack_geometry(positions, x, y, (shape[1], shape[2]), (1.0, 1.0), slice_spacing_mm=1.0)


def _checked_shape(path: Path, name: str) -> tuple[int, ...]:
    with path.open("rb") as file:
        shape, dtype = npy_header(file, name)
        start = file.tell()
    check_array(name, shape, dtype)
    if path.stat().st_size - start < int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise _cut(name)
    return shape


def _plane(source: str) -> str | None:
    """The nearest folder above the file that names a plane."""
    return next((part.lower() for part in reversed(source.split("/")[:-1]) if part.lower() in PLANES), None)


def _cut(name: str) -> ScanRefused:
    return ScanRefused("truncated_pixel_data", f"{name}: the file ends before its array does. Fetch it again")
