"""DeLong against its definition and a reference; clusters, logits and the bootstrap against laws they must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm, t

from aggregate.intervals import (
    bca_interval,
    bca_p_value,
    clustered_auroc,
    clustered_delong,
    delong,
    leave_one_out,
    logit_interval,
    paired_test,
    patient_draws,
    placements,
    wald_interval,
)
from aggregate.metrics import auroc, plain
from clear.errors import InputError


def resample(statistic, patients: np.ndarray, seed: int, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """((draws,), (P,)) a statistic of (R, n) weightings over bootstrap draws and with each patient left out."""
    return statistic(patient_draws(patients, seed, draws)), statistic(leave_one_out(patients))


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
def test_delong_and_its_test_equal_the_definition_with_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        n = int(rng.integers(8, 60))
        truth = rng.random(n) < 0.3
        truth[:4] = [True, True, False, False]
        scores = rng.integers(0, levels, (3, n)) / levels
        auc, covariance = slow_delong(truth, scores)
        for fast, slow in zip(delong(truth, scores), (auc, covariance), strict=True):
            np.testing.assert_allclose(fast, slow, atol=1e-10)
        for one, other in ((0, 1), (1, 2)):
            variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
            z, p, found = paired_test(*delong(truth, scores), one, other)
            assert found == pytest.approx(variance, abs=1e-10)
            if variance > 1e-12:
                assert z == pytest.approx((auc[one] - auc[other]) / np.sqrt(variance), abs=1e-10)
                assert p == pytest.approx(2 * norm.sf(abs(auc[one] - auc[other]) / np.sqrt(variance)), abs=1e-10)


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
        error = np.sqrt(covariance[model, model])
        assert error == pytest.approx(fixture["f64/standard_error"][model], abs=1e-10)
        if error > 0:
            plain_interval = wald_interval(auc[model], covariance[model, model])
            np.testing.assert_allclose(plain_interval, fixture["f64/ci95"][model], atol=1e-10)
            np.testing.assert_allclose(np.clip(plain_interval, 0, 1), fixture["f64/ci95_clipped"][model], atol=1e-10)
    for i in range(len(scores)):
        for j in range(len(scores)):
            if i != j:
                z, p, variance = paired_test(*delong(truth, scores), i, j)
                np.testing.assert_allclose(z, fixture["f64/z"][i, j], atol=1e-10)
                np.testing.assert_allclose(p, fixture["f64/p"][i, j], atol=1e-10)
                np.testing.assert_allclose(variance, fixture["f64/variance_of_difference"][i, j], atol=1e-10)
                if variance > 0:
                    interval = wald_interval(auc[i] - auc[j], variance)
                    np.testing.assert_allclose(interval, fixture["f64/difference_ci95"][i, j], atol=1e-10)
                if i < j and np.isfinite(z):  # elsewhere pROC reports 0 and 1, or infinity and 0, and we nothing
                    assert z == pytest.approx(fixture["f64/z_R"][i, j], abs=1e-10)
                    assert p == pytest.approx(fixture["f64/p_R"][i, j], abs=1e-10)
                apart = covariance[i, i] + covariance[j, j]
                if i < j and apart > 0:  # pROC's unpaired statistic rests on the same variances
                    statistic = (auc[i] - auc[j]) / np.sqrt(apart)
                    assert statistic == pytest.approx(fixture["f64/unpaired_statistic_R"][i, j], abs=1e-10)
                    own = [covariance[k, k] ** 2 / (len(truth) - 1) for k in (i, j)]
                    df = apart**2 / sum(own)  # Welch's, over all cases
                    assert df == pytest.approx(fixture["f64/unpaired_df_R"][i, j], abs=1e-10)
                    apart_p = 2 * t.sf(abs(statistic), df)
                    assert apart_p == pytest.approx(fixture["f64/unpaired_p_R"][i, j], abs=1e-10)


def test_with_one_row_a_patient_the_clustered_form_is_delong() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(50) < 0.4, rng.integers(0, 8, 50) / 8
    auc, variance = clustered_auroc(truth, scores, np.arange(50))
    expected_auc, expected = delong(truth, scores[None])
    assert auc == pytest.approx(expected_auc[0], abs=1e-14)
    assert variance == pytest.approx(expected[0, 0], abs=1e-14)


def test_with_one_row_a_patient_the_paired_clustered_form_is_paired_delong() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(50) < 0.4, rng.integers(0, 8, (3, 50)) / 8
    for clustered, usual in zip(
        clustered_delong(truth, scores, rng.permutation(50)), delong(truth, scores), strict=True
    ):
        np.testing.assert_allclose(clustered, usual, atol=1e-14)


def test_delong_refuses_several_rows_of_a_patient() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(30) < 0.4, rng.random((2, 30))
    patients = np.repeat(np.arange(15), 2)
    with pytest.raises(InputError, match="one case a patient; 15 of 30 cases are a patient's second or later"):
        delong(truth, scores, patients)
    np.testing.assert_array_equal(delong(truth, scores, np.arange(30))[1], delong(truth, scores)[1])


def test_the_paired_clustered_variance_agrees_with_a_bootstrap_over_patients() -> None:
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(150), 2)
    truth = rng.random(300) < 0.4
    shared = truth * 0.8 + rng.standard_normal(150)[patients]
    scores = np.stack([shared + 0.7 * rng.standard_normal(300), shared + 0.7 * rng.standard_normal(300)])
    auc, covariance = clustered_delong(truth, scores, patients)
    z, p, variance = paired_test(auc, covariance, 0, 1)
    drawn, _ = resample(lambda w: auroc(truth, scores[0], w) - auroc(truth, scores[1], w), patients, seed=0, draws=2000)
    assert variance == pytest.approx(drawn.var(), rel=0.15)
    assert p == pytest.approx(2 * norm.sf(abs(z)))


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


def test_many_patients_are_left_out_in_groups_that_cover_everyone_once() -> None:
    patients = np.repeat(np.arange(7), 2)
    left = leave_one_out(patients, groups=3)
    assert left.shape == (3, 14)
    assert ((1 - left).sum(axis=0) == 1).all()
    assert (left[:, ::2] == left[:, 1::2]).all()


def test_groups_find_about_the_same_interval_as_single_patients() -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(size=2000)
    weights = patient_draws(np.arange(2000), seed=0)

    def mean(w: np.ndarray) -> np.ndarray:
        return w @ values / w.sum(axis=1)

    single, grouped = (leave_one_out(np.arange(2000), groups) for groups in (2000, 250))
    one = bca_interval(values.mean(), mean(weights), mean(single))
    other = bca_interval(values.mean(), mean(weights), mean(grouped))
    assert other == pytest.approx(one, abs=0.1 * (one[1] - one[0]))


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.7, 2.5])
def test_the_p_value_is_the_level_at_which_the_interval_reaches_the_null(shift: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(size=60) - 1 + shift
    drawn, left_out = resample(lambda w: w @ values / w.sum(axis=1), np.arange(60), seed=0, draws=4000)
    p = bca_p_value(values.mean(), drawn, left_out)
    inside = [
        low <= 0 <= high
        for low, high in (bca_interval(values.mean(), drawn, left_out, 1 - a) for a in (0.9 * p, 1.1 * p))
    ]
    if p > 0.01:
        assert inside == [True, False]
    else:
        low, high = bca_interval(values.mean(), drawn, left_out, 0.99)
        assert not low <= 0 <= high


def test_a_difference_of_nothing_has_no_p_value() -> None:
    assert np.isnan(bca_p_value(0.0, np.zeros(100), np.zeros(10)))
    assert np.isnan(paired_test(np.array([0.5, 0.5]), np.zeros((2, 2)), 0, 1)[1])


def test_bca_is_the_percentile_interval_for_a_symmetric_statistic() -> None:
    drawn = norm.ppf((np.arange(4000) + 0.5) / 4000)
    symmetric = np.linspace(-1, 1, 101)
    np.testing.assert_allclose(bca_interval(0.0, drawn, symmetric), np.quantile(drawn, [0.025, 0.975]), atol=1e-9)
    np.testing.assert_allclose(np.quantile(drawn, [0.025, 0.975]), (-1.96, 1.96), atol=0.01)


def test_the_bootstrap_is_silent_where_it_is_not_defined() -> None:
    some = np.array([0.5, 0.6] * 50)
    assert np.isnan(bca_interval(np.nan, some, some)).all()
    assert np.isnan(bca_interval(1.0, np.ones(100), np.ones(10))).all()
    assert np.isnan(bca_interval(0.5, np.where(np.arange(100) < 20, np.nan, 0.5), some)).all()


@pytest.mark.slow
def test_the_default_intervals_cover_what_they_claim() -> None:
    """2,000 cohorts, n = 200, prevalence 0.3, AUROC 0.8: 95 % intervals cover between 93.5 % and 96.5 %.

    Both that clear uses: DeLong on the logit scale, of a single AUROC, and the BCa bootstrap, of all else.
    """
    rng = np.random.default_rng(0)
    shift = np.sqrt(2) * norm.ppf(0.8)
    truth, everyone = np.arange(200) < 60, np.arange(200)
    covered = np.zeros(2)
    for cohort in range(2000):
        scores = rng.standard_normal(200) + shift * truth
        auc, variance = clustered_auroc(truth, scores, everyone)
        drawn, left_out = resample(lambda w, s=scores: auroc(truth, s, w), everyone, cohort)
        intervals = logit_interval(auc, variance), bca_interval(auc, drawn, left_out)
        covered += [low <= 0.8 <= high for low, high in intervals]
        assert auc == pytest.approx(plain(auroc, truth, scores), abs=1e-12)
    assert ((covered / 2000 >= 0.935) & (covered / 2000 <= 0.965)).all(), covered / 2000
