"""Correctness: whether what an explanation points at is what is marked.

Everything is of one scan and one finding. `holds` (Z,) says which slices hold the finding, `region` (Z, Y, X) which
voxels; `weights` (Z,) is the attention of slices, `saliency` (Z, Y, X) the map. Where several slices or voxels share
the highest value one of them would be drawn at random, and the chance to be right is computed instead: so a map that
weighs everything alike scores what a random one is expected to.

- slice correctness: one of the k most attended slices holds the finding; the attention on slices that hold it
- lesion correctness (the pointing game: Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018,
  126, 1084-1102, but without their margin of 15 pixels): the voxel of highest saliency lies in the finding
- energy: the share of the saliency inside (Wang et al., Score-CAM, CVPR Workshops 2020, section 4.3)
- Dice of the voxels that reach half the map's maximum. The rule sees the map alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

SLICE_MEASURES = {
    "slice_top1": "the top slice holds the lesion",
    "slice_top3": "one of the top 3 slices holds it",
    "slice_energy": "attention on slices that hold it",
}
VOXEL_MEASURES = {
    "pointing": "the brightest voxel lies in it",
    "energy": "saliency inside it",
    "dice": "Dice of half the maximum",
}
MEASURES: Mapping[str, str] = {**SLICE_MEASURES, **VOXEL_MEASURES}
THRESHOLD = 0.5  # of the map's maximum


def slice_correctness(weights: Array, holds: Mask) -> dict[str, float]:
    """SLICE_MEASURES of one scan."""
    return {
        "slice_top1": top_chance(weights, holds, 1),
        "slice_top3": top_chance(weights, holds, 3),
        "slice_energy": energy(weights, holds),
    }


def lesion_correctness(saliency: Array, region: Mask) -> dict[str, float]:
    """VOXEL_MEASURES of one scan."""
    return {
        "pointing": top_chance(saliency, region, 1),
        "energy": energy(saliency, region),
        "dice": dice(brightest(saliency), region),
    }


def random_correctness(holds: Mask, region: Mask | None = None, bright: int = 0) -> dict[str, float]:
    """What a map is expected to score that has nothing to do with the scan, exactly.

    Every order of the slices and of the voxels is equally likely. bright: voxels in its thresholded part, as many as
    the map that it is set beside has; of a of N voxels drawn at random, a |region| / N are expected to lie inside.
    """
    found = slice_correctness(np.ones(len(holds)), holds)
    if region is None:
        return found
    size, total = int(region.sum()), region.size
    return {
        **found,
        "pointing": size / total,
        "energy": size / total,
        "dice": 2 * bright * size / total / (bright + size) if bright + size else 0.0,
    }


def top_chance(values: Array, inside: Mask, k: int) -> float:
    """The chance that one of the k highest values lies inside; which of equal ones are taken is drawn at random.

    >>> top_chance(np.array([0.1, 0.7, 0.2]), np.array([False, False, True]), 1)
    0.0
    >>> top_chance(np.ones(4), np.array([True, False, False, False]), 2)
    0.5
    """
    k = min(k, values.size)
    lowest = values.max() if k == 1 else np.partition(values, values.size - k, axis=None)[values.size - k]
    above, tied = values > lowest, values == lowest
    if (above & inside).any():
        return 1.0
    drawn = k - int(above.sum())
    count, right = int(tied.sum()), int((tied & inside).sum())
    return 1.0 - math.comb(count - right, drawn) / math.comb(count, drawn)


def energy(values: Array, inside: Mask) -> float:
    """The share of what the values sum to that lies inside; of values that are 0 everywhere the share of places."""
    total = float(values.sum(dtype=np.float64))
    if total == 0:
        return float(inside.mean())
    return float(values.sum(dtype=np.float64, where=inside)) / total


def brightest(saliency: Array) -> Mask:
    """(Z, Y, X) which voxels reach half the map's maximum; all of them where the map is 0 everywhere."""
    return np.asarray(saliency >= THRESHOLD * saliency.max())


def dice(found: Mask, region: Mask) -> float:
    """2 |A and B| / (|A| + |B|); 0 where both are empty."""
    total = int(found.sum()) + int(region.sum())
    return 2 * int((found & region).sum()) / total if total else 0.0


def centre_prior(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """(Z, Y, X) a normal bell in the middle of the volume, a quarter of each side wide (1 sd): a map of no image."""
    axes = [np.exp(-0.5 * (((np.arange(n) + 0.5) / n - 0.5) / 0.25) ** 2) for n in shape]
    return np.asarray(np.einsum("z,y,x->zyx", *axes), dtype=np.float32)
