"""One query a bag, against torch's own multi-head attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aggregate.query_attention import MultiHead, choose_heads, mix_rows, scores_of_rows
from clear.errors import InputError

DIM, HEADS = 12, 4


def torchs(ours: MultiHead) -> nn.MultiheadAttention:
    """torch's module with the same weights; it has a bias of keys, which must not matter."""
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, torch.randn(DIM).double(), ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    return theirs


@pytest.fixture
def ours() -> MultiHead:
    torch.manual_seed(0)
    module = MultiHead(DIM, HEADS).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(10, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OFFSETS = torch.tensor([0, 3, 4, 10])
SPANS = [(0, 3), (3, 4), (4, 10)]


def test_a_query_a_bag_gives_torchs_output_and_weights(ours: MultiHead, rows: torch.Tensor) -> None:
    queries = torch.randn(3, DIM, dtype=torch.float64)
    scores = scores_of_rows(rows, OFFSETS, ours.reach(ours.queries(queries)))
    mixed, attention = mix_rows(rows, OFFSETS, scores)
    found, theirs = ours.values(mixed), torchs(ours)
    for bag, (a, b) in enumerate(SPANS):
        out, weights = theirs(queries[bag][None, None], rows[None, a:b], rows[None, a:b])
        torch.testing.assert_close(found[bag], out[0, 0])
        torch.testing.assert_close(attention[a:b], weights[0, 0].detach())


def test_a_query_that_all_bags_share_needs_one_product(ours: MultiHead, rows: torch.Tensor) -> None:
    reach = ours.reach(ours.queries(torch.randn(1, DIM, dtype=torch.float64)))
    shared, each = scores_of_rows(rows, OFFSETS, reach), scores_of_rows(rows, OFFSETS, reach.expand(3, -1, -1))
    torch.testing.assert_close(shared, each)


def test_a_token_that_asks_is_a_row_too_but_not_in_the_attention(ours: MultiHead, rows: torch.Tensor) -> None:
    own = torch.randn(3, DIM, dtype=torch.float64)
    reach = ours.reach(ours.queries(own))
    scores = scores_of_rows(rows, OFFSETS, reach)
    mixed, attention = mix_rows(rows, OFFSETS, scores, own, torch.einsum("bd,bhd->bh", own, reach))
    theirs = torchs(ours)
    for bag, (a, b) in enumerate(SPANS):
        everything = torch.cat([own[bag : bag + 1], rows[a:b]])[None]
        out, weights = theirs(own[bag][None, None], everything, everything, average_attn_weights=False)
        torch.testing.assert_close(ours.values(mixed)[bag], out[0, 0])
        others = weights[0, :, 0, 1:].detach()
        torch.testing.assert_close(attention[a:b], (others / others.sum(1, keepdim=True)).mean(0))


def test_weights_are_drawn_as_torch_draws_them() -> None:
    torch.manual_seed(0)
    ours = MultiHead(256, 4)
    theirs = nn.MultiheadAttention(256, 4)
    drawn = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]).detach()
    expected = theirs.in_proj_weight.detach()
    assert float(drawn.abs().max()) == pytest.approx(float(expected.abs().max()), rel=1e-3)
    assert float(drawn.std()) == pytest.approx(float(expected.std()), rel=1e-2)
    assert not ours.value.bias.any()
    assert not ours.out.bias.any()


@pytest.mark.parametrize(
    ("dim", "even", "expected"), [(768, False, 12), (384, True, 12), (512, False, 8), (1000, False, 10), (12, True, 6)]
)
def test_heads_are_the_papers_where_they_divide_the_embedding(dim: int, even: bool, expected: int) -> None:
    assert choose_heads(None, 12, dim, even=even) == expected


def test_no_head_of_even_width_is_an_error() -> None:
    with pytest.raises(InputError, match="an embedding of 7 values gives no head an even share"):
        choose_heads(None, 12, 7, even=True)
