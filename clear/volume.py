"""Volumes: voxels and the geometry that says where each one lies in the patient.

Coordinates are DICOM's LPS in millimetres: x grows to the patient's left, y to the back, z to the head
(DICOM PS3.3 C.7.6.2.1.1). The slice axis is the acquisition's own. Canonical axes are reached by sorting slices,
flips and a transposition, never by interpolation:

========  ==================  ===============  =================
plane     Z (slices)          Y (rows)         X (columns)
========  ==================  ===============  =================
axial     feet to head        front to back    right to left
sagittal  right to left       head to feet     front to back
coronal   front to back       head to feet     right to left
========  ==================  ===============  =================

`stack_geometry` works from headers alone, so a plan can be made without reading a pixel; `Geometry.apply` carries it
out. Every reader goes through these two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear.errors import ScanRefused

Plane = Literal["axial", "sagittal", "coronal"]

# plane: where the array axes Z, Y and X point in LPS
CANONICAL_AXES: dict[Plane, tuple[tuple[int, int, int], ...]] = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
}
PLANE_OF_AXIS: tuple[Plane, ...] = ("sagittal", "coronal", "axial")

EVEN_GAPS_TOLERANCE = 0.02  # of the median gap: table positions are often rounded to a tenth of a millimetre
EVEN_LINE_TOLERANCE = 0.1  # of the median gap: how far small deviations of gaps may add up along the volume
SAME_POSITION_MM = 1e-3
TILT_DEG = 0.5
AIR_HU = -1000


@dataclass(frozen=True)
class Geometry:
    """How stored slices become a canonical volume, and where its voxels then lie.

    order: stored slice indices in canonical order; transpose, flip_rows, flip_columns: applied in this sequence.
    plane, spacing_mm (z, y, x; z is the median gap along the normal, nan for one slice of unknown thickness),
    positions_mm (Z, 3), row_direction and column_direction (unit LPS vectors along X and along Y), normal (unit LPS
    vector along Z), tilt_deg (angle between the table's direction and the normal), remarks.
    """

    order: tuple[int, ...]
    transpose: bool
    flip_rows: bool
    flip_columns: bool
    plane: Plane
    spacing_mm: tuple[float, float, float]
    positions_mm: NDArray[np.float64]
    row_direction: NDArray[np.float64]
    column_direction: NDArray[np.float64]
    normal: NDArray[np.float64]
    tilt_deg: float = 0.0
    remarks: tuple[str, ...] = ()

    def apply(self, stack: NDArray[np.generic]) -> NDArray[np.generic]:
        """Stored slices (n, rows, columns) in canonical order and orientation, C-contiguous; no value changes."""
        if self.order != tuple(range(len(stack))):
            stack = stack[list(self.order)]
        if self.transpose:
            stack = stack.swapaxes(1, 2)
        if self.flip_rows:
            stack = stack[:, ::-1]
        if self.flip_columns:
            stack = stack[:, :, ::-1]
        return np.ascontiguousarray(stack)


def stack_geometry(
    positions_mm: ArrayLike,
    row_direction: ArrayLike,
    column_direction: ArrayLike,
    shape: tuple[int, int],
    pixel_spacing_mm: tuple[float, float],
    slice_spacing_mm: float | None = None,
) -> Geometry:
    """Where parallel slices lie, from what their headers say (DICOM PS3.3 C.7.6.2.1.1).

    positions_mm: (n, 3) LPS centres of the first stored voxel of each slice, in any order.
    row_direction, column_direction: LPS directions in which the column index and the row index grow (the first and
    the last three values of ImageOrientationPatient).
    shape: (rows, columns); pixel_spacing_mm: (between rows, between columns), as in PixelSpacing.
    slice_spacing_mm: used for a single slice only, where there is no gap to measure.

    Raises ScanRefused: `bad_geometry` when the numbers are not finite, spacing is not positive or the directions
    are not perpendicular; `not_a_volume` when all slices share one position; `duplicate_positions` when some do.
    """
    positions = np.asarray(positions_mm, dtype=np.float64).reshape(-1, 3)
    row, column = _directions(row_direction, column_direction)
    dy, dx = (float(v) for v in pixel_spacing_mm)
    if not np.isfinite(positions).all() or not (np.isfinite([dy, dx]).all() and dy > 0 and dx > 0):
        raise ScanRefused(
            "bad_geometry", f"expected finite positions and positive pixel spacing; found spacing {dy} x {dx} mm"
        )
    normal = np.cross(row, column)
    plane = PLANE_OF_AXIS[int(np.argmax(np.abs(normal)))]
    z_axis, y_axis, x_axis = (np.asarray(axis, dtype=np.float64) for axis in CANONICAL_AXES[plane])
    normal = normal if normal @ z_axis > 0 else -normal

    rows, columns = shape
    transpose = abs(row @ x_axis) < abs(column @ x_axis)
    if transpose:
        row, column, dy, dx, rows, columns = column, row, dx, dy, columns, rows
    flip_rows, flip_columns = bool(column @ y_axis < 0), bool(row @ x_axis < 0)
    if flip_rows:
        positions = positions + column * (dy * (rows - 1))
        column = -column
    if flip_columns:
        positions = positions + row * (dx * (columns - 1))
        row = -row

    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    z_mm = positions @ normal
    spacing_z, tilt, remarks = _check_gaps(positions, z_mm, normal, slice_spacing_mm)
    return Geometry(
        order=tuple(int(i) for i in order),
        transpose=bool(transpose),
        flip_rows=flip_rows,
        flip_columns=flip_columns,
        plane=plane,
        spacing_mm=(spacing_z, dy, dx),
        positions_mm=positions,
        row_direction=row,
        column_direction=column,
        normal=normal,
        tilt_deg=tilt,
        remarks=remarks,
    )


def grid_geometry(affine: ArrayLike, shape: Sequence[int]) -> tuple[int, Geometry]:
    """The slice axis of a regular grid (NIfTI, NRRD, MetaImage) and its geometry.

    affine: (4, 4) index to LPS millimetres, with indices in the order of `shape`, the array's own axes (a, b, c).
    Returns the array axis that runs through the slices, and the geometry of the stack that
    `numpy.moveaxis(array, axis, 0)` gives.

    The slice axis is the one whose spacing differs by a fifth or more from both others while these two agree;
    without such an axis, the one nearest the body's long axis.
    Raises ScanRefused `bad_geometry` when an axis has no length or the in-plane axes are not perpendicular.
    """
    affine = np.asarray(affine, dtype=np.float64)
    steps, origin = affine[:3, :3], affine[:3, 3]
    spacing = np.linalg.norm(steps, axis=0)
    if not np.isfinite(affine).all() or (spacing <= 0).any():
        raise ScanRefused("bad_geometry", f"expected a finite affine with three axes; found {affine[:3].tolist()}")
    axis = _odd_axis(spacing)
    if axis is None:
        axis = int(np.argmax(np.abs(steps[2] / spacing)))
    rows_axis, columns_axis = (a for a in range(3) if a != axis)
    positions = origin + np.arange(shape[axis])[:, None] * steps[:, axis]
    geometry = stack_geometry(
        positions,
        row_direction=steps[:, columns_axis],
        column_direction=steps[:, rows_axis],
        shape=(shape[rows_axis], shape[columns_axis]),
        pixel_spacing_mm=(spacing[rows_axis], spacing[columns_axis]),
        slice_spacing_mm=float(spacing[axis]),
    )
    return axis, geometry


@dataclass(frozen=True)
class Volume:
    """One scan in canonical axes.

    voxels: (Z, Y, X) int16 HU for CT, float32 for everything else
    spacing_mm: (z, y, x), z the median gap (nan for a single slice of unknown thickness)
    positions_mm: (Z, 3) float64 LPS, centre of each slice's first voxel
    row_direction, column_direction, normal: (3,) unit LPS vectors along X, Y and Z
    padding: (Z, 2) int16 or None: per slice the inclusive range of HU that marks pixels outside the image
        (PixelPaddingValue, PS3.3 C.7.5.1.1.2); low > high where a slice has none
    remarks: what a reader had to note, as sentences
    """

    voxels: NDArray[np.generic]
    modality: str
    plane: Plane
    spacing_mm: tuple[float, float, float]
    positions_mm: NDArray[np.float64]
    row_direction: NDArray[np.float64]
    column_direction: NDArray[np.float64]
    normal: NDArray[np.float64]
    padding: NDArray[np.int16] | None = None
    remarks: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        dtype = np.dtype(np.int16 if self.modality == "CT" else np.float32)
        if self.voxels.ndim != 3 or self.voxels.dtype != dtype:
            raise ValueError(f"voxels: expected (Z, Y, X) {dtype}; found {self.voxels.shape} {self.voxels.dtype}")
        if self.positions_mm.shape != (len(self.voxels), 3):
            raise ValueError(f"positions_mm: expected ({len(self.voxels)}, 3); found {self.positions_mm.shape}")

    @classmethod
    def from_stack(
        cls,
        stack: NDArray[np.generic],
        geometry: Geometry,
        modality: str,
        padding: NDArray[np.int16] | None = None,
        remarks: Sequence[str] = (),
    ) -> Volume:
        """Stored slices (n, rows, columns), already HU or MR values, as a canonical volume.

        padding: (n, 2) in stored slice order. The geometry's remarks come after `remarks`, each once.
        """
        return cls(
            voxels=geometry.apply(stack),
            modality=modality,
            plane=geometry.plane,
            spacing_mm=geometry.spacing_mm,
            positions_mm=geometry.positions_mm,
            row_direction=geometry.row_direction,
            column_direction=geometry.column_direction,
            normal=geometry.normal,
            padding=None if padding is None else padding[list(geometry.order)],
            remarks=tuple(dict.fromkeys([*remarks, *geometry.remarks])),
        )

    @property
    def hu(self) -> NDArray[np.int16]:
        """(Z, Y, X) int16 HU, stored padding kept. Raises AttributeError for anything but CT."""
        if self.modality != "CT":
            raise AttributeError(f"only CT has HU; this volume is {self.modality}: use .voxels")
        return self.voxels  # type: ignore[return-value]  # int16 by the check in __post_init__

    @property
    def n_slices(self) -> int:
        return len(self.voxels)

    @property
    def z_mm(self) -> NDArray[np.float64]:
        """(Z,) slice positions along the normal, ascending."""
        return self.positions_mm @ self.normal

    @property
    def has_even_gaps(self) -> bool:
        """Whether one step leads from each slice to the next, to 2 % of the median gap, and to 10 % over all slices."""
        if self.n_slices < 2:
            return bool(np.isfinite(self.spacing_mm[0]))
        return _is_even(self.positions_mm, self.spacing_mm[0])

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) from voxel index (x, y, z, 1) to LPS millimetres; its third column is sheared when tilted.

        Raises ScanRefused `uneven_spacing` when the slices have no common step.
        """
        if not self.has_even_gaps:
            raise ScanRefused("uneven_spacing", "slices are not evenly spaced, so no affine describes them")
        if self.n_slices > 1:
            step = (self.positions_mm[-1] - self.positions_mm[0]) / (self.n_slices - 1)
        else:
            step = self.normal * self.spacing_mm[0]
        affine = np.eye(4)
        affine[:3, 0] = self.row_direction * self.spacing_mm[2]
        affine[:3, 1] = self.column_direction * self.spacing_mm[1]
        affine[:3, 2] = step
        affine[:3, 3] = self.positions_mm[0]
        return affine

    @property
    def digest(self) -> str:
        """sha256 over voxels and geometry: equal for the same scan, whatever its format or file names.

        Lengths are rounded to a micrometre, so that a text header and a binary one agree.
        """
        sha = hashlib.sha256(f"{self.modality} {self.voxels.shape} {self.plane}".encode())
        sha.update(np.ascontiguousarray(self.voxels).astype(self.voxels.dtype.newbyteorder("<"), copy=False).data)
        for numbers in (self.spacing_mm[1:], self.positions_mm, self.row_direction, self.column_direction):
            sha.update((np.round(np.asarray(numbers, dtype="<f8"), 3) + 0.0).tobytes())
        return sha.hexdigest()


def _directions(row_direction: ArrayLike, column_direction: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    row = np.asarray(row_direction, dtype=np.float64)
    column = np.asarray(column_direction, dtype=np.float64)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.isfinite(lengths).all() or min(lengths) == 0:
        raise ScanRefused("bad_geometry", f"expected two directions; found {row.tolist()} and {column.tolist()}")
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > 1e-3:
        raise ScanRefused(
            "bad_geometry",
            f"rows and columns are not perpendicular: {row.round(4).tolist()}, {column.round(4).tolist()}",
        )
    return row, column


def _check_gaps(
    positions: NDArray[np.float64], z_mm: NDArray[np.float64], normal: NDArray[np.float64], fallback: float | None
) -> tuple[float, float, tuple[str, ...]]:
    """Median gap, tilt in degrees and remarks of slices in ascending order."""
    if len(positions) < 2:
        return (float("nan") if fallback is None else float(fallback)), 0.0, ("single slice",)
    gaps = np.diff(z_mm)
    if (gaps < SAME_POSITION_MM).all():
        raise ScanRefused("not_a_volume", f"all {len(positions)} slices share one position; a time series is no volume")
    if (gaps < SAME_POSITION_MM).any():
        at = int(np.argmax(gaps < SAME_POSITION_MM))
        raise ScanRefused("duplicate_positions", f"several slices lie at z = {z_mm[at]:.2f} mm")
    remarks = []
    median = float(np.median(gaps))
    travel = positions[-1] - positions[0]
    sideways = np.linalg.norm(travel - normal * (travel @ normal))
    tilt = float(np.degrees(np.arctan2(sideways, travel @ normal)))
    if tilt > TILT_DEG:
        remarks.append(f"gantry tilt {tilt:.1f} degrees")
    if not _is_even(z_mm[:, None], median):
        multiples = gaps / median
        missing = np.round(multiples).astype(int) - 1
        if (np.abs(multiples - np.round(multiples)) < 0.1).all() and missing.max() > 0 and missing.min() >= 0:
            at = int(np.argmax(missing))
            remarks.append(
                f"gap: {int(missing.sum())} slice(s) of {median:g} mm missing, "
                f"the widest gap ({gaps[at]:.2f} mm) after slice {at}"
            )
        else:
            remarks.append(f"uneven spacing: {gaps.min():.2f} to {gaps.max():.2f} mm, median {median:.2f} mm")
    return median, tilt, tuple(remarks)


def _is_even(positions: NDArray[np.float64], gap: float) -> bool:
    """Whether (n, axes) positions lie evenly: each step like the others, and none far from where an affine puts it."""
    steps = np.diff(positions, axis=0)
    line = np.linspace(positions[0], positions[-1], len(positions))
    return bool(
        np.abs(steps - np.median(steps, axis=0)).max() <= EVEN_GAPS_TOLERANCE * gap
        and np.abs(positions - line).max() <= EVEN_LINE_TOLERANCE * gap
    )


def _odd_axis(spacing: NDArray[np.float64]) -> int | None:
    """The axis whose spacing differs by a fifth or more from both others, which agree; None without one."""

    def alike(a: float, b: float) -> bool:
        return max(a, b) < 1.2 * min(a, b)

    for axis in range(3):
        b, c = (spacing[i] for i in range(3) if i != axis)
        if alike(b, c) and not alike(spacing[axis], b) and not alike(spacing[axis], c):
            return axis
    return None
