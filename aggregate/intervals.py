"""Intervals over patients: DeLong, its clustered form, and the bootstrap.

All of them take scores as given. For cross-validated scores that means: conditional on the models that were fitted;
how the models would differ in another training cohort is not in them (docs/statistics.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from clear.errors import InputError

Floats = NDArray[np.float64]
DRAWS = 1000
GROUPS = 250  # that are left out one at a time to find the skewness of a statistic


def placements(truth: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """((m,) of the positives, (n,) of the negatives): the share of the other class that each beats, ties one half.

    By midranks: Sun and Xu, IEEE Signal Processing Letters 2014, 21(11), 1389-1393.
    """
    positive, negative = scores[truth], scores[~truth]
    together = rankdata(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    of_positive = (together[:m] - rankdata(positive)) / n
    of_negative = 1 - (together[m:] - rankdata(negative)) / m
    return of_positive, of_negative


def delong(truth: NDArray[np.bool_], scores: Floats, patients: NDArray[Any] | None = None) -> tuple[Floats, Floats]:
    """((M,) AUROCs, (M, M) covariance) of M models' scores (M, cases) on the same cases.

    DeLong, DeLong, Clarke-Pearson, Biometrics 1988, 44, 837-845. A class of one case has no covariance: nan.

    patients: (cases,) whose cases they are. The method takes cases for independent, so it raises InputError when a
    patient has several; `clustered_delong` is for those.
    """
    if patients is not None:
        several = len(patients) - len(np.unique(patients))
        if several:
            raise InputError(
                f"DeLong takes one case a patient; {several} of {len(patients)} cases are a patient's second or later. "
                "Use the clustered form (Obuchowski 1997), or average a patient's scans first"
            )
    pairs = [placements(truth, row) for row in scores]
    of_positive = np.stack([pair[0] for pair in pairs])
    of_negative = np.stack([pair[1] for pair in pairs])
    m, n = of_positive.shape[1], of_negative.shape[1]
    if m < 2 or n < 2:
        return of_positive.mean(axis=1), np.full((len(scores), len(scores)), np.nan)
    return of_positive.mean(axis=1), np.atleast_2d(np.cov(of_positive)) / m + np.atleast_2d(np.cov(of_negative)) / n


def paired_test(auc: Floats, covariance: Floats, one: int, other: int) -> tuple[float, float, float]:
    """(z, two-sided p, variance of the difference) of two estimates with their covariance; nan without variance."""
    variance = float(covariance[one, one] + covariance[other, other] - 2 * covariance[one, other])
    if math.isnan(variance):
        return math.nan, math.nan, math.nan
    if not variance > 1e-18:
        return math.nan, math.nan, max(variance, 0.0)
    z = float(auc[one] - auc[other]) / math.sqrt(variance)
    return z, float(2 * norm.sf(abs(z))), variance


def clustered_delong(
    truth: NDArray[np.bool_], scores: Floats, patients: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.float64]]:
    """((M,) AUROCs, (M, M) covariance) of M models' scores (M, cases) when patients may have several cases.

    Obuchowski, Biometrics 1997, 53, 567-578: placements are summed by patient. With one case a patient
    this is DeLong. Covariance nan where a class comes from one patient only, all nan where it is absent.
    """
    models = len(scores)
    if truth.all() or not truth.any():
        return np.full(models, np.nan), np.full((models, models), np.nan)
    pairs = [placements(truth, row) for row in scores]
    auc = np.array([of_positive.mean() for of_positive, _ in pairs])
    numbers, cluster = np.unique(patients, return_inverse=True)
    size = len(numbers)
    with_positive, with_negative = len(np.unique(cluster[truth])), len(np.unique(cluster[~truth]))
    if with_positive < 2 or with_negative < 2:
        return auc, np.full((models, models), np.nan)
    m, n = int(truth.sum()), int((~truth).sum())
    excess_positive, excess_negative = np.empty((models, size)), np.empty((models, size))
    for k, (of_positive, of_negative) in enumerate(pairs):
        excess_positive[k] = np.bincount(cluster[truth], of_positive - auc[k], size)
        excess_negative[k] = np.bincount(cluster[~truth], of_negative - auc[k], size)
    s10 = with_positive / (with_positive - 1) * excess_positive @ excess_positive.T / m
    s01 = with_negative / (with_negative - 1) * excess_negative @ excess_negative.T / n
    s11 = size / (size - 1) * excess_positive @ excess_negative.T
    return auc, np.asarray(s10 / m + s01 / n + (s11 + s11.T) / (m * n))


def clustered_auroc(truth: NDArray[np.bool_], scores: Floats, patients: NDArray[np.int64]) -> tuple[float, float]:
    """(AUROC, its variance) of one model when patients may have several cases; see `clustered_delong`."""
    auc, covariance = clustered_delong(truth, scores[None], patients)
    return float(auc[0]), float(covariance[0, 0])


def wald_interval(estimate: float, variance: float, level: float = 0.95) -> tuple[float, float]:
    """Estimate ± normal quantile x standard error: for differences. nan without a variance."""
    if not (math.isfinite(estimate) and variance > 0):
        return math.nan, math.nan
    half = float(norm.ppf(0.5 + level / 2)) * math.sqrt(variance)
    return estimate - half, estimate + half


def logit_interval(auc: float, variance: float, level: float = 0.95) -> tuple[float, float]:
    """An interval for an AUROC that is symmetric on the logit scale and stays inside 0..1; nan at exactly 0 or 1.

    The standard error is carried over by the delta method: se / (AUC (1 - AUC)).
    """
    if not (0 < auc < 1 and variance >= 0):
        return math.nan, math.nan
    centre = math.log(auc / (1 - auc))
    half = float(norm.ppf(0.5 + level / 2)) * math.sqrt(variance) / (auc * (1 - auc))
    low, high = (1 / (1 + math.exp(-value)) for value in (centre - half, centre + half))
    return low, high


def patient_draws(patients: NDArray[np.int64], seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """(draws, n) how often each row counts when its patients are drawn with replacement; `patients` (n,) are 0..P-1."""
    n_patients = int(patients.max()) + 1
    rng = np.random.default_rng([seed, 20_111])
    counts = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=draws)
    return np.asarray(counts[:, patients], dtype=np.float64)


def leave_one_out(patients: NDArray[np.int64], groups: int = GROUPS) -> NDArray[np.float64]:
    """(P, n) weightings that leave out one patient each; `patients` (n,) are 0..P-1.

    More than `groups` patients are left out a group at a time, every groups-th patient in one: what BCa takes from
    them, the skewness of their influence, is on average the same, and the time no longer grows with P squared.
    """
    size = int(patients.max()) + 1
    return np.asarray(np.arange(min(size, groups))[:, None] != patients[None, :] % groups, dtype=np.float64)


def bca_interval(estimate: float, drawn: Floats, left_out: Floats, level: float = 0.95) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval (Efron, JASA 1987, 82, 171-185).

    drawn: the statistic in each resample; left_out: without each patient; nan where it is not defined. nan when fewer
    than nine in ten resamples define it, or when they all agree.
    """
    if not _enough(estimate, drawn, left_out):
        return math.nan, math.nan
    defined = drawn[np.isfinite(drawn)]
    bias, acceleration = _bias(estimate, defined), _acceleration(left_out)
    quantiles = []
    for z in norm.ppf([(1 - level) / 2, (1 + level) / 2]):
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        quantiles.append(float(norm.cdf(shifted)))
    low, high = np.quantile(defined, quantiles)
    return float(low), float(high)


def bca_p_value(estimate: float, drawn: Floats, left_out: Floats, null: float = 0.0) -> float:
    """Two-sided p: one minus the level of the BCa interval that just reaches `null`; nan where there is no interval.

    With R draws its grain is about 1/R.
    """
    if not _enough(estimate, drawn, left_out):
        return math.nan
    defined = drawn[np.isfinite(drawn)]
    bias, acceleration = _bias(estimate, defined), _acceleration(left_out)
    u = norm.ppf(_share_below(null, defined)) - bias
    z = u / (1 + acceleration * u) - bias
    return float(2 * norm.sf(abs(z)))


def _enough(estimate: float, drawn: Floats, left_out: Floats) -> bool:
    defined = drawn[np.isfinite(drawn)]
    if not math.isfinite(estimate) or len(defined) < 0.9 * len(drawn) or np.isfinite(left_out).sum() < 2:
        return False
    return bool(np.ptp(defined) > 1e-12)


def _share_below(value: float, defined: Floats) -> float:
    """Share of draws below a value, ties one half; half a draw away from 0 and 1 at least."""
    tied = np.abs(defined - value) <= 1e-12
    share = float((np.sum((defined < value) & ~tied) + np.sum(tied) / 2) / len(defined))
    return min(max(share, 0.5 / len(defined)), 1 - 0.5 / len(defined))


def _bias(estimate: float, defined: Floats) -> float:
    return float(norm.ppf(_share_below(estimate, defined)))


def _acceleration(left_out: Floats) -> float:
    jackknife = left_out[np.isfinite(left_out)]
    deviation = jackknife.mean() - jackknife
    spread = float((deviation**2).sum())
    return float((deviation**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0
