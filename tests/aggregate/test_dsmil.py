"""DSMIL against its equations, written as loops over outputs and slices."""

from __future__ import annotations

import math

import torch

from aggregate.dsmil import DSMIL, QUERY_WIDTH


def test_both_streams_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    model = DSMIL(7, 2).double().eval()
    rows, offsets = torch.randn(9, 7, dtype=torch.float64), torch.tensor([0, 1, 9])
    logits, attention = model(rows, offsets)
    bag = rows[1:]
    scores = bag @ model.instance.weight.t() + model.instance.bias
    queries = [torch.tanh(model.query(torch.relu(model.query_hidden(x)))) for x in bag]
    pooled, weights = [], []
    for output in range(2):
        critical = queries[int(scores[:, output].argmax())]
        shares = torch.softmax(torch.stack([q @ critical for q in queries]) / math.sqrt(QUERY_WIDTH), 0)
        pooled.append(sum(share * x for share, x in zip(shares, bag, strict=True)))
        weights.append(shares)
    expected = (scores.amax(0) + model.head.out(torch.cat(pooled))) / 2
    torch.testing.assert_close(logits[1], expected)
    torch.testing.assert_close(attention[1:], (weights[0] + weights[1]) / 2)
