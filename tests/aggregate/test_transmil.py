"""TransMIL against the whole computation, step by step, with every token of every layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

from aggregate.query_attention import MultiHead
from aggregate.transmil import HEADS, WIDTH, TransMIL


def attend(tokens: Tensor, layer: MultiHead) -> tuple[Tensor, Tensor]:
    """(output, weights (heads, n, n)) of torch's attention of all tokens to all."""
    out, weights = multi_head_attention_forward(
        *(tokens[:, None],) * 3,
        WIDTH,
        HEADS,
        torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]),
        torch.cat([layer.query.bias, torch.zeros_like(layer.query.bias), layer.value.bias]),
        None,
        None,
        False,
        0.0,
        layer.out.weight,
        layer.out.bias,
        training=False,
        average_attn_weights=False,
    )
    return out[:, 0], weights[0]


@pytest.mark.parametrize(("length", "side"), [(1, 1), (2, 2), (7, 3), (9, 3), (10, 4)])
def test_the_class_token_is_that_of_the_whole_computation(length: int, side: int) -> None:
    torch.manual_seed(0)
    model = TransMIL(6, 2).double().eval()
    for layer in (model.first, model.last):
        for bias in (layer.query.bias, layer.value.bias, layer.out.bias):
            nn.init.normal_(bias)
    bag = torch.randn(length, 6, dtype=torch.float64)
    h = torch.relu(model.project(bag))
    square = torch.cat([h, h[: side**2 - length]])
    tokens = torch.cat([model.class_token[None], square])
    tokens = tokens + attend(model.norm_first(tokens), model.first)[0]
    image = tokens[1:].t().reshape(1, WIDTH, side, side)
    image = image + model.around_7(image) + model.around_5(image) + model.around_3(image)
    tokens = torch.cat([tokens[:1], image.reshape(WIDTH, -1).t()])
    changes, weights = attend(model.norm_last(tokens), model.last)
    logits = model.head(model.norm_out((tokens + changes)[:1]))
    beside = torch.randn(5, 6, dtype=torch.float64)
    found, attention = model(torch.cat([beside, bag]), torch.tensor([0, 5, 5 + length]))
    torch.testing.assert_close(found[1:], logits)
    row = weights[:, 0, 1:]
    share = (row / row.sum(1, keepdim=True)).mean(0).detach()
    folded = share[:length].clone()
    folded[: side**2 - length] += share[length:]
    torch.testing.assert_close(attention[5:], folded)
