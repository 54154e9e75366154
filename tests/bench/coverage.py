"""Coverage: how often a 95 % interval holds what it speaks of, in simulated cohorts.

    python tests/bench/coverage.py [cohorts]

Fixed scores: 200 patients, 60 positive, normal scores with a true AUROC of 0.8. The bootstrap is measured on as many
cohorts as the DeLong interval, so that part takes minutes.

Cross-validated: 200 patients, 60 positive, d normal features of which the classes differ in one direction; a ridge
classifier in five stratified folds, judged by `aggregate.scores.metrics_table` as any run is. Two questions are put to
each interval: does it hold the AUROC that these five models have on infinitely many new patients (known in closed form:
what "conditional on the fitted models" means), and does it hold the mean of that over cohorts, the AUROC of the method
(which the interval does not promise)?
"""

from __future__ import annotations

import sys
import time

import numpy as np
import polars as pl
from scipy.stats import norm

from aggregate.intervals import bca_interval, clustered_auroc, leave_one_out, logit_interval, patient_draws
from aggregate.metrics import auroc, average_precision, plain
from aggregate.predictions import SCHEMA
from aggregate.scores import metrics_table
from clear.endpoints import Endpoint

PATIENTS, POSITIVE, FOLDS, TRUE_AUROC = 200, 60, 5, 0.8
ENDPOINT = Endpoint("y", "binary", ("absent", "present"))
TRUTH = np.arange(PATIENTS) < POSITIVE
FOLD = np.arange(PATIENTS) % FOLDS


def fixed_scores(cohorts: int, seed: int = 0) -> dict[str, float]:
    """Share of cohorts in which each interval holds the true value of fixed scores."""
    rng = np.random.default_rng(seed)
    shift = np.sqrt(2) * norm.ppf(TRUE_AUROC)
    true_ap = _true_average_precision(shift)
    everyone = np.arange(PATIENTS)
    hits: dict[str, list[bool]] = {}
    for cohort in range(cohorts):
        scores = rng.standard_normal(PATIENTS) + shift * TRUTH
        value, variance = clustered_auroc(TRUTH, scores, everyone)
        half = norm.ppf(0.975) * np.sqrt(variance)
        intervals = {
            "AUROC, DeLong on the logit scale": (logit_interval(value, variance), TRUE_AUROC),
            "AUROC, plain DeLong": ((value - half, value + half), TRUE_AUROC),
        }
        for name, metric, true in (("AUROC", auroc, TRUE_AUROC), ("AP", average_precision, true_ap)):
            estimate = plain(metric, TRUTH, scores)
            drawn = metric(TRUTH, scores, patient_draws(everyone, cohort))
            left_out = metric(TRUTH, scores, leave_one_out(everyone))
            intervals[f"{name}, bootstrap BCa"] = bca_interval(estimate, drawn, left_out), true
            intervals[f"{name}, bootstrap percentile"] = np.nanquantile(drawn, [0.025, 0.975]), true
        for name, ((low, high), true) in intervals.items():
            hits.setdefault(name, []).append(bool(low <= true <= high))
    return {name: float(np.mean(each)) for name, each in hits.items()}


def cross_validated(cohorts: int, dim: int, signal: float, seed: int = 0) -> dict[str, float]:
    """Coverage of the cross-validated AUROC's intervals, of the fitted models and of the method; and its mean."""
    rng = np.random.default_rng([seed, dim])
    direction = np.zeros(dim)
    direction[0] = signal
    low, high, fitted = (np.empty((2, cohorts)) for _ in range(3))
    for cohort in range(cohorts):
        x = rng.standard_normal((PATIENTS, dim)) + np.outer(TRUTH, direction)
        models = [_ridge(x[fold != FOLD], TRUTH[fold != FOLD]) for fold in range(FOLDS)]
        scores = np.array([models[f][0] @ row + models[f][1] for f, row in zip(FOLD, x, strict=True)])
        table = metrics_table(_rows(scores), [ENDPOINT], ["auroc"])
        for i, estimator in enumerate(("fold_mean", "pooled")):
            row = table.filter(estimator=estimator).row(0, named=True)
            low[i, cohort], high[i, cohort] = row["ci_low"], row["ci_high"]
        fitted[:, cohort] = _true_fold_mean(models, direction), _true_pooled(models, direction)
    out = {"true AUROC, mean over cohorts": float(fitted[0].mean())}
    for i, estimator in enumerate(("fold_mean", "pooled")):
        method = fitted[i].mean()
        out[f"{estimator}, of the fitted models"] = float(((low[i] <= fitted[i]) & (fitted[i] <= high[i])).mean())
        out[f"{estimator}, of the method"] = float(((low[i] <= method) & (method <= high[i])).mean())
    return out


def _ridge(x: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    centre = x.mean(axis=0)
    weights = np.linalg.solve((x - centre).T @ (x - centre) + 10 * np.eye(x.shape[1]), (x - centre).T @ truth)
    return weights, float(truth.mean() - weights @ centre)


def _true_fold_mean(models: list[tuple[np.ndarray, float]], direction: np.ndarray) -> float:
    return float(np.mean([norm.cdf(w @ direction / np.sqrt(2 * w @ w)) for w, _ in models]))


def _true_pooled(models: list[tuple[np.ndarray, float]], direction: np.ndarray) -> float:
    """A positive scored by model i beats a negative scored by model j, over all pairs of folds."""
    values = [
        norm.cdf((w @ direction + b - c) / np.sqrt(w @ w + v @ v)) for w, b in models for v, c in models
    ]  # folds have the same number of each class
    return float(np.mean(values))


def _true_average_precision(shift: float) -> float:
    """∫ precision d recall for normal scores and this prevalence."""
    share = POSITIVE / PATIENTS
    threshold = np.linspace(-8, 8 + shift, 200_001)
    recall, false = norm.sf(threshold - shift), norm.sf(threshold)
    precision = share * recall / (share * recall + (1 - share) * false)
    return float(-np.trapezoid(precision, recall))


def _rows(scores: np.ndarray) -> pl.DataFrame:
    names = [f"p{i:03d}" for i in range(PATIENTS)]
    columns = {"scan_id": names, "patient_id": names, "fold": FOLD, "y_true": TRUTH.astype(float), "y_score": scores}
    constant = {"endpoint": "y", "class": "present", "repeat": 0, "split": "test", "event": None}
    table = pl.DataFrame(columns).with_columns(pl.lit(value).alias(name) for name, value in constant.items())
    return table.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def main(cohorts: int = 2000) -> None:
    """Print the figures that docs/statistics.md quotes."""
    start = time.monotonic()
    print(f"{cohorts} cohorts of {PATIENTS} patients, {POSITIVE} positive; nominal 95 %")
    for dim, signal in ((10, 1.5), (50, 2.0)):
        for name, value in cross_validated(cohorts, dim, signal).items():
            print(f"cross-validated, {dim} features: {name}: {value:.3f}", flush=True)
    for name, value in fixed_scores(cohorts).items():
        print(f"fixed scores: {name}: {value:.3f}", flush=True)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
