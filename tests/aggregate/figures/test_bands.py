"""Bands hold what they are bands of, follow the patients, and say what they lack."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.metrics import roc_curve as sklearns

from aggregate.curves import roc_points
from aggregate.figures.bands import (
    GRID,
    Curve,
    calibration_bars,
    mean_curve,
    pr_band,
    pr_curve,
    roc_band,
    roc_curve,
    wilson,
)
from aggregate.intervals import patient_draws

Scores = tuple[np.ndarray, np.ndarray, np.ndarray]
Band = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


def scored(n: int = 240, patients: int = 80, shift: float = 1.0, seed: int = 0) -> Scores:
    """Truth, scores and patients; a patient's scans share the truth."""
    rng = np.random.default_rng(seed)
    whose = np.arange(n) % patients
    truth = (rng.random(patients) < 0.4)[whose]
    return truth, 1 / (1 + np.exp(-rng.normal(size=n) - shift * truth)), whose


def test_a_roc_curve_meets_scikit_learns_at_every_grid_point() -> None:
    truth, scores, whose = scored()
    false, true, _ = sklearns(truth, scores, drop_intermediate=False)
    curve = roc_curve(truth, scores, whose, "a", n=50)
    np.testing.assert_allclose(curve.y, np.interp(GRID, false, true), atol=1e-12)
    np.testing.assert_allclose(curve.y, np.interp(GRID, *roc_points(truth, scores)[:, :2].T), atol=1e-12)
    assert (curve.x[0], curve.x[-1], curve.y[-1]) == (0, 1, 1)


def test_a_pr_curve_gives_the_precision_of_the_highest_threshold_that_reaches_a_recall() -> None:
    truth, scores, whose = scored()
    precision, recall, _ = precision_recall_curve(truth, scores)
    precision, recall = precision[-2::-1], recall[-2::-1]  # descending thresholds, without the invented end
    first = [int(np.flatnonzero(recall >= max(x, 1e-9) - 1e-12)[0]) for x in GRID]
    curve = pr_curve(truth, scores, whose, "a", n=50)
    np.testing.assert_allclose(curve.y, precision[first], atol=1e-12)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(average_precision_score(truth, scores), abs=0.01)


@pytest.mark.parametrize(("band", "curve"), [(roc_band, roc_curve), (pr_band, pr_curve)])
def test_a_band_is_what_a_loop_over_draws_of_patients_gives(band: Band, curve: Callable[..., Curve]) -> None:
    truth, scores, whose = scored(60, 25)
    counts = patient_draws(whose, 3, 400).astype(int)
    drawn = []
    for count in counts:
        rows = np.repeat(np.arange(len(truth)), count)
        drawn.append(curve(truth[rows], scores[rows], rows, "", n=2).y)
    _, low, high = band(truth, scores, whose, n=400, seed=3)
    lower, upper = np.quantile(drawn, [0.025, 0.975], axis=0)
    mean = np.mean(drawn, axis=0)
    np.testing.assert_allclose([np.minimum(lower, mean), np.maximum(upper, mean)], [low, high], atol=1e-12)


@pytest.mark.parametrize(("band", "curve"), [(roc_band, roc_curve), (pr_band, pr_curve)])
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_a_band_holds_the_mean_of_the_draws_and_the_curve(
    band: Band, curve: Callable[..., Curve], shift: float
) -> None:
    truth, scores, whose = scored(shift=shift)
    _, low, high = band(truth, scores, whose, n=200)
    drawn = []
    for count in patient_draws(whose, 0, 200).astype(int):
        rows = np.repeat(np.arange(len(truth)), count)
        drawn.append(curve(truth[rows], scores[rows], rows, "", n=2).y)
    mean, own = np.mean(drawn, axis=0), curve(truth, scores, whose, "", n=2).y
    assert ((low <= mean + 1e-12) & (mean <= high + 1e-12)).all()
    assert ((low <= own + 1e-12) & (own <= high + 1e-12)).all()
    assert (low <= high).all()
    assert ((low >= 0) & (high <= 1)).all()
    assert (high - low).max() > 0.05


@pytest.mark.parametrize("band", [roc_band, pr_band])
def test_perfectly_separated_scores_leave_no_room(band: Band) -> None:
    truth, _, whose = scored()
    _, low, high = band(truth, np.where(truth, 0.9, 0.1), whose)
    assert (low == 1).all()
    assert (high == 1).all()


@pytest.mark.parametrize("band", [roc_band, pr_band])
def test_scanning_every_patient_again_makes_no_band_narrower(band: Band) -> None:
    truth, scores, whose = scored(80, 80)
    once = band(truth, scores, whose, seed=1)
    thrice = band(*(np.tile(v, 3) for v in (truth, scores, whose)), seed=1)
    np.testing.assert_allclose(once, thrice, atol=1e-12)
    as_if_independent = band(*(np.tile(v, 3) for v in (truth, scores)), np.arange(240), seed=1)
    width, narrower = (float((high - low).mean()) for _, low, high in (once, as_if_independent))
    assert narrower < 0.75 * width


def test_patients_may_have_any_names_and_order() -> None:
    truth, scores, whose = scored(60, 20)
    names = np.array([f"<p{99 - p}>" for p in whose], dtype=object)
    by_name = roc_band(truth, scores, names)
    reversed_numbers = roc_band(truth, scores, 19 - whose)
    np.testing.assert_array_equal(by_name, reversed_numbers)


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        (np.ones(5, bool), "all 5 scans are positive"),
        (np.zeros(4, bool), "none of 4 scans is positive"),
        (np.zeros(0, bool), "no scan is scored"),
    ],
)
@pytest.mark.parametrize("curve", [roc_curve, pr_curve])
def test_one_class_alone_gives_a_curve_that_says_so(curve: Callable[..., Curve], truth: np.ndarray, said: str) -> None:
    found = curve(truth, np.linspace(0.1, 0.9, len(truth)), np.arange(len(truth)), "a")
    assert (found.missing, len(found.x), found.low) == (said, 0, None)


def test_rows_without_a_score_take_no_part() -> None:
    truth, scores, whose = scored(60, 20)
    with_holes = np.append(scores, [np.nan, np.nan])
    found = roc_curve(np.append(truth, [True, False]), with_holes, np.append(whose, [90, 91]), "a", n=100)
    np.testing.assert_array_equal(found.y, roc_curve(truth, scores, whose, "a", n=100).y)


def test_a_class_of_one_patient_has_a_curve_but_no_band() -> None:
    truth = np.array([True, True, False, False, False, False])
    found = roc_curve(truth, np.array([0.9, 0.4, 0.5, 0.2, 0.1, 0.3]), np.array([0, 0, 1, 2, 3, 4]), "a")
    assert found.low is not None
    assert np.isnan(found.low).all()
    assert found.y[-1] == 1


def test_wilson_is_the_textbooks() -> None:
    low, high = wilson(np.array([0.3, 0.0, 1.0]), np.array([10.0, 20.0, 20.0]))
    np.testing.assert_allclose(low, [0.1078, 0.0, 0.8389], atol=5e-5)
    np.testing.assert_allclose(high, [0.6032, 0.1611, 1.0], atol=5e-5)
    assert [float(v[0]) for v in wilson(np.array([0.5]), np.array([0.0]))] == [0.0, 1.0]


def test_calibration_counts_every_bag_and_its_bars_hold_the_share() -> None:
    truth, scores, whose = scored()
    bars = calibration_bars(truth, scores, whose, "a")
    assert bars.n.sum() == len(truth)
    assert (bars.positives.sum(), bars.negatives.sum()) == (truth.sum(), (~truth).sum())
    assert ((bars.low <= bars.y) & (bars.y <= bars.high)).all()
    for x, y, n in zip(bars.x, bars.y, bars.n, strict=True):
        rows = (scores * 10).astype(int) == int(x * 10)
        assert (x, y, n) == pytest.approx((scores[rows].mean(), truth[rows].mean(), rows.sum()))


def test_scanning_every_patient_again_makes_no_calibration_bar_shorter() -> None:
    truth, scores, whose = scored(80, 80)
    once = calibration_bars(truth, scores, whose, "a")
    twice = calibration_bars(*(np.tile(v, 2) for v in (truth, scores, whose)), "a")
    np.testing.assert_allclose([once.low, once.high], [twice.low, twice.high])


def test_the_band_of_a_mean_has_the_width_of_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 3)) + np.arange(3)
    curve = mean_curve(values, np.arange(3.0), np.arange(200), "a")
    assert curve.low is not None
    assert curve.high is not None
    np.testing.assert_allclose(curve.y, values.mean(axis=0))
    np.testing.assert_allclose(curve.high - curve.low, 2 * 1.96 * values.std(axis=0) / 200**0.5, rtol=0.1)
    again = mean_curve(np.tile(values, (2, 1)), np.arange(3.0), np.tile(np.arange(200), 2), "a")
    np.testing.assert_allclose([curve.low, curve.high], [again.low, again.high], atol=1e-12)


def test_eight_endpoints_of_five_hundred_scans_take_seconds() -> None:
    start = time.process_time()
    for seed in range(8):
        truth, scores, whose = scored(500, 200, seed=seed)
        roc_curve(truth, scores, whose, "a")
        pr_curve(truth, scores, whose, "a")
        calibration_bars(truth, scores, whose, "a")
    assert time.process_time() - start < 20  # 1.5 s on a core of its own
