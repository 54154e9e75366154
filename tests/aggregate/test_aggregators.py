"""One battery over all aggregators, and the paper's own numbers for ABMIL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aggregate.aggregators import ABMIL, AGGREGATORS, Aggregator, build_aggregator, from_paper, predict
from aggregate.packed import PackedRows
from clear.errors import InputError

DIM, N_OUT = 12, 3


@pytest.fixture
def bags() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((k, DIM)) * 0.01 + 5).astype(np.float32) for k in (6, 1, 15, 40)]


@pytest.fixture(params=list(AGGREGATORS))
def model(request: pytest.FixtureRequest, bags: list[np.ndarray]) -> Aggregator:
    torch.manual_seed(0)
    built = build_aggregator(request.param, DIM, N_OUT, 0.5)
    source = PackedRows.of(bags)
    built.fit_scale(built.reduce(source), np.arange(len(bags)))
    return built.eval()


def test_a_prediction_does_not_depend_on_the_bags_beside_it(model: Aggregator, bags: list[np.ndarray]) -> None:
    with torch.no_grad():
        together, attention = model(*PackedRows.of(bags).take([0, 1, 2, 3]))
        start = 0
        for number, bag in enumerate(bags):
            alone, weights = model(*PackedRows.of([bag]).take([0]))
            torch.testing.assert_close(together[number], alone[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(attention[start : start + len(bag)], weights, rtol=1e-5, atol=1e-7)
            start += len(bag)


def test_predicting_is_exactly_the_same_for_any_order_of_bags(model: Aggregator, bags: list[np.ndarray]) -> None:
    source = PackedRows.of(bags)
    forward, attention = predict(model, source, [0, 1, 2, 3])
    backward, reversed_attention = predict(model, source, [3, 2, 1, 0])
    assert torch.equal(forward, backward.flip(0))
    assert all(np.array_equal(a, b) for a, b in zip(attention, reversed_attention[::-1], strict=True))


def test_the_order_of_slices_does_not_matter_and_attention_follows_them(
    model: Aggregator, bags: list[np.ndarray]
) -> None:
    order = np.random.default_rng(0).permutation(len(bags[3]))
    with torch.no_grad():
        logits, attention = model(*PackedRows.of([bags[3]]).take([0]))
        shuffled, moved = model(*PackedRows.of([bags[3][order]]).take([0]))
    torch.testing.assert_close(logits, shuffled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention[torch.as_tensor(order)], moved, rtol=1e-4, atol=1e-6)


def test_repeating_every_slice_changes_nothing(model: Aggregator, bags: list[np.ndarray]) -> None:
    with torch.no_grad():
        once, _ = model(*PackedRows.of([bags[2]]).take([0]))
        twice, _ = model(*PackedRows.of([np.repeat(bags[2], 2, axis=0)]).take([0]))
    torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-5)


def test_attention_is_a_share_of_each_bag(model: Aggregator, bags: list[np.ndarray]) -> None:
    for bag, weights in zip(bags, predict(model, PackedRows.of(bags), range(4))[1], strict=True):
        assert weights.shape == (len(bag),)
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1, abs=1e-5)


def test_prepared_rows_give_the_logits_of_raw_rows(model: Aggregator, bags: list[np.ndarray]) -> None:
    source = PackedRows.of(bags)
    with torch.no_grad():
        raw, _ = model(*source.take(range(4)))
        prepared = model.logits_of_prepared(*model.prepare(model.reduce(source)).take(range(4)))
    torch.testing.assert_close(raw, prepared, rtol=1e-3, atol=1e-4)


def test_a_scale_of_the_features_does_not_reach_the_logits(model: Aggregator, bags: list[np.ndarray]) -> None:
    before = predict(model, PackedRows.of(bags), range(4))[0]
    larger = PackedRows.of([bag * 64 for bag in bags])  # a power of two: exact in floating point
    model.fit_scale(model.reduce(larger), np.arange(4))
    torch.testing.assert_close(predict(model, larger, range(4))[0], before, rtol=1e-3, atol=1e-4)


def test_a_feature_that_does_not_vary_has_no_say(model: Aggregator, bags: list[np.ndarray]) -> None:
    constant = [np.concatenate([bag[:, :-1], np.full((len(bag), 1), 7, np.float32)], axis=1) for bag in bags]
    model.fit_scale(model.reduce(PackedRows.of(constant)), np.arange(4))
    before = predict(model, PackedRows.of(constant), range(4))[0]
    elsewhere = [np.concatenate([bag[:, :-1], np.full((len(bag), 1), 9, np.float32)], axis=1) for bag in bags]
    assert torch.equal(predict(model, PackedRows.of(elsewhere), range(4))[0], before)
    assert torch.isfinite(before).all()


def test_an_unknown_aggregator_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="expected one of abmil, mean"):
        build_aggregator("max", 4, 1, 0.5)


def test_abmil_reproduces_the_reference_numbers_for_each_bag_alone_and_together(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "abmil.npz", allow_pickle=False)
    state = {name[3:]: torch.from_numpy(fixture[name]) for name in fixture.files if name.startswith("sd/")}
    model = ABMIL(32, 8)
    model.load_state_dict(from_paper(state))
    source = PackedRows.of([fixture[f"in/bag{i}"] for i in range(3)])
    logits, attention = predict(model, source, [0, 1, 2])
    for i in range(3):
        np.testing.assert_allclose(logits[i].numpy(), fixture[f"out/logits{i}"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(attention[i], fixture[f"out/attention{i}"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        together, _ = model.eval()(*source.take([0, 1, 2]))
    np.testing.assert_allclose(together.numpy(), np.stack([fixture[f"out/logits{i}"] for i in range(3)]), atol=1e-5)
