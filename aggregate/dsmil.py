"""DSMIL's two streams (Li, Li, Eliceiri, CVPR 2021, section 3.2), without its pyramid of magnifications.

    c_k  = W0 x_k + b                          instance stream, one score an output
    m_o  = argmax_k c_ko                       the critical instance of output o
    q_k  = tanh(Q2 relu(Q1 x_k))               queries
    a_ko = softmax over the bag of q_k·q_(m_o) / sqrt(width of q)
    z_o  = Σ_k a_ko x_k                        (n_out, d)
    logits = (max_k c_k + W z + b') / 2        W reads the z of all outputs

The form is that of the authors' code (values are the features themselves, scores over the root of the width). Trained
on the mean of both streams, which is what predicts; the authors' code averages two losses instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aggregate.aggregator import Aggregator
from aggregate.heads import LinearHead
from aggregate.packed import segments

QUERY_WIDTH = 128


class DSMIL(Aggregator):
    """Attention of an instance: a_ko averaged over the outputs. Dropout acts on the z, the same features of each."""

    def __init__(self, dim: int, n_out: int, dropout: float = 0.0) -> None:
        super().__init__(dim, dropout, kept=dim)
        self.instance = nn.Linear(dim, n_out)
        self.query_hidden = nn.Linear(dim, QUERY_WIDTH)
        self.query = nn.Linear(QUERY_WIDTH, QUERY_WIDTH)
        self.head = LinearHead(n_out * dim, n_out)

    def _streams(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(highest instance scores (B, n_out), z (B, n_out, d), attention (ΣK, n_out))."""
        scores = self.instance(rows)
        queries = self.query(self.query_hidden(rows).relu()).tanh() / math.sqrt(math.sqrt(QUERY_WIDTH))
        highest, pooled, attention = [], [], []
        for score, query, piece in zip(*(segments(each, offsets) for each in (scores, queries, rows)), strict=True):
            top, critical = score.max(0)
            weights = (query @ query[critical].t()).softmax(0)
            highest.append(top)
            pooled.append(weights.t() @ piece)
            attention.append(weights)
        return torch.stack(highest), torch.stack(pooled), torch.cat(attention)

    def _logits(self, highest: Tensor, pooled: Tensor, keep: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head((pooled if keep is None else pooled * keep[:, None]).flatten(1))
        return (highest + logits) / 2

    def logits_of_prepared(self, rows: Tensor, offsets: Tensor, keep: Tensor | None = None) -> Tensor:
        highest, pooled, _ = self._streams(rows, offsets)
        return self._logits(highest, pooled, keep)

    def forward(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        highest, pooled, attention = self._streams(self.standardised(rows), offsets)
        return self._logits(highest, pooled), attention.mean(1)
