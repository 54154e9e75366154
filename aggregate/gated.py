"""Gated attention pooling of packed bags (Ilse, Tomczak, Welling, ICML 2018, eq. 7 and 9).

    h_k = relu(W x_k + b)                     instance projection, (ΣK, m)
    t_k = tanh(V h_k + c)                     (ΣK, l)
    g_k = sigmoid(U h_k + e)                  (ΣK, l)
    a   = softmax over the bag of w·(t_k * g_k) + f
    z   = Σ_k a_k h_k                         (B, m)

`gated_pool` says this in plain differentiable steps; `fused_gated_pool` has its gradient written out, for the reason
given in `aggregate.attention`. Tests hold the two together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from aggregate.attention import in_groups, weigh, weigh_backward
from aggregate.packed import segment_softmax, segment_sum

GatedWeights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def gated_pool(rows: Tensor, offsets: Tensor, weights: GatedWeights) -> tuple[Tensor, Tensor]:
    """(z (B, m), a (ΣK,)) for rows (ΣK, d).

    weights: W (m, d), b (m,), V (l, m), c (l,), U (l, m), e (l,), w (1, l), f (1,).
    """
    project, bias, hidden, hidden_bias, gate, gate_bias, score, score_bias = weights
    h = linear(rows, project, bias).relu()
    gated = linear(h, hidden, hidden_bias).tanh() * linear(h, gate, gate_bias).sigmoid()
    attention = segment_softmax(linear(gated, score, score_bias).squeeze(1), offsets)
    return segment_sum(attention[:, None] * h, offsets), attention


def fused_gated_pool(rows: Tensor, offsets: Tensor, weights: GatedWeights) -> tuple[Tensor, Tensor]:
    """The same as `gated_pool`; the attention is returned without gradient. rows: as `fused_attention_pool` takes."""
    return in_groups(_GatedPool.apply, rows, offsets, weights)


class _GatedPool(torch.autograd.Function):
    """Both branches are one product and one sigmoid, as tanh(u) = 2 sigmoid(2 u) - 1.

    With p = t * g the derivatives are dp/du_t = g - t p and dp/du_g = p - p g; the column factors w move into the
    small weights. Precisions are those of `aggregate.attention`.
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
        gate: Tensor,
        gate_bias: Tensor,
        score: Tensor,
        score_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kind, wide = rows.dtype, project.dtype
        half = len(hidden)
        h = torch.addmm(bias.to(kind), rows, project.t().to(kind)).relu_()
        stacked = torch.cat([2 * hidden, gate]).t().to(kind)
        both = torch.addmm(torch.cat([2 * hidden_bias, gate_bias]).to(kind), h, stacked).sigmoid_()
        t, g = both[:, :half].mul_(2).sub_(1), both[:, half:]
        p = t * g
        scores = torch.mv(p, score[0].to(kind)).to(wide) + score_bias
        z, attention, shares = weigh(h, scores, offsets)
        ctx.save_for_backward(rows, project, hidden, gate, score, h, both, p, shares)
        ctx.mark_non_differentiable(attention)
        return z, attention

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, project, hidden, gate, score, h, both, p, shares = ctx.saved_tensors
        kind, wide = rows.dtype, project.dtype
        half = len(hidden)
        d_scores, d_h = weigh_backward(gradients[0], h, shares)
        narrow = d_scores.to(kind)
        d_score = (narrow @ p).to(wide)[None]
        d_both = torch.empty_like(both)
        t, g = both[:, :half], both[:, half:]
        torch.addcmul(g, t, p, value=-1, out=d_both[:, :half])
        torch.addcmul(p, p, g, value=-1, out=d_both[:, half:])
        d_both.mul_(narrow[:, None])
        gain, ones = torch.cat([score[0], score[0]]), h.new_ones((1, len(h)))
        d_stacked = gain[:, None] * (d_both.t() @ h).to(wide)
        d_stacked_bias = gain * (ones @ d_both)[0].to(wide)
        d_h.addmm_(d_both, (gain[:, None] * torch.cat([hidden, gate])).to(kind))
        torch.ops.aten.threshold_backward.grad_input(d_h, h, 0.0, grad_input=d_h)
        d_project, d_bias = (d_h.t() @ rows).to(wide), (ones @ d_h)[0].to(wide)
        d_rows = d_h @ project.to(kind) if ctx.needs_input_grad[0] else None
        d_hidden, d_gate = torch.split(d_stacked, half)
        d_hidden_bias, d_gate_bias = torch.split(d_stacked_bias, half)
        of_weights = (d_project, d_bias, d_hidden, d_hidden_bias, d_gate, d_gate_bias, d_score, d_scores.sum()[None])
        return (d_rows, None, *of_weights)
