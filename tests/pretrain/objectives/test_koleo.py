from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pretrain.objectives.koleo import koleo_loss, nearest

GRADIENT_TOLERANCE = {0: 1e-6, 1: 4e-4, 2: 1e-6}


@pytest.mark.parametrize("index", range(3))
def test_float64_values_are_dinov2s(shared_data: Path, index: int) -> None:
    file = np.load(shared_data / "fixtures" / "koleo_loss.npz", allow_pickle=False)
    x = torch.from_numpy(file[f"in/x{index}"]).double()
    np.testing.assert_allclose(koleo_loss(x), file[f"f64/loss{index}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("index", range(3))
def test_float32_values_neighbours_and_gradients_are_dinov2s(shared_data: Path, index: int) -> None:
    file = np.load(shared_data / "fixtures" / "koleo_loss.npz", allow_pickle=False)
    x = torch.from_numpy(file[f"in/x{index}"]).requires_grad_()
    loss = koleo_loss(x)
    loss.backward()
    np.testing.assert_allclose(loss.detach(), file[f"out/loss{index}"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(nearest(functional.normalize(x.detach(), dim=1)), file[f"out/nearest{index}"])
    np.testing.assert_allclose(x.grad, file[f"out/grad{index}"], rtol=1e-5, atol=GRADIENT_TOLERANCE[index])


def test_gradients_are_the_finite_differences() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(koleo_loss, (x,))


def test_a_spread_batch_costs_less_than_a_crowded_one() -> None:
    draw = torch.Generator().manual_seed(0)
    spread = torch.eye(8)
    crowded = torch.ones(8, 8) + 0.01 * torch.randn(8, 8, generator=draw)
    assert koleo_loss(spread) < koleo_loss(crowded)
    torch.testing.assert_close(koleo_loss(spread), -torch.tensor(2.0).sqrt().log())


def test_equal_rows_stay_finite() -> None:
    x = torch.ones(4, 3, requires_grad=True)
    loss = koleo_loss(x)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def test_lengths_and_order_do_not_matter() -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(koleo_loss(x.flip(0) * torch.arange(1, 7)[:, None]), koleo_loss(x))


def test_under_bfloat16_autocast_it_is_computed_in_float32() -> None:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo_loss(x)
    torch.testing.assert_close(found, koleo_loss(x), rtol=1e-6, atol=0)
