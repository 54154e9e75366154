"""One battery over all aggregators, and the paper's own numbers for ABMIL."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aggregate.aggregators import (
    ABMIL,
    AGGREGATORS,
    Aggregator,
    aggregator_options,
    build_aggregator,
    check_aggregator,
    from_paper,
    predict,
)
from aggregate.packed import PackedRows, tiles
from clear.errors import InputError

DIM, N_OUT = 12, 3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in AGGREGATORS},
    "ziller, 2 heads": ("ziller", {"heads": 2}),
    "slice-transformer, additive": ("slice-transformer", {"positions": "additive"}),
    "slice-transformer, rotary": ("slice-transformer", {"positions": "rotary", "heads": 3}),
}
# what speaks for a bag is a share of its rows, so that rows given twice change nothing
SHARES = ("abmil", "gated-abmil", "mean", "linear", "max", "ziller", "ziller, 2 heads", "dsmil")
BFLOAT16 = ("abmil", "gated-abmil", "max", "transmil")


def build(case: str, dropout: float = 0.5, dim: int = DIM, n_out: int = N_OUT) -> Aggregator:
    name, options = CASES[case]
    torch.manual_seed(0)
    return build_aggregator(name, dim, n_out, dropout, options)


def draw(lengths: tuple[int, ...], model: Aggregator, seed: int = 1) -> list[np.ndarray]:
    """Bags of features that hardly differ, as encoders give them; of one row each for a model of single vectors."""
    rng = np.random.default_rng(seed)
    sizes = [1 if model.single_vector else k for k in lengths]
    return [(rng.standard_normal((k, DIM)) * 0.01 + 5).astype(np.float32) for k in sizes]


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(case: str) -> Aggregator:
    built = build(case)
    source = PackedRows.of(draw((6, 1, 15, 40), built))
    built.fit_scale(built.reduce(source), np.arange(4))
    return built.eval()


@pytest.fixture
def bags(model: Aggregator) -> list[np.ndarray]:
    return draw((6, 1, 15, 40), model)


def test_a_prediction_does_not_depend_on_the_bags_beside_it(model: Aggregator, bags: list[np.ndarray]) -> None:
    """Neither on ordinary ones nor on one whose features are a thousand times as large, or zero as padding is."""
    width = 1 if model.single_vector else 30
    wild = [(bags[0][:1].repeat(width, 0) - 5) * 1000, np.zeros((width, DIM), np.float32)]
    with torch.no_grad():
        together, attention = model(*PackedRows.of([wild[0], *bags, wild[1]]).take(range(6)))
        start = width
        for number, bag in enumerate(bags):
            alone, weights = model(*PackedRows.of([bag]).take([0]))
            torch.testing.assert_close(together[number + 1], alone[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(attention[start : start + len(bag)], weights, rtol=1e-5, atol=1e-6)
            start += len(bag)


def test_predicting_is_exactly_the_same_for_any_order_of_bags(model: Aggregator, bags: list[np.ndarray]) -> None:
    source = PackedRows.of(bags)
    forward, attention = predict(model, source, [0, 1, 2, 3])
    backward, reversed_attention = predict(model, source, [3, 2, 1, 0])
    assert torch.equal(forward, backward.flip(0))
    assert all(np.array_equal(a, b) for a, b in zip(attention, reversed_attention[::-1], strict=True))


def test_the_order_of_slices_matters_only_to_a_model_that_says_so(model: Aggregator, bags: list[np.ndarray]) -> None:
    order = np.random.default_rng(0).permutation(len(bags[3]))
    with torch.no_grad():
        logits, attention = model(*PackedRows.of([bags[3]]).take([0]))
        shuffled, moved = model(*PackedRows.of([bags[3][order]]).take([0]))
    if model.ordered:
        assert (logits - shuffled).abs().max() > 1e-3
        return
    torch.testing.assert_close(logits, shuffled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention[torch.as_tensor(order)], moved, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", SHARES, indirect=True)
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


def test_attention_of_two_windows_and_two_scans_is_one_share(model: Aggregator, bags: list[np.ndarray]) -> None:
    """A bag may be every second row, or rows from two places of the file."""
    several = [[slice(0, 20, 2)], [slice(1, 6), slice(30, 40)]]
    parts = [[slice(0, 1)], [slice(2, 3)]] if model.single_vector else several
    logits, attention = predict(model, PackedRows(np.concatenate(bags), parts), [0, 1])
    assert [float(weights.sum()) for weights in attention] == pytest.approx([1, 1], abs=1e-5)
    assert torch.isfinite(logits).all()


def test_a_bag_of_one_slice_gives_it_all_attention(model: Aggregator, bags: list[np.ndarray]) -> None:
    logits, attention = predict(model, PackedRows.of(bags), [1])
    assert attention[0].tolist() == pytest.approx([1])
    assert torch.isfinite(logits).all()


def test_only_a_model_with_attention_weighs_slices_differently(model: Aggregator, bags: list[np.ndarray]) -> None:
    spread = float(np.ptp(predict(model, PackedRows.of(bags), [3])[1][0]))
    assert (spread > 1e-4) == model.returns_attention


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


def gradient(model: Aggregator, source: PackedRows, keep: Tensor, limit: int) -> list[Tensor]:
    """Of the sum of squared logits over all bags, worked off in tiles of `limit` rows; every parameter has one."""
    total: list[Tensor] = []
    for tile in tiles(range(4), source.lengths, limit):
        loss = model.logits_of_prepared(*source.take(tile), keep[tile]).square().sum()
        parts = torch.autograd.grad(loss, list(model.parameters()))
        total = [a + b for a, b in zip(total, parts, strict=True)] if total else list(parts)
    return total


def test_tiles_add_up_to_the_gradient_of_the_whole_batch(model: Aggregator, bags: list[np.ndarray]) -> None:
    source = model.prepare(model.reduce(PackedRows.of(bags)))
    torch.manual_seed(3)
    keep = model.draw_dropout(4)
    whole, tiled = (gradient(model, source, keep, limit) for limit in (1000, 1))
    assert all(torch.isfinite(each).all() for each in whole)
    for one, other in zip(whole, tiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()) + 1e-5)


def test_dropout_is_drawn_for_each_bag_and_changes_its_logits_alone(model: Aggregator, bags: list[np.ndarray]) -> None:
    source = model.prepare(model.reduce(PackedRows.of(bags)))
    torch.manual_seed(3)
    keep = model.draw_dropout(4)
    assert keep.shape == (4, model.kept)
    assert set(keep.unique().tolist()) <= {0.0, 2.0}
    if model.kept == 0:  # nothing to drop
        return
    other = keep.clone()
    other[2] = 2 - keep[2]
    with torch.no_grad():
        one, changed = (model.logits_of_prepared(*source.take(range(4)), each) for each in (keep, other))
    differs = (one - changed).abs().amax(1) > 1e-4
    assert differs.tolist() == [False, False, True, False]


def test_every_aggregator_learns_a_planted_signal(case: str) -> None:
    """In positive bags one slice in four carries a direction; cross-entropy on new bags falls well below log 2."""
    model = build(case, dropout=0.0, n_out=1)
    rng = np.random.default_rng(4)
    direction = rng.standard_normal(DIM)
    direction *= 6 / np.linalg.norm(direction)
    truth = np.arange(160) % 2
    bags = []
    for label in truth:
        rows = rng.standard_normal((1 if model.single_vector else int(rng.integers(4, 12)), DIM))
        rows[: (len(rows) + 3) // 4] += label * direction
        bags.append(rng.permutation(rows).astype(np.float32))
    source = PackedRows.of(bags)
    reduced = model.reduce(source)
    model.fit_scale(reduced, np.arange(80))
    prepared = model.prepare(reduced)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    wanted = torch.as_tensor(truth, dtype=torch.float32)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    for _ in range(60):
        optimiser.zero_grad()
        cross_entropy(model.logits_of_prepared(*prepared.take(range(80)))[:, 0], wanted[:80]).backward()
        optimiser.step()
    logits, _ = predict(model, source, range(80, 160))
    assert float(cross_entropy(logits[:, 0], wanted[80:])) < 0.45


@pytest.mark.parametrize("name", AGGREGATORS)
def test_rows_are_prepared_in_bfloat16_where_it_holds(name: str) -> None:
    """Over bags of real size, narrow the loss is float32's to 1e-2, and the gradient in norm to 2 %."""
    torch.manual_seed(0)
    model = build_aggregator(name, 96, 4, 0.0)
    rng = np.random.default_rng(0)
    lengths = (1,) * 8 if model.single_vector else (60, 33, 90, 1, 120, 45, 70, 64)
    source = PackedRows.of([rng.standard_normal((k, 96)).astype(np.float32) for k in lengths])
    reduced = model.reduce(source)
    wanted = torch.as_tensor(rng.integers(0, 2, (8, 4)), dtype=torch.float32)
    found = []
    for precision in ("float32", "bfloat16"):
        prepared = model.prepare(reduced, precision)
        rows, offsets = prepared.take(range(8))
        assert (rows.dtype == torch.bfloat16) == (precision == "bfloat16" and name in BFLOAT16)
        logits = model.logits_of_prepared(rows, offsets)
        assert logits.dtype == torch.float32
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        found.append((loss.detach(), torch.cat([part.flatten() for part in parts])))
    (exact, slope), (rounded, rounded_slope) = found
    assert abs(float(exact - rounded)) < 1e-2
    assert (slope - rounded_slope).norm() < 0.02 * slope.norm()


def test_a_state_dict_brings_a_model_back(case: str, model: Aggregator, bags: list[np.ndarray]) -> None:
    other = build(case)
    other.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    source = PackedRows.of(bags)
    assert torch.equal(predict(other, source, range(4))[0], predict(model, source, range(4))[0])


def test_an_unknown_aggregator_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="--aggregator clam: no such aggregator; expected one of abmil, gated-abmil"):
        build_aggregator("clam", 4, 1, 0.5)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no option 'head'; it has heads, positions"):
        build_aggregator("slice-transformer", 12, 1, 0.5, {"head": 4})
    with pytest.raises(InputError, match="--aggregator abmil: no option 'heads'; it has none"):
        build_aggregator("abmil", 12, 1, 0.5, {"heads": 4})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slice-transformer", {"positions": "learned"}, "positions='learned': expected one of none, additive, rotary"),
        ("slice-transformer", {"heads": 5}, "heads=5: each head takes an equal share"),
        ("slice-transformer", {"heads": 12, "positions": "rotary"}, "heads=12: each head takes an even share"),
        ("ziller", {"heads": "8"}, "heads='8': each head takes"),
        ("ziller", {"heads": 0}, "heads=0: each head takes"),
    ],
)
def test_an_option_that_does_not_fit_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_aggregator(name, 12, 1, 0.5, options)
    with pytest.raises(InputError, match=message):
        check_aggregator(name, options, dim=12)
    check_aggregator(name, options)  # the name is known; only the features' width says more


def test_checking_an_aggregator_leaves_the_generator_as_it_was(case: str) -> None:
    name, options = CASES[case]
    before = torch.random.get_rng_state()
    check_aggregator(name, options, dim=DIM)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_options_are_the_keyword_arguments_with_their_defaults() -> None:
    assert aggregator_options("slice-transformer") == {"heads": None, "positions": "none"}
    assert aggregator_options("mean") == {}


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
        together, weights = model.eval()(*source.take([0, 1, 2]))
    np.testing.assert_allclose(together.numpy(), np.stack([fixture[f"out/logits{i}"] for i in range(3)]), atol=1e-5)
    bounds = np.cumsum([0, *source.lengths]).tolist()
    for i, (start, stop) in enumerate(pairwise(bounds)):
        np.testing.assert_allclose(weights[start:stop].numpy(), fixture[f"out/attention{i}"], atol=1e-5)
