"""How synthetic patients differ: a random body for `clear.phantom_anatomy`.

Sizes, places, densities, branching of vessels and the lie of the bowel are drawn around those of the standard patient,
independently of any finding.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clear.phantom_anatomy import AIR, Anatomy, Ellipsoid, Tube, f32

Array = NDArray[np.float64]
THINNER = 0.8  # a vessel's radius at its end, as a share of that at its start


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A new patient: sizes, places and densities drawn independently of any finding."""

    def about(value: float, spread: float) -> float:
        return float(value + spread * np.clip(rng.standard_normal(), -2, 2))

    def at(*centre: float, spread: float = 3.0) -> tuple[float, float, float]:
        x, y, z = (about(c, spread) for c in centre)
        return x, y, z

    def sized(*radii: float) -> tuple[float, float, float]:
        size = about(1.0, 0.06)
        x, y, z = (about(r * size, 0.04 * r) for r in radii)
        return x, y, z

    body = about(1.0, 0.045)
    scale = (about(body, 0.02), about(body, 0.025), about(1.0, 0.03))
    liver, blood = about(108, 8), about(150, 12)
    hu = {
        "lung": about(-850, 12),
        "fat": about(-102, 4),
        "muscle": about(56, 4),
        "liver": liver,
        "blood": blood,
        "trabecular": about(150, 15),
        "cortex": about(620, 50),
    }
    warp = np.array(
        [
            [
                (
                    rng.uniform(0.6, 1.7),
                    *(2 * np.pi / rng.uniform(90, 220, 2)),
                    *rng.uniform(0, 2 * np.pi, 2),
                    2 * np.pi / rng.uniform(120, 300),
                )
                for _ in range(3)
            ]
            for _ in range(2)
        ],
        np.float32,
    )
    heart = Ellipsoid(at(21, -26, 34), sized(60, 46, 50), about(108, 5), angle=about(0.55, 0.08))
    chambers = _chambers(heart, blood)
    great, airways = _great_vessels(at(0, 0, 0, spread=2.5), blood)
    spleen = Ellipsoid(at(97, 30, -40, spread=4), sized(25, 42, 40), liver + about(8, 3))
    kidneys = []
    for side in (-1, 1):
        centre, radii = at(side * 57, 38, -104 + 8 * side, spread=4), sized(26, 24, 50)
        kidneys.append(Ellipsoid(centre, radii, about(185, 10)))
        kidneys.append(Ellipsoid(centre, tuple(0.72 * r for r in radii), about(140, 6)))  # type: ignore[arg-type]  # three
        sinus = (centre[0] - side * 9, centre[1] - 2, centre[2])
        kidneys.append(Ellipsoid(sinus, (radii[0] * 0.42, radii[1] * 0.3, radii[2] * 0.5), -70.0))
    gallbladder = Ellipsoid(at(-46, -44, -88, spread=5), sized(14, 15, 22), 8.0)
    anatomy = Anatomy(
        scale=scale,
        fat_mm=float(rng.uniform(9, 30)),
        breast_mm=float(rng.uniform(14, 26)) if rng.random() < 0.5 else 0.0,
        warp=warp,
        hu=hu,
        heart=heart,
        domes=(at(-64, -14, 0, spread=4), at(64, -14, -12, spread=4), at(0, -34, -20, spread=3)),
        mediastinum_mm=about(27, 2),
        liver=(
            Ellipsoid(at(-68, -4, -44, spread=4), sized(88, 92, 84), liver),
            Ellipsoid(at(14, -52, -38, spread=4), sized(70, 34, 46), liver),
        ),
        organs=(spleen, *kidneys, gallbladder),
        chambers=chambers,
        great_vessels=great,
        airways=airways,
        lung_vessels=(),
        liver_vessels=_liver_vessels(rng, liver + about(42, 5)),
        bowel=_bowel(rng),
        stomach=Ellipsoid(at(60, -36, -48, spread=5), sized(40, 36, 42), about(25, 8)),
        rib_phase_mm=float(rng.uniform(0, 27)),
        rib_pitch_mm=about(27, 0.8),
        disc_phase_mm=float(rng.uniform(0, 27)),
        disc_pitch_mm=about(27, 1.2),
        table_mm=float(rng.uniform(2, 6)),
    )
    branches, bronchi = _lung_trees(rng, anatomy)
    return replace(anatomy, lung_vessels=branches, airways=anatomy.airways + bronchi)


def _chambers(heart: Ellipsoid, blood: float) -> tuple[Ellipsoid, ...]:
    x, y, z = heart.centre
    return (
        Ellipsoid((x + 20, y - 2, z - 8), (24, 16, 32), blood, heart.angle),
        Ellipsoid((x - 14, y - 17, z - 4), (25, 15, 32), blood, heart.angle),
        Ellipsoid((x - 8, y + 24, z + 18), (27, 15, 22), blood),
        Ellipsoid((x - 40, y + 4, z + 4), (17, 22, 30), blood),
    )


def _great_vessels(shift: tuple[float, float, float], blood: float) -> tuple[tuple[Tube, ...], tuple[Tube, ...]]:
    """Aorta, caval veins, pulmonary arteries and oesophagus; trachea and main bronchi (wall first, then air)."""
    dx, dy, _ = shift

    def tube(x0: float, y0: float, z0: float, x1: float, y1: float, z1: float, r: float, hu: float) -> Tube:
        return Tube((x0 + dx, y0 + dy, z0), (x1 + dx, y1 + dy, z1), r, r, hu)

    vessels = (
        tube(-6, -22, 58, -8, -28, 122, 15, blood),
        tube(-8, -28, 122, 17, 22, 124, 13, blood),
        tube(18, 28, 122, 17, 34, 20, 11.5, blood),
        tube(17, 34, 20, 6, 33, -60, 11, blood),
        tube(6, 33, -60, 4, 33, -230, 9.5, blood),
        tube(-8, -22, 126, -16, -14, 210, 6, blood),
        tube(5, -4, 128, 14, -4, 210, 4.5, blood),
        tube(15, 12, 128, 28, 2, 210, 5, blood),
        tube(-28, -20, 55, -30, -24, 210, 9, blood + 15),
        tube(-24, 8, 18, -20, 16, -60, 12, blood - 10),
        tube(-20, 16, -60, -18, 20, -230, 11, blood - 10),
        tube(16, -38, 76, 17, -12, 94, 13, blood),
        tube(14, -8, 92, -38, 2, 86, 9, blood),
        tube(17, -8, 94, 44, 12, 92, 9, blood),
        tube(9, 28, 200, 12, 28, -10, 7, 48.0),
        tube(-15, -6, -92, 62, 6, -60, 10, 88.0),
        tube(28, 50, -80, 46, 46, -230, 17, 58.0),
        tube(-28, 50, -80, -46, 46, -230, 17, 58.0),
    )
    bronchi = ((0, 8, 92, 0, 0, 215, 9.0), (0, 9, 94, -42, 9, 70, 6.5), (0, 9, 94, 46, 14, 70, 6.0))
    walls = tuple(tube(*b[:6], b[6] + 1.6, 30.0) for b in bronchi)
    return vessels, walls + tuple(tube(*b, AIR) for b in bronchi)


def _grow(
    rng: np.random.Generator, root: Array, goals: Array, radii: Array, levels: int, length_mm: float, fork: float
) -> tuple[Array, Array, Array, Array]:
    """Trees that start at `root` (3,) towards goals (n, 3) with radii (n,) and fork in two at each level.

    Returns for every segment its ends (m, 3) and (m, 3), its radius at the near end (m,) and its level (m,).
    """
    direction = goals - root
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    start = np.broadcast_to(root, goals.shape)
    parts = []
    for level in range(levels):
        n = len(start)
        end = start + direction * (length_mm * 0.84**level * rng.uniform(0.8, 1.2, (n, 1)))
        parts.append((start, end, radii, np.full(n, level)))
        turn = rng.standard_normal((n, 3))
        turn -= direction * (turn * direction).sum(axis=1, keepdims=True)
        turn *= fork / np.maximum(np.linalg.norm(turn, axis=1, keepdims=True), 1e-6)
        direction = np.concatenate([direction + sign * rng.uniform(0.7, 1.2, (n, 1)) * turn for sign in (-1, 1)])
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        start = np.concatenate([end, end])
        radii = np.concatenate([radii, radii]) * THINNER * rng.uniform(0.8, 1.0, 2 * n)
    near, far, radius, levels_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    return near, far, radius, levels_of


def _lung_trees(rng: np.random.Generator, anatomy: Anatomy) -> tuple[tuple[Tube, ...], tuple[Tube, ...]]:
    """Pulmonary vessels from each hilum to the periphery, and airways beside the first generations."""
    vessels, airways = [], []
    for side in (-1.0, 1.0):
        hilum = np.array([side * 38.0, 8, 84])
        goals = [
            (95, -50, 110),
            (85, 45, 125),
            (105, -30, 60),
            (110, 25, 75),
            (80, 62, 30),
            (100, 35, 5),
            (70, 5, 15),
            (105, 0, 100),
            (90, 55, 60),
            (60, -55, 45),
            (70, 10, 160),
        ]
        ways = np.array(goals) * (side, 1, 1) + 8 * rng.standard_normal((len(goals), 3))
        near, far, radius, level = _grow(rng, hilum, ways, rng.uniform(3.6, 4.6, len(goals)), 5, 27.0, 0.5)
        x, y, z = np.moveaxis(np.stack([near, far]), -1, 0).astype(f32)
        kept = (anatomy.inside_lung(x, y, z).min(axis=0) > 0.5) | (level == 0)
        for i in np.flatnonzero(kept):
            p0, p1, r0, r1 = _xyz(near[i]), _xyz(far[i]), float(radius[i]), float(radius[i]) * THINNER
            vessels.append(Tube(p0, p1, r0, r1, anatomy.hu["blood"] - 60))
            if level[i] < 3:
                beside = np.array([side * 1.4 * r0, 1.2 * r0, 0.5])
                q0, q1 = _xyz(near[i] + beside), _xyz(far[i] + beside)
                airways.append(Tube(q0, q1, 0.75 * r0 + 1.0, 0.75 * r1 + 0.9, -80.0))
                airways.append(Tube(q0, q1, 0.75 * r0, 0.75 * r1, AIR + 10))
    return tuple(vessels), tuple(airways)


def _xyz(point: Array) -> tuple[float, float, float]:
    return float(point[0]), float(point[1]), float(point[2])


def _liver_vessels(rng: np.random.Generator, hu: float) -> tuple[Tube, ...]:
    tubes = []
    for root, goals, radius in (
        ((-28.0, -8, -58), ((-85, 25, -70), (-80, -45, -55), (20, -55, -40), (-70, 0, -95)), 5.0),
        ((-24.0, 6, -14), ((-90, 10, -45), (-60, -55, -40), (0, -50, -35)), 4.5),
    ):
        ways = np.array(goals) + 6 * rng.standard_normal((len(goals), 3))
        near, far, radii, _ = _grow(rng, np.array(root), ways, np.full(len(goals), radius), 4, 26.0, 0.45)
        for p0, p1, r in zip(near, far, radii.tolist(), strict=True):
            tubes.append(Tube(_xyz(p0), _xyz(p1), r, r * THINNER, hu))
    return tuple(tubes)


def _bowel(rng: np.random.Generator) -> tuple[Tube, ...]:
    """Colon with stool and gas, and small bowel loops; each loop is a wall and a content."""
    loops: list[tuple[tuple[float, ...], tuple[float, ...], float, float]] = []

    def content() -> float:
        return float(rng.choice([-900.0, rng.uniform(10, 45)], p=[0.25, 0.75]))

    colon: list[tuple[tuple[int, int, int], tuple[int, int, int], int]] = [
        ((-92, -2, -98), (-94, 8, -230), 18),
        ((103, 18, -80), (100, 26, -230), 14),
        ((-84, -46, -108), (0, -66, -124), 16),
        ((0, -66, -124), (84, -44, -92), 16),
    ]
    for first, last, r in colon:
        jitter = 5 * rng.standard_normal(3)
        steps = np.linspace(0, 1, 6)
        points = [tuple(np.array(first) + jitter + t * (np.array(last) - np.array(first))) for t in steps]
        loops += [(p, q, r * rng.uniform(0.85, 1.1), content()) for p, q in itertools.pairwise(points)]
    for _ in range(60):
        near = np.array([rng.uniform(-72, 80), rng.uniform(-62, 14), rng.uniform(-220, -92)])
        far = near + rng.standard_normal(3) * (14, 12, 10)
        loops.append((tuple(near), tuple(far), rng.uniform(8, 12), content()))
    tubes = []
    for start, end, radius, hu in loops:
        p, q = _xyz(np.array(start)), _xyz(np.array(end))
        tubes += [Tube(p, q, radius, radius, 72.0), Tube(p, q, radius - 2.4, radius - 2.4, hu)]
    return tuple(tubes)
