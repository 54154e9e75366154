"""Contributions: of a linear answer they add up to it, and only what raised it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aggregate.aggregators import Aggregator, build_aggregator
from aggregate.explain.contribution import contributions
from aggregate.explain.endpoint_gradient import bag_outputs, embedding_gradient
from aggregate.explain.slice_attention import instance_weights

DIM, ROWS = 12, 9


def aggregator(name: str, seed: int = 3) -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_aggregator(name, DIM, 2, 0.0, None).eval()
        model.mean.normal_()
        model.scale.uniform_(0.5, 2)
    return model


def bag(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, DIM)).astype(np.float32)


def output(model: Aggregator, rows: np.ndarray, target: int) -> float:
    with torch.no_grad():
        return float(bag_outputs(model, torch.from_numpy(rows)[None], target)[0])


@pytest.mark.parametrize("target", [0, 1])
def test_of_linear_logits_they_are_shares_of_the_difference_to_a_bag_of_mean_slices(target: int) -> None:
    model, rows = aggregator("linear"), bag()
    neutral = np.tile(model.mean.numpy(), (ROWS, 1))
    alone = []  # what each slice brings, with all others at the mean
    for k in range(ROWS):
        one = neutral.copy()
        one[k] = rows[k]
        alone.append(output(model, one, target) - output(model, neutral, target))
    assert sum(alone) == pytest.approx(output(model, rows, target) - output(model, neutral, target), abs=1e-5)
    raised = np.clip(alone, 0, None)
    assert 0 < (raised > 0).sum() < ROWS
    np.testing.assert_allclose(contributions(model, rows, target), raised / raised.sum(), atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "linear", "abmil"])
def test_they_sum_to_1_and_follow_the_slices(name: str) -> None:
    model, rows = aggregator(name), bag()
    found = contributions(model, rows, 1)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    order = np.random.default_rng(5).permutation(ROWS)
    np.testing.assert_allclose(contributions(model, rows[order], 1), found[order], atol=1e-6)


def test_where_no_slice_raised_the_answer_all_are_alike() -> None:
    model = aggregator("linear")
    slope = embedding_gradient(model, bag(), 0).numpy()
    lowering = model.mean.numpy() - slope  # every slice one step down the slope
    assert contributions(model, lowering, 0).tolist() == pytest.approx([1 / ROWS] * ROWS)
    assert contributions(model, 2 * model.mean.numpy() - lowering, 0).tolist() == pytest.approx([1 / ROWS] * ROWS)


def test_models_of_two_kinds_speak_of_contributions_all_of_them() -> None:
    models = [aggregator("abmil"), aggregator("mean")]
    kind, weights = instance_weights(models, bag(), 1)
    assert kind == "contribution"
    for model, own in zip(models, weights, strict=True):
        np.testing.assert_allclose(own, contributions(model, bag(), 1))
    kind, weights = instance_weights(models[:1], bag(), 1)
    assert kind == "attention"
    assert not np.allclose(weights[0], contributions(models[0], bag(), 1), atol=1e-3)
