"""Drawing one plane of a synthetic patient: density in HU on a pixel grid, free of noise.

Shapes are painted back to front, as one would with brushes: body, wall, cavity, lungs, organs, vessels, bones, then
what was planted. Slice thickness is the mean over several planes (`clear.phantom_patient`).
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from clear.phantom_anatomy import (
    RIB_RADIUS_MM,
    SPINE_Y,
    WALL_SHIFT_MM,
    Anatomy,
    Array,
    Ellipsoid,
    Tube,
    cavity_mm,
    depth,
    ellipse,
    f32,
    in_plane,
    squircle,
    wall_mm,
)
from clear.phantom_canvas import Plane
from clear.phantom_findings import Planted


def draw_plane(
    anatomy: Anatomy, x_mm: Array, y_mm: Array, z_mm: float, planted: Planted, holes: Array | None, grain: Array
) -> Plane:
    """One infinitely thin plane.

    holes, grain: (H, W) unit-variance noise, shared by the planes of one slice: where emphysema opens holes, and the
    fine texture of tissue.
    """
    plane = Plane(anatomy, x_mm, y_mm, z_mm)
    lung = _body(plane)
    _lungs(plane, planted, lung, holes)
    below = plane.cover((plane.diaphragm - f32(3 + plane.z)) * f32(0.5)) * plane.cover(plane.cavity - f32(1.5))
    _effusions(plane, planted, lung)
    _chest(plane, lung)
    _abdomen(plane, below)
    _ribs(plane)
    _spine(plane)
    for ball in (*planted.granulomas, *planted.balls):
        plane.ball(ball)
    _texture(plane, grain)
    return plane


def _body(plane: Plane) -> Array:
    """Table, skin, fat, muscle, cavity; returns the pixels' share of lung (pleural space included)."""
    anatomy, x, y, z = plane.anatomy, plane.x, plane.y, plane.z
    a, b = wall_mm(z)
    fat = anatomy.fat_mm
    front = 1.0 + 0.5 * np.clip(-z / 100, 0, 1)  # more in front of the belly
    outer_a, outer_b = a + fat, b + fat * 0.45 * (1 + front)
    y_body = y - f32(WALL_SHIFT_MM) + f32(0.3 * fat * front)
    skin = (1 - squircle(x, y_body, outer_a, outer_b)) * f32(outer_b)
    back = float(anatomy.scale[1]) * (WALL_SHIFT_MM + outer_b - 0.3 * fat * front)
    _table(plane, back)
    if anatomy.breast_mm and abs(z - 45) < 55:
        height = anatomy.breast_mm * float(np.sqrt(1 - ((z - 45) / 55) ** 2))
        for side in (-1, 1):
            breast = (1 - ellipse(x, y, side * 72, -outer_b + 6, 56, 8 + height)) * f32(8 + height)
            skin = np.maximum(skin, breast)
    plane.paint(plane.cover(skin), 15.0)
    plane.paint(plane.cover(skin - f32(1.8)), anatomy.hu["fat"])
    if anatomy.breast_mm and abs(z - 45) < 35:
        for side in (-1, 1):
            gland = (1 - ellipse(x, y, side * 72, -outer_b + 3, 26, anatomy.breast_mm * 0.5)) * f32(10)
            plane.paint(np.asarray(f32(0.6) * np.clip(gland / f32(8), 0, 1), f32), 25.0)
    y_wall = y - f32(WALL_SHIFT_MM)
    wall = (1 - squircle(x, y_wall, a, b)) * f32(b)
    # muscle in layers with fat between them, seen best in the flank and around the shoulder blade
    layers = np.minimum(wall, np.abs(wall - f32(0.09 * b)) - f32(0.8))
    plane.paint(plane.cover(layers), anatomy.hu["muscle"])
    plane.paint(plane.cover(plane.cavity), anatomy.hu["fat"] + 4)
    return plane.cover(anatomy.inside_lung(x, y, z, (plane.cavity, plane.diaphragm)))


def _table(plane: Plane, back_mm: float) -> None:
    """A curved couch: two thin shells with foam between."""
    top = back_mm + plane.anatomy.table_mm
    sag = plane.y_mm - f32(top) + f32(0.0006) * plane.x_mm * plane.x_mm
    inside = np.minimum(np.minimum(sag + 1, 26 - sag), 205 - np.abs(plane.x_mm))
    plane.paint(plane.cover(inside), -930.0)
    plane.paint(plane.cover(np.minimum(inside, np.maximum(1.6 - inside, 0) - 0.2)), -250.0)


def _lungs(plane: Plane, planted: Planted, lung: Array, holes: Array | None) -> None:
    anatomy, z = plane.anatomy, plane.z
    gravity = np.clip((plane.y + f32(90)) / f32(180), 0, 1) * f32(45)  # dependent lung is denser
    plane.paint(lung, anatomy.hu["lung"] + gravity - f32(18))
    if planted.emphysema is not None and holes is not None:
        upper = float(np.clip((z + 20) / 120, 0, 1))
        if upper > 0:
            level = f32(_normal_quantile(1 - planted.emphysema.fraction * upper))
            share = np.clip((holes - level) * f32(4) + f32(0.5), 0, 1) * (lung > f32(0.99))
            plane.changed["emphysema"] = share > 0
            plane.paint(share, planted.emphysema.hu)
    plane.tubes(anatomy.lung_vessels, lung)


def _effusions(plane: Plane, planted: Planted, lung: Array) -> None:
    anatomy = plane.anatomy
    for effusion in planted.effusions:
        base = anatomy.domes[0 if effusion.side < 0 else 1][2] - 45
        thick = effusion.depth_mm * float(np.clip((base + effusion.height_mm - plane.z) / 60, 0, 1))
        if thick < 1:
            continue
        # the lung floats forward: what its shifted outline leaves free behind it is fluid
        a, b = cavity_mm(plane.z)
        shifted = (1 - squircle(plane.x, plane.y + f32(4 + thick), a, b)) * f32(b) - f32(2)
        share = lung * (1 - plane.cover(shifted)) * (plane.x * f32(effusion.side) > 0) * (plane.y > -30)
        touched = share > 0
        plane.changed["effusion"] = touched | plane.changed.get("effusion", np.zeros_like(touched))
        plane.paint(share, effusion.hu)


def _chest(plane: Plane, lung: Array) -> None:
    anatomy, z = plane.anatomy, plane.z
    chest = np.maximum(lung, plane.cover(f32(z) - plane.diaphragm))
    heart = anatomy.heart
    fat = tuple(r + 4 for r in heart.radii)
    plane.ellipsoid(Ellipsoid(heart.centre, fat, -95.0, heart.angle), chest)  # type: ignore[arg-type]  # three radii
    plane.ellipsoid(heart, chest)
    for chamber in anatomy.chambers:
        plane.ellipsoid(chamber, chest)
    plane.tubes(anatomy.great_vessels)
    plane.tubes(anatomy.airways)
    if 5 < z < 150:
        y = -cavity_mm(z)[1] - 8
        for grow, hu in ((0.0, 480.0), (-1.8, anatomy.hu["trabecular"] - 40)):
            plane.ellipsoid(Ellipsoid((0, y, 80), (20 + grow, 6.5 + grow, 75), hu))


def _abdomen(plane: Plane, below: Array) -> None:
    anatomy, z = plane.anatomy, plane.z
    if z > 40:
        return
    plane.tubes(anatomy.bowel, below)
    for organ in anatomy.organs:
        plane.ellipsoid(organ, below)
    stomach = anatomy.stomach
    plane.ellipsoid(Ellipsoid(stomach.centre, stomach.radii, 75.0), below)
    k = depth(z, stomach)
    if k > 0:
        inner = (f32(k) - in_plane(plane.x, plane.y, stomach)) * f32(min(stomach.radii[:2])) - f32(4)
        share = plane.cover(inner) * below
        plane.paint(share, stomach.hu)
        gas = plane.cover(f32(stomach.centre[1] - 8) - plane.y)  # lying on the back: gas in front, a level line
        plane.paint(share * gas, -960.0)
    liver = plane.cover(anatomy.inside_liver(plane.x, plane.y, z, (plane.cavity, plane.diaphragm)))
    plane.paint(liver, anatomy.hu["liver"])
    plane.tubes(anatomy.liver_vessels, liver)
    plane.ellipsoid(anatomy.organs[-1], below)  # the gallbladder indents the liver


def _ribs(plane: Plane) -> None:
    """Ribs, their cartilage in front, and the shoulder blades."""
    anatomy, z = plane.anatomy, plane.z
    near = (plane.cavity < -1) & (plane.cavity > -16)
    if not near.any():
        return
    shape, turn, valid = anatomy.ribs(plane.x[near], plane.y[near], z)
    share = plane.cover((1 - shape) * f32(RIB_RADIUS_MM)) * valid
    bone = np.where(shape < 0.55, f32(anatomy.hu["trabecular"] + 20), f32(anatomy.hu["cortex"] - 60))
    cartilage = np.clip((turn - f32(2.35)) * 8, 0, 1)
    bone = bone + cartilage * (f32(115) - bone)
    plane.hu[near] += share * (bone - plane.hu[near])
    if 50 < z < 200:
        for side in (-1, 1):  # shoulder blades
            u, v = np.array([side * 72.0, 86.0]), np.array([side * (122.0 - (z - 50) * 0.08), 52.0])
            plane.tube(Tube((u[0], u[1], z), (v[0], v[1], z), 2.6, 3.4, anatomy.hu["cortex"] - 200))


def _spine(plane: Plane) -> None:
    anatomy, z = plane.anatomy, plane.z
    where = plane.crop(0, SPINE_Y + 18, 52, 42)
    if where is None:
        return
    x, y = plane.x[where], plane.y[where]
    phase, a, b = anatomy.vertebra(z)
    body = (1 - ellipse(x, y, 0, SPINE_Y, a, b)) * f32(b)
    cortex, marrow = anatomy.hu["cortex"], anatomy.hu["trabecular"]
    posterior: list[tuple[Array, float]] = []
    canal_y = SPINE_Y + b + 8
    ring = ellipse(x, y, 0, canal_y, 10.5, 9.5)
    arch = np.minimum(3.6 - np.abs((ring - 1) * 10 - 2.5), y - f32(SPINE_Y + b - 2))
    if phase > 0.35:
        cross = np.minimum(4.0 - np.abs(y - f32(canal_y + 4 - np.abs(x) * 0.1)), 31 - np.abs(x))
        cross = np.minimum(cross, np.abs(x) - 9)
        posterior += [(arch, cortex - 220), (cross, cortex - 260)]
    else:
        joints = np.minimum(arch, np.abs(x) - 6)
        posterior += [(joints, cortex - 120)]
    if phase > 0.6 or phase < 0.3:
        spinous = np.minimum(3.2 - np.abs(x), np.minimum(y - f32(canal_y + 9), f32(canal_y + 24) - y))
        posterior += [(spinous, cortex - 250)]
    for shape, hu in posterior:
        plane.paint(plane.cover(shape), hu, where)
    if phase < 0.2:
        plane.paint(plane.cover(body), 85.0, where)
    else:
        end = min(phase - 0.2, 1.0 - phase) * anatomy.disc_pitch_mm  # mm to the nearest end plate
        plane.paint(plane.cover(body), cortex - 80, where)
        plane.paint(plane.cover(body - f32(1.6)), marrow + 180 * float(np.clip(1 - end / 2.5, 0, 1)), where)
    plane.paint(plane.cover((1 - ring) * 9), 25.0, where)


def _texture(plane: Plane, grain: Array) -> None:
    """Tissue is not paint: fine structure in lung and bone, a little everywhere but in air."""
    hu = plane.hu
    strength = np.where(hu < -940, f32(0), np.where(hu < -500, f32(26), np.where(hu > 220, f32(32), f32(5))))
    hu += strength * grain


def _normal_quantile(p: float) -> float:
    return NormalDist().inv_cdf(min(max(p, 1e-6), 1 - 1e-6))
