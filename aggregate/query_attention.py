"""Multi-head attention of one query a bag over the bag's rows, at a cost that is linear in the rows.

Where only one token of an attention layer is read, neither keys nor values of the rows are needed. For head i with
query q_i, key matrix K_i and value matrix V_i

    q_i·(K_i x_k + c) = (K_i^T q_i)·x_k + q_i·c            the same for all rows but for a constant, which softmax drops
    Σ_k a_ik (V_i x_k + e) = V_i (Σ_k a_ik x_k) + e        the weights sum to one

so a row meets one d-vector a head (`MultiHead.reach`), and the value matrix meets one mixed row a head and bag
(`MultiHead.values`). The numbers are those of `torch.nn.MultiheadAttention`; the work is 4 d heads a row in place of
4 d^2 and more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aggregate.packed import segments
from clear.errors import InputError


class MultiHead(nn.Module):
    """The weights of a multi-head attention, drawn as in `torch.nn.MultiheadAttention`.

    A bias of the keys adds the same to all scores of a query, so there is none unless `key_bias` says that keys are
    changed before they are scored.
    """

    def __init__(self, dim: int, heads: int, *, key_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=key_bias)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        for layer in (self.query, self.key, self.value):  # there one (3 d, d) matrix, hence the gain
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(0.5))
        for bias in (self.query.bias, self.key.bias, self.value.bias, self.out.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def queries(self, tokens: Tensor) -> Tensor:
        """(n, heads, d / heads) queries of (n, d) tokens, over the root of their width."""
        queries: Tensor = self.query(tokens).reshape(len(tokens), self.heads, -1)
        return queries / math.sqrt(queries.shape[-1])

    def keys(self, tokens: Tensor) -> Tensor:
        """(n, heads, d / heads) keys of (n, d) tokens."""
        keys: Tensor = self.key(tokens).reshape(len(tokens), self.heads, -1)
        return keys

    def reach(self, queries: Tensor) -> Tensor:
        """(n, heads, d) what a row is multiplied by to be scored: K_i^T q_i."""
        return torch.einsum("nhi,hid->nhd", queries, self.key.weight.view(self.heads, -1, self.key.in_features))

    def values(self, mixed: Tensor) -> Tensor:
        """(n, d) output for (n, heads, d) rows that each head has mixed."""
        weight = self.value.weight.view(self.heads, -1, self.value.in_features)
        out: Tensor = self.out(torch.einsum("nhd,hid->nhi", mixed, weight).flatten(1) + self.value.bias)
        return out


def scores_of_rows(rows: Tensor, offsets: Tensor, reach: Tensor) -> Tensor:
    """(ΣK, heads) from rows (ΣK, d) and reach (B, heads, d), or (1, heads, d) where all bags ask the same."""
    if len(reach) == 1:
        return rows @ reach[0].t()
    return torch.cat([piece @ each.t() for piece, each in zip(segments(rows, offsets), reach, strict=True)])


def mix_rows(
    rows: Tensor, offsets: Tensor, scores: Tensor, own: Tensor | None = None, own_scores: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mixed rows (B, heads, d), attention (ΣK,)) by the softmax of scores (ΣK, heads) within each bag.

    own (B, d) and own_scores (B, heads): a further row of each bag, the token that asks. Attention is that of the rows
    alone: each head's share summing to one over them, averaged over the heads; without gradient.
    """
    mixed, attention = [], []
    for bag, (piece, score) in enumerate(zip(segments(rows, offsets), segments(scores, offsets), strict=True)):
        attention.append(score.detach().softmax(0).mean(1))
        if own is None or own_scores is None:
            mixed.append(score.softmax(0).t() @ piece)
            continue
        weights = torch.cat([own_scores[bag : bag + 1], score]).softmax(0).t()
        mixed.append(weights[:, 1:] @ piece + weights[:, :1] * own[bag])
    return torch.stack(mixed), torch.cat(attention)


def choose_heads(heads: int | None, wanted: int, dim: int, *, even: bool = False) -> int:
    """`heads` as given, else the largest number up to `wanted` that divides d (with even quotient if `even`).

    Raises InputError where the given number does not divide d, or no number does with an even quotient.

    >>> choose_heads(None, 12, 768), choose_heads(None, 12, 512)
    (12, 8)
    """
    step = 2 if even else 1
    needed = "an even share of the embedding" if even else "an equal share of the embedding"
    if heads is not None:
        if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or dim % (heads * step):
            raise InputError(
                f"aggregator option heads={heads!r}: each head takes {needed}; {dim} values do not give it"
            )
        return heads
    fitting = [n for n in range(1, wanted + 1) if dim % (n * step) == 0]
    if not fitting:
        raise InputError(f"an embedding of {dim} values gives no head {needed}; choose other positions")
    return fitting[-1]
