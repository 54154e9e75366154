"""What every aggregator is: a model that takes a packed batch of bags and gives one row of logits a bag.

Standardising belongs to the model: the training patients' mean and standard deviation are buffers, saved with the
weights, and a model always takes the bag file's own features. It is an affine map before a linear layer, so the
functions a model can be are the same; what it buys is that one learning rate suits encoders whose features differ in
scale by orders of magnitude, or hardly differ between slices at all.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from aggregate.heads import HIDDEN
from aggregate.packed import RowSource


class Aggregator(nn.Module):
    """A model of bags.

    `forward` takes features as the bag file holds them. Training prepares a whole source once (`prepare`: pooled where
    the model pools first, standardised) and then calls `logits_of_prepared`; both give the same logits. Most models
    are a `pool` of standardised rows and a head.

    returns_attention: the instances' weights are the model's own and worth keeping; without, `forward` gives 1/K.
    single_vector: every bag must have exactly one row.
    ordered: the order of a bag's rows matters.
    """

    returns_attention: ClassVar[bool] = True
    single_vector: ClassVar[bool] = False
    ordered: bool = False
    head: nn.Module
    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, dropout: float, kept: int = HIDDEN) -> None:
        """dropout: probability; kept: width of what it acts on."""
        super().__init__()
        self.dropout = dropout
        self.kept = kept
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
        """(bags, kept) what dropout keeps of a batch, from torch's current state: 0, or 1 / (1 - p).

        Drawn for the whole batch, so that neither the size nor the order of the tiles it is worked off in matters.
        """
        p = self.dropout
        return torch.empty((bags, self.kept), device=self.mean.device).bernoulli_(1 - p).div_(1 - p)

    def pool(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(pooled (B, m), attention (ΣK,)) from packed standardised rows; attention without gradient."""
        raise NotImplementedError  # each aggregator has its own, unless it has its own `forward`

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, n_out) from packed rows of a prepared source; keep: of these bags, from `draw_dropout`, in training."""
        logits: Tensor = self.head(self.pool(rows, offsets)[0], keep)
        return logits

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (B, n_out), attention (ΣK,)) from packed features (ΣK, d) and offsets (B + 1,)."""
        pooled, attention = self.pool(self.standardised(rows), offsets)
        return self.head(pooled), attention

    def standardised(self, rows: Tensor) -> Tensor:
        """(ΣK, d) of features as the bag file holds them."""
        return (rows - self.mean) * self.scale


def linear_of_rows(rows: Tensor, layer: nn.Linear) -> Tensor:
    """The layer over all rows, multiplied in the rows' own precision; the result is in the weights'."""
    bias = None if layer.bias is None else layer.bias.to(rows.dtype)
    product = linear(rows, layer.weight.to(rows.dtype), bias)
    return product.to(layer.weight.dtype)
