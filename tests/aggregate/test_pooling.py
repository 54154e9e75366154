"""Pooling without learned attention, against loops over slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aggregate.packed import PackedRows
from aggregate.pooling import MLP, MaxOfLogits, MeanOfLogits, MeanPool
from clear.errors import InputError


@pytest.fixture
def bags() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.standard_normal((k, 6)).astype(np.float32) for k in (5, 1, 9)]


def test_linear_is_the_mean_of_the_slices_own_logits(bags: list[np.ndarray]) -> None:
    model = MeanOfLogits(6, 2)
    model.fit_scale(model.reduce(PackedRows.of(bags)), np.arange(3))
    with torch.no_grad():
        logits, _ = model(*PackedRows.of(bags).take(range(3)))
        for bag, found in zip(bags, logits, strict=True):
            of_slices = [model(*PackedRows.of([row[None]]).take([0]))[0][0] for row in bag]
            torch.testing.assert_close(found, torch.stack(of_slices).mean(0), rtol=1e-5, atol=1e-6)


def test_max_takes_each_output_from_the_slice_where_it_is_highest(bags: list[np.ndarray]) -> None:
    model = MaxOfLogits(6, 3).eval()
    with torch.no_grad():
        logits, attention = model(*PackedRows.of(bags).take(range(3)))
        of_slices = torch.stack([model(*PackedRows.of([row[None]]).take([0]))[0][0] for row in bags[2]])
    torch.testing.assert_close(logits[2], of_slices.amax(0))
    deciding = torch.zeros(9)
    for output in range(3):
        deciding[of_slices[:, output].argmax()] += 1 / 3
    torch.testing.assert_close(attention[6:], deciding)


def test_slices_that_tie_share_the_attention() -> None:
    model = MaxOfLogits(6, 1).eval()
    bag = np.ones((4, 6), np.float32)
    with torch.no_grad():
        assert model(*PackedRows.of([bag]).take([0]))[1].tolist() == [0.25] * 4


def test_mean_sees_nothing_but_the_mean(bags: list[np.ndarray]) -> None:
    model = MeanPool(6, 2).eval()
    with torch.no_grad():
        whole, _ = model(*PackedRows.of([bags[2]]).take([0]))
        alone, _ = model(*PackedRows.of([bags[2].mean(0, keepdims=True)]).take([0]))
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


def test_an_mlp_refuses_bags_of_several_rows_before_training_and_in_use(bags: list[np.ndarray]) -> None:
    model = MLP(6, 1)
    with pytest.raises(InputError, match="--aggregator mlp: a bag has 9 rows; expected one vector a scan"):
        model.reduce(PackedRows.of(bags))
    with pytest.raises(InputError, match="a bag has 5 rows"):
        model(*PackedRows.of(bags).take([0, 1]))


def test_an_mlp_is_what_mean_is_on_single_vectors() -> None:
    mean, mlp = MeanPool(6, 2).eval(), MLP(6, 2).eval()
    mlp.load_state_dict(mean.state_dict())
    source = PackedRows.of([np.random.default_rng(0).standard_normal((1, 6)).astype(np.float32)])
    with torch.no_grad():
        torch.testing.assert_close(mlp(*source.take([0]))[0], mean(*source.take([0]))[0])
