"""Fitting one model: a source of rows, targets, who trains, who stops it.

`fit` knows no files, folds or patients. It gets the numbers of the bags to learn from and of those that may end the
training; the bags that will be scored never reach it. Everything random comes from its seed, and torch's global state
is left as it was found: a fold fitted alone equals the same fold within a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregate.aggregators import Aggregator
from aggregate.packed import TILE_ROWS, RowSource, tiles
from aggregate.targets import Targets, loss_sum
from clear.tasks import Preset

STEPS_AN_EPOCH = 8  # that a small cohort gets at least, where bags allow
SMALLEST_BATCH = 8
_WORTH_THREADS = 100_000  # values in a batch; below, handing work to a second thread costs more than it saves


@dataclass(frozen=True)
class Plan:
    """Batch and epochs of one fit, adapted to the number of training bags."""

    batch: int
    epochs: int
    min_epochs: int

    @classmethod
    def of(cls, preset: Preset, bags: int) -> Plan:
        """The preset's own numbers, or, where it asks for `min_steps`, a smaller batch and more epochs if needed.

        The batch is halved until an epoch has 8 steps (not below 8 bags); stopping may fire once `min_steps` are made;
        twice that many steps are the most.
        """
        if preset.min_steps == 0:
            return cls(preset.batch, preset.epochs, 0)
        batch = preset.batch
        while batch > SMALLEST_BATCH and bags / batch < STEPS_AN_EPOCH:
            batch //= 2
        steps = math.ceil(bags / batch)
        min_epochs = math.ceil(preset.min_steps / steps)
        return cls(batch, max(preset.epochs, 2 * min_epochs), min_epochs)


@dataclass(frozen=True)
class Fitted:
    """model: with its best weights, in eval mode. history: one dict an epoch (epoch, step, train_loss, inner_loss)."""

    model: Aggregator
    history: list[dict[str, Any]]
    best_epoch: int
    steps: int
    plan: Plan


def fit(
    source: RowSource,
    targets: Targets,
    train: NDArray[np.int64],
    inner: NDArray[np.int64],
    build: Callable[[int, int, float], Aggregator],
    preset: Preset,
    seed: Sequence[int],
    *,
    device: str = "cpu",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Fitted:
    """A fresh model fitted on the bags `train`, stopped by the loss on the bags `inner`.

    AdamW at a constant learning rate. The epoch with the lowest inner loss gives the weights, as copies. build: makes
    the model from (d, n_out, dropout). Raises ValueError when the two sets meet.
    """
    if np.intersect1d(train, inner).size:
        raise ValueError("a bag both trains and stops the training")
    plan = Plan.of(preset, len(train))
    sequence = np.random.SeedSequence(list(seed))
    order_rng = np.random.default_rng(sequence.spawn(1)[0])
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), ExitStack() as threads:
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
        model = build(source.dim, targets.n_out, preset.dropout).to(device)
        reduced = model.reduce(source)
        if preset.standardise:
            model.fit_scale(reduced, train)
        prepared = model.prepare(reduced)
        if float(np.median(prepared.lengths)) * plan.batch * source.dim < _WORTH_THREADS:
            threads.enter_context(_one_thread())
        optimiser = torch.optim.AdamW(model.parameters(), lr=preset.lr, weight_decay=preset.weight_decay, fused=True)
        weights = targets.class_weights(train) if preset.class_weights == "balanced" else None
        codes = torch.tensor(targets.codes, dtype=torch.float32, device=device)
        history: list[dict[str, Any]] = []
        best_loss, best_epoch, best = math.inf, 0, _copy(model)
        steps = 0
        for epoch in range(1, plan.epochs + 1):
            order = order_rng.permutation(train)
            train_loss = run_epoch(model, prepared, targets, codes, order, optimiser, plan.batch, weights)
            steps += math.ceil(len(order) / plan.batch)
            inner_loss = mean_loss(model, prepared, targets, codes, inner, weights)
            row = {"epoch": epoch, "step": steps, "train_loss": train_loss, "inner_loss": inner_loss}
            history.append(row)
            if on_epoch is not None:
                on_epoch(row)
            if inner_loss < best_loss:
                best_loss, best_epoch, best = inner_loss, epoch, _copy(model)
            if epoch - best_epoch >= preset.patience and epoch >= plan.min_epochs:
                break
    model.load_state_dict(best)
    model.eval()
    return Fitted(model, history, best_epoch, steps, plan)


def run_epoch(
    model: Aggregator,
    prepared: RowSource,
    targets: Targets,
    codes: Tensor,
    order: NDArray[np.int64],
    optimiser: torch.optim.Optimizer,
    batch: int,
    weights: Sequence[Tensor] | None = None,
    *,
    tile_rows: int = TILE_ROWS,
) -> float:
    """One pass over the bags in this order; returns the mean loss over known labels.

    A batch goes through the model in tiles of about `tile_rows` rows whose gradients add up to the batch's own: the
    step is the same, the activations stay small.
    """
    model.train()
    total, count = 0.0, 0
    for start in range(0, len(order), batch):
        bags = order[start : start + batch]
        known = targets.known(bags)
        if known == 0:
            continue
        optimiser.zero_grad(set_to_none=True)
        for tile in tiles(bags, prepared.lengths, tile_rows):
            rows, offsets = prepared.take(tile)
            logits = model.logits_of_prepared(rows, offsets)
            loss = loss_sum(logits, codes[tile], targets, weights) / known
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) * known
        optimiser.step()
        count += known
    return total / max(count, 1)


def mean_loss(
    model: Aggregator,
    prepared: RowSource,
    targets: Targets,
    codes: Tensor,
    bags: NDArray[np.int64],
    weights: Sequence[Tensor] | None = None,
) -> float:
    """Mean loss over the known labels of these bags, without dropout; nan when none is known."""
    known = targets.known(bags)
    model.eval()
    total = 0.0
    with torch.no_grad():
        for tile in tiles(bags, prepared.lengths, TILE_ROWS):
            rows, offsets = prepared.take(tile)
            total += float(loss_sum(model.logits_of_prepared(rows, offsets), codes[tile], targets, weights))
    return total / known if known else math.nan


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _copy(model: Aggregator) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
