"""DeLong against its definition and a reference; clusters, logits and the bootstrap against laws they must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from aggregate.intervals import (
    bca_interval,
    clustered_auroc,
    delong,
    delong_test,
    leave_one_out,
    logit_interval,
    patient_draws,
    percentile_interval,
    placements,
    resample,
)
from aggregate.metrics import auroc, plain


def slow_delong(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every positive against every negative, as the definition says."""
    placed = []
    for row in scores:
        difference = row[truth][:, None] - row[~truth][None, :]
        wins = (difference > 0) + 0.5 * (difference == 0)
        placed.append((wins.mean(axis=1), wins.mean(axis=0)))
    m, n = len(placed[0][0]), len(placed[0][1])
    auc = np.array([a.mean() for a, _ in placed])
    covariance = np.empty((len(scores), len(scores)))
    for i, (a, b) in enumerate(placed):
        for j, (c, d) in enumerate(placed):
            s10 = ((a - a.mean()) * (c - c.mean())).sum() / (m - 1)
            s01 = ((b - b.mean()) * (d - d.mean())).sum() / (n - 1)
            covariance[i, j] = s10 / m + s01 / n
    return auc, covariance


@pytest.mark.parametrize("levels", [3, 10, 10**9])
def test_the_fast_delong_equals_the_definition(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(10):
        truth = rng.random(40) < 0.3
        truth[:4] = [True, True, False, False]
        scores = rng.integers(0, levels, (3, 40)) / levels
        for fast, slow in zip(delong(truth, scores), slow_delong(truth, scores), strict=True):
            np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_the_reference_is_reproduced(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "delong_reference.npz", allow_pickle=False)
    truth, scores = fixture["in/labels"] == 1, fixture["in/scores"]
    auc, covariance = delong(truth, scores)
    np.testing.assert_allclose(auc, fixture["f64/auc"], atol=1e-10)
    np.testing.assert_allclose(covariance, fixture["f64/covariance"], atol=1e-10)
    for model, row in enumerate(scores):
        positive, negative = placements(truth, row)
        np.testing.assert_allclose(positive, fixture["f64/placements_positive"][model], atol=1e-10)
        np.testing.assert_allclose(negative, fixture["f64/placements_negative"][model], atol=1e-10)
        interval = logit_interval(auc[model], covariance[model, model])
        np.testing.assert_allclose(interval, fixture["f64/ci95_logit"][model], atol=1e-10)
    for i in range(len(scores)):
        for j in range(len(scores)):
            if i != j:
                z, p, variance = delong_test(truth, scores, i, j)
                np.testing.assert_allclose(z, fixture["f64/z"][i, j], atol=1e-10)
                np.testing.assert_allclose(p, fixture["f64/p"][i, j], atol=1e-10)
                np.testing.assert_allclose(variance, fixture["f64/variance_of_difference"][i, j], atol=1e-10)


def test_with_one_row_a_patient_the_clustered_form_is_delong() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(50) < 0.4, rng.integers(0, 8, 50) / 8
    auc, variance = clustered_auroc(truth, scores, np.arange(50))
    expected_auc, expected = delong(truth, scores[None])
    assert auc == pytest.approx(expected_auc[0], abs=1e-14)
    assert variance == pytest.approx(expected[0, 0], abs=1e-14)


def test_copies_of_a_patients_scan_add_no_certainty() -> None:
    rng = np.random.default_rng(1)
    truth, scores = rng.random(60) < 0.5, rng.random(60)
    once = clustered_auroc(truth, scores, np.arange(60))
    thrice = clustered_auroc(np.tile(truth, 3), np.tile(scores, 3), np.tile(np.arange(60), 3))
    assert thrice[0] == pytest.approx(once[0], abs=1e-12)
    assert thrice[1] == pytest.approx(once[1], rel=1e-10)
    naive = delong(np.tile(truth, 3), np.tile(scores, 3)[None])[1][0, 0]
    assert naive < 0.5 * thrice[1]


def test_the_clustered_variance_agrees_with_a_bootstrap_over_patients() -> None:
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(150), 2)
    truth = rng.random(300) < 0.4
    scores = truth * 0.8 + rng.standard_normal(150)[patients] + 0.3 * rng.standard_normal(300)
    _, variance = clustered_auroc(truth, scores, patients)
    drawn, _ = resample(lambda w: auroc(truth, scores, w), patients, seed=0, draws=2000)
    assert variance == pytest.approx(drawn.var(), rel=0.15)


def test_what_has_no_variance_has_no_interval() -> None:
    truth = np.array([True, False, False])
    assert np.isnan(clustered_auroc(truth, np.array([1.0, 0, 0]), np.arange(3))[1])
    assert np.isnan(clustered_auroc(np.array([True, True]), np.array([1.0, 0]), np.arange(2))[0])
    assert np.isnan(logit_interval(1.0, 0.0)).all()


def test_the_logit_interval_stays_inside_and_is_symmetric_there() -> None:
    low, high = logit_interval(0.95, 0.002)
    assert 0 < low < 0.95 < high < 1
    centre = np.log(0.95 / 0.05)
    assert np.log(high / (1 - high)) - centre == pytest.approx(centre - np.log(low / (1 - low)))


def test_draws_take_whole_patients_and_follow_the_seed() -> None:
    patients = np.array([0, 0, 1, 2, 2])
    weights = patient_draws(patients, seed=3, draws=50)
    assert weights.shape == (50, 5)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert np.array_equal(weights, patient_draws(patients, seed=3, draws=50))
    assert leave_one_out(patients).tolist() == [[0, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 0]]


def test_bca_is_the_percentile_interval_for_a_symmetric_statistic() -> None:
    drawn = norm.ppf((np.arange(4000) + 0.5) / 4000)
    symmetric = np.linspace(-1, 1, 101)
    np.testing.assert_allclose(bca_interval(0.0, drawn, symmetric), percentile_interval(drawn), atol=1e-9)
    np.testing.assert_allclose(percentile_interval(drawn), (-1.96, 1.96), atol=0.01)


def test_the_bootstrap_is_silent_where_it_is_not_defined() -> None:
    some = np.array([0.5, 0.6] * 50)
    assert np.isnan(bca_interval(np.nan, some, some)).all()
    assert np.isnan(bca_interval(1.0, np.ones(100), np.ones(10))).all()
    assert np.isnan(bca_interval(0.5, np.where(np.arange(100) < 20, np.nan, 0.5), some)).all()


@pytest.mark.slow
def test_the_delong_interval_covers_what_it_claims() -> None:
    """2,000 cohorts, n = 200, prevalence 0.3, AUROC 0.8: 95 % intervals cover between 93.5 % and 96.5 %."""
    rng = np.random.default_rng(0)
    shift = np.sqrt(2) * norm.ppf(0.8)
    covered = 0
    for _ in range(2000):
        truth = np.arange(200) < 60
        scores = rng.standard_normal(200) + shift * truth
        auc, variance = clustered_auroc(truth, scores, np.arange(200))
        low, high = logit_interval(auc, variance)
        covered += low <= 0.8 <= high
        assert auc == pytest.approx(plain(auroc, truth, scores), abs=1e-12)
    assert 0.935 <= covered / 2000 <= 0.965
