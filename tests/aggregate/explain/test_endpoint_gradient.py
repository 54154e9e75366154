"""The gradient of a bag's answer, against differences of the answer itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aggregate.aggregators import AGGREGATORS, Aggregator, build_aggregator
from aggregate.explain.endpoint_gradient import bag_outputs, embedding_gradient

DIM, ROWS, STEP = 24, 9, 1e-5


def aggregator(name: str) -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        options = {"positions": "additive"} if name == "slice-transformer" else None
        model = build_aggregator(name, DIM, 2, 0.0, options).eval()
        model.mean.normal_()
        model.scale.uniform_(0.5, 2)
    return model


def bag(rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, DIM)).astype(np.float32)


@pytest.mark.parametrize("name", list(AGGREGATORS))
@pytest.mark.parametrize("target", [0, 1])
def test_it_is_the_limit_of_differences_for_every_aggregator(name: str, target: int) -> None:
    model, rows = aggregator(name), bag(1 if name == "mlp" else ROWS)
    found = embedding_gradient(model, rows, target).numpy()
    assert found.shape == rows.shape
    assert np.abs(found).max() > 1e-4
    double = aggregator(name).double()
    for direction in np.random.default_rng(1).standard_normal((4, *rows.shape)):
        ends = [answer(double, rows + sign * STEP * direction, target) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * STEP)
        size = np.abs(found * direction).sum()
        assert float((found * direction).sum()) == pytest.approx(difference, abs=1e-3 * size)


def answer(model: Aggregator, rows: np.ndarray, target: int) -> float:
    """In float64, so that differences can be small: the aggregators of means round to float32 on their usual way."""
    bag = torch.from_numpy(rows)
    with torch.no_grad():
        if not model.returns_attention:
            offsets = torch.tensor([0, 1])
            return float(model.logits_of_prepared(model.standardised(bag.mean(0, keepdim=True)), offsets)[0, target])
        return float(bag_outputs(model, bag[None], target)[0])


def test_several_bags_of_one_length_answer_as_each_alone() -> None:
    model = aggregator("abmil")
    bags = torch.from_numpy(np.stack([bag(), bag()[::-1].copy(), 2 * bag()]))
    with torch.no_grad():
        together = bag_outputs(model, bags, 1)
        alone = torch.cat([bag_outputs(model, one[None], 1) for one in bags])
    assert torch.allclose(together, alone, atol=1e-6)


def test_half_precision_features_are_taken_as_they_are() -> None:
    model = aggregator("abmil")
    half = bag().astype(np.float16)
    whole = embedding_gradient(model, half.astype(np.float32), 0)
    assert torch.equal(embedding_gradient(model, half, 0), whole)
    assert all(parameter.grad is None for parameter in model.parameters())
