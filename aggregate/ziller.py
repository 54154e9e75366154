"""Attention pooling of Ziller et al. (Interpretable 2D Vision Models for 3D Medical Images, arXiv:2307.06614).

The mean of the slices asks, the slices answer: one multi-head attention with query mean_k x_k, keys and values x_k; its
output goes through one linear layer. A slice's weight, averaged over the heads, says how much it entered. This is the
form of the paper's released code (TUM-AIMED/2.5DAttention: `nn.MultiheadAttention`, 8 heads, linear classifier).
"""

from __future__ import annotations

import torch
from torch import Tensor

from aggregate.aggregator import Aggregator
from aggregate.heads import LinearHead
from aggregate.packed import segments
from aggregate.query_attention import MultiHead, choose_heads, mix_rows, scores_of_rows

HEADS = 8


class SliceAttentionPool(Aggregator):
    """heads: 8 as released, or the largest number below that divides d. Dropout acts before the last layer."""

    def __init__(self, dim: int, n_out: int, dropout: float = 0.0, *, heads: int | None = None) -> None:
        super().__init__(dim, dropout, kept=dim)
        self.attention = MultiHead(dim, choose_heads(heads, HEADS, dim))
        self.head = LinearHead(dim, n_out)

    def pool(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(attention's output (B, d), its weights (ΣK,))."""
        means = torch.stack([piece.mean(0) for piece in segments(rows, offsets)])
        reach = self.attention.reach(self.attention.queries(means))
        mixed, attention = mix_rows(rows, offsets, scores_of_rows(rows, offsets, reach))
        return self.attention.values(mixed), attention
