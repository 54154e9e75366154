"""Fitting one model: a source of rows, targets, who trains, who stops it.

`fit` knows no files, folds or patients. It gets the numbers of the bags to learn from and of those that may end the
training; the bags that will be scored never reach it. Everything random comes from its seed, and torch's global state
is left as it was found: a fold fitted alone equals the same fold within a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregate.aggregators import Aggregator
from aggregate.packed import TILE_ROWS, RowSource, tiles
from aggregate.targets import Targets, loss_sum
from aggregate.workers import Workers, workers
from clear.errors import InputError
from clear.frozen import has_native_bfloat16
from clear.tables import some
from clear.tasks import Preset

STEPS_AN_EPOCH = 8  # that a small cohort gets at least, where bags allow
SMALLEST_BATCH = 8


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
        enough = preset.only_if_short and math.ceil(bags / preset.batch) * preset.epochs >= preset.min_steps
        if preset.min_steps == 0 or enough:
            return cls(preset.batch, preset.epochs, 0)
        batch = preset.batch
        while batch > SMALLEST_BATCH and bags / batch < STEPS_AN_EPOCH:
            batch //= 2
        steps = math.ceil(bags / batch)
        min_epochs = math.ceil(preset.min_steps / steps)
        return cls(batch, max(preset.epochs, 2 * min_epochs), min_epochs)


@dataclass(frozen=True)
class Fitted:
    """model: with its best weights, in eval mode. history: one dict an epoch (epoch, step, train_loss, inner_loss).

    scale: (E, 2) mean and standard deviation that quantities were standardised with, for `aggregate.targets.predicted`.
    """

    model: Aggregator
    history: list[dict[str, Any]]
    best_epoch: int
    steps: int
    plan: Plan
    scale: NDArray[np.float64]


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
    precision: str = "float32",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Fitted:
    """A fresh model fitted on the bags `train`, stopped by the loss on the bags `inner`.

    AdamW at a constant learning rate. The epoch with the lowest inner loss gives the weights, as copies. Where class
    weights or sampling are balanced the inner loss weighs the classes, so that what is learnt also says when to stop.
    build: makes the model from (d, n_out, dropout). precision: of the large matrix products, float32 or bfloat16 (see
    `training_precision`). Raises ValueError when the two sets meet, InputError when they tell nothing (see
    `check_teaching`) or the loss diverges.
    """
    if np.intersect1d(train, inner).size:
        raise ValueError("a bag both trains and stops the training")
    check_teaching(targets, train, inner)
    plan = Plan.of(preset, len(train))
    sequence = np.random.SeedSequence(list(seed))
    order_rng = np.random.default_rng(sequence.spawn(1)[0])
    scale = targets.scale(train)
    learnt = targets.scaled(scale)
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), workers(torch.device(device)) as pool:
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
        model = build(source.dim, targets.n_out, preset.dropout).to(device)
        reduced = model.reduce(source)
        if preset.standardise:
            model.fit_scale(reduced, train)
        prepared = model.prepare(reduced, precision)
        optimiser = torch.optim.AdamW(model.parameters(), lr=preset.lr, weight_decay=preset.weight_decay, fused=True)
        balance = targets.class_weights(train)
        weights = balance if preset.class_weights == "balanced" else None
        inner_weights = balance if "balanced" in (preset.class_weights, preset.sampling) else None
        chances = targets.balanced_chances(train) if preset.sampling == "balanced" else None
        truth = Truth.of(learnt, device)
        history: list[dict[str, Any]] = []
        best_loss, best_epoch, best = math.inf, 0, _copy(model)
        steps = 0
        for epoch in range(1, plan.epochs + 1):
            order = draw_epoch(train, chances, order_rng)
            train_loss = run_epoch(model, prepared, truth, order, optimiser, plan.batch, weights, pool=pool)
            steps += math.ceil(len(order) / plan.batch)
            inner_loss = mean_loss(model, prepared, truth, inner, inner_weights, pool)
            row = {"epoch": epoch, "step": steps, "train_loss": train_loss, "inner_loss": inner_loss}
            history.append(row)
            if on_epoch is not None:
                on_epoch(row)
            if not (math.isfinite(train_loss) and math.isfinite(inner_loss)):
                raise InputError(
                    f"training diverged in epoch {epoch}: the loss is no longer a number. Give a smaller --lr "
                    f"(it was {preset.lr:g})"
                )
            if inner_loss < best_loss:
                best_loss, best_epoch, best = inner_loss, epoch, _copy(model)
            if epoch - best_epoch >= preset.patience and epoch >= plan.min_epochs:
                break
    model.load_state_dict(best)
    model.eval()
    return Fitted(model, history, best_epoch, steps, plan, scale)


def check_teaching(targets: Targets, train: NDArray[np.int64], inner: NDArray[np.int64], where: str = "") -> None:
    """Raises InputError when no endpoint can be learnt from the bags `train`, or no loss has a term among `inner`.

    where: put before the sentence, as in "fold 2: ".
    """
    why = targets.nothing_to_learn(train)
    if all(why):
        names = some([endpoint.name for endpoint in targets.endpoints])
        raise InputError(f"{where}{names}: {why[0]} among the bags that teach; there is nothing to learn")
    if not targets.known(inner):
        raise InputError(
            f"{where}none of the {len(inner)} bags that end the training has an event, so nothing says when to stop. "
            "Give fewer --folds, another --seed, or label more patients"
        )


def draw_epoch(
    train: NDArray[np.int64], chances: NDArray[np.float64] | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(n,) the bags of an epoch, in order: each once, or n drawn with replacement by these chances (n,)."""
    return rng.permutation(train) if chances is None else rng.choice(train, size=len(train), p=chances)


@dataclass(frozen=True)
class Truth:
    """Targets on the device: codes and events (B, E) as `aggregate.targets.loss_sum` takes them."""

    targets: Targets
    codes: Tensor
    events: Tensor | None

    @classmethod
    def of(cls, targets: Targets, device: str | torch.device = "cpu") -> Truth:
        """Targets whose quantities are standardised already (`Targets.scaled`)."""

        def on_device(values: NDArray[np.float64]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        return cls(targets, on_device(targets.codes), None if targets.events is None else on_device(targets.events))

    def loss_sum(self, logits: Tensor, bags: Sequence[int], weights: Sequence[Tensor] | None) -> Tensor:
        """The loss of these bags, in the order of the logits' rows, summed over known labels."""
        rows = list(bags)
        return loss_sum(
            logits, self.codes[rows], self.targets, weights, None if self.events is None else self.events[rows]
        )


def training_precision(precision: str, device: str) -> str:
    """`auto` is bfloat16 on a processor that multiplies it natively, else float32 (a GPU has no need of less).

    Raises InputError for another word, and for bfloat16 on a GPU.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"--precision {precision}: expected auto, float32 or bfloat16")
    on_cpu = torch.device(device).type == "cpu"
    if precision == "bfloat16" and not on_cpu:
        raise InputError("--precision bfloat16: training in it is for processors; a GPU trains in float32")
    if precision != "auto":
        return precision
    return "bfloat16" if on_cpu and has_native_bfloat16(torch.device(device)) else "float32"


def run_epoch(
    model: Aggregator,
    prepared: RowSource,
    truth: Truth,
    order: NDArray[np.int64],
    optimiser: torch.optim.Optimizer,
    batch: int,
    weights: Sequence[Tensor] | None = None,
    *,
    tile_rows: int = TILE_ROWS,
    pool: Workers | None = None,
) -> float:
    """One pass over the bags in this order; returns the mean loss over known labels.

    A batch goes through the model in tiles of about `tile_rows` rows whose gradients add up, in order, to the batch's
    own: the step is the same, the activations stay small, and several tiles can be under way at once. A Cox loss needs
    its batch whole, because the batch is the risk set.
    """
    model.train()
    parameters = list(model.parameters())
    total, count = 0.0, 0
    with ExitStack() as stack:
        pool = pool or stack.enter_context(workers(parameters[0].device))
        for start in range(0, len(order), batch):
            bags = order[start : start + batch]
            known = truth.targets.known(bags)
            if known == 0:
                continue
            gradient = _Gradient(model, prepared, truth, weights, known)
            whole = not truth.targets.additive
            pieces = [[int(bag) for bag in bags]] if whole else tiles(bags, prepared.lengths, tile_rows)
            keeps = torch.split(model.draw_dropout(len(bags)), [len(piece) for piece in pieces])
            sums: list[Tensor] = []
            for loss, parts in pool.map(gradient, list(zip(pieces, keeps, strict=True))):
                total += loss * known
                sums = [one.add_(other) for one, other in zip(sums, parts, strict=True)] if sums else list(parts)
            for parameter, value in zip(parameters, sums, strict=True):
                parameter.grad = value
            optimiser.step()
            count += known
    return total / max(count, 1)


@dataclass(frozen=True)
class _Gradient:
    """A tile's share of a batch's loss, and its gradient for each parameter."""

    model: Aggregator
    prepared: RowSource
    truth: Truth
    weights: Sequence[Tensor] | None
    known: int

    def __call__(self, item: tuple[list[int], Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        tile, keep = item
        logits = self.model.logits_of_prepared(*self.prepared.take(tile), keep)
        loss = self.truth.loss_sum(logits, tile, self.weights) / self.known
        return float(loss.detach()), torch.autograd.grad(loss, list(self.model.parameters()))


def mean_loss(
    model: Aggregator,
    prepared: RowSource,
    truth: Truth,
    bags: NDArray[np.int64],
    weights: Sequence[Tensor] | None,
    pool: Workers,
) -> float:
    """Mean loss over the known labels of these bags, without dropout; nan when none is known."""
    known = truth.targets.known(bags)
    if known == 0:
        return math.nan
    model.eval()

    def logits_of(tile: list[int]) -> Tensor:
        with torch.no_grad():  # which holds for the thread that asks for it
            return model.logits_of_prepared(*prepared.take(tile))

    pieces = tiles(bags, prepared.lengths, TILE_ROWS)
    logits = torch.cat(list(pool.map(logits_of, pieces)))
    total = float(truth.loss_sum(logits, [bag for piece in pieces for bag in piece], weights))
    return total / known


def _copy(model: Aggregator) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
