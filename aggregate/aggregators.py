"""Aggregators: a packed batch of bags to one row of logits a bag, and the attention of each instance.

ABMIL has the shape of the CLEAR paper's model (its state-dict names differ: `PAPER_NAMES`). `mean` is its baseline:
the same layers, but the slices are averaged before them, so that no slice can speak for itself.

Standardising belongs to the model: the training patients' mean and standard deviation are buffers, saved with the
weights, and a model always takes the bag file's own features. It is an affine map before a linear layer, so the
functions a model can be are the same; what it buys is that one learning rate suits encoders whose features differ in
scale by orders of magnitude, or hardly differ between slices at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aggregate.attention import Weights, attention_pool, fused_attention_pool, uniform_attention
from aggregate.packed import RowSource, segment_sum
from aggregate.workers import workers
from clear.errors import InputError

HIDDEN = 256
# names in the released class ABMIL_Classification -> ours
PAPER_NAMES = MappingProxyType(
    {
        "encoder.0": "project",
        "aggregator.0": "attention_hidden",
        "aggregator.2": "attention_score",
        "head.0": "head.norm",
        "head.1": "head.hidden",
        "head.4": "head.out",
    }
)


class Head(nn.Module):
    """LayerNorm, Linear 256 to 256, dropout, SiLU, Linear to n_out: (B, 256) to (B, n_out) logits."""

    def __init__(self, n_out: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.dropout = dropout
        self.out = nn.Linear(HIDDEN, n_out)

    def forward(self, pooled: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: (B, 256) what dropout multiplies by, see `Aggregator.draw_dropout`; nothing is dropped without it."""
        hidden = self.hidden(self.norm(pooled))
        logits: Tensor = self.out(nn.functional.silu(hidden if keep is None else hidden * keep))
        return logits


class Aggregator(nn.Module):
    """A model of bags.

    `forward` takes features as the bag file holds them. Training prepares a whole source once (`prepare`: pooled where
    the model pools first, standardised) and then calls `logits_of_prepared`; both give the same logits.
    """

    head: Head
    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit_scale(self, source: RowSource, bags: NDArray[np.int64]) -> None:
        """Takes mean and standard deviation over the rows of these bags of a reduced source (see `reduce`).

        A feature that varies by an eighth of what float16 resolves (2^-10 of its size) is constant for all we know;
        such a feature becomes 0, so that its rounding noise is not blown up.
        """
        mean, sd = source.moments(bags)
        floor = (mean.abs() * 2.0**-13).clamp_min(1e-8)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(sd > floor, 1 / sd.clamp_min(1e-12), torch.zeros_like(sd)))

    def reduce(self, source: RowSource) -> RowSource:
        """What of a source the standardised part of the model sees: its rows, or one row a bag."""
        return source

    def prepare(self, source: RowSource, precision: str = "float32") -> RowSource:
        """A reduced source, standardised; for `logits_of_prepared`.

        precision: `bfloat16` lets a model whose products are large take them in it while it trains; the rest stays, and
        so do the scores that count (`predict`), in float32.
        """
        return source.scaled(self.mean, self.scale)

    def draw_dropout(self, bags: int) -> Tensor:
        """(bags, 256) what dropout keeps of a batch, from torch's current state: 0, or 1 / (1 - p).

        Drawn for the whole batch, so that neither the size nor the order of the tiles it is worked off in matters.
        """
        p = self.head.dropout
        return torch.empty((bags, HIDDEN), device=self.mean.device).bernoulli_(1 - p).div_(1 - p)

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, n_out) from packed rows of a prepared source; keep: of these bags, from `draw_dropout`, in training."""
        raise NotImplementedError  # each aggregator has its own

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (B, n_out), attention (ΣK,)) from packed features (ΣK, d) and offsets (B + 1,)."""
        raise NotImplementedError


class ABMIL(Aggregator):
    """Linear to 256 + ReLU; attention Linear 256-256, tanh, Linear 256-1, softmax by bag; weighted sum; `Head`."""

    def __init__(self, dim: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__(dim)
        self.project = nn.Linear(dim, HIDDEN)
        self.attention_hidden = nn.Linear(HIDDEN, HIDDEN)
        self.attention_score = nn.Linear(HIDDEN, 1)
        self.head = Head(n_out, dropout)

    def prepare(self, source: RowSource, precision: str = "float32") -> RowSource:
        return source.scaled(self.mean, self.scale, torch.bfloat16 if precision == "bfloat16" else torch.float32)

    def _weights(self) -> Weights:
        layers = (self.project, self.attention_hidden, self.attention_score)
        (a, b), (c, d), (e, f) = ((layer.weight, layer.bias) for layer in layers)
        return a, b, c, d, e, f

    def _pool(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        pool = fused_attention_pool if rows.device.type == "cpu" else attention_pool
        return pool(rows, offsets, self._weights())

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self._pool(rows, offsets)[0], keep)
        return logits

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        pooled, attention = self._pool((rows - self.mean) * self.scale, offsets)
        return self.head(pooled), attention


class MeanPool(Aggregator):
    """The mean of the bag's features, then Linear to 256 + ReLU and `Head`: ABMIL without a say for single slices.

    Mean and standard deviation are those of the training bags' means, so that both models get inputs of unit spread.
    """

    def __init__(self, dim: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__(dim)
        self.project = nn.Linear(dim, HIDDEN)
        self.head = Head(n_out, dropout)

    def reduce(self, source: RowSource) -> RowSource:
        return source.bag_means()

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.project(rows).relu(), keep)
        return logits

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        means = segment_sum(rows.double(), offsets) / offsets.diff()[:, None]
        return self.logits_of_prepared((means.float() - self.mean) * self.scale, offsets), uniform_attention(offsets)


AGGREGATORS: Mapping[str, Callable[[int, int, float], Aggregator]] = MappingProxyType(
    {"abmil": ABMIL, "mean": MeanPool}
)


def build_aggregator(name: str, dim: int, n_out: int, dropout: float) -> Aggregator:
    """A fresh model, its weights drawn from torch's current state; raises InputError listing the known names."""
    if name not in AGGREGATORS:
        raise InputError(f"--aggregator {name}: no such aggregator; expected one of {', '.join(AGGREGATORS)}")
    return AGGREGATORS[name](dim, n_out, dropout)


def from_paper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the released ABMIL_Classification under our names, for features that are not standardised."""
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{PAPER_NAMES[layer]}.{kind}"] = value
    dim = renamed["project.weight"].shape[1]
    return {**renamed, "mean": torch.zeros(dim), "scale": torch.ones(dim)}


def predict(
    model: Aggregator, source: RowSource, bags: Sequence[int] | NDArray[np.int64]
) -> tuple[Tensor, list[NDArray[np.float32]]]:
    """((n, n_out) logits on the CPU, attention (K,) of each bag): one bag at a time, so no bag can touch another."""
    was_training = model.training
    model.eval()

    def of_bag(bag: int) -> tuple[Tensor, NDArray[np.float32]]:
        with torch.no_grad():  # which holds for the thread that asks for it
            logits, attention = model(*source.take([bag]))
        return logits.float().cpu(), attention.float().cpu().numpy()

    with workers(model.mean.device) as pool:
        results = list(pool.map(of_bag, [int(bag) for bag in bags]))
    model.train(was_training)
    return (torch.cat([each[0] for each in results]) if results else torch.empty(0)), [each[1] for each in results]
