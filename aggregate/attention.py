"""Attention pooling of packed bags (Ilse, Tomczak, Welling, ICML 2018, eq. 7 and 8).

    h_k = relu(W x_k + b)                     instance projection, (ΣK, m)
    t_k = tanh(V h_k + c)                     (ΣK, l)
    a   = softmax over the bag of w·t_k + e   (ΣK,)
    z   = Σ_k a_k h_k                         (B, m)

`attention_pool` says this in plain differentiable steps. `fused_attention_pool` is the same function with its
gradient written out: nothing is computed or allocated twice, which on a CPU is half of the time. Tests hold the two
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from aggregate.packed import segment_of, segment_softmax, segment_sum

# oneDNN writes code for each shape of a bfloat16 product that it has not met, which takes as long as the product of a
# small tile; rows and bags of a tile are therefore filled up to multiples of these
ROWS, BAGS = 64, 16
GROUP = 64  # bags pooled at once: the shares of `weigh` grow with rows times bags

Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def attention_pool(rows: Tensor, offsets: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """(z (B, m), a (ΣK,)) for rows (ΣK, d) and weights (W (m, d), b (m,), V (l, m), c (l,), w (1, l), e (1,))."""
    project, bias, hidden, hidden_bias, score, score_bias = weights
    h = linear(rows, project, bias).relu()
    scores = linear(linear(h, hidden, hidden_bias).tanh(), score, score_bias).squeeze(1)
    attention = segment_softmax(scores, offsets)
    return segment_sum(attention[:, None] * h, offsets), attention


def fused_attention_pool(rows: Tensor, offsets: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The same as `attention_pool`; the attention is returned without gradient.

    rows: float32 or bfloat16; those after the last bag's belong to none and change nothing.
    """
    return in_groups(_AttentionPool.apply, rows, offsets, weights)


class _AttentionPool(torch.autograd.Function):
    """tanh(u) is taken as 2 sigmoid(2 u) - 1, in a third of tanh's time; its derivative is 1 - tanh(u)².

    Rows in bfloat16 make the matrix products and what is as large as they are bfloat16; everything the size of a bag
    or of a weight (softmax, the sum of tiles' gradients) stays in the weights' own precision. Sums over instances are
    products with ones, which read memory in its order; torch's sum goes down the columns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        offsets: Tensor,
        project: Tensor,
        bias: Tensor,
        hidden: Tensor,
        hidden_bias: Tensor,
        score: Tensor,
        score_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kind, wide = rows.dtype, project.dtype
        h = torch.addmm(bias.to(kind), rows, project.t().to(kind)).relu_()
        t = torch.addmm((2 * hidden_bias).to(kind), h, (2 * hidden.t()).to(kind)).sigmoid_()
        torch.add(t.new_tensor(-1.0), t, alpha=2, out=t)  # before the product: after it two large sums would cancel
        scores = torch.mv(t, score[0].to(kind)).to(wide) + score_bias
        z, attention, shares = weigh(h, scores, offsets)
        ctx.save_for_backward(rows, project, hidden, score, h, t, shares)
        ctx.mark_non_differentiable(attention)
        return z, attention

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, project, hidden, score, h, t, shares = ctx.saved_tensors
        kind, wide = rows.dtype, project.dtype
        d_scores, d_h = weigh_backward(gradients[0], h, shares)
        narrow = d_scores.to(kind)
        d_score = (narrow @ t).to(wide)[None]
        ones = h.new_ones((1, len(h)))
        d_u = torch.ops.aten.tanh_backward(narrow[:, None], t)  # times `gain`, column by column
        gain = score[0]
        d_hidden = gain[:, None] * (d_u.t() @ h).to(wide)
        d_hidden_bias = gain * (ones @ d_u)[0].to(wide)
        d_h.addmm_(d_u, (gain[:, None] * hidden).to(kind))
        torch.ops.aten.threshold_backward.grad_input(d_h, h, 0.0, grad_input=d_h)
        d_project, d_bias = (d_h.t() @ rows).to(wide), (ones @ d_h)[0].to(wide)
        d_rows = d_h @ project.to(kind) if ctx.needs_input_grad[0] else None
        return d_rows, None, d_project, d_bias, d_hidden, d_hidden_bias, d_score, d_scores.sum()[None]


def in_groups(
    pool: Callable[..., tuple[Tensor, Tensor]], rows: Tensor, offsets: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """(z (B, m), attention (ΣK,)) of pool(rows, offsets, *weights), for `GROUP` bags at a time."""
    n_bags = len(offsets) - 1
    if n_bags <= GROUP:
        return pool(rows, offsets, *weights)
    found = []
    for first in range(0, n_bags, GROUP):
        bounds = offsets[first : first + GROUP + 1]
        found.append(pool(rows[bounds[0] : bounds[-1]], bounds - bounds[0], *weights))
    z, attention = zip(*found, strict=True)
    return torch.cat(z), torch.cat(attention)


def weigh(h: Tensor, scores: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z (B, m), attention (ΣK,), shares (B', M)) for h (M, m) and scores (M,); M is ΣK and B' is B, or more.

    shares has a line for each bag: its attention in the bag's own columns, elsewhere 0. That makes softmax, sums over
    the bags and their gradients a few operations for all bags, where a loop would take them for each. A row that is not
    finite would spoil its neighbours (0 x nan), so sources are checked before training (`Cohort.rows`).
    """
    n_bags, own = len(offsets) - 1, segment_of(offsets)
    columns = torch.arange(len(own))
    lines = scores.new_full((n_bags + -n_bags % BAGS, len(h)), torch.finfo(scores.dtype).min)
    lines[own, columns] = scores[: len(own)]
    shares = lines.softmax(1)
    return (shares.to(h.dtype) @ h)[:n_bags].to(scores.dtype), shares[own, columns], shares


def weigh_backward(dz: Tensor, h: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """(d_scores (M,), d_h (M, m)) for the gradient dz (B, m) of `weigh`'s z."""
    upstream = pad(dz, (0, 0, 0, len(shares) - len(dz))).to(h.dtype)
    d_shares = (upstream @ h.t()).to(shares.dtype)
    weighted = shares * d_shares
    d_scores = (weighted - shares * weighted.sum(1, keepdim=True)).sum(0)  # the softmax's Jacobian
    return d_scores, shares.to(h.dtype).t() @ upstream


def uniform_attention(offsets: Tensor) -> Tensor:
    """(ΣK,) 1/K for every row of a bag of K."""
    return (1.0 / offsets.diff().to(torch.float32))[segment_of(offsets)]
