"""Metrics, for one weighting of the rows or a thousand at once.

Weights are how often a resampled patient was drawn, so a bootstrap is one call. Definitions are scikit-learn's where it
has them (with `sample_weight`): ties count one half, respectively share a threshold. What depends on nothing that the
model did has no value: nan, "not defined", never 0.5.

Three forms of truth: (n,) of a class or not, with (n,) scores; (n,) class codes, with (n, C) probabilities; (n,) values
or (n, 2) times and events, with (n,) predictions. A class is called at a probability of 0.5 or more (binary), where it
is the most probable (multi-class), or where the cumulative probability crosses 0.5 (ordinal: the median class). No
threshold is chosen from data but that of sensitivity at a fixed specificity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregate.survival import c_index

Floats = NDArray[np.float64]
Metric = Callable[[NDArray[Any], Floats, Floats], Floats]
THRESHOLD = 0.5
SPECIFICITY = 0.9
BINS = 10  # of equal width on 0..1
_CHUNK = 256  # weightings at a time: bounds memory to 256 x n x a few arrays


def auroc(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(R,) area under the ROC curve of (n,) scores for each of (R, n) weightings; nan where a class has no weight."""

    def value(positive: Floats, negative: Floats) -> Floats:
        # threshold groups in descending order of score: a positive beats the negatives of all later groups
        above = np.cumsum(negative, axis=1)
        wins = (positive * (above[:, -1:] - above + negative / 2)).sum(axis=1)
        return np.asarray(wins / (positive.sum(axis=1) * above[:, -1]))

    return _by_threshold(truth, scores, weights, value)


def average_precision(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(R,) Σ (recall_i - recall_{i-1}) precision_i over descending thresholds; nan where a class has no weight.

    scikit-learn returns 0 with a warning when there is no positive, and 1 when there is nothing else; a value that
    depends on nothing the model did is no value.
    """

    def value(positive: Floats, negative: Floats) -> Floats:
        hits = np.cumsum(positive, axis=1)
        called = hits + np.cumsum(negative, axis=1)
        precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
        return np.asarray((positive * precision).sum(axis=1) / hits[:, -1])

    return _by_threshold(truth, scores, weights, value)


def sensitivity_at_specificity(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(R,) the highest sensitivity of any threshold with a specificity of 0.9 or more; nan where a class is absent.

    The threshold is found on the rows that are scored, in each resample anew; no point between two thresholds counts.
    """

    def value(positive: Floats, negative: Floats) -> Floats:
        allowed = np.cumsum(negative, axis=1) <= (1 - SPECIFICITY) * negative.sum(axis=1, keepdims=True) + 1e-9
        hits = np.where(allowed, np.cumsum(positive, axis=1), 0.0).max(axis=1)
        return np.asarray(hits / positive.sum(axis=1))

    return _by_threshold(truth, scores, weights, value)


def brier(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(R,) mean squared distance of the probability from 0 or 1 (Brier, Monthly Weather Review 1950, 78, 1-3)."""
    return _mean((scores - truth) ** 2, weights)


def ece(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(R,) expected calibration error of the class's probability over ten bins of equal width.

    The distance of a bin's mean probability from its share of positives, averaged with the bins' weights (Naeini,
    Cooper, Hauskrecht, AAAI 2015, 2901-2907).
    """
    in_bin = np.eye(BINS)[calibration_bin(scores)]  # (n, bins)
    excess = np.abs(weights @ (in_bin * (scores - truth)[:, None])).sum(axis=1)
    return _ratio(excess, weights.sum(axis=1))


def calibration_bin(scores: Floats) -> NDArray[np.int64]:
    """(n,) the bin of each probability: 0 for [0, 0.1), ..., 9 for [0.9, 1]."""
    return np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)


def accuracy(truth: NDArray[Any], scores: Floats, weights: Floats) -> Floats:
    """(R,) share of rows called rightly."""
    return _mean((called(scores) == truth).astype(np.float64), weights)


def balanced_accuracy(truth: NDArray[Any], scores: Floats, weights: Floats) -> Floats:
    """(R,) mean over classes of the share of a class that is called rightly; nan where a class has no weight.

    scikit-learn leaves absent classes out of the mean, which then is another quantity from fold to fold.
    """
    table = confusion(truth, scores, weights)
    recalls = _ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2))
    return np.asarray(recalls.mean(axis=1))


def f1(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(R,) 2 TP / (2 TP + FP + FN) of the positive class; nan where it has no weight."""
    table = confusion(truth, scores, weights)
    hits, missed, false = table[:, 1, 1], table[:, 1, 0], table[:, 0, 1]
    value = _ratio(2 * hits, 2 * hits + missed + false)
    return np.where(hits + missed > 0, value, np.nan)


def kappa(truth: NDArray[Any], scores: Floats, weights: Floats) -> Floats:
    """(R,) Cohen's kappa (Educational and Psychological Measurement 1960, 20, 37-46) of the classes that are called.

    nan where chance alone would agree fully.
    """
    table = confusion(truth, scores, weights)
    return _kappa(table, 1 - np.eye(table.shape[1]))


def weighted_kappa(truth: NDArray[Any], scores: Floats, weights: Floats) -> Floats:
    """(R,) Cohen's kappa with quadratic weights (Psychological Bulletin 1968, 70, 213-220), for classes in order."""
    table = confusion(truth, scores, weights)
    ranks = np.arange(table.shape[1])
    return _kappa(table, np.asarray((ranks[:, None] - ranks[None, :]) ** 2, dtype=np.float64))


def rank_error(truth: NDArray[Any], scores: Floats, weights: Floats) -> Floats:
    """(R,) mean distance of the called from the true class, in ranks."""
    return _mean(np.abs(called(scores) - truth).astype(np.float64), weights)


def mae(truth: Floats, scores: Floats, weights: Floats) -> Floats:
    """(R,) mean absolute error, in the label's unit."""
    return _mean(np.abs(scores - truth), weights)


def r2(truth: Floats, scores: Floats, weights: Floats) -> Floats:
    """(R,) 1 - squared error / squared distance from the rows' own mean; nan where the values do not vary."""
    centred = truth - truth.mean() if len(truth) else truth  # the same variance, without cancellation
    total = weights.sum(axis=1)
    spread = weights @ centred**2 - _ratio((weights @ centred) ** 2, total)
    floor = 1e-12 * (weights @ centred**2)
    return 1 - _ratio(weights @ (scores - truth) ** 2, np.where(spread > floor, spread, 0.0))


# metrics of one score a row: of a class or not, of a value, of a time
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "auroc": auroc,
        "average_precision": average_precision,
        "f1": f1,
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy,
        "kappa": kappa,
        "sensitivity_at_specificity": sensitivity_at_specificity,
        "brier": brier,
        "ece": ece,
        "c_index": c_index,
        "mae": mae,
        "r2": r2,
    }
)
# metrics of an endpoint of several classes as a whole; its others are means over classes, one against the rest
OF_ALL_CLASSES: Mapping[str, Mapping[str, Metric]] = MappingProxyType(
    {
        "multiclass": {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "kappa": kappa},
        "ordinal": {
            "accuracy": accuracy,
            "balanced_accuracy": balanced_accuracy,
            "kappa": weighted_kappa,
            "mae": rank_error,
        },
    }
)
LOWER_IS_BETTER = frozenset({"brier", "ece", "mae"})


def plain(metric: Metric, truth: NDArray[Any], scores: Floats) -> float:
    """The metric with every row once; nan when it is not defined."""
    return float(metric(truth, scores, np.ones((1, len(truth))))[0])


def called(scores: Floats) -> NDArray[np.int64]:
    """(n,) the class that is called: 0 or 1 at 0.5 for (n,) scores, the most probable of (n, C)."""
    if scores.ndim == 1:
        return np.asarray(scores >= THRESHOLD, dtype=np.int64)
    return np.asarray(scores.argmax(axis=1), dtype=np.int64)


def median_class(scores: Floats) -> Floats:
    """(n, C) 1 for the first class whose cumulative probability reaches 0.5, for ordinal endpoints; 0 for the rest."""
    reached = np.cumsum(scores, axis=1) >= THRESHOLD - 1e-12
    return np.asarray(np.eye(scores.shape[1])[reached.argmax(axis=1)])


def confusion(truth: NDArray[Any], scores: Floats, weights: Floats) -> Floats:
    """(R, C, C) weight of each pair of true (rows) and called (columns) class."""
    c = 2 if scores.ndim == 1 else scores.shape[1]
    pairs = np.eye(c * c)[truth.astype(np.int64) * c + called(scores)]  # (n, C * C)
    return np.asarray((weights @ pairs).reshape(len(weights), c, c))


def _kappa(table: Floats, distance: Floats) -> Floats:
    total = table.sum(axis=(1, 2))
    by_chance = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
    observed = (table * distance).sum(axis=(1, 2)) * total
    return np.asarray(1 - _ratio(observed, (by_chance * distance).sum(axis=(1, 2))))


def _mean(values: Floats, weights: Floats) -> Floats:
    return _ratio(weights @ values, weights.sum(axis=1))


def _ratio(over: Floats, under: Floats) -> Floats:
    return np.asarray(np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0))


def _by_threshold(
    truth: NDArray[np.bool_], scores: Floats, weights: Floats, value: Callable[[Floats, Floats], Floats]
) -> Floats:
    out = np.full(len(weights), np.nan)
    if len(truth) == 0 or truth.all() or not truth.any():
        return out
    order = np.argsort(-scores, kind="stable")
    ordered, positive_row = scores[order], truth[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
    for first in range(0, len(weights), _CHUNK):
        chunk = weights[first : first + _CHUNK][:, order].astype(np.float64)
        positive = np.add.reduceat(chunk * positive_row, starts, axis=1)
        negative = np.add.reduceat(chunk * ~positive_row, starts, axis=1)
        both = (positive.sum(axis=1) > 0) & (negative.sum(axis=1) > 0)
        if both.any():
            out[first : first + _CHUNK][both] = value(positive[both], negative[both])
    return out
