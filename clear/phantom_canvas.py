"""A canvas on which shapes are painted, and the noise that textures it.

Edges are one pixel soft (the share of the pixel that a shape covers), which is the partial-volume effect in the plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import fft

from clear.phantom_anatomy import AIR, Anatomy, Array, Ellipsoid, Tube, depth, f32, in_plane
from clear.phantom_findings import Ball

CROP_MARGIN_MM = 6.0  # the warp moves a shape by less than this


class Plane:
    """A canvas at height z_mm of one patient.

    x_mm (1, W) and y_mm (H, 1) are pixel centres in patient mm; pixel_mm their distance; hu (H, W) float32 the
    drawing; changed maps a finding to the mask (H, W) of the pixels that it touched.
    """

    def __init__(self, anatomy: Anatomy, x_mm: Array, y_mm: Array, z_mm: float) -> None:
        self.anatomy = anatomy
        self.x_mm, self.y_mm, self.z_mm = x_mm, y_mm, z_mm
        self.pixel_mm = float(x_mm[0, 1] - x_mm[0, 0])
        self.x, self.y, self.z = anatomy.to_template(x_mm, y_mm, z_mm)
        self.hu: Array = np.full(self.x.shape, AIR, f32)
        self.changed: dict[str, np.ndarray] = {}
        self.sharp = f32(1 / self.pixel_mm)
        self.cavity = anatomy.inside_cavity(self.x, self.y, self.z)
        self.diaphragm = anatomy.diaphragm(self.x, self.y)

    def cover(self, inside_mm: Array) -> Array:
        """Share of each pixel inside a surface, from the distance to it (positive inside)."""
        return np.asarray(np.minimum(np.maximum(inside_mm * self.sharp + f32(0.5), 0), 1))

    def paint(self, share: Array, hu: float | Array, where: tuple[slice, slice] | None = None) -> None:
        part = self.hu if where is None else self.hu[where]
        part += share * (hu - part)

    def crop(self, cx: float, cy: float, rx: float, ry: float) -> tuple[slice, slice] | None:
        """The pixels within rx, ry of a template point (with room for the warp), or None outside the image."""
        sx, sy, _ = self.anatomy.scale
        spans = []
        for centre, reach, grid in (
            (cy * sy, ry * sy, self.y_mm[:, 0]),
            (cx * sx, rx * sx, self.x_mm[0]),
        ):
            low = int((centre - reach - CROP_MARGIN_MM - grid[0]) / self.pixel_mm)
            high = int((centre + reach + CROP_MARGIN_MM - grid[0]) / self.pixel_mm) + 2
            low, high = max(low, 0), min(high, len(grid))
            if low >= high:
                return None
            spans.append(slice(low, high))
        return spans[0], spans[1]

    def ellipsoid(self, shape: Ellipsoid, within: Array | None = None) -> None:
        k = depth(self.z, shape)
        reach = max(shape.radii[:2]) * k
        where = self.crop(shape.centre[0], shape.centre[1], reach, reach) if k > 0 else None
        if where is None:
            return
        rho = in_plane(self.x[where], self.y[where], shape)
        share = self.cover((f32(k) - rho) * f32(min(shape.radii[:2])))
        self.paint(share if within is None else share * within[where], shape.hu, where)

    def tubes(self, tubes: Sequence[Tube], within: Array | None = None) -> None:
        low, high = self.z - self.pixel_mm, self.z + self.pixel_mm
        thinnest = 0.25 * self.pixel_mm  # what is thinner would hardly show
        for tube in tubes:
            if tube.z_range[0] < high and tube.z_range[1] > low and tube.r0 > thinnest:
                self.tube(tube, within)

    def tube(self, tube: Tube, within: Array | None = None) -> None:
        """A tube's share of the pixels: distance to its axis, a line segment, against its radius there."""
        px, py, pz = tube.p0
        dx, dy, dz = tube.p1[0] - px, tube.p1[1] - py, tube.p1[2] - pz
        length2 = max(dx * dx + dy * dy + dz * dz, 1e-6)
        # only the stretch of the axis that comes near the plane needs a crop
        reach = max(tube.r0, tube.r1) + self.pixel_mm
        first, last = 0.0, 1.0
        if abs(dz) > 1e-3:
            ends = (self.z - reach - pz) / dz, (self.z + reach - pz) / dz
            first, last = min(max(min(ends), 0.0), 1.0), min(max(max(ends), 0.0), 1.0)
        middle, half = (first + last) / 2, (last - first) / 2
        where = self.crop(px + middle * dx, py + middle * dy, half * abs(dx) + reach, half * abs(dy) + reach)
        if where is None:
            return
        x, y, z = self.x[where] - f32(px), self.y[where] - f32(py), self.z - pz
        dot = x * f32(dx) + y * f32(dy) + f32(z * dz)
        along = np.minimum(np.maximum(dot * f32(1 / length2), 0), 1)
        distance2 = x * x + y * y + f32(z * z) - along * (dot + dot - along * f32(length2))
        distance = np.sqrt(np.maximum(distance2, 0))
        share = self.cover(along * f32(tube.r1 - tube.r0) + f32(tube.r0) - distance)
        self.paint(share if within is None else share * within[where], tube.hu, where)

    def ball(self, ball: Ball) -> None:
        """A planted ball, exact in patient millimetres."""
        dz = self.z_mm - ball.centre_mm[2]
        reach = ball.radius_mm + self.pixel_mm + ball.edge_mm
        if abs(dz) > ball.radius_mm:
            return
        rows = np.abs(self.y_mm[:, 0] - ball.centre_mm[1]) < reach
        columns = np.abs(self.x_mm[0] - ball.centre_mm[0]) < reach
        if not rows.any() or not columns.any():
            return
        where = _span(rows), _span(columns)
        dx, dy = self.x_mm[:, where[1]] - f32(ball.centre_mm[0]), self.y_mm[where[0]] - f32(ball.centre_mm[1])
        inside = f32(ball.radius_mm) - np.sqrt(dx * dx + dy * dy + f32(dz * dz))
        share = np.clip(inside / f32(self.pixel_mm + 2 * ball.edge_mm) + f32(0.5), 0, 1)
        # the ball's own radius bounds it: a soft edge never reaches beyond the box
        share *= inside > -f32(self.pixel_mm / 2)
        self.paint(share, ball.hu, where)


def _span(flags: np.ndarray) -> slice:
    at = np.flatnonzero(flags)
    return slice(int(at[0]), int(at[-1]) + 1)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma_px: float) -> Array:
    """Gaussian noise of unit variance, blurred with a Gaussian of sigma_px pixels (periodic)."""
    white = fft.rfft2(rng.standard_normal(shape, dtype=f32))
    fy, fx = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None]
    gain = np.exp(-2 * (np.pi * sigma_px) ** 2 * (fx * fx + fy * fy)).astype(f32)
    noise = fft.irfft2(white * gain, s=shape)
    return np.asarray(noise / noise.std(), f32)
