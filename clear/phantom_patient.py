"""Synthetic patients in memory: a body, what is planted in it, and how a scanner saw it.

Slices are the mean of a few thin planes (`clear.phantom_plane`), blurred by the kernel, with noise that is stronger in
the middle of the body, in thin slices and with sharp kernels (`clear.phantom_scanner`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from clear.errors import InputError
from clear.phantom_anatomy import BOTTOM_MM, TOP_MM, Anatomy, Array
from clear.phantom_bodies import draw_anatomy
from clear.phantom_canvas import smooth_noise
from clear.phantom_findings import FINDINGS, Planted, plant
from clear.phantom_plane import draw_plane
from clear.phantom_scanner import HIGHEST_HU, LOWEST_HU, VENDORS, Kernel, Optics, Vendor
from clear.volume import Volume, stack_geometry

PREVALENCE = 0.45
PLANES_PER_SLICE = 2  # a slice is the mean of this many thin planes
AIR_HU = -1000


@dataclass(frozen=True)
class Box:
    """Where a finding lies in one series, in canonical axes.

    x, y: half-open ranges of column and row indices; slices: half-open range of slice indices (feet to head);
    z_mm: lowest and highest height; all contain every voxel that the finding changed before blur.
    """

    finding: str
    x: tuple[int, int]
    y: tuple[int, int]
    slices: tuple[int, int]
    z_mm: tuple[float, float]


@dataclass(frozen=True)
class PhantomSeries:
    """One reconstruction.

    hu: (Z, Y, X) int16, canonical (feet to head, front to back, right to left); padded: (Y, X) pixels that the
    scanner did not reconstruct (none for most vendors), which hold -1000 here
    z_mm: (Z,) heights of the slices; pixel_mm; origin_mm: x and y of the first pixel's centre
    """

    vendor: Vendor
    kernel: Kernel
    hu: NDArray[np.int16]
    padded: NDArray[np.bool_]
    z_mm: NDArray[np.float64]
    pixel_mm: float
    origin_mm: tuple[float, float]
    thickness_mm: float

    @property
    def volume(self) -> Volume:
        """The series as a reader should return it (without padding marks)."""
        positions = np.column_stack([np.tile(self.origin_mm, (len(self.z_mm), 1)), self.z_mm])
        shape = self.hu.shape[1], self.hu.shape[2]
        spacing = self.pixel_mm, self.pixel_mm
        geometry = stack_geometry(positions, (1, 0, 0), (0, 1, 0), shape, spacing, self.thickness_mm)
        return Volume.from_stack(self.hu, geometry, "CT")


@dataclass(frozen=True)
class Phantom:
    """One synthetic patient: findings by name (FINDINGS, in order), boxes, and one or two series of one study.

    density: (Z, Y, X) float32 HU before blur and noise, for tests of the drawing; quirk: "", "missing slice" or
    "uneven spacing"; has_localizer: whether the study gets a localizer.
    """

    patient_id: str
    index: int
    seed: int
    findings: dict[str, bool]
    boxes: tuple[Box, ...]
    series: tuple[PhantomSeries, ...]
    density: Array
    quirk: str
    has_localizer: bool
    sex: str
    age_years: int


def draw_patient(
    seed: int, index: int, *, findings: Iterable[str] | None = None, matrix: int = 256, slices: int = 24
) -> Phantom:
    """Draw patient number `index` (0, 1, ...) of the cohort `seed`.

    findings: which of FINDINGS to plant; None draws each with probability PREVALENCE. matrix: pixels along a side.
    slices: how many slices cover the range from the aortic arch to the kidneys (a missing slice is not made up for).

    Raises InputError for an unknown finding or a size too small to hold them.
    """
    if matrix < 32 or slices < 4:
        raise InputError(f"a phantom needs a matrix of 32 or more and 4 slices or more; found {matrix} and {slices}")
    stream = _Streams(seed, index)
    if findings is None:
        present = {name: bool(p < PREVALENCE) for name, p in zip(FINDINGS, stream("findings").random(5), strict=True)}
    else:
        wanted = set(findings)
        if wanted - set(FINDINGS):
            raise InputError(f"unknown findings {sorted(wanted - set(FINDINGS))}; expected some of {FINDINGS}")
        present = {name: name in wanted for name in FINDINGS}
    anatomy = draw_anatomy(stream("anatomy"))
    scan = _plan_scan(anatomy, index, slices, stream("scan"))
    planted = plant(anatomy, [name for name in FINDINGS if present[name]], scan.z_mm, stream)
    return _acquire(seed, index, matrix, anatomy, scan, planted, present, stream)


class _Streams:
    """A generator for each part of one patient; the same name always starts the same stream."""

    def __init__(self, seed: int, index: int) -> None:
        self.seed, self.index = seed, index

    def __call__(self, name: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.index, zlib.crc32(name.encode()), number])


@dataclass(frozen=True)
class _Scan:
    vendor: Vendor
    z_mm: NDArray[np.float64]
    quirk: str
    fov_mm: float
    centre_mm: tuple[float, float]
    dose: float
    second_kernel: bool
    localizer: bool


def _plan_scan(anatomy: Anatomy, index: int, slices: int, rng: np.random.Generator) -> _Scan:
    """Which scanner, and where the slices lie. Habits go by index, so that every cohort of a dozen has each."""
    vendor = VENDORS[(index + index // 4) % 4]
    step = (TOP_MM - BOTTOM_MM) * anatomy.scale[2] / slices
    step = max(round(step * 4) / 4, 0.25)  # tables move in quarters of a millimetre
    start = BOTTOM_MM * anatomy.scale[2] + float(rng.uniform(0.2, 0.8)) * step
    z = start + step * np.arange(slices)
    quirk = {7: "missing slice", 11: "uneven spacing"}.get(index % 20, "")
    shifts = rng.uniform(-0.25, 0.25, slices) * step
    if quirk == "uneven spacing":
        z = z + np.round(shifts * 4) / 4
    gone = int(rng.integers(1, slices - 1))
    if quirk == "missing slice":
        z = np.delete(z, gone)
    widest = 2 * (152 + anatomy.fat_mm) * anatomy.scale[0]
    return _Scan(
        vendor=vendor,
        z_mm=np.round(z, 2),
        quirk=quirk,
        fov_mm=float(np.round(max(widest * rng.uniform(1.03, 1.16), 330))),
        centre_mm=(float(np.round(rng.uniform(-5, 5), 1)), float(np.round(rng.uniform(0, 10), 1))),
        dose=float(rng.uniform(0.8, 1.25)),
        second_kernel=index % 5 == 2,
        localizer=index % 4 == 1,
    )


def _acquire(
    seed: int,
    index: int,
    matrix: int,
    anatomy: Anatomy,
    scan: _Scan,
    planted: Planted,
    present: dict[str, bool],
    stream: _Streams,
) -> Phantom:
    pixel = scan.fov_mm / matrix
    axis = (np.arange(matrix) - (matrix - 1) / 2) * pixel
    x_mm = (axis + scan.centre_mm[0]).astype(np.float32)[None, :]
    y_mm = (axis + scan.centre_mm[1]).astype(np.float32)[:, None]
    optics = Optics(matrix, pixel)
    thickness = scan.vendor.thickness_mm
    offsets = ((np.arange(PLANES_PER_SLICE) + 0.5) / PLANES_PER_SLICE - 0.5) * thickness
    kernels = (scan.vendor.soft, scan.vendor.sharp) if scan.second_kernel else (scan.vendor.soft,)
    circle = np.hypot(axis[None, :], axis[:, None]) > scan.fov_mm / 2
    padded = circle if scan.vendor.circular else np.zeros_like(circle)
    # noise is strongest where least radiation arrives: along the long way through the body
    depth = np.clip(1.3 - np.hypot(x_mm / 190, y_mm / 140), 0.25, 1).astype(np.float32)

    # rows that hold neither body nor table are air: do not draw them
    reach = 1.06 * anatomy.scale[1] * (110 + 1.2 * anatomy.fat_mm)
    rows = slice(*(int(v) for v in np.searchsorted(y_mm[:, 0], [-reach - anatomy.breast_mm, reach + 35])))
    density = np.empty((len(scan.z_mm), matrix, matrix), np.float32)
    images = np.empty((len(kernels), *density.shape), np.int16)
    touched: dict[str, list[tuple[int, NDArray[np.bool_]]]] = {}
    for number, z in enumerate(scan.z_mm):
        grain = smooth_noise(stream("grain", number), (matrix, matrix), 1.1 / pixel)
        holes = None
        if planted.emphysema is not None:
            size = planted.emphysema.hole_mm / 2.6
            holes = smooth_noise(stream("holes", number), (matrix, matrix), size / pixel)[rows]
        total = np.full((matrix, matrix), PLANES_PER_SLICE * AIR_HU, np.float32)
        for offset in offsets:
            plane = draw_plane(anatomy, x_mm, y_mm[rows], float(z + offset), planted, holes, grain[rows])
            total[rows] += plane.hu - np.float32(AIR_HU)
            for finding, mask in plane.changed.items():
                if mask.any():
                    whole = np.zeros((matrix, matrix), bool)
                    whole[rows] = mask
                    touched.setdefault(finding, []).append((number, whole))
        density[number] = total / np.float32(PLANES_PER_SLICE)
        spectrum = fft.rfft2(density[number])
        for k, kernel in enumerate(kernels):
            sigma = kernel.noise_hu * np.sqrt(5.0 / thickness) * scan.dose
            noise = optics.noise(kernel, stream(f"noise {kernel.name}", number)) * (np.float32(sigma) * depth)
            image = np.rint(optics.blur(kernel, spectrum) + noise)
            image[padded] = AIR_HU
            images[k, number] = np.clip(image, LOWEST_HU, HIGHEST_HU)
    origin = float(x_mm[0, 0]), float(y_mm[0, 0])
    rng = stream("person")
    return Phantom(
        patient_id=patient_name(index),
        index=index,
        seed=seed,
        findings=present,
        boxes=_boxes(planted, touched, scan.z_mm, thickness, pixel, origin, matrix),
        series=tuple(
            PhantomSeries(scan.vendor, kernel, images[k], padded, scan.z_mm, pixel, origin, thickness)
            for k, kernel in enumerate(kernels)
        ),
        density=density,
        quirk=scan.quirk,
        has_localizer=scan.localizer,
        sex="F" if anatomy.breast_mm else "M",
        age_years=int(rng.integers(28, 88)),
    )


def patient_name(index: int) -> str:
    """The patient id of an index.

    >>> patient_name(0)
    'PHANTOM-0001'
    """
    return f"PHANTOM-{index + 1:04d}"


def _boxes(
    planted: Planted,
    touched: dict[str, list[tuple[int, NDArray[np.bool_]]]],
    z_mm: NDArray[np.float64],
    thickness: float,
    pixel: float,
    origin: tuple[float, float],
    matrix: int,
) -> tuple[Box, ...]:
    boxes = []

    def span(centre: float, radius: float, first: float) -> tuple[int, int]:
        low = int(np.floor((centre - radius - first) / pixel))
        high = int(np.ceil((centre + radius - first) / pixel)) + 1
        return max(low, 0), min(high, matrix)

    for ball in planted.balls:
        x, y, z = ball.centre_mm
        hit = np.flatnonzero(np.abs(z_mm - z) < ball.radius_mm + thickness / 2)
        boxes.append(
            Box(
                ball.finding,
                span(x, ball.radius_mm, origin[0]),
                span(y, ball.radius_mm, origin[1]),
                (int(hit[0]), int(hit[-1]) + 1),
                (z - ball.radius_mm, z + ball.radius_mm),
            )
        )
    for finding, masks in touched.items():
        for side in _sides(finding, planted, matrix, origin[0], pixel):
            numbers = [n for n, mask in masks if mask[:, side].any()]
            if not numbers:
                continue
            both = np.zeros((matrix, matrix), bool)
            for _, mask in masks:
                both[:, side] |= mask[:, side]
            rows, columns = np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0))
            boxes.append(
                Box(
                    finding,
                    (int(columns[0]), int(columns[-1]) + 1),
                    (int(rows[0]), int(rows[-1]) + 1),
                    (min(numbers), max(numbers) + 1),
                    (float(z_mm[min(numbers)] - thickness / 2), float(z_mm[max(numbers)] + thickness / 2)),
                )
            )
    return tuple(boxes)


def _sides(finding: str, planted: Planted, matrix: int, first: float, pixel: float) -> list[slice]:
    """Columns of the right and of the left half: spread findings get a box for each lung."""
    middle = int(np.clip(round(-first / pixel), 1, matrix - 1))
    return [slice(0, middle), slice(middle, matrix)]
