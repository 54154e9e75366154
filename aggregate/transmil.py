"""TransMIL (Shao et al., NeurIPS 2021, algorithm 2) for bags of the size of a scan.

    h   = relu(W x_k + b)                        (K, 512)
    sequence of ceil(sqrt K)^2 rows: the first rows of the bag once more; class token in front
    t   = t + MultiHead(LN(t))                   8 heads
    t   = PPEG: the rows as a square, plus depthwise 7x7, 5x5 and 3x3 convolutions of it
    t   = t + MultiHead(LN(t));  logits = W LN(class token) + b

Two departures, both for bags of hundreds and not tens of thousands of rows: attention is the exact softmax, which the
paper's Nyström attention with its 256 landmarks approximates, and the convolution of the values that the released
Nyström layer adds is left out with it. The square is the paper's, made for tissue; along a scan it joins a slice to
those beside it and to those one square's side away. Of the last layer only the class token is computed
(`aggregate.query_attention`).

The attention of an instance is the class token's in the last layer, without its own share; a row that fills the square
gives its share to the row that it repeats.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention

from aggregate.aggregator import Aggregator, linear_of_rows
from aggregate.heads import LinearHead
from aggregate.packed import RowSource
from aggregate.query_attention import MultiHead, mix_rows, scores_of_rows

WIDTH, HEADS = 512, 8


class TransMIL(Aggregator):
    """Dropout acts on the class token's feature before the last layer."""

    ordered = True

    def __init__(self, dim: int, n_out: int, dropout: float = 0.0) -> None:
        super().__init__(dim, dropout, kept=WIDTH)
        self.project = nn.Linear(dim, WIDTH)
        self.class_token = nn.Parameter(torch.randn(WIDTH))
        self.norm_first = nn.LayerNorm(WIDTH)
        self.first = MultiHead(WIDTH, HEADS)
        self.around_7 = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)  # its bias serves the sum of all three
        self.around_5 = nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH, bias=False)
        self.around_3 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.norm_last = nn.LayerNorm(WIDTH)
        self.last = MultiHead(WIDTH, HEADS)
        self.norm_out = nn.LayerNorm(WIDTH)
        self.head = LinearHead(WIDTH, n_out)

    def prepare(self, source: RowSource, precision: str = "float32") -> RowSource:
        return source.scaled(self.mean, self.scale, torch.bfloat16 if precision == "bfloat16" else torch.float32)

    def pool(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(class token's feature (B, 512), attention (ΣK,))."""
        h = linear_of_rows(rows, self.project).relu()
        bounds = list(pairwise(offsets.tolist()))
        lengths = [b - a for a, b in bounds]
        sides = [math.isqrt(n - 1) + 1 for n in lengths]
        filled = torch.cat(
            [torch.arange(side**2) % n + a for (a, _), n, side in zip(bounds, lengths, sides, strict=True)]
        )
        filled = filled.to(rows.device)  # the row of each place of each square
        squares = [side**2 for side in sides]
        tokens, slices = self._first_layer(h[filled], squares, rows.dtype)
        slices = self._with_surroundings(slices, sides)
        normed, own = self.norm_last(slices), self.norm_last(tokens)
        square_offsets = torch.tensor([0, *squares], device=rows.device).cumsum(0)
        reach = self.last.reach(self.last.queries(own))
        own_scores = torch.einsum("bd,bhd->bh", own, reach)
        scores = scores_of_rows(normed, square_offsets, reach)
        mixed, attention = mix_rows(normed, square_offsets, scores, own, own_scores)
        of_rows = torch.zeros(len(rows), dtype=attention.dtype, device=rows.device).index_add_(0, filled, attention)
        return self.norm_out(tokens + self.last.values(mixed)), of_rows

    def _first_layer(self, slices: Tensor, squares: list[int], kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """(tokens (B, 512), slices (N, 512)) after the layer that all of them go through, each within its bag."""
        normed = self.norm_first(torch.cat([self.class_token[None], slices]))
        layers = (self.first.query, self.first.key, self.first.value)
        parts = [linear_of_rows(normed.to(kind), layer).view(len(normed), HEADS, -1) for layer in layers]
        token, rest = torch.split(torch.stack(parts), [1, len(slices)], dim=1)
        of_token, of_slices = [], []
        for piece in torch.split(rest, squares, dim=1):
            query, key, value = torch.cat([token, piece], dim=1).transpose(1, 2)[:, None]
            out = scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
            one, others = torch.split(out, [1, len(out) - 1])
            of_token.append(one)
            of_slices.append(others)
        changes = linear_of_rows(torch.cat([*of_token, *of_slices]).to(kind), self.first.out)
        of_tokens, of_rest = torch.split(changes, [len(squares), len(slices)])
        return self.class_token + of_tokens, slices + of_rest

    def _with_surroundings(self, slices: Tensor, sides: list[int]) -> Tensor:
        """PPEG; the three convolutions are one, with the sum of their kernels. Rows are pixels of 512 channels."""
        kernel = self.around_7.weight + pad(self.around_5.weight, [1] * 4) + pad(self.around_3.weight, [2] * 4)
        out = []
        for piece, side in zip(torch.split(slices, [side**2 for side in sides]), sides, strict=True):
            square = piece.view(1, side, side, WIDTH).permute(0, 3, 1, 2)
            around = conv2d(square, kernel, self.around_7.bias, padding=3, groups=WIDTH)
            out.append(piece + around.permute(0, 2, 3, 1).reshape(-1, WIDTH))
        return torch.cat(out)
