"""Metrics are scikit-learn's, for plain, tied and weighted rows, and absent where they are not defined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from aggregate.metrics import METRICS, auroc, average_precision, plain

SKLEARN = {"auroc": roc_auc_score, "average_precision": average_precision_score}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_values_equal_scikit_learn_with_ties_and_weights(name: str, levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        n = int(rng.integers(4, 60))
        truth = rng.random(n) < 0.4
        truth[:2] = [True, False]
        scores = rng.integers(0, levels, n) / levels
        weights = rng.integers(0, 4, (5, n)).astype(float)
        weights[:, :2] = 1
        assert plain(METRICS[name], truth, scores) == pytest.approx(SKLEARN[name](truth, scores), abs=1e-12)
        expected = [SKLEARN[name](truth, scores, sample_weight=w) for w in weights]
        np.testing.assert_allclose(METRICS[name](truth, scores, weights), expected, atol=1e-12)


@pytest.mark.parametrize("metric", [auroc, average_precision])
def test_one_class_alone_has_no_value(metric) -> None:
    scores = np.array([0.1, 0.5, 0.9])
    for truth in ([True] * 3, [False] * 3):
        assert np.isnan(plain(metric, np.array(truth), scores))
    assert np.isnan(plain(metric, np.array([], dtype=bool), np.array([])))
    drawn = metric(np.array([True, False, False]), scores, np.array([[0.0, 1, 1], [1, 0, 0], [1, 1, 1]]))
    assert np.isnan(drawn).tolist() == [True, True, False]


def test_a_model_that_says_the_same_of_all_has_half_the_area() -> None:
    assert plain(auroc, np.array([True, False, False]), np.zeros(3)) == 0.5


def test_many_weightings_at_once_equal_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    truth, scores, weights = rng.random(30) < 0.5, rng.random(30), rng.integers(0, 3, (600, 30)).astype(float)
    together = auroc(truth, scores, weights)
    alone = np.array([auroc(truth, scores, row[None])[0] for row in weights])
    np.testing.assert_array_equal(together, alone)


def test_the_multilabel_reference_is_reproduced_with_its_masks(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "delong_reference.npz", allow_pickle=False)
    labels, scores = fixture["in/multilabel_labels"], fixture["in/multilabel_scores"]
    for name, key in (("auroc", "f64/label_auc"), ("average_precision", "f64/label_average_precision")):
        values = []
        for column in range(labels.shape[1]):
            known = np.isfinite(labels[:, column])
            values.append(plain(METRICS[name], labels[known, column] == 1, scores[known, column]))
        np.testing.assert_allclose(values, fixture[key], atol=1e-10)
        macro = {"auroc": "f64/macro_auc", "average_precision": "f64/macro_average_precision"}[name]
        assert np.nanmean(values) == pytest.approx(float(fixture[macro]), abs=1e-10)
