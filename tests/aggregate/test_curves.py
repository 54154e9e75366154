"""Curves from which the same areas follow as from the scores."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from aggregate.curves import SCHEMA, curves_table, roc_points
from aggregate.metrics import auroc, average_precision, plain
from clear.endpoints import Endpoint

A = Endpoint("a", "binary", ("absent", "present"))
AGE = Endpoint("age", "regression")
DEATH = Endpoint("os", "survival", event="dead")
COLUMNS = ["scan_id", "patient_id", "endpoint", "class", "repeat", "fold", "split", "y_true", "event", "y_score"]


def predictions(truth: np.ndarray, scores: np.ndarray, endpoint: Endpoint = A) -> pl.DataFrame:
    rows = [
        (f"s{i:03d}", f"p{i:03d}", endpoint.name, endpoint.score_classes[0], 0, i % 3, "test", float(t), 1, float(s))
        for i, (t, s) in enumerate(zip(truth, scores, strict=True))
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


@pytest.fixture(params=[3, 8, 10**9])
def scored(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(request.param)
    truth = rng.random(80) < 0.4
    return truth, np.clip(rng.integers(0, request.param, 80) / request.param + 0.2 * truth, 0, 1)


def test_the_area_under_the_roc_points_is_the_auroc(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = scored
    points = curves_table(predictions(truth, scores), [A]).filter(curve="roc")
    assert np.trapezoid(points["y"], points["x"]) == pytest.approx(plain(auroc, truth, scores), abs=1e-12)
    assert points.select("x", "y", "threshold", "n").row(0) == (0, 0, None, 0)
    assert points.select("x", "y", "n", "n_positive").row(-1) == (1, 1, 80, truth.sum())
    for x, y, threshold, n in points.select("x", "y", "threshold", "n").rows()[1:]:
        called = scores >= threshold
        assert (x, y, n) == pytest.approx((called[~truth].mean(), called[truth].mean(), called.sum()))


def test_the_roc_points_are_the_corners_of_scikit_learns(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = scored
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    all_points = set(zip(false.round(12), true.round(12), strict=True))
    kept = roc_points(truth, scores)[:, :2]
    assert {(x, y) for x, y in kept.round(12)} <= all_points
    steps = np.diff(kept, axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
    assert (np.abs(turns) > 0).all()  # none of them could be left out


def test_average_precision_follows_from_the_pr_points(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = scored
    points = curves_table(predictions(truth, scores), [A]).filter(curve="pr")
    area = (np.diff(points["x"].to_numpy(), prepend=0) * points["y"].to_numpy()).sum()
    assert area == pytest.approx(plain(average_precision, truth, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert set(zip(points["x"].round(9), points["y"].round(9), strict=True)) <= set(
        zip(recall.round(9), precision.round(9), strict=True)
    )


def test_calibration_bins_count_every_bag_once() -> None:
    scores = np.array([0.0, 0.05, 0.1, 0.95, 1.0, 0.55])
    truth = np.array([False, True, False, True, True, False])
    points = curves_table(predictions(truth, scores), [A]).filter(curve="calibration")
    assert points.select("n", "n_positive").rows() == [(2, 1), (1, 0), (1, 0), (2, 2)]
    assert points["x"].to_list() == pytest.approx([0.025, 0.1, 0.55, 0.975])
    assert points["y"].to_list() == pytest.approx([0.5, 0, 0, 1])


def test_one_class_alone_has_a_calibration_but_no_curve() -> None:
    table = curves_table(predictions(np.zeros(9, dtype=bool), np.linspace(0, 1, 9)), [A])
    assert set(table["curve"]) == {"calibration"}
    assert dict(table.schema) == SCHEMA


def test_a_quantity_is_calibrated_in_ten_groups_and_survival_has_no_curve() -> None:
    values = np.arange(50.0)
    table = curves_table(predictions(values * 2, values, AGE), [AGE])
    assert table["n"].to_list() == [5] * 10
    assert table["y"].to_list() == pytest.approx((2 * table["x"]).to_list())
    assert curves_table(predictions(values, values, DEATH), [DEATH]).height == 0


def test_models_that_scored_the_same_bag_are_averaged_first() -> None:
    truth, scores = np.array([True, False, True, False]), np.array([0.9, 0.2, 0.4, 0.6])
    once = predictions(truth, scores)
    twice = pl.concat(
        [once.with_columns(y_score=pl.col("y_score") + shift, repeat=repeat) for repeat, shift in ((0, 0.1), (1, -0.1))]
    ).with_columns(pl.col("repeat").cast(pl.Int64))
    averaged, expected = curves_table(twice, [A]), curves_table(once, [A])
    np.testing.assert_allclose(averaged["x"].to_numpy(), expected["x"].to_numpy())
    np.testing.assert_allclose(averaged["y"].to_numpy(), expected["y"].to_numpy())
