"""The fused attention pooling against the plain one, value and gradient."""

from __future__ import annotations

import pytest
import torch

from aggregate.attention import GROUP, attention_pool, fused_attention_pool, uniform_attention


def problem(dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(3)
    shapes = [(6, 5), (6,), (4, 6), (4,), (1, 4), (1,)]
    weights = tuple(torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes)
    rows = torch.randn(11, 5, generator=g, dtype=dtype).requires_grad_()
    return rows, torch.tensor([0, 3, 4, 11]), weights


@pytest.mark.parametrize("rows_need_gradient", [True, False])
def test_the_fused_gradient_equals_autograds(rows_need_gradient: bool) -> None:
    rows, offsets, weights = problem()
    rows.requires_grad_(rows_need_gradient)
    wanted = [*weights, rows] if rows_need_gradient else list(weights)
    upstream = torch.randn(3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    grads = []
    for pool in (attention_pool, fused_attention_pool):
        z, attention = pool(rows, offsets, weights)
        grads.append((z.detach(), attention.detach(), *torch.autograd.grad((z * upstream).sum(), wanted)))
    for plain, fused in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


def test_the_fused_gradient_equals_finite_differences() -> None:
    rows, offsets, weights = problem()
    assert torch.autograd.gradcheck(lambda x, *w: fused_attention_pool(x, offsets, w)[0], (rows, *weights))


def test_rows_after_the_last_bag_change_nothing() -> None:
    rows, offsets, weights = problem()
    found = []
    for given in (rows.detach(), torch.cat([rows.detach(), torch.zeros(5, 5, dtype=rows.dtype)])):
        z, attention = fused_attention_pool(given, offsets, weights)
        assert attention.shape == (11,)
        found.append((z.detach(), attention, *torch.autograd.grad(z.square().sum(), weights)))
    for plain, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-10, atol=1e-12)


def test_more_bags_than_are_pooled_at_once_are_pooled_all() -> None:
    g = torch.Generator().manual_seed(6)
    _, _, weights = problem()
    offsets = torch.tensor([0, *torch.randint(1, 4, (2 * GROUP + 3,), generator=g).cumsum(0).tolist()])
    rows = torch.randn(int(offsets[-1]) + 5, 5, generator=g, dtype=torch.float64)  # the last 5 are of no bag
    found = []
    for pool, given in ((attention_pool, rows[:-5]), (fused_attention_pool, rows)):
        z, attention = pool(given, offsets, weights)
        found.append((z.detach(), attention.detach(), *torch.autograd.grad(z.square().sum(), weights)))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


def test_rows_in_bfloat16_give_the_gradient_to_its_precision() -> None:
    """Over bags of real size, narrow: each part of the gradient within 2 % of float32's, in norm."""
    g = torch.Generator().manual_seed(5)
    shapes = [(64, 96), (64,), (64, 64), (64,), (1, 64), (1,)]
    weights = tuple((torch.randn(s, generator=g) / s[-1] ** 0.5).requires_grad_() for s in shapes)
    rows, offsets = torch.randn(700, 96, generator=g), torch.tensor([0, 300, 301, 700])
    upstream = torch.randn(3, 64, generator=g)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        z, attention = fused_attention_pool(rows.to(dtype), offsets, weights)
        assert z.dtype == attention.dtype == torch.float32
        found.append((z.detach(), attention, *torch.autograd.grad((z * upstream).sum(), weights[:-1])))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_large_score_weights_of_one_sign_lose_no_more_than_other_rounding() -> None:
    """Their sum is taken off before the product, not after it, where two large numbers would cancel."""
    g = torch.Generator().manual_seed(5)
    shapes = [(64, 96), (64,), (64, 64), (64,), (1, 64), (1,)]
    weights = [torch.randn(s, generator=g) / s[-1] ** 0.5 for s in shapes]
    weights[4] = weights[4].abs() * 10
    weights = tuple(each.requires_grad_() for each in weights)
    rows, offsets = torch.randn(700, 96, generator=g), torch.tensor([0, 300, 301, 700])
    upstream = torch.randn(3, 64, generator=g)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        z, _ = fused_attention_pool(rows.to(dtype), offsets, weights)
        found.append(torch.autograd.grad((z * upstream).sum(), weights[2])[0])
    assert (found[1] - found[0]).norm() < 0.04 * found[0].norm()


def test_attention_of_a_bag_sums_to_one() -> None:
    rows, offsets, weights = problem()
    _, attention = fused_attention_pool(rows, offsets, weights)
    sums = [float(attention[a:b].sum()) for a, b in ((0, 3), (3, 4), (4, 11))]
    assert sums == pytest.approx([1, 1, 1])


def test_uniform_attention_is_one_over_k() -> None:
    assert uniform_attention(torch.tensor([0, 1, 5])).tolist() == [1, 0.25, 0.25, 0.25, 0.25]
