"""The fused gated pooling against the plain one, value and gradient."""

from __future__ import annotations

import pytest
import torch

from aggregate.gated import fused_gated_pool, gated_pool


def problem(dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(3)
    shapes = [(6, 5), (6,), (4, 6), (4,), (4, 6), (4,), (1, 4), (1,)]
    weights = tuple(torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes)
    rows = torch.randn(11, 5, generator=g, dtype=dtype).requires_grad_()
    return rows, torch.tensor([0, 3, 4, 11]), weights


def test_the_plain_pooling_is_the_papers_equation_9() -> None:
    rows, offsets, (w, b, v, c, u, e, score, f) = problem()
    z, attention = gated_pool(rows, offsets, (w, b, v, c, u, e, score, f))
    h = torch.relu(rows[4:] @ w.t() + b)
    scores = [score[0] @ (torch.tanh(v @ each + c) * torch.sigmoid(u @ each + e)) + f for each in h]
    expected = torch.softmax(torch.cat(scores), 0)
    torch.testing.assert_close(attention[4:], expected)
    torch.testing.assert_close(z[2], expected @ h)


@pytest.mark.parametrize("rows_need_gradient", [True, False])
def test_the_fused_gradient_equals_autograds(rows_need_gradient: bool) -> None:
    rows, offsets, weights = problem()
    rows.requires_grad_(rows_need_gradient)
    wanted = [*weights, rows] if rows_need_gradient else list(weights)
    upstream = torch.randn(3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    grads = []
    for pool in (gated_pool, fused_gated_pool):
        z, attention = pool(rows, offsets, weights)
        grads.append((z.detach(), attention.detach(), *torch.autograd.grad((z * upstream).sum(), wanted)))
    for plain, fused in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


def test_rows_after_the_last_bag_change_nothing() -> None:
    rows, offsets, weights = problem()
    found = []
    for given in (rows.detach(), torch.cat([rows.detach(), torch.zeros(5, 5, dtype=rows.dtype)])):
        z, attention = fused_gated_pool(given, offsets, weights)
        assert attention.shape == (11,)
        found.append((z.detach(), attention, *torch.autograd.grad(z.square().sum(), weights)))
    for plain, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-10, atol=1e-12)


def test_rows_in_bfloat16_give_the_gradient_to_its_precision() -> None:
    """Over bags of real size, narrow: each part of the gradient within 2 % of float32's, in norm."""
    g = torch.Generator().manual_seed(5)
    shapes = [(64, 96), (64,), (64, 64), (64,), (64, 64), (64,), (1, 64), (1,)]
    weights = tuple((torch.randn(s, generator=g) / s[-1] ** 0.5).requires_grad_() for s in shapes)
    rows, offsets = torch.randn(700, 96, generator=g), torch.tensor([0, 300, 301, 700])
    upstream = torch.randn(3, 64, generator=g)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        z, attention = fused_gated_pool(rows.to(dtype), offsets, weights)
        assert z.dtype == attention.dtype == torch.float32
        found.append((z.detach(), attention, *torch.autograd.grad((z * upstream).sum(), weights[:-1])))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.02 * exact.norm()
