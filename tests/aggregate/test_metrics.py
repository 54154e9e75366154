"""Metrics are scikit-learn's, for plain, tied and weighted rows, and absent where they are not defined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    roc_curve,
)

from aggregate.metrics import (
    METRICS,
    OF_ALL_CLASSES,
    auroc,
    average_precision,
    ece,
    f1,
    median_class,
    plain,
    sensitivity_at_specificity,
)
from clear.task import KNOWN_METRICS, METRICS_OF_KIND, metrics_for


def at_half(function):
    return lambda truth, scores, sample_weight=None: function(truth, scores >= 0.5, sample_weight=sample_weight)


def sensitivity(truth, scores, sample_weight=None):
    false, true, _ = roc_curve(truth, scores, sample_weight=sample_weight, drop_intermediate=False)
    return true[false <= 0.1 + 1e-9].max()


SKLEARN = {
    "auroc": roc_auc_score,
    "average_precision": average_precision_score,
    "f1": at_half(f1_score),
    "accuracy": at_half(accuracy_score),
    "balanced_accuracy": at_half(balanced_accuracy_score),
    "kappa": at_half(cohen_kappa_score),
    "brier": brier_score_loss,
    "sensitivity_at_specificity": sensitivity,
}


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_values_equal_scikit_learn_with_ties_and_weights(name: str, levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        n = int(rng.integers(4, 60))
        truth = rng.random(n) < 0.4
        truth[:2] = [True, False]
        scores = rng.integers(0, levels, n) / levels
        scores[0] = 0.75  # something is called, or kappa is 0/0
        weights = rng.integers(0, 4, (5, n)).astype(float)
        weights[:, :2] = 1
        assert plain(METRICS[name], truth, scores) == pytest.approx(SKLEARN[name](truth, scores), abs=1e-12)
        expected = [SKLEARN[name](truth, scores, sample_weight=w) for w in weights]
        np.testing.assert_allclose(METRICS[name](truth, scores, weights), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "kappa"])
@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_metrics_of_several_classes_equal_scikit_learn(name: str, kind: str) -> None:
    functions = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score, "kappa": cohen_kappa_score}
    options = {"weights": "quadratic"} if (kind, name) == ("ordinal", "kappa") else {}
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, scores = rng.integers(0, 4, 50), rng.dirichlet(np.ones(4), 50)
        truth[:4] = range(4)
        weights = rng.integers(0, 4, (5, 50)).astype(float)
        weights[:, :4] = 1
        wanted = [functions[name](truth, scores.argmax(axis=1), sample_weight=w, **options) for w in weights]
        np.testing.assert_allclose(OF_ALL_CLASSES[kind][name](truth, scores, weights), wanted, atol=1e-12)


def test_errors_of_quantities_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, scores = 1e6 + rng.standard_normal(40), 1e6 + rng.standard_normal(40)
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    for name, function in (("mae", mean_absolute_error), ("r2", r2_score)):
        wanted = [function(truth, scores, sample_weight=w) for w in weights]
        np.testing.assert_allclose(METRICS[name](truth, scores, weights), wanted, rtol=1e-8)
    assert np.isnan(plain(METRICS["r2"], np.full(5, 3.0), np.arange(5.0)))
    assert plain(METRICS["mae"], np.full(5, 3.0), np.full(5, 1.0)) == 2


def test_the_rank_error_counts_steps() -> None:
    scores = np.eye(4)[[0, 3, 2]]
    assert plain(OF_ALL_CLASSES["ordinal"]["mae"], np.array([0, 1, 3]), scores) == pytest.approx((0 + 2 + 1) / 3)


def test_an_ordinal_class_is_called_where_the_cumulative_probability_crosses_a_half() -> None:
    scores = np.array([[0.4, 0.2, 0.4], [0.5, 0.1, 0.4], [0.1, 0.1, 0.8], [0.2, 0.3, 0.5]])
    assert median_class(scores).argmax(axis=1).tolist() == [1, 0, 2, 1]  # the most probable would be 0 in the first


def test_the_calibration_error_by_hand() -> None:
    scores = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    truth = np.array([False, True, True, True, False])
    expected = 2 / 5 * abs(0.05 - 0.5) + 3 / 5 * abs((0.95 + 0.95 + 1) / 3 - 2 / 3)
    assert plain(ece, truth, scores) == pytest.approx(expected)
    doubled = ece(np.tile(truth, 2), np.tile(scores, 2), np.ones((1, 10)))
    weighted = ece(truth, scores, np.full((1, 5), 2.0))
    assert doubled[0] == weighted[0] == pytest.approx(expected)


def test_perfectly_calibrated_scores_have_no_calibration_error() -> None:
    scores = np.repeat([0.25, 0.75], 4)
    truth = np.array([True, False, False, False, True, True, True, False])
    assert plain(ece, truth, scores) == 0


@pytest.mark.parametrize("metric", [auroc, average_precision, sensitivity_at_specificity])
def test_one_class_alone_has_no_value(metric) -> None:
    scores = np.array([0.1, 0.5, 0.9])
    for truth in ([True] * 3, [False] * 3):
        assert np.isnan(plain(metric, np.array(truth), scores))
    assert np.isnan(plain(metric, np.array([], dtype=bool), np.array([])))
    drawn = metric(np.array([True, False, False]), scores, np.array([[0.0, 1, 1], [1, 0, 0], [1, 1, 1]]))
    assert np.isnan(drawn).tolist() == [True, True, False]


def test_what_needs_a_class_is_not_defined_without_it() -> None:
    negative = np.zeros(3, dtype=bool)
    scores = np.array([0.1, 0.6, 0.2])
    assert np.isnan(plain(f1, negative, scores))
    assert np.isnan(plain(METRICS["balanced_accuracy"], negative, scores))
    assert np.isnan(plain(METRICS["kappa"], negative, np.zeros(3)))
    assert plain(METRICS["accuracy"], negative, scores) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "kappa", "f1", "brier", "ece", "mae", "r2"])
def test_nothing_to_judge_is_not_defined(name: str) -> None:
    empty = np.array([], dtype=float if name in ("mae", "r2") else bool)
    assert np.isnan(plain(METRICS[name], empty, np.array([])))


def test_a_model_that_says_the_same_of_all_has_half_the_area() -> None:
    assert plain(auroc, np.array([True, False, False]), np.zeros(3)) == 0.5


def test_every_metric_that_a_task_may_ask_for_is_there_for_its_kind() -> None:
    for kind, names in METRICS_OF_KIND.items():
        for name in names:
            assert name in METRICS or name in OF_ALL_CLASSES[kind], (kind, name)
    assert set(KNOWN_METRICS) == set(METRICS)


def test_an_endpoint_has_the_metrics_of_its_kind_or_the_usual_ones() -> None:
    assert metrics_for("binary", ("c_index", "f1", "auroc")) == ("f1", "auroc")
    assert metrics_for("survival", ("auroc",)) == ("c_index",)
    assert metrics_for("regression", ("auroc",)) == ("mae", "r2")


@pytest.mark.parametrize("name", ["auroc", "f1", "ece", "kappa", "sensitivity_at_specificity"])
def test_many_weightings_at_once_equal_one_at_a_time(name: str) -> None:
    rng = np.random.default_rng(0)
    truth, scores, weights = rng.random(30) < 0.5, rng.random(30), rng.integers(0, 3, (600, 30)).astype(float)
    together = METRICS[name](truth, scores, weights)
    alone = np.array([METRICS[name](truth, scores, row[None])[0] for row in weights])
    np.testing.assert_allclose(together, alone, atol=1e-14)


def test_the_multilabel_reference_is_reproduced_with_its_masks(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "delong_reference.npz", allow_pickle=False)
    labels, scores = fixture["in/multilabel_labels"], fixture["in/multilabel_scores"]
    known = np.isfinite(labels)
    assert known.sum(axis=0).tolist() == fixture["out/label_known"].tolist()
    assert (labels == 1).sum(axis=0).tolist() == fixture["out/label_positive"].tolist()
    for name, short in (("auroc", "auc"), ("average_precision", "average_precision")):
        values = [
            plain(METRICS[name], labels[rows, column] == 1, scores[rows, column]) for column, rows in enumerate(known.T)
        ]
        np.testing.assert_allclose(values, fixture[f"f64/label_{short}"], atol=1e-10)
        assert np.nanmean(values) == pytest.approx(float(fixture[f"f64/macro_{short}"]), abs=1e-10)
        micro = plain(METRICS[name], labels[known] == 1, scores[known])
        assert micro == pytest.approx(float(fixture[f"f64/micro_{short}"]), abs=1e-10)
