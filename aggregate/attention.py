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

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from aggregate.packed import segment_of, segment_softmax, segment_sum

Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def attention_pool(rows: Tensor, offsets: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """(z (B, m), a (ΣK,)) for rows (ΣK, d) and weights (W (m, d), b (m,), V (l, m), c (l,), w (1, l), e (1,))."""
    project, bias, hidden, hidden_bias, score, score_bias = weights
    h = linear(rows, project, bias).relu()
    scores = linear(linear(h, hidden, hidden_bias).tanh(), score, score_bias).squeeze(1)
    attention = segment_softmax(scores, offsets)
    return segment_sum(attention[:, None] * h, offsets), attention


def fused_attention_pool(rows: Tensor, offsets: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The same as `attention_pool`; the attention is returned without gradient. rows: float32 or bfloat16."""
    z, attention = _AttentionPool.apply(rows, offsets, *weights)
    return z, attention


class _AttentionPool(torch.autograd.Function):
    """With s = sigmoid(2 u), tanh(u) is 2 s - 1 and its derivative 4 s (1 - s).

    So only s is ever formed (in a third of tanh's time), and what is constant in it moves into the small weights.
    Rows in bfloat16 make the matrix products and what is as large as they are bfloat16; everything the size of a bag
    or of a weight (softmax, sums over instances, gradients) stays in the weights' own precision.
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
        s = torch.addmm((2 * hidden_bias).to(kind), h, (2 * hidden.t()).to(kind)).sigmoid_()
        scores = torch.mv(s, (2 * score[0]).to(kind)).to(wide) + (score_bias - score.sum())
        bounds = offsets.tolist()
        attention = torch.cat([scores[a:b].softmax(0) for a, b in pairwise(bounds)])
        weights = attention.to(kind)
        z = torch.stack([weights[a:b] @ h[a:b] for a, b in pairwise(bounds)]).to(wide)
        ctx.save_for_backward(rows, project, hidden, score, h, s, attention)
        ctx.bounds = bounds
        ctx.mark_non_differentiable(attention)
        return z, attention

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, project, hidden, score, h, s, attention = ctx.saved_tensors
        kind, wide = rows.dtype, project.dtype
        dz = gradients[0].to(kind)
        d_scores = torch.empty_like(attention)
        d_h = torch.empty_like(h)
        for bag, (a, b) in enumerate(pairwise(ctx.bounds)):
            weight = attention[a:b]
            d_attention = (h[a:b] @ dz[bag]).to(wide)
            d_scores[a:b] = weight * (d_attention - weight @ d_attention)  # the softmax's Jacobian
            torch.outer(weight.to(kind), dz[bag], out=d_h[a:b])
        d_score = (2 * (d_scores.to(kind) @ s).to(wide) - d_scores.sum())[None]
        d_u = torch.addcmul(s, s, s, value=-1).mul_(d_scores.to(kind)[:, None])  # times `gain`, column by column
        gain = 4 * score[0]
        d_hidden = gain[:, None] * (d_u.t() @ h).to(wide)
        d_hidden_bias = gain * d_u.sum(0, dtype=wide)
        d_h.addmm_(d_u, (gain[:, None] * hidden).to(kind))
        torch.ops.aten.threshold_backward.grad_input(d_h, h, 0.0, grad_input=d_h)
        d_project, d_bias = (d_h.t() @ rows).to(wide), d_h.sum(0, dtype=wide)
        d_rows = d_h @ project.to(kind) if ctx.needs_input_grad[0] else None
        return d_rows, None, d_project, d_bias, d_hidden, d_hidden_bias, d_score, d_scores.sum()[None]


def uniform_attention(offsets: Tensor) -> Tensor:
    """(ΣK,) 1/K for every row of a bag of K."""
    return (1.0 / offsets.diff().to(torch.float32))[segment_of(offsets)]
