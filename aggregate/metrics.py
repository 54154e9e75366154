"""AUROC and average precision, for one weighting of the rows or a thousand at once.

Definitions are scikit-learn's (`roc_auc_score`, `average_precision_score` with `sample_weight`): ties count one half,
respectively share a threshold. Weights are how often a resampled patient was drawn, so a bootstrap is one call. Where
only one class is known, there is no value: nan, "not defined", never 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Callable[[NDArray[np.bool_], Floats, Floats], Floats]
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


METRICS: Mapping[str, Metric] = MappingProxyType({"auroc": auroc, "average_precision": average_precision})


def plain(metric: Metric, truth: NDArray[np.bool_], scores: Floats) -> float:
    """The metric with every row once; nan when only one class is there."""
    return float(metric(truth, scores, np.ones((1, len(truth))))[0])


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
