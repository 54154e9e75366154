"""Ziller's pooling against torch's multi-head attention asked by the mean slice."""

from __future__ import annotations

import torch
from torch import nn

from aggregate.ziller import SliceAttentionPool


def test_the_mean_slice_asks_and_the_slices_answer() -> None:
    torch.manual_seed(0)
    model = SliceAttentionPool(24, 3).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = nn.MultiheadAttention(24, 8, batch_first=True, dtype=torch.float64)
    ours = model.attention
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.ones(24).double(), ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    rows, offsets = torch.randn(9, 24, dtype=torch.float64), torch.tensor([0, 2, 9])
    logits, attention = model(rows, offsets)
    for bag, (a, b) in enumerate(((0, 2), (2, 9))):
        slices = rows[None, a:b]
        out, weights = theirs(slices.mean(1, keepdim=True), slices, slices)
        torch.testing.assert_close(logits[bag], model.head.out(out[0, 0]))
        torch.testing.assert_close(attention[a:b], weights[0, 0].detach())
