"""Stored axes: how a file's own slices, rows and columns lie in the canonical axes of `clear.volume`.

Boxes drawn in another program are in pixels of the stored image; slices are stored and shown in canonical axes. What
leads from one to the other (an order of slices, a transposition, two flips) follows from headers alone, through the
same two functions that the readers use, so no voxel is read here.

A position in an image is counted in pixels from the outer edge of its first pixel: pixel i covers i to i + 1. Then
half-open index ranges are positions as they stand, and a flip maps x to width - x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clear.errors import ScanRefused
from clear.scans import Scan
from clear.volume import CANONICAL_AXES, Geometry, grid_geometry, stack_geometry

ONE_FILE_A_SLICE = ("dicom", "deeplesion")


@dataclass(frozen=True)
class StoredAxes:
    """The way from stored to canonical positions of one scan.

    slices: canonical index of each stored slice; None where slices are files of their own, which have no stored order
    transpose, flip_rows, flip_columns: applied in this sequence; shape: canonical (rows, columns)
    """

    slices: tuple[int, ...] | None
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    shape: tuple[int, int]

    @property
    def changes_pixels(self) -> bool:
        """Whether a canonical slice is not the stored one pixel by pixel."""
        return self.transpose or self.flip_rows or self.flip_columns

    @property
    def changes_slices(self) -> bool:
        """Whether slices are numbered in another order than they are stored."""
        return self.slices is not None and self.slices != tuple(range(len(self.slices)))

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """A stored box (columns x, rows y) in canonical axes, again as (x0, y0, x1, y1)."""
        if self.transpose:
            x0, y0, x1, y1 = y0, x0, y1, x1
        rows, columns = self.shape
        if self.flip_rows:
            y0, y1 = rows - y1, rows - y0
        if self.flip_columns:
            x0, x1 = columns - x1, columns - x0
        return x0, y0, x1, y1


def stored_axes(scan: Scan) -> StoredAxes:
    """The stored axes of a scan, from its headers. Raises ScanRefused or OSError when they cannot be read."""
    if scan.format == "dicom":
        geometry, slices = _dicom(scan)
    elif scan.format == "deeplesion":
        geometry, slices = None, None
    else:
        geometry = _geometry(scan)
        canonical_of = np.argsort(geometry.order)
        slices = tuple(int(i) for i in canonical_of)
    assert scan.shape is not None
    if geometry is None:  # rows run front to back and columns right to left already
        return StoredAxes(slices, False, False, False, scan.shape)
    return StoredAxes(slices, geometry.transpose, geometry.flip_rows, geometry.flip_columns, scan.shape)


def _dicom(scan: Scan) -> tuple[Geometry, tuple[int, ...] | None]:
    """The first file tells the orientation of all, as slices are parallel; the frames of one file have an order."""
    from clear.formats.dicom import read_header
    from clear.formats.dicom_image import images_of
    from clear.formats.dicom_stack import geometry_of

    record = read_header(scan.paths[0])
    if record is None or record["kind"] != "image":
        raise ScanRefused("changed_since_plan", f"{scan.files[0]}: no longer a DICOM image. List the scans again")
    images = images_of([(scan.files[0], record)])
    if len(scan.files) == 1 and len(images) == scan.n_slices:
        geometry = geometry_of(images)
        return geometry, tuple(int(i) for i in np.argsort(geometry.order))
    return geometry_of(images[:1]), None


def _geometry(scan: Scan) -> Geometry:
    """What the readers of volume files make of their headers."""
    if scan.format == "nifti":
        from clear.formats import nifti

        grid = nifti.read_grid(scan.paths[0], scan.source)
        return grid_geometry(grid.affine, grid.shape)[1]
    if scan.format in ("nrrd", "mha"):
        from clear.formats import itk

        _, grid = itk.read_grid(scan.paths[0], scan.source)
        return grid_geometry(grid.affine, grid.shape)[1]
    plane = scan.plane or "axial"
    z, y, x = (np.array(axis, dtype=np.float64) for axis in CANONICAL_AXES[plane])  # type: ignore[index]  # a Plane
    if scan.format == "radchestct":  # stored from head to foot, see clear.formats.radchestct
        z = -z
    elif scan.format == "omezarr" and plane != "axial":  # all axes grow as in LPS, and rows shall run head to feet
        y = -y
    positions = np.arange(scan.n_slices)[:, None] * z
    assert scan.shape is not None
    return stack_geometry(positions, x, y, scan.shape, (1.0, 1.0), slice_spacing_mm=1.0)
