"""From predictions to the table of metrics: what was estimated, how, and how sure.

Two estimators, never mixed. `fold_mean` is the mean over folds of the metric within each fold, with the standard
deviation over folds: what most papers print. `pooled` is the metric over all out-of-fold scores at once (averaged over
repeats first): its ranking compares scores of different models, so it is usually a little lower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.intervals import bca_interval, clustered_auroc, logit_interval, resample
from aggregate.metrics import METRICS, Metric, plain
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


@dataclass(frozen=True)
class _Scores:
    """Out-of-fold scores of one class of one endpoint, known labels only; rows are bags.

    truth (n,); patients (n,) 0..P-1 over the whole cohort; fold_scores (F, n): a model each, nan where it did not score
    """

    truth: NDArray[np.bool_]
    patients: NDArray[np.int64]
    fold_scores: Floats

    @property
    def pooled(self) -> Floats:
        return np.asarray(np.nanmean(self.fold_scores, axis=0))

    def fold_values(self, metric: Metric) -> Floats:
        scored = [np.isfinite(row) for row in self.fold_scores]
        pairs = zip(self.fold_scores, scored, strict=True)
        return np.array([plain(metric, self.truth[rows], scores[rows]) for scores, rows in pairs])

    def weighted(self, metric: Metric, estimator: str, weights: Floats) -> Floats:
        """(R,) the estimate for each of (R, n) weightings."""
        if estimator == "pooled":
            return metric(self.truth, self.pooled, weights)
        values = []
        for scores in self.fold_scores:
            rows = np.isfinite(scores)
            values.append(metric(self.truth[rows], scores[rows], weights[:, rows]))
        return _mean_defined(np.stack(values))


def metrics_table(
    predictions: pl.DataFrame, endpoints: Sequence[Endpoint], metrics: Sequence[str], *, seed: int = 0
) -> pl.DataFrame:
    """The rows of metrics.csv from those of predictions.csv.

    A binary endpoint has one row a metric and estimator; a multi-class one a row a class (one against the rest) and
    their mean, class `macro`; several binary endpoints end with their mean, endpoint `macro`. A metric that no fold
    defines is null.
    """
    scored = predictions.filter(pl.col("split") == "test")
    patients = {name: i for i, name in enumerate(scored["patient_id"].unique().sort())}
    models = {pair: i for i, pair in enumerate(scored.select("repeat", "fold").unique().sort("repeat", "fold").rows())}
    rows: list[dict[str, object]] = []
    binary = []
    for endpoint in endpoints:
        classes = endpoint.classes[1:] if endpoint.kind == "binary" else endpoint.classes
        of_class = {name: _scores_of(scored, endpoint.name, name, patients, models) for name in classes}
        for name, scores in of_class.items():
            rows += _rows(endpoint.name, name, [scores], metrics, len(patients), seed)
        if endpoint.kind == "multiclass":
            rows += _rows(endpoint.name, "macro", list(of_class.values()), metrics, len(patients), seed)
        else:
            binary += list(of_class.values())
    if len(binary) > 1:
        rows += _rows("macro", "macro", binary, metrics, len(patients), seed)
    return pl.DataFrame(rows, schema=SCHEMA)


def _scores_of(
    scored: pl.DataFrame, endpoint: str, name: str, patients: dict[str, int], models: dict[tuple[int, ...], int]
) -> _Scores:
    rows = scored.filter((pl.col("endpoint") == endpoint) & (pl.col("class") == name)).drop_nulls("y_true")
    bags = rows.unique("scan_id").sort("scan_id").select("scan_id", "patient_id", "y_true")
    column = {scan: i for i, scan in enumerate(bags["scan_id"])}
    fold_scores = np.full((len(models), len(column)), np.nan)
    for scan, repeat, fold, score in rows.select("scan_id", "repeat", "fold", "y_score").iter_rows():
        fold_scores[models[repeat, fold], column[scan]] = score
    return _Scores(
        truth=bags["y_true"].to_numpy() == 1,
        patients=np.array([patients[patient] for patient in bags["patient_id"]], dtype=np.int64),
        fold_scores=fold_scores,
    )


def _rows(
    endpoint: str, name: str, members: Sequence[_Scores], metrics: Sequence[str], n_patients: int, seed: int
) -> list[dict[str, object]]:
    """The rows of one class (one member) or of a mean over several, both estimators of each metric."""
    out: list[dict[str, object]] = []
    for metric_name in metrics:
        metric = METRICS[metric_name]
        folds = _mean_defined(np.stack([member.fold_values(metric) for member in members]))
        defined = folds[np.isfinite(folds)]
        for estimator in ("fold_mean", "pooled"):
            parts = np.array([_estimate(member, metric, estimator) for member in members])
            used = [member for member, part in zip(members, parts, strict=True) if math.isfinite(part)]
            estimate = float(np.mean(parts[np.isfinite(parts)])) if used else math.nan
            low, high, how = _interval(estimate, used, metric_name, estimator, n_patients, seed)
            out.append(
                {
                    "endpoint": endpoint,
                    "class": name,
                    "metric": metric_name,
                    "estimator": estimator,
                    "estimate": _or_null(estimate),
                    "fold_sd": _or_null(float(defined.std(ddof=1)))
                    if estimator == "fold_mean" and len(defined) > 1
                    else None,
                    "ci_low": _or_null(low),
                    "ci_high": _or_null(high),
                    "interval": f"{how}; {CONDITIONAL}" if math.isfinite(low) else "not defined",
                    "n": len(members[0].truth) if len(members) == 1 else None,
                    "n_positive": int(members[0].truth.sum()) if len(members) == 1 else None,
                    "n_patients": len(np.unique(np.concatenate([member.patients for member in members]))),
                    "folds_defined": len(defined),
                }
            )
    return out


def _estimate(member: _Scores, metric: Metric, estimator: str) -> float:
    if estimator == "pooled":
        return plain(metric, member.truth, member.pooled) if len(member.truth) else math.nan
    values = member.fold_values(metric)
    return float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan


def _interval(
    estimate: float, members: Sequence[_Scores], metric_name: str, estimator: str, n_patients: int, seed: int
) -> tuple[float, float, str]:
    """(low, high, method): DeLong on the logit scale for one AUROC, else the bootstrap over patients (BCa)."""
    if not members:
        return math.nan, math.nan, ""
    metric = METRICS[metric_name]
    one = members[0]
    several_rows = any(len(np.unique(member.patients)) < len(member.patients) for member in members)
    scored_once = bool((np.isfinite(one.fold_scores).sum(axis=0) == 1).all())
    if len(members) == 1 and metric_name == "auroc" and (estimator == "pooled" or scored_once):
        if estimator == "pooled":
            variance = clustered_auroc(one.truth, one.pooled, one.patients)[1]
        else:  # folds share no patient: the variance of the mean is the sum of theirs over F squared
            variances = []
            for scores in one.fold_scores:
                rows = np.isfinite(scores)
                auc, of_fold = clustered_auroc(one.truth[rows], scores[rows], one.patients[rows])
                if math.isfinite(auc):
                    variances.append(of_fold)
            variance = float(np.sum(variances)) / len(variances) ** 2
        low, high = logit_interval(estimate, variance)
        if math.isfinite(low):
            return low, high, "clustered DeLong, logit" if several_rows else "DeLong, logit"
    everyone = np.arange(n_patients)

    def statistic(weights: Floats) -> Floats:
        """Of (R, P) weights of all patients, so that all members see the same draws."""
        values = [member.weighted(metric, estimator, weights[:, member.patients]) for member in members]
        return _mean_defined(np.stack(values))

    drawn, left_out = resample(statistic, everyone, seed)
    low, high = bca_interval(estimate, drawn, left_out)
    return low, high, "bootstrap over patients, BCa"


def _mean_defined(values: Floats) -> Floats:
    """Mean over the first axis of what is defined; nan where nothing is."""
    defined = np.isfinite(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
