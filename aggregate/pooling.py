"""Aggregators without learned attention: mean, linear, max, and an MLP where a scan is one vector anyway.

`mean` is ABMIL's baseline: the same layers, but the slices are averaged before them, so that no slice can speak for
itself. `linear` is logistic (linear) regression on that average, which is the average of the slices' own logits. `max`
classifies every slice and lets the highest logit of each output speak for the scan.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from aggregate.aggregator import Aggregator, linear_of_rows
from aggregate.attention import uniform_attention
from aggregate.heads import HIDDEN, Head, LinearHead
from aggregate.packed import RowSource, segment_of, segment_sum
from clear.errors import InputError


class _OfMeans(Aggregator):
    """A model of the mean of a bag's features.

    Mean and standard deviation are those of the training bags' means, so that the model gets inputs of unit spread.
    """

    returns_attention: ClassVar[bool] = False

    def reduce(self, source: RowSource) -> RowSource:
        return source.bag_means()

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        means = (segment_sum(rows.double(), offsets) / offsets.diff()[:, None]).float()
        return self.logits_of_prepared(self.standardised(means), offsets), uniform_attention(offsets)


class MeanPool(_OfMeans):
    """The mean of the bag's features, then Linear to 256 + ReLU and `Head`: ABMIL without a say for single slices."""

    def __init__(self, dim: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__(dim, dropout)
        self.project = nn.Linear(dim, HIDDEN)
        self.head = Head(n_out)

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.project(rows).relu(), keep)
        return logits


class MeanOfLogits(_OfMeans):
    """logits = mean over the bag of W x_k + b, which is W (mean of x_k) + b: one product a bag.

    It has no hidden layer, so there is nothing that dropout could act on.
    """

    def __init__(self, dim: int, n_out: int, dropout: float = 0.0) -> None:
        super().__init__(dim, dropout, kept=0)
        self.head = LinearHead(dim, n_out)

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(rows)
        return logits


class MaxOfLogits(Aggregator):
    """Instance-level max pooling: Linear to 256 + ReLU, dropout, Linear to n_out for each slice; highest logit counts.

    Each output takes the maximum over the bag on its own. Attention is the share of the outputs that a slice decides
    (slices that tie share one): with a single output, 1 for one slice and 0 for the rest.
    """

    def __init__(self, dim: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__(dim, dropout)
        self.project = nn.Linear(dim, HIDDEN)
        self.head = LinearHead(HIDDEN, n_out)

    def prepare(self, source: RowSource, precision: str = "float32") -> RowSource:
        return source.scaled(self.mean, self.scale, torch.bfloat16 if precision == "bfloat16" else torch.float32)

    def _of_slices(self, rows: Tensor, offsets: Tensor, keep: Tensor | None) -> Tensor:
        hidden = linear_of_rows(rows, self.project).relu()
        scores: Tensor = self.head(hidden, None if keep is None else keep[segment_of(offsets)])
        return scores

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        return torch.segment_reduce(self._of_slices(rows, offsets, keep), "max", offsets=offsets)

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._of_slices(self.standardised(rows), offsets, None)
        logits = torch.segment_reduce(scores, "max", offsets=offsets)
        segment = segment_of(offsets)
        deciding = (scores == logits[segment]).to(scores.dtype)
        return logits, (deciding / segment_sum(deciding, offsets)[segment]).mean(1)


class MLP(Aggregator):
    """For encoders with one vector a scan: Linear to 256 + ReLU and `Head`.

    Raises InputError for a bag of several rows: which of them would speak for the scan is not this model's to say.
    """

    returns_attention: ClassVar[bool] = False
    single_vector: ClassVar[bool] = True

    def __init__(self, dim: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__(dim, dropout)
        self.project = nn.Linear(dim, HIDDEN)
        self.head = Head(n_out)

    def reduce(self, source: RowSource) -> RowSource:
        _check_single(int(source.lengths.max(initial=1)))
        return source

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.project(rows).relu(), keep)
        return logits

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        _check_single(int(offsets.diff().max()))
        return self.logits_of_prepared(self.standardised(rows), offsets), uniform_attention(offsets)


def _check_single(most: int) -> None:
    if most > 1:
        raise InputError(
            f"--aggregator mlp: a bag has {most} rows; expected one vector a scan, as volume encoders give. Bags of "
            "slices, several windows or several scans of a patient need another aggregator; mean is the nearest"
        )
