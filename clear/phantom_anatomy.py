"""The body of a synthetic patient: a chest and upper abdomen drawn from ellipsoids and tubes.

Everything is an implicit function of position, so a plane at any height can be drawn at any pixel size, and whether a
point lies in the lung or the liver can be asked without drawing. Shapes are written once for a standard patient
("template" millimetres: x to the patient's left, y to the back, z to the head, z = 0 at the top of the right
diaphragm); a patient is the template scaled, bent by a smooth warp, and given organs of its own size, place and
density. Contrast is that of a portal venous phase. HU are textbook values (air -1000, lung -850, fat -100, muscle 55,
liver 110, cortical bone 500 and more).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Height: TypeAlias = Any  # float32, or an array of them that broadcasts with x and y
f32 = np.float32

TOP_MM, BOTTOM_MM = 150.0, -135.0  # scan range of the template: aortic arch to the lower kidneys
AIR, WATER = -1000.0, 0.0
WALL_SHIFT_MM = 2.0

# half-width and half-depth of the body wall (inside the subcutaneous fat) and of the cavity inside ribs and muscles
_LEVELS = (-230.0, -120.0, -40.0, 40.0, 110.0, 160.0, 205.0)
_WALL_X = (138.0, 141.0, 147.0, 151.0, 154.0, 152.0, 140.0)
_WALL_Y = (92.0, 96.0, 101.0, 102.0, 98.0, 88.0, 74.0)
_CAVITY_X = (120.0, 124.0, 131.0, 131.0, 116.0, 90.0, 40.0)
_CAVITY_Y = (74.0, 80.0, 87.0, 88.0, 80.0, 66.0, 36.0)


@dataclass(frozen=True)
class Tube:
    """A straight tube with round ends, tapering from radius r0 at p0 to r1 at p1 (template mm), filled with `hu`."""

    p0: tuple[float, float, float]
    p1: tuple[float, float, float]
    r0: float
    r1: float
    hu: float
    z_range: tuple[float, float] = field(init=False, compare=False)  # heights that it reaches

    def __post_init__(self) -> None:
        reach = max(self.r0, self.r1)
        span = min(self.p0[2], self.p1[2]) - reach, max(self.p0[2], self.p1[2]) + reach
        object.__setattr__(self, "z_range", span)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with axes along x, y, z, turned by `angle` (radians) about z; template mm."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float
    angle: float = 0.0


@dataclass(frozen=True)
class Anatomy:
    """One patient's body.

    scale: template to patient, (x, y, z); fat_mm: subcutaneous fat at the side; warp: rows of (amplitude mm,
    x and y wave numbers, x and y phases, phase per mm of z), one for each term of each of the two in-plane
    displacements; hu: densities by tissue; organs, vessels, airways, bowel: what is painted, in order.
    rib_phase_mm and disc_phase_mm: where along z ribs and intervertebral discs begin; rib_pitch_mm, disc_pitch_mm.
    """

    scale: tuple[float, float, float]
    fat_mm: float
    breast_mm: float
    warp: Array
    hu: dict[str, float]
    heart: Ellipsoid
    domes: tuple[tuple[float, float, float], ...]
    mediastinum_mm: float
    liver: tuple[Ellipsoid, Ellipsoid]
    organs: tuple[Ellipsoid, ...]
    chambers: tuple[Ellipsoid, ...]
    great_vessels: tuple[Tube, ...]
    airways: tuple[Tube, ...]
    lung_vessels: tuple[Tube, ...]
    liver_vessels: tuple[Tube, ...]
    bowel: tuple[Tube, ...]
    stomach: Ellipsoid
    rib_phase_mm: float
    rib_pitch_mm: float
    disc_phase_mm: float
    disc_pitch_mm: float
    table_mm: float

    def to_template(self, x_mm: Array, y_mm: Array, z_mm: float) -> tuple[Array, Array, float]:
        """Patient millimetres to template millimetres; x_mm and y_mm broadcast against each other."""
        z = z_mm / self.scale[2]
        x, y = x_mm / np.float32(self.scale[0]), y_mm / np.float32(self.scale[1])
        shift = []
        for terms in self.warp:
            total: Array | float = 0.0
            for amplitude, kx, ky, px, py, kz in terms:
                total = total + np.float32(amplitude) * np.sin(kx * x + px) * np.sin(ky * y + py + np.float32(kz * z))
            shift.append(total)
        return np.asarray(x + shift[0], np.float32), np.asarray(y + shift[1], np.float32), z

    def inside_lung(self, x: Array, y: Array, z: Height, walls: tuple[Array, Array] | None = None) -> Array:
        """Distance (template mm, positive inside) to the surface of the lungs, pleural space included; approximate.

        walls: inside_cavity and diaphragm at the same points, where they are known already.
        """
        cavity, diaphragm = walls or (self.inside_cavity(x, y, z), self.diaphragm(x, y))
        middle = (ellipse(x, y, 0.0, 0.0, self.mediastinum_mm, 92.0) - 1.0) * self.mediastinum_mm
        above = (z - diaphragm) * 0.5
        inside = np.minimum(np.minimum(cavity - 2.0, middle), above)
        k = depth(z, self.heart)
        if np.any(k > 0):
            inside = np.minimum(inside, (in_plane(x, y, self.heart) - k) * f32(min(self.heart.radii[:2])))
        return np.asarray(inside)

    def inside_cavity(self, x: Array, y: Array, z: Height) -> Array:
        """Distance (template mm, positive inside) to the wall of chest and abdomen; spine and its muscles are wall."""
        a, b = _at(z, _CAVITY_X), _at(z, _CAVITY_Y)
        wall = (1.0 - squircle(x, y + 4.0, a, b)) * b
        back = (ellipse(x, y, 0.0, 74.0, 44.0, 33.0) - 1.0) * 33.0
        return np.asarray(np.minimum(wall, back))

    def diaphragm(self, x: Array, y: Array) -> Array:
        """Height of the diaphragm (template mm): right, left and middle dome, flat above and steep at the wall."""
        height: Array | None = None
        for (cx, cy, cz), a, b in zip(self.domes, (80.0, 80.0, 56.0), (84.0, 84.0, 60.0), strict=True):
            u = ellipse2(x, y, cx, cy, a, b)
            dome = f32(cz) - f32(14) * u - f32(58) * np.minimum(u * u * u, 3)
            height = dome if height is None else np.maximum(height, dome)
        assert height is not None
        return height

    def inside_liver(self, x: Array, y: Array, z: float, walls: tuple[Array, Array] | None = None) -> Array:
        """Distance (template mm, positive inside) to the surface of the liver; approximate. walls: see inside_lung."""
        inside: Array | None = None
        for lobe in self.liver:
            k = depth(z, lobe)
            if k > 0:
                one = (k - in_plane(x, y, lobe)) * f32(min(lobe.radii[:2]))
                inside = one if inside is None else np.maximum(inside, one)
        if inside is None:
            return np.full(np.broadcast(x, y).shape, -99.0, np.float32)
        cavity, diaphragm = walls or (self.inside_cavity(x, y, z), self.diaphragm(x, y))
        return np.asarray(np.minimum(np.minimum(inside, (diaphragm - 3.0 - z) * 0.5), cavity - 2.0))

    def vertebra(self, z: float) -> tuple[float, float, float]:
        """Phase (0..1 from the top of a disc), half-width and half-depth (template mm) of the spine at height z."""
        phase = ((z - self.disc_phase_mm) / self.disc_pitch_mm) % 1.0
        waist = 1.0 - 0.1 * np.sin(np.pi * np.clip((phase - 0.2) / 0.8, 0, 1))
        size = 1.0 - z / 1500.0
        return phase, 20.0 * size * waist, 15.5 * size * waist

    def inside_vertebra(self, x: Array, y: Array, z: float) -> Array:
        """Distance (template mm, positive inside) to the surface of a vertebral body; negative in discs."""
        phase, a, b = self.vertebra(z)
        if phase < 0.2:
            return np.full(np.broadcast(x, y).shape, -99.0, np.float32)
        return (1.0 - ellipse(x, y, 0.0, SPINE_Y, a, b)) * b

    def ribs(self, x: Array, y: Array, z: float) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Normalised distance from the nearest rib's axis (1 at its surface), angle round the body, and validity.

        Each rib runs round the cavity and falls towards the front; the pattern repeats along z. Angle: 0 at the
        spine, pi at the breastbone. Validity is False where this height has no rib.
        """
        a, b = _at(z, _CAVITY_X), _at(z, _CAVITY_Y)
        radial = (squircle(x, y + 4, a, b) - 1) * f32(b) - f32(RIB_DEPTH_MM)
        angle = np.abs(np.arctan2(x, y))
        origin = f32(z - self.rib_phase_mm) + f32(46) * angle  # the height at which this rib leaves the spine
        number = np.floor(origin / f32(self.rib_pitch_mm))
        along = origin - (number + f32(0.5)) * f32(self.rib_pitch_mm)
        shape = np.sqrt((radial / f32(RIB_RADIUS_MM)) ** 2 + (along / f32(7.0)) ** 2)
        return shape, angle, (number > -4) & (number < 10) & (angle > 0.3)

    def inside_bone(self, x: Array, y: Array, z: float) -> Array:
        """Distance (template mm, positive inside) to the surface of a vertebral body or the bony part of a rib."""
        shape, angle, valid = self.ribs(x, y, z)
        rib = np.where(valid & (angle < 2.2), (1 - shape) * f32(RIB_RADIUS_MM), f32(-99))
        return np.maximum(self.inside_vertebra(x, y, z), rib)


SPINE_Y = 57.0
RIB_DEPTH_MM, RIB_RADIUS_MM = 6.5, 4.2  # a rib's axis outside the cavity, and half its thickness


def wall_mm(z: float) -> tuple[float, float]:
    """Half-width and half-depth (template mm) of the body without its subcutaneous fat."""
    return float(_at(z, _WALL_X)), float(_at(z, _WALL_Y))


def cavity_mm(z: float) -> tuple[float, float]:
    """Half-width and half-depth (template mm) of the cavity inside ribs and muscles."""
    return float(_at(z, _CAVITY_X)), float(_at(z, _CAVITY_Y))


def _at(z: Height, values: Sequence[float]) -> Height:
    return f32(np.interp(z, _LEVELS, values))


def ellipse2(x: Array, y: Array, cx: float, cy: float, a: float, b: float) -> Array:
    """Square of `ellipse`."""
    u, v = (x - np.float32(cx)) * np.float32(1 / a), (y - np.float32(cy)) * np.float32(1 / b)
    return u * u + v * v


def ellipse(x: Array, y: Array, cx: float, cy: float, a: float, b: float) -> Array:
    """Distance from (cx, cy) in units of the half-axes a and b: 1 on the ellipse."""
    return np.asarray(np.sqrt(ellipse2(x, y, cx, cy, a, b)))


def squircle(x: Array, y: Array, a: float, b: float) -> Array:
    """Like the norm of an ellipse, 1 on a rounder rectangle: u2 + v2 - k u2 v2 = 1."""
    u, v = x * np.float32(1 / a), y * np.float32(1 / b)
    u, v = u * u, v * v
    return np.asarray(np.sqrt(np.maximum(u + v - np.float32(0.45) * np.minimum(u, 1) * np.minimum(v, 1), 0)))


def depth(z: Height, shape: Ellipsoid) -> Height:
    """How much of an ellipsoid's in-plane radii is left at height z, 0 outside it."""
    return f32(np.sqrt(np.maximum(0.0, 1.0 - ((z - f32(shape.centre[2])) / f32(shape.radii[2])) ** 2)))


def in_plane(x: Array, y: Array, shape: Ellipsoid) -> Array:
    """Distance from an ellipsoid's axis in units of its in-plane radii; the surface is where it equals `depth`."""
    dx, dy = x - np.float32(shape.centre[0]), y - np.float32(shape.centre[1])
    if shape.angle:
        c, s = np.float32(np.cos(shape.angle)), np.float32(np.sin(shape.angle))
        dx, dy = c * dx + s * dy, c * dy - s * dx
    dx, dy = dx * np.float32(1 / shape.radii[0]), dy * np.float32(1 / shape.radii[1])
    return np.asarray(np.sqrt(dx * dx + dy * dy))
