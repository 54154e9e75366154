"""Curves: the points of ROC, precision-recall and calibration plots, from predictions alone.

They are drawn from the scores that the pooled or ensemble figures are made of: the mean over the models that scored a
bag. One curve a class of every endpoint with classes; a quantity has calibration only, a survival time has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.metrics import BINS, calibration_bin
from aggregate.scored import Scored, numbered_patients, read_scored
from clear.endpoints import Endpoint

Floats = NDArray[np.float64]
SCHEMA = {
    "endpoint": pl.String,
    "class": pl.String,
    "curve": pl.String,
    "x": pl.Float64,
    "y": pl.Float64,
    "threshold": pl.Float64,
    "n": pl.Int64,
    "n_positive": pl.Int64,
}


def curves_table(predictions: pl.DataFrame, endpoints: Sequence[Endpoint], *, split: str = "test") -> pl.DataFrame:
    """The rows of curves.csv.

    curve `roc`: x = 1 - specificity, y = sensitivity, from (0, 0) to (1, 1); `pr`: x = recall, y = precision, each with
    the threshold at and above which the class is called (null at (0, 0)). n and n_positive are how many bags are called
    and how many of them rightly. Points on a straight piece of the ROC curve, and thresholds that call no further
    positive, are left out: areas and average precision stay the same.

    `calibration`: ten bins of equal width of the probability (of a quantity: ten of equal count of the prediction);
    x = mean prediction, y = share of positives (mean value), n and n_positive of the bin; empty bins are left out.

    A class without both positive and negative bags has no ROC and no PR curve.
    """
    scored = read_scored(predictions, endpoints, numbered_patients(predictions.filter(pl.col("split") == split)), split)
    frames = [pl.DataFrame(schema=SCHEMA)]
    for endpoint in endpoints:
        here = scored[endpoint.name]
        if not len(here) or endpoint.kind == "survival":
            continue
        if endpoint.kind == "regression":
            frames.append(_frame(endpoint.name, "", "calibration", _by_count(here)))
            continue
        for position, name in enumerate(endpoint.score_classes):
            truth = here.truth == endpoint.classes.index(name)
            scores = here.mean_scores[:, position]
            if truth.any() and not truth.all():
                frames.append(_frame(endpoint.name, name, "roc", roc_points(truth, scores)))
                frames.append(_frame(endpoint.name, name, "pr", pr_points(truth, scores)))
            frames.append(_frame(endpoint.name, name, "calibration", calibration_points(truth, scores)))
    return pl.concat(frames)


def roc_points(truth: NDArray[np.bool_], scores: Floats) -> Floats:
    """(points, 5) of 1 - specificity, sensitivity, threshold (nan at the start), called, rightly called."""
    threshold, called, hits = _counts(truth, scores)
    threshold, called, hits = (np.concatenate([[s], v]) for s, v in ((np.nan, threshold), (0, called), (0, hits)))
    false = called - hits
    turns = np.ones(len(hits), dtype=bool)  # a point in a straight piece adds nothing
    turns[1:-1] = np.diff(hits[:-1]) * np.diff(false[1:]) != np.diff(hits[1:]) * np.diff(false[:-1])
    rates = [false / (~truth).sum(), hits / truth.sum(), threshold, called, hits]
    return np.stack(rates, axis=1)[turns]


def pr_points(truth: NDArray[np.bool_], scores: Floats) -> Floats:
    """(points, 5) of recall, precision, threshold, called, rightly called: one a threshold that calls new positives."""
    threshold, called, hits = _counts(truth, scores)
    new = np.diff(hits, prepend=0) > 0
    return np.stack([hits / truth.sum(), hits / called, threshold, called, hits], axis=1)[new]


def calibration_points(truth: NDArray[np.bool_], scores: Floats) -> Floats:
    """(bins, 5) of mean probability, share of positives, nan, bags, positives, without empty bins."""
    number = calibration_bin(scores)
    n, total = np.bincount(number, minlength=BINS), np.bincount(number, scores, BINS)
    positive = np.bincount(number, truth, BINS)
    used = n > 0
    n, total, positive = n[used], total[used], positive[used]
    return np.stack([total / n, positive / n, np.full(len(n), np.nan), n, positive], axis=1)


def _by_count(scored: Scored) -> Floats:
    scores = scored.mean_scores[:, 0]
    order = np.argsort(scores, kind="stable")
    groups = [rows for rows in np.array_split(order, BINS) if len(rows)]
    return np.array([[scores[g].mean(), scored.truth[g].mean(), np.nan, len(g), np.nan] for g in groups])


def _counts(truth: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """(thresholds descending, bags called at each, positives among them)."""
    order = np.argsort(-scores, kind="stable")
    last = np.concatenate([np.flatnonzero(np.diff(scores[order])), [len(scores) - 1]])
    hits = np.cumsum(truth[order], dtype=np.float64)[last]
    return scores[order][last], last + 1.0, hits


def _frame(endpoint: str, name: str, curve: str, points: Floats) -> pl.DataFrame:
    columns = dict(zip(("x", "y", "threshold", "n", "n_positive"), points.T, strict=True))
    return (
        pl.DataFrame(columns)
        .with_columns(pl.all().fill_nan(None))
        .with_columns(
            endpoint=pl.lit(endpoint),
            curve=pl.lit(curve),
            n=pl.col("n").cast(pl.Int64),
            n_positive=pl.col("n_positive").cast(pl.Int64),
        )
        .with_columns(pl.lit(name).alias("class"))
        .select(pl.col(column).cast(dtype) for column, dtype in SCHEMA.items())
    )
