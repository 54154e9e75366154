"""Fitting: alone with its seed, blind to what will be scored, stopped by the inner split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aggregate.aggregators import build_aggregator, predict
from aggregate.fit import Fitted, Plan, Truth, draw_epoch, fit, run_epoch, training_precision
from aggregate.packed import PackedRows
from aggregate.targets import Targets
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tasks import PRESETS, Preset

QUICK = Preset("quick", lr=1e-3, batch=8, epochs=6, patience=3)


def cohort(n: int = 24, dim: int = 6, seed: int = 0) -> tuple[PackedRows, Targets]:
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 2
    bags = [rng.standard_normal((int(rng.integers(3, 9)), dim)) + 0.8 * code for code in codes]
    targets = Targets((Endpoint("y", "binary", ("0", "1")),), codes[:, None].astype(float))
    return PackedRows.of([bag.astype(np.float32) for bag in bags]), targets


def fitted(source: PackedRows, targets: Targets, preset: Preset = QUICK, name: str = "abmil", seed: int = 0) -> Fitted:
    train, inner = np.arange(0, 14), np.arange(14, 18)
    return fit(source, targets, train, inner, lambda *a: build_aggregator(name, *a), preset, (seed,))


@pytest.mark.parametrize("name", ["abmil", "mean"])
def test_the_same_seed_gives_the_same_model_and_another_seed_another(name: str) -> None:
    source, targets = cohort()
    first, again, other = (fitted(source, targets, name=name, seed=s) for s in (0, 0, 1))
    assert first.history == again.history
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    assert not torch.equal(first.model.project.weight, other.model.project.weight)


def test_torchs_global_state_is_neither_used_nor_changed() -> None:
    source, targets = cohort()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = fitted(source, targets)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert fitted(source, targets).history == first.history


def test_bags_that_will_be_scored_do_not_reach_the_fit() -> None:
    source, targets = cohort()
    first = fitted(source, targets)
    codes = targets.codes.copy()
    codes[18:] = 1 - codes[18:]
    bags = [source.take([i])[0].numpy() for i in range(len(source))]
    bags[18:] = [bag * 1000 - 7 for bag in bags[18:]]
    changed = fitted(PackedRows.of(bags), Targets(targets.endpoints, codes))
    assert changed.history == first.history
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, changed.model.state_dict()[key])


def test_inner_bags_stop_but_do_not_teach() -> None:
    source, targets = cohort()
    codes = targets.codes.copy()
    codes[14:18] = 1 - codes[14:18]
    first, changed = fitted(source, targets), fitted(source, Targets(targets.endpoints, codes))
    pairs = list(zip(first.history, changed.history, strict=False))  # they may stop at different epochs
    assert pairs
    assert all(a["train_loss"] == b["train_loss"] for a, b in pairs)
    assert all(a["inner_loss"] != b["inner_loss"] for a, b in pairs)


def test_the_weights_are_those_of_the_best_epoch_and_not_of_the_last() -> None:
    source, targets = cohort()
    overfitting = Preset("hot", lr=3e-2, batch=4, epochs=25, patience=25, dropout=0.0)
    whole = fitted(source, targets, overfitting)
    assert whole.best_epoch < 25
    stopped = fitted(
        source, targets, Preset("hot", lr=3e-2, batch=4, epochs=whole.best_epoch, patience=25, dropout=0.0)
    )
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, stopped.model.state_dict()[key])


def test_training_stops_after_patience_but_not_before_the_least_steps() -> None:
    source, targets = cohort()
    plain = Preset("p", lr=5e-2, batch=8, epochs=400, patience=2, dropout=0.0)
    early = fitted(source, targets, plain)
    assert len(early.history) == early.best_epoch + 2
    late = fitted(source, targets, Preset("p", lr=5e-2, batch=8, epochs=400, patience=2, dropout=0.0, min_steps=60))
    assert late.steps >= 60 > early.steps


def test_a_set_that_both_trains_and_stops_is_refused() -> None:
    source, targets = cohort()
    with pytest.raises(ValueError, match="both trains and stops"):
        fit(source, targets, np.arange(5), np.arange(4, 8), lambda *a: build_aggregator("mean", *a), QUICK, (0,))


@pytest.mark.parametrize("name", ["abmil", "gated-abmil"])
def test_bfloat16_gives_the_losses_of_float32_where_features_hardly_vary(name: str) -> None:
    """In float16 around 100, whose neighbours are 1/16 apart, with a deviation of 1/2: rounded only once centred."""
    rng = np.random.default_rng(0)
    codes = np.arange(60) % 2
    bags = [(rng.standard_normal((int(rng.integers(20, 60)), 32)) + 0.2 * y) / 2 + 100 for y in codes]
    source = PackedRows.of([bag.astype(np.float16) for bag in bags])
    targets = Targets((Endpoint("y", "binary", ("0", "1")),), codes[:, None].astype(float))
    losses = []
    for precision in ("float32", "bfloat16"):
        result = fit(
            source,
            targets,
            np.arange(40),
            np.arange(40, 60),
            lambda *a: build_aggregator(name, *a),
            Preset("quick", lr=1e-3, batch=16, epochs=6, patience=6),
            (0,),
            precision=precision,
        )
        losses.append([[row["train_loss"], row["inner_loss"]] for row in result.history])
    assert losses[0][-1][0] < losses[0][0][0] - 0.05
    np.testing.assert_allclose(losses[1], losses[0], atol=2e-3)


def one_epoch(tile_rows: int, threads: int, dropout: float) -> tuple[float, torch.Tensor]:
    """(loss, projection) after an epoch of plain gradient steps, with so many threads of torch."""
    source, targets = cohort()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        model = build_aggregator("abmil", 6, 1, dropout)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = run_epoch(model, source, Truth.of(targets), np.arange(24), optimiser, 12, tile_rows=tile_rows)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    return loss, model.project.weight.detach()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_small_tiles_make_the_same_step_as_the_whole_batch(dropout: float) -> None:
    (small, one), (whole, other) = one_epoch(1, 1, dropout), one_epoch(10_000, 1, dropout)
    assert small == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    (_, first), *others = (one_epoch(8, threads, 0.5) for threads in (1, 2, 5))
    assert all(torch.equal(weights, first) for _, weights in others)


def test_dropout_keeps_each_value_with_its_chance_and_its_mean() -> None:
    torch.manual_seed(0)
    keep = build_aggregator("mean", 4, 1, 0.25).draw_dropout(400)
    assert keep.shape == (400, 256)
    assert sorted(keep.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert float(keep.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("bags", [8, 30, 64, 100, 400, 1500, 5000])
def test_small_cohorts_make_500_steps_before_they_may_stop_and_large_ones_follow_the_paper(bags: int) -> None:
    plan = Plan.of(PRESETS["adaptive"], bags)
    steps = -(-bags // plan.batch)
    assert plan.min_epochs * steps >= 500
    assert plan.epochs >= plan.min_epochs
    assert 8 <= plan.batch <= 128
    if bags >= 1024:
        assert plan.batch == 128
    assert Plan.of(PRESETS["paper"], bags) == (Plan(128, 32, 0) if bags > 1920 else plan)


def test_a_fit_that_diverges_says_so_and_gives_no_model() -> None:
    source, targets = cohort()
    with pytest.raises(InputError, match=r"diverged in epoch \d+.*smaller --lr"):
        fitted(source, targets, Preset("hot", lr=1e30, batch=8, epochs=5))


def test_an_inner_split_without_an_event_is_no_diverged_training() -> None:
    source, _ = cohort()
    times, events = np.arange(1.0, 25)[:, None], np.ones((24, 1))
    events[14:18] = 0  # those that would end the training
    targets = Targets((Endpoint("os", "survival", event="dead"),), times, events)
    with pytest.raises(InputError, match="none of the 4 bags that end the training has an event"):
        fitted(source, targets)
    events[14], events[:14] = 1, 0
    with pytest.raises(InputError, match="none of 14 survival times ends in an event among the bags that teach"):
        fitted(source, targets)


def test_a_signal_in_the_bags_is_learnt() -> None:
    source, targets = cohort(n=60, seed=3)
    result = fit(
        source,
        targets,
        np.arange(0, 30),
        np.arange(30, 40),
        lambda *a: build_aggregator("abmil", *a),
        Preset("p", lr=1e-3, batch=8, epochs=15, patience=15),
        (0,),
    )
    scores = predict(result.model, source, range(40, 60))[0][:, 0].numpy()
    truth = targets.codes[40:, 0]
    assert scores[truth == 1].min() > scores[truth == 0].mean()
    assert not result.model.training


def test_training_in_bfloat16_follows_float32() -> None:
    source, targets = cohort()
    train, inner = np.arange(0, 14), np.arange(14, 18)
    losses = []
    for precision in ("float32", "bfloat16"):
        model = fit(
            source, targets, train, inner, lambda *a: build_aggregator("abmil", *a), QUICK, (0,), precision=precision
        )
        losses.append([[row["train_loss"], row["inner_loss"]] for row in model.history])
        assert all(value.dtype == torch.float32 for value in model.model.state_dict().values())
    assert losses[0] != losses[1]  # it is really in use
    assert np.allclose(*losses, atol=1e-2)


def test_a_precision_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="expected auto, float32 or bfloat16"):
        training_precision("half", "cpu")
    with pytest.raises(InputError, match="for processors"):
        training_precision("bfloat16", "cuda")
    assert training_precision("auto", "cuda") == "float32"
    assert training_precision("float32", "cpu") == "float32"


def test_a_balanced_epoch_has_as_many_bags_in_equal_shares_of_the_classes() -> None:
    codes = np.array([0.0] * 70 + [1.0] * 20 + [2.0] * 10)[:, None]
    targets = Targets((Endpoint("site", "multiclass", ("a", "b", "c")),), codes)
    train = np.arange(5, 100)  # 65, 20, 10
    chances = targets.balanced_chances(train)
    epochs = [draw_epoch(train, chances, np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(epoch) == len(train) and set(epoch) <= set(train) for epoch in epochs)
    drawn = codes[np.concatenate(epochs), 0]
    for code in range(3):  # 19,000 draws of chance 1/3: four standard errors are 0.014
        assert np.mean(drawn == code) == pytest.approx(1 / 3, abs=0.014)
    once = draw_epoch(train, None, np.random.default_rng(0))
    assert sorted(once) == train.tolist()


def test_a_balanced_fit_draws_only_training_bags_and_only_from_its_own_seed() -> None:
    source, targets = cohort()
    preset = Preset("b", lr=1e-3, batch=8, epochs=4, sampling="balanced")
    first, again, other = (fitted(source, targets, preset, seed=s) for s in (0, 0, 1))
    assert first.history == again.history != other.history
    codes = targets.codes.copy()
    codes[18:] = 1 - codes[18:]
    assert fitted(source, Targets(targets.endpoints, codes), preset).history == first.history
    plain = fitted(source, targets, Preset("b", lr=1e-3, batch=8, epochs=4))
    assert plain.history[0]["train_loss"] != first.history[0]["train_loss"]


def test_the_inner_loss_of_a_balanced_fit_weighs_the_classes() -> None:
    """With half of the training bags negative the weights are 1; with a third positive a positive counts double."""
    source, targets = cohort()
    codes = (np.arange(24) % 3 == 0).astype(float)[:, None]  # of bags 0..11 four positives, eight negatives
    rare = Targets(targets.endpoints, codes)
    train, inner = np.arange(12), np.arange(12, 18)
    preset = Preset("b", lr=1e-9, batch=8, epochs=1, sampling="balanced")
    result = fit(source, rare, train, inner, lambda *a: build_aggregator("abmil", *a), preset, (0,))
    logits = predict(result.model, source, inner)[0][:, 0].double()
    weight = torch.where(torch.as_tensor(codes[inner, 0]) == 1, 2.0, 1.0).double()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.as_tensor(codes[inner, 0]), weight, reduction="mean"
    )
    assert result.history[0]["inner_loss"] == pytest.approx(float(losses), rel=1e-4)
