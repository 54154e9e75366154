"""Planted findings: what they are, where they may lie, and how they change a plane.

Focal findings are clusters of balls: lung nodules (9 to 18 mm, solid), liver lesions (20 to 42 mm, near the density of
water) and bone lesions (24 to 44 mm, lytic masses of soft tissue that break out of vertebrae and ribs). A positive
patient has ten or more of a kind, like metastases, but all of them in two neighbouring slices, so that the rest of the
scan is healthy and the mean over slices hardly moves; each is centred within 1.5 mm of a slice, so that thin sampling
does not hide it. They are large enough for an untrained encoder (`pretrain.initialise`) to see them in a slice.
Emphysema (holes of air, most of them above) and effusion (a crescent of fluid in the dependent pleural space) are
spread over many slices.

Look-alikes are drawn in everybody, and so carry no label: vessels and airways in lung and liver, calcified
granulomas below 4 mm, the gallbladder, discs between vertebrae, and patient-to-patient differences in the density of
lung, liver and bone that are as large as what a finding adds to the mean of a scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear.phantom_anatomy import SPINE_Y, Anatomy

FINDINGS = ("lung_nodule", "emphysema", "effusion", "liver_lesion", "bone_lesion")
DIAMETER_MM = {"lung_nodule": (9.0, 18.0), "liver_lesion": (20.0, 42.0), "bone_lesion": (24.0, 44.0)}
COUNT = {"lung_nodule": (20, 32), "liver_lesion": (10, 16), "bone_lesion": (10, 16)}  # both ends included
# how many neighbouring slices hold a patient's balls
CLUSTER_SLICES = {"lung_nodule": 2, "liver_lesion": 2, "bone_lesion": 2}
DEPTH_MM = {"lung_nodule": 2.0, "liver_lesion": 2.0}  # least healthy organ around a ball; bone lesions break out
SLICE_OFFSET_MM = 1.5
TRIES = 600


@dataclass(frozen=True)
class Ball:
    """A focal lesion: centre in patient mm (x, y, z), radius in mm, density in HU, edge softness in mm."""

    finding: str
    centre_mm: tuple[float, float, float]
    radius_mm: float
    hu: float
    edge_mm: float = 0.0


@dataclass(frozen=True)
class Emphysema:
    """Holes: the fraction of the upper lung that is air, and the size of a hole in mm."""

    fraction: float
    hole_mm: float
    hu: float = -975.0


@dataclass(frozen=True)
class Effusion:
    """Fluid behind one lung: side -1 right, 1 left; depth of the crescent at its base and height above it, in mm."""

    side: int
    depth_mm: float
    height_mm: float
    hu: float


@dataclass(frozen=True)
class Planted:
    """Everything planted in one patient; `granulomas` are look-alikes without a label."""

    balls: tuple[Ball, ...] = ()
    emphysema: Emphysema | None = None
    effusions: tuple[Effusion, ...] = ()
    granulomas: tuple[Ball, ...] = ()


def plant(
    anatomy: Anatomy,
    findings: Sequence[str],
    slice_z_mm: NDArray[np.float64],
    stream: Callable[[str], np.random.Generator],
) -> Planted:
    """Draw what the named findings look like in this patient.

    slice_z_mm: heights of the slices that will be there; stream: a generator for each name, so that one finding's
    draw never shifts another's.
    """
    balls: list[Ball] = []
    for finding in ("lung_nodule", "liver_lesion", "bone_lesion"):
        if finding in findings:
            balls += _balls(anatomy, finding, slice_z_mm, stream(finding))
    emphysema = None
    if "emphysema" in findings:
        rng = stream("emphysema")
        emphysema = Emphysema(fraction=float(rng.uniform(0.3, 0.5)), hole_mm=float(rng.uniform(3.5, 6)))
    effusions = []
    if "effusion" in findings:
        rng = stream("effusion")
        sides = ((-1,), (1,), (-1, 1))[int(rng.integers(3))]
        effusions = [
            Effusion(side, float(rng.uniform(22, 48)), float(rng.uniform(80, 130)), float(rng.uniform(2, 18)))
            for side in sides
        ]
    return Planted(tuple(balls), emphysema, tuple(effusions), _granulomas(anatomy, slice_z_mm, stream("granuloma")))


def _balls(anatomy: Anatomy, finding: str, slice_z_mm: NDArray[np.float64], rng: np.random.Generator) -> list[Ball]:
    """A cluster; starts at slices where the organ is too small for one are given up."""
    low, high = COUNT[finding]
    run = CLUSTER_SLICES[finding]
    wanted = int(rng.integers(low, high + 1))
    best: list[Ball] = []
    for start in rng.permutation(max(len(slice_z_mm) - run + 1, 1)):
        balls: list[Ball] = []
        for centre, room in _somewhere(anatomy, finding, slice_z_mm[start : start + run], rng):
            radius = float(rng.uniform(*DIAMETER_MM[finding])) / 2
            if room < (radius + DEPTH_MM[finding] if finding in DEPTH_MM else 0.5):
                continue
            if any(np.linalg.norm(np.subtract(centre, b.centre_mm)) < radius + b.radius_mm + 3 for b in balls):
                continue
            balls.append(Ball(finding, centre, radius, *_density(anatomy, finding, rng)))
            if len(balls) == wanted:
                return balls
        best = max(best, balls, key=len)
        if len(best) >= low:
            break
    if not best:
        raise ValueError(f"{finding}: no slice of {slice_z_mm.round(1).tolist()} mm passes where it can lie")
    return best


def _density(anatomy: Anatomy, finding: str, rng: np.random.Generator) -> tuple[float, float]:
    """HU and softness of the edge in mm."""
    if finding == "lung_nodule":
        return float(rng.uniform(30, 80)), 0.0
    if finding == "liver_lesion":
        return anatomy.hu["liver"] - float(rng.uniform(90, 120)), 1.0
    return float(rng.uniform(25, 55)), 0.5


def _somewhere(
    anatomy: Anatomy, finding: str, heights_mm: NDArray[np.float64], rng: np.random.Generator
) -> list[tuple[tuple[float, float, float], float]]:
    """Points (patient mm) near slices at the given heights, each with the room around it (mm, approximate).

    Room is the distance to the surface of the organ that the finding belongs to; only points inside it are returned,
    in random order.
    """
    inside = {
        "lung_nodule": anatomy.inside_lung,
        "liver_lesion": anatomy.inside_liver,
        "bone_lesion": anatomy.inside_bone,
    }[finding]
    sx, sy, _ = anatomy.scale
    found = []
    for height in heights_mm:
        x, y = rng.uniform(-148, 148, TRIES) * sx, rng.uniform(-102, 102, TRIES) * sy
        if finding == "bone_lesion":  # some of the points at the spine, which is small
            x[::6] = rng.uniform(-16, 16, len(x[::6])) * sx
            y[::6] = (SPINE_Y + rng.uniform(-12, 12, len(y[::6]))) * sy
        offset = rng.uniform(-SLICE_OFFSET_MM, SLICE_OFFSET_MM, TRIES)
        room = inside(*anatomy.to_template(x.astype(np.float32), y.astype(np.float32), float(height)))
        for i in np.flatnonzero(room > 0):
            found.append(((float(x[i]), float(y[i]), float(height + offset[i])), float(room[i])))
    return [found[i] for i in rng.permutation(len(found))]


def _granulomas(anatomy: Anatomy, slice_z_mm: NDArray[np.float64], rng: np.random.Generator) -> tuple[Ball, ...]:
    wanted = int(rng.integers(0, 4))
    points = _somewhere(anatomy, "lung_nodule", rng.choice(slice_z_mm, 6), rng)
    deep = [centre for centre, room in points if room > 5][:wanted]
    return tuple(Ball("granuloma", centre, float(rng.uniform(1.0, 1.9)), 350.0) for centre in deep)
