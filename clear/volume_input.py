"""From a volume to a volume encoder's input: HU, the model's axes, its voxel size, its box, its value range.

    HU ──air for padding──▶ grid along the model's axes (SimpleITK, trilinear) ──centred crop, pad──▶ (1, 1, A, B, C)

Where voxels lie is read from the volume's own directions and positions, never from the order in which it was stored.
Axes are flipped and exchanged but never rotated: a patient lying askew stays askew, as in the models' training data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from clear.card_limits import MAX_VALUE, shown
from clear.errors import InputError, ScanRefused
from clear.volume import AIR_HU, TILT_DEG, Volume

if TYPE_CHECKING:
    from torch import Tensor

Grid = Literal["first_centre", "extent"]
Clip = Literal["before", "after"]

# letter: the patient axis (x, y, z of LPS) and the way along it that an array axis points
LETTERS = {"R": (0, -1), "L": (0, 1), "A": (1, -1), "P": (1, 1), "I": (2, -1), "S": (2, 1)}
WIDEST_BLEND_MM = 10.0  # uneven slices further apart than the thickest usual ones: what lies between would be invented
SPACINGS_MM = (0.01, 100.0)  # of a volume encoder's voxels
MAX_VOXELS = 2**28  # of its input: 1 GB
MAX_NUMBER = 2.0**53
FINEST_BLEND_MM = 0.5  # a third of the finest voxel that a volume encoder takes: closer slices add nothing


@dataclass(frozen=True)
class VolumeInput:
    """What a volume encoder takes, as plain data.

    spacing_mm, shape: of the input along the body (z), front to back (y) and across (x), in this order.
    hu: whole HU (low, high), clipped and mapped linearly to `out` (low, high). pad: the value outside the scan, in
    units of `out`.
    axes: where the axes of the tensor point, three letters of R/L, A/P, I/S: "RAS" is (x, y, z), each growing to the
    patient's right, front and head.
    grid, for n voxels of s mm sampled at t mm:
        `first_centre`: round((n - 1) s / t) + 1 samples, t apart, the first on the first voxel's centre; beyond the
        last voxel its value goes on (Project-MONAI/MONAI, transforms `Spacing` and `SpatialResample` as they are
        without arguments);
        `extent`: int(n s / t) samples that share the whole extent evenly, so that they lie nearly t apart
        (`torch.nn.functional.interpolate`, align_corners=False).
    clip: whether HU are clipped `before` or `after` they are interpolated.
    """

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    hu: tuple[int, int]
    out: tuple[float, float]
    pad: float
    axes: str
    grid: Grid
    clip: Clip

    def __post_init__(self) -> None:
        def need(fits: bool, name: str, expected: str) -> None:
            if not fits:
                raise InputError(f"volume input: {name} is {shown(repr(getattr(self, name)))}; expected {expected}")

        need(_numbers(self.spacing_mm, 3) and min(self.spacing_mm) > 0, "spacing_mm", "(z, y, x) in mm, all above 0")
        near, far = SPACINGS_MM
        fits = near <= min(self.spacing_mm) and max(self.spacing_mm) <= far
        need(fits, "spacing_mm", f"voxels of {near:g} to {far:g} mm")
        need(_whole(self.shape, 3) and min(self.shape) > 0, "shape", "(z, y, x) in voxels, all above 0")
        need(math.prod(self.shape) <= MAX_VOXELS, "shape", f"at most {MAX_VOXELS} voxels in all")
        need(_whole(self.hu, 2) and self.hu[0] < self.hu[1], "hu", "(low, high) in whole HU, low below high")
        need(self.hu[0] >= -32768 and self.hu[1] <= 32767, "hu", "HU within int16")
        need(_numbers(self.out, 2) and self.out[0] < self.out[1], "out", "(low, high), low below high")
        need(max(map(abs, self.out)) <= MAX_VALUE, "out", f"values within {MAX_VALUE:g}")
        need(_numbers((self.pad,), 1) and abs(self.pad) <= MAX_VALUE, "pad", f"a number within {MAX_VALUE:g}")
        known = isinstance(self.axes, str) and sorted(LETTERS.get(letter, (-1, 0))[0] for letter in self.axes)
        need(known == [0, 1, 2], "axes", "three letters, one each of R/L, A/P and I/S, such as 'RAS'")
        need(self.grid in Grid.__args__, "grid", " or ".join(Grid.__args__))  # type: ignore[attr-defined]  # typing.Literal has it
        for name in ("spacing_mm", "out"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))  # one digest for 3 and 3.0
        object.__setattr__(self, "pad", float(self.pad))
        need(self.clip in Clip.__args__, "clip", " or ".join(Clip.__args__))  # type: ignore[attr-defined]  # typing.Literal has it

    @property
    def tensor_shape(self) -> tuple[int, int, int]:
        """(A, B, C), `shape` in the order of `axes`."""
        a, b, c = (self.shape[2 - LETTERS[letter][0]] for letter in self.axes)
        return a, b, c

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VolumeInput:
        """The inverse of `as_dict`. Raises InputError naming the field that is missing, unknown or wrong."""
        known = {f.name for f in fields(cls)}
        if surplus := sorted(set(data) - known):
            raise InputError(
                f"volume input: unknown field(s) {', '.join(map(shown, surplus))}; expected {', '.join(sorted(known))}"
            )
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"volume input: a field is missing or of the wrong kind ({error})") from error


def prepare_volume(volume: Volume, spec: VolumeInput) -> Tensor:
    """One CT as a volume encoder's input: (1, 1, A, B, C) float32, `spec.tensor_shape` last.

    Values in the stored padding range are air, as for slices. A tilted gantry's slices are put straight, with air
    where nothing was scanned. Slices at uneven distances are blended linearly onto even ones when none is further
    than 10 mm from the next, else refused: what lies in a wider gap would be invented.

    Raises ScanRefused: `modality` for anything but CT; `single_slice`; `unknown_spacing`; `uneven_spacing` as above,
    and when uneven slices are shifted or tilted too.
    """
    import SimpleITK as sitk  # takes a third of a second, and slice encoders need none of it
    import torch  # cards hold a VolumeInput and are read without torch

    stack = _stack(volume, spec)
    lines = [_line(letter, volume, stack, spec) for letter in spec.axes]
    result = np.full(spec.tensor_shape, spec.pad, np.float32)
    window = tuple(slice(line.before, line.before + line.count) for line in lines)
    indices = [_indices(next(line for line in lines if line.axis == axis), stack) for axis in range(3)]
    image = sitk.GetImageFromArray(_piece(stack, indices, spec))
    image.SetOrigin([float(first) for first, _ in reversed(indices)])
    # both grids in voxels of the stack, so that no length in mm is rounded: SimpleITK's axes run (x, y, z), and its
    # arrays (z, y, x), so the tensor's last axis is the first of the grid
    direction = np.zeros((3, 3))
    for k, line in enumerate(reversed(lines)):
        direction[2 - line.axis, k] = math.copysign(1.0, line.step)
    origin = [0.0, 0.0, 0.0]
    for line in lines:
        origin[2 - line.axis] = line.first
    straighten = sitk.AffineTransform(3)  # from a straight stack's coordinates to the tilted one's
    straighten.SetMatrix([1, 0, -stack.shear[1], 0, 1, -stack.shear[0], 0, 0, 1])
    values = sitk.Resample(
        image,
        [line.count for line in reversed(lines)],
        straighten,
        sitk.sitkLinear,
        origin,
        [abs(line.step) for line in reversed(lines)],
        direction.ravel().tolist(),
        float(AIR_HU),
        sitk.sitkFloat32,
    )
    part = result[window]
    part[...] = sitk.GetArrayViewFromImage(values)
    (low, high), (out_low, out_high) = spec.hu, spec.out
    np.clip(part, low, high, out=part)
    part -= low
    part *= (out_high - out_low) / (high - low)
    part += out_low
    return torch.from_numpy(result)[None, None]


@dataclass(frozen=True)
class _Stack:
    """Evenly spaced slices. voxels: (Z, Y, X) int16; padding as in Volume; spacing_mm: (z, y, x).

    shear: voxels that a tilted gantry moves each slice along (y, x), against its normal.
    """

    voxels: NDArray[np.int16]
    padding: NDArray[np.int16] | None
    spacing_mm: tuple[float, float, float]
    shear: tuple[float, float]

    def extent(self, axis: int) -> tuple[int, int]:
        """First index and number of voxels that hold the whole stack once it is straight."""
        n = self.voxels.shape[axis]
        if axis == 0 or self.shear[axis - 1] == 0:
            return 0, n
        moved = self.shear[axis - 1] * (len(self.voxels) - 1)
        return math.floor(min(moved, 0.0) + 1e-3), n + math.ceil(abs(moved) - 1e-3)


@dataclass(frozen=True)
class _Line:
    """Sampling along one tensor axis: at `first + step * i` for i < count, in voxels of the stack's array axis.

    before: voxels of the tensor ahead of the first sample.
    """

    axis: int
    first: float
    step: float
    count: int
    before: int


def _stack(volume: Volume, spec: VolumeInput) -> _Stack:
    if volume.modality != "CT":
        raise ScanRefused("modality", f"{volume.modality or 'unknown'} scan; this encoder takes HU, so CT only")
    if volume.n_slices < 2:
        raise ScanRefused("single_slice", "one slice is no volume; choose a slice encoder for it")
    _, dy, dx = volume.spacing_mm
    if not _numbers(volume.spacing_mm, 3) or min(volume.spacing_mm) <= 0:
        raise ScanRefused("unknown_spacing", f"spacing is {volume.spacing_mm} mm; this encoder needs all three lengths")
    travel = volume.positions_mm[-1] - volume.positions_mm[0]
    along = float(travel @ volume.normal)
    tilted = math.degrees(math.atan2(np.linalg.norm(travel - along * volume.normal), along)) > TILT_DEG
    voxels, padding = volume.hu, volume.padding
    if not volume.has_even_gaps:
        voxels, padding = _even(volume, spec, tilted), None
    steps = len(voxels) - 1
    moved = travel @ volume.column_direction / dy, travel @ volume.row_direction / dx
    shear = (float(moved[0]) / steps, float(moved[1]) / steps) if tilted else (0.0, 0.0)
    return _Stack(voxels, padding, (along / steps, dy, dx), shear)


def _even(volume: Volume, spec: VolumeInput, tilted: bool) -> NDArray[np.int16]:
    """Slices at even distances, by linear blending of the two neighbours, to whole HU.

    Where slices are only missing from an even series, its gap is the distance and the others stay as they are;
    else it is about the narrowest gap, so that finer parts lose nothing to coarser ones.
    """
    z = volume.z_mm
    gaps = np.diff(z)
    lateral = volume.positions_mm - volume.positions_mm[0]
    lateral = lateral - np.outer(lateral @ volume.normal, volume.normal)
    if gaps.max() > WIDEST_BLEND_MM:
        raise ScanRefused(
            "uneven_spacing",
            f"slices are {gaps.min():.1f} to {gaps.max():.1f} mm apart; between uneven slices more than "
            f"{WIDEST_BLEND_MM:g} mm apart a volume encoder's input would be invented. Fetch the missing slices, or "
            "choose a slice encoder",
        )
    if tilted or np.linalg.norm(lateral, axis=1).max() > max(volume.spacing_mm[1:]):
        raise ScanRefused(
            "uneven_spacing",
            "slices are unevenly spaced and shifted against each other, so no even stack can be made of them",
        )
    multiples = gaps / volume.spacing_mm[0]
    only_missing = (np.abs(multiples - np.rint(multiples)) < 0.1).all() and np.rint(multiples).min() > 0
    gap = volume.spacing_mm[0] if only_missing else max(gaps.min(), FINEST_BLEND_MM)
    count = round(float(z[-1] - z[0]) / gap) + 1
    places = np.interp(np.linspace(z[0], z[-1], count), z, np.arange(len(z)))
    below = np.minimum(places.astype(int), len(z) - 2)
    out = np.empty((count, *volume.hu.shape[1:]), np.int16)
    for slot, k, share in zip(out, below, places - below, strict=True):
        lower, upper = (_painted(volume.hu[i], volume.padding, i, spec).astype(np.float32) for i in (k, k + 1))
        slot[...] = np.rint(lower + np.float32(share) * (upper - lower))
    return out


def _line(letter: str, volume: Volume, stack: _Stack, spec: VolumeInput) -> _Line:
    patient, way = LETTERS[letter]
    directions = np.array([volume.normal, volume.column_direction, volume.row_direction])  # of Z, Y, X in LPS
    nearest = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(directions[axes[p], p]) for p in range(3)))
    axis = nearest[patient]
    way = way if directions[axis, patient] > 0 else -way
    low, n = stack.extent(axis)
    wanted, ratio = spec.shape[2 - patient], stack.spacing_mm[axis] / spec.spacing_mm[2 - patient]
    # rounding below the thousandth of a voxel: a spacing written as text and one stored as float32 give one grid
    if spec.grid == "first_centre":
        size = round(round((n - 1) * ratio, 3) + 1)
        first, step = 0.0, 1.0 / ratio
    else:
        size = max(int(n * ratio + 1e-3), 1)
        first, step = 0.5 * n / size - 0.5, n / size
    start, before = max((size - wanted) // 2, 0), max((wanted - size) // 2, 0)
    first += start * step
    if way < 0:
        first, step = n - 1 - first, -step
    return _Line(axis, low + first, step, min(size, wanted), before)


def _indices(line: _Line, stack: _Stack) -> tuple[int, NDArray[np.intp]]:
    """The first index of the piece that a line needs, and its indices into the stack.

    Indices beyond the ends repeat the outermost voxel: SimpleITK knows nothing further out than half a voxel, and both
    grids continue with the edge. A tilted stack has air there instead.
    """
    n = stack.voxels.shape[line.axis]
    ends = sorted((line.first, line.first + line.step * (line.count - 1)))
    low, high = math.floor(ends[0]), math.ceil(ends[1])
    if any(stack.shear):
        low, high = 0, n - 1
    return low, np.clip(np.arange(low, high + 1), 0, n - 1)


def _piece(stack: _Stack, indices: list[tuple[int, NDArray[np.intp]]], spec: VolumeInput) -> NDArray[np.int16]:
    z, y, x = (chosen for _, chosen in indices)
    piece = np.empty((len(z), len(y), len(x)), np.int16)
    for slot, k in zip(piece, z, strict=True):
        slot[...] = _painted(stack.voxels[k][y[:, None], x], stack.padding, int(k), spec)
    return piece


def _painted(
    plane: NDArray[np.int16], padding: NDArray[np.int16] | None, k: int, spec: VolumeInput
) -> NDArray[np.int16]:
    """Slice k (rows, columns) with air where the scanner stored padding; clipped, if that comes first."""
    if padding is not None and padding[k, 0] <= padding[k, 1]:
        outside = (plane >= padding[k, 0]) & (plane <= padding[k, 1])
        plane = np.where(outside, np.int16(AIR_HU), plane)
    return np.clip(plane, *spec.hu) if spec.clip == "before" else plane


def _numbers(values: Any, length: int) -> bool:
    """Whether `values` is a tuple of numbers, none of them so large that float64 loses something of it."""
    return (
        isinstance(values, tuple)
        and len(values) == length
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= MAX_NUMBER for v in values)
    )


def _whole(values: Any, length: int) -> bool:
    return _numbers(values, length) and all(isinstance(v, int) for v in values)
