from __future__ import annotations

import torch
from torch import Tensor

from pretrain.objectives.centring import Centre, sinkhorn


def logits(rows: int = 9, width: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain_sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """As the paper writes it, in probabilities."""
    shares = (logits / temperature).exp().T
    shares = shares / shares.sum()
    prototypes, samples = shares.shape
    for _ in range(iterations):
        shares = shares / shares.sum(1, keepdim=True) / prototypes
        shares = shares / shares.sum(0, keepdim=True) / samples
    return (shares * samples).T


def test_sinkhorn_is_the_plain_algorithm() -> None:
    torch.testing.assert_close(sinkhorn(logits(), 0.07), plain_sinkhorn(logits(), 0.07), rtol=1e-10, atol=1e-14)


def test_sinkhorn_gives_each_sample_one_and_each_prototype_an_equal_share() -> None:
    found = sinkhorn(logits(40, 5), 0.5, iterations=200)
    torch.testing.assert_close(found.sum(1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(found.sum(0), torch.full((5,), 8.0, dtype=torch.float64))


def test_sinkhorn_neither_overflows_nor_divides_by_zero() -> None:
    found = sinkhorn(1e4 * logits(dtype=torch.float32), 0.04)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(9))


def test_sinkhorn_of_no_rows_is_nothing() -> None:
    assert sinkhorn(torch.zeros(0, 4), 0.07).shape == (0, 4)


def test_a_centre_is_used_before_it_moves_and_moves_once_a_step() -> None:
    centre = Centre(6).double()
    given = logits() + 3.0
    first = centre.probabilities(given, 0.07)
    torch.testing.assert_close(first, (given / 0.07).softmax(1))
    centre.observe(given)
    centre.observe(given)  # a loss computed twice
    assert torch.equal(centre.probabilities(given, 0.07), first)
    centre.follow()
    torch.testing.assert_close(centre.value, 0.1 * given.mean(0))
    centre.follow()  # nothing new was seen
    torch.testing.assert_close(centre.value, 0.1 * given.mean(0))


def test_no_rows_leave_the_centre() -> None:
    centre = Centre(6)
    centre.observe(logits().float())
    centre.observe(torch.zeros(0, 6))
    centre.follow()
    assert torch.equal(centre.value, torch.zeros(6))


def test_a_lower_temperature_sharpens() -> None:
    centre = Centre(6).double()
    peaks = [float(centre.probabilities(logits(), temperature).amax(1).mean()) for temperature in (1.0, 0.2, 0.04)]
    assert peaks == sorted(peaks)


def test_only_the_centre_is_in_the_state() -> None:
    centre = Centre(6)
    centre.observe(logits().float())
    assert list(centre.state_dict()) == ["value"]
