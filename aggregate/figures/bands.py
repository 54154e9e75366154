"""How sure a curve is: bands of ROC and precision-recall curves, and calibration bars.

Bands are pointwise: at each point of a common grid, the middle 95 % of the curves of a thousand draws of the patients
with replacement. All scans of a patient are drawn together, so that a patient with many scans makes no curve surer.
The scores are taken as given: how the models would differ in another training cohort is not in a band.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from aggregate.intervals import DRAWS, patient_draws
from aggregate.metrics import BINS, calibration_bin

Floats = NDArray[np.float64]
GRID = np.linspace(0.0, 1.0, 181)
LEVEL = 0.95
HISTOGRAM = 20  # bins of the scores
_CHUNK = 256  # draws at a time: bounds memory
_NOTHING: Floats = np.zeros(0)


@dataclass(frozen=True)
class Curve:
    """A line with its band.

    x, y: (n,) ascending in x. low, high: (n,) the band, nan where there is none; None for no band at all.
    missing: why there is no line; then x and y are empty.
    """

    x: Floats
    y: Floats
    low: Floats | None
    high: Floats | None
    label: str
    missing: str = ""


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed, in bins.

    x: (b,) mean prediction of each bin that holds a bag; y: share of positives, between low and high; n: bags of each.
    positives, negatives: (20,) bags by score, in bins of equal width on 0..1.
    missing: why there is nothing to show; then all is empty.
    """

    label: str
    x: Floats = field(default_factory=_NOTHING.copy)
    y: Floats = field(default_factory=_NOTHING.copy)
    low: Floats = field(default_factory=_NOTHING.copy)
    high: Floats = field(default_factory=_NOTHING.copy)
    n: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    positives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HISTOGRAM, dtype=np.int64))
    negatives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HISTOGRAM, dtype=np.int64))
    missing: str = ""


def roc_curve(
    truth: NDArray[np.bool_], scores: Floats, patients: NDArray[Any], label: str, *, n: int = DRAWS, seed: int = 0
) -> Curve:
    """Sensitivity (y) over 1 - specificity (x) of (n,) bags with its band; `missing` says what a curve lacks.

    patients: (n,) whose bags they are, by number or by name. n: draws.
    """
    truth, scores, patients = _known(truth, scores, patients)
    missing = lacks(truth)
    if missing:
        return Curve(_NOTHING, _NOTHING, None, None, label, missing)
    x, low, high = roc_band(truth, scores, patients, n=n, seed=seed)
    return Curve(x, _roc(*_cumulated(truth, scores, np.ones((1, len(truth)))))[0], low, high, label)


def pr_curve(
    truth: NDArray[np.bool_], scores: Floats, patients: NDArray[Any], label: str, *, n: int = DRAWS, seed: int = 0
) -> Curve:
    """Precision (y) over recall (x), as `roc_curve`: the highest threshold that reaches a recall gives its precision.

    Not interpolated: a line between two points would promise precisions that no threshold has (Davis and Goadrich,
    ICML 2006, 233-240).
    """
    truth, scores, patients = _known(truth, scores, patients)
    missing = lacks(truth)
    if missing:
        return Curve(_NOTHING, _NOTHING, None, None, label, missing)
    x, low, high = pr_band(truth, scores, patients, n=n, seed=seed)
    return Curve(x, _precision(*_cumulated(truth, scores, np.ones((1, len(truth)))))[0], low, high, label)


def roc_band(
    truth: NDArray[np.bool_], scores: Floats, patients: NDArray[Any], *, n: int = DRAWS, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """((g,) 1 - specificity, low, high) of sensitivity; nan where fewer than nine draws in ten have both classes."""
    return _band(_roc, truth, scores, patients, n, seed)


def pr_band(
    truth: NDArray[np.bool_], scores: Floats, patients: NDArray[Any], *, n: int = DRAWS, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """((g,) recall, low, high) of precision; nan as in `roc_band`."""
    return _band(_precision, truth, scores, patients, n, seed)


def calibration_bars(truth: NDArray[np.bool_], scores: Floats, patients: NDArray[Any], label: str) -> Calibration:
    """Ten bins of equal width of the probability, each with a Wilson interval of its share of positives.

    The interval counts patients, not bags: two scans of a patient tell little more than one, so this errs on the wide
    side and no number of scans of the same patients narrows it.
    """
    truth, scores, patients = _known(truth, scores, patients)
    if not len(truth):
        return Calibration(label, missing="no scan is scored")
    number = calibration_bin(scores)
    n = np.bincount(number, minlength=BINS)
    used = n > 0
    of_patient = np.unique(np.stack([number, _numbered(patients)]), axis=1)[0]
    people = np.bincount(of_patient, minlength=BINS)[used].astype(np.float64)
    x, y = (np.bincount(number, values, BINS)[used] / n[used] for values in (scores, truth.astype(np.float64)))
    low, high = wilson(y, people)
    bins = np.clip((scores * HISTOGRAM).astype(np.int64), 0, HISTOGRAM - 1)
    positives, negatives = (np.bincount(bins[rows], minlength=HISTOGRAM) for rows in (truth, ~truth))
    return Calibration(label, x, y, low, high, n[used], positives, negatives)


def wilson(share: Floats, n: Floats, level: float = LEVEL) -> tuple[Floats, Floats]:
    """((b,), (b,)) the interval of a share among n (Wilson, JASA 1927, 22, 209-212); 0..1 where n is 0.

    >>> [round(float(v[0]), 4) for v in wilson(np.array([0.0]), np.array([10.0]))]
    [0.0, 0.2775]
    """
    z2 = float(norm.ppf(0.5 + level / 2)) ** 2
    centre = (n * share + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (n * share * (1 - share) + z2 / 4)) / (n + z2)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def mean_curve(
    values: Floats, x: Floats, patients: NDArray[Any], label: str, *, n: int = DRAWS, seed: int = 0
) -> Curve:
    """The mean over bags of (n, g) curves on one grid x (g,), with the band of the mean over draws of patients."""
    if not len(values):
        return Curve(_NOTHING, _NOTHING, None, None, label, "no scan")
    weights = patient_draws(_numbered(patients), seed, n)
    total = weights.sum(axis=1)
    drawn = (weights[total > 0] @ values) / total[total > 0][:, None]
    low, high = _middle(drawn)
    several = len(np.unique(patients)) > 1
    return Curve(x, values.mean(axis=0), low if several else None, high if several else None, label)


def lacks(truth: NDArray[np.bool_]) -> str:
    """What a curve of two classes needs and does not find; "" when it has both."""
    if not len(truth):
        return "no scan is scored"
    if truth.all():
        return f"all {len(truth)} scans are positive"
    return "" if truth.any() else f"none of {len(truth)} scans is positive"


def _known(
    truth: NDArray[Any], scores: Floats, patients: NDArray[Any]
) -> tuple[NDArray[np.bool_], Floats, NDArray[Any]]:
    """The rows that have a score."""
    scores = np.asarray(scores, dtype=np.float64)
    rows = np.isfinite(scores)
    return np.asarray(truth)[rows].astype(bool), scores[rows], np.asarray(patients)[rows]


def _numbered(patients: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(np.unique(patients, return_inverse=True)[1], dtype=np.int64).reshape(-1)


def _band(
    heights: Callable[[Floats, Floats], Floats],
    truth: NDArray[Any],
    scores: Floats,
    patients: NDArray[Any],
    n: int,
    seed: int,
) -> tuple[Floats, Floats, Floats]:
    truth, scores, patients = _known(truth, scores, patients)
    none = np.full(len(GRID), np.nan)
    if lacks(truth):
        return GRID, none, none
    people = [len(np.unique(patients[rows])) for rows in (truth, ~truth)]
    drawn, weights = [], patient_draws(_numbered(patients), seed, n)
    for first in range(0, n, _CHUNK):
        hits, false = _cumulated(truth, scores, weights[first : first + _CHUNK])
        both = (hits[:, -1] > 0) & (false[:, -1] > 0)
        if both.any():
            drawn.append(heights(hits[both], false[both]))
    if sum(map(len, drawn)) < 0.9 * n or min(people) < 2:
        return GRID, none, none
    return GRID, *_middle(np.concatenate(drawn))


def _middle(drawn: Floats) -> tuple[Floats, Floats]:
    """The middle 95 % of (R, g) draws, and their mean, which lies outside where nearly all of them are equal."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    mean = drawn.mean(axis=0)
    return np.minimum(low, mean), np.maximum(high, mean)


def _cumulated(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """((R, T), (R, T)) weight of the positives and of the negatives at and above each threshold, descending."""
    order = np.argsort(-scores, kind="stable")
    last = np.concatenate([np.flatnonzero(np.diff(scores[order])), [len(scores) - 1]])
    ordered = weights[:, order]
    positive = np.cumsum(ordered * truth[order], axis=1)[:, last]
    return positive, np.cumsum(ordered * ~truth[order], axis=1)[:, last]


def _roc(hits: Floats, false: Floats) -> Floats:
    """(R, g) sensitivity at each 1 - specificity of the grid: the upper end where the curve is upright."""
    x, y = false / false[:, -1:], hits / hits[:, -1:]
    x, y = (np.pad(v, ((0, 0), (1, 0))) for v in (x, y))
    return np.stack([np.interp(GRID, *pair) for pair in zip(x, y, strict=True)])


def _precision(hits: Floats, false: Floats) -> Floats:
    """(R, g) precision of the highest threshold that reaches each recall of the grid."""
    called = hits + false
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    recall = hits / hits[:, -1:]
    wanted = np.maximum(
        GRID - 1e-12, 1e-12
    )  # the first point is the first positive; equal shares meet in spite of rounding
    return np.stack([p[np.searchsorted(r, wanted)] for p, r in zip(precision, recall, strict=True)])
