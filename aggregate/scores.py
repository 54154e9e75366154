"""From predictions to the table of metrics: what was estimated, how, and how sure.

Three estimators, never mixed (`aggregate.scored`). `fold_mean` is the mean over models of the metric of what each
scored, with the standard deviation over models: what most papers print. `pooled` is the metric over all out-of-fold
scores at once (averaged over repeats first): its ranking compares scores of different models, so it is usually a little
lower. Where all models scored a fixed test set there is `ensemble` in its place: the metric of their mean score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.intervals import bca_interval, clustered_auroc, logit_interval
from aggregate.scored import (
    ENSEMBLE,
    FOLD_MEAN,
    NEVER_POOLED,
    POOLED,
    Figure,
    Resampled,
    Scored,
    figures,
    is_fixed_test,
    numbered_patients,
    read_scored,
)
from clear.endpoints import Endpoint

Floats = NDArray[np.float64]
CONDITIONAL = "conditional on the fitted models"
SCHEMA = {
    "endpoint": pl.String,
    "class": pl.String,
    "metric": pl.String,
    "estimator": pl.String,
    "estimate": pl.Float64,
    "fold_sd": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "interval": pl.String,
    "n": pl.Int64,
    "n_positive": pl.Int64,
    "n_patients": pl.Int64,
    "folds_defined": pl.Int64,
}


def metrics_table(
    predictions: pl.DataFrame,
    endpoints: Sequence[Endpoint],
    metrics: Sequence[str],
    *,
    seed: int = 0,
    split: str = "test",
) -> pl.DataFrame:
    """The rows of metrics.csv from those of predictions.csv.

    A binary endpoint has one row a metric and estimator; one of several classes a row a class (one against the rest)
    and, under class `macro`, their mean and what belongs to it as a whole (accuracy, kappa, ...); several binary
    endpoints end with their mean, endpoint `macro`. Of the metrics an endpoint has those that its kind allows, the
    usual ones of its kind when none is. A metric that no fold defines is null.
    """
    patients = numbered_patients(predictions.filter(pl.col("split") == split))
    scored = read_scored(predictions, endpoints, patients, split)
    estimators = estimators_of(predictions, split)
    resampled = Resampled(len(patients), seed)
    rows = [
        _row(figure, estimator, resampled)
        for figure in figures(scored, endpoints, metrics)
        for estimator in estimators
        if has_estimate(figure.metric, estimator)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def estimators_of(predictions: pl.DataFrame, split: str = "test") -> tuple[str, str]:
    """`fold_mean` and `pooled`, or `ensemble` in its place where all models scored the same bags."""
    return FOLD_MEAN, ENSEMBLE if is_fixed_test(predictions, split) else POOLED


def has_estimate(metric: str, estimator: str) -> bool:
    """Whether a metric can be estimated in this way: hazards of models that scored different bags do not compare."""
    return not (estimator == POOLED and metric in NEVER_POOLED)


def _row(figure: Figure, estimator: str, resampled: Resampled) -> dict[str, object]:
    of_models = figure.of_models()
    of_models = of_models[np.isfinite(of_models)]
    estimate = figure.estimate(estimator)
    low, high, how = figure_interval(figure, estimate, estimator, resampled)
    fixed = estimator == ENSEMBLE
    scored = {id(member.scored): member.scored for member in figure.members}
    only = next(iter(scored.values())) if len(scored) == 1 else None
    return {
        "endpoint": figure.endpoint,
        "class": figure.name,
        "metric": figure.metric,
        "estimator": estimator,
        "estimate": _or_null(estimate),
        "fold_sd": _or_null(float(of_models.std(ddof=1))) if estimator == FOLD_MEAN and len(of_models) > 1 else None,
        "ci_low": _or_null(low),
        "ci_high": _or_null(high),
        "interval": (how if fixed else f"{how}; {CONDITIONAL}") if math.isfinite(low) else "not defined",
        "n": None if only is None else len(only),
        "n_positive": None if only is None else _n_positive(only, figure.name),
        "n_patients": len(np.unique(np.concatenate([each.patients for each in scored.values()]))),
        "folds_defined": len(of_models),
    }


def _n_positive(scored: Scored, name: str) -> int | None:
    """Bags of the class, or with an event; None where there is no such thing."""
    endpoint = scored.endpoint
    if endpoint.kind == "survival":
        return int((scored.truth[:, 1] == 1).sum())
    if not endpoint.is_classes or name not in endpoint.classes:
        return None
    return int((scored.truth == endpoint.classes.index(name)).sum())


def figure_interval(figure: Figure, estimate: float, estimator: str, resampled: Resampled) -> tuple[float, float, str]:
    """(low, high, method): DeLong on the logit scale for one AUROC, else the bootstrap over patients (BCa)."""
    used = figure.defined(estimator)
    if not used.members or not math.isfinite(estimate):
        return math.nan, math.nan, ""
    if len(used.members) == 1 and figure.metric == "auroc":
        variance = _auroc_variance(used, estimator)
        low, high = logit_interval(estimate, variance)
        if math.isfinite(low):
            clustered = used.members[0].scored.several_rows
            return low, high, "clustered DeLong, logit" if clustered else "DeLong, logit"
    drawn, left_out = resampled.of(used, estimator)
    low, high = bca_interval(estimate, drawn, left_out)
    return low, high, "bootstrap over patients, BCa"


def _auroc_variance(figure: Figure, estimator: str) -> float:
    """DeLong's, of one member; nan where it has none (several models scored a patient, so they are not independent)."""
    (member,) = figure.members
    scored = member.scored
    if estimator != FOLD_MEAN:
        return clustered_auroc(*member.seen, scored.patients)[1]
    if not scored.models_share_no_patient:
        return math.nan
    variances = []  # of independent folds: the variance of their mean is the sum of theirs over F squared
    for scores, rows in zip(scored.of_model, scored.rows_of, strict=True):
        auc, of_fold = clustered_auroc(*member.view(scored.truth[rows], scores[rows]), scored.patients[rows])
        if math.isfinite(auc):
            variances.append(of_fold)
    return float(np.sum(variances)) / len(variances) ** 2


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
