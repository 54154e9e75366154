"""Collapse: two figures with known values, and a warning when embeddings tell nothing apart."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.collapse import ROWS, RecentEmbeddings, effective_rank, spread, warning


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_directions_spread_evenly_have_a_spread_of_one_and_one_direction_has_none() -> None:
    assert spread(normal(4000, 32)) == pytest.approx(1.0, abs=0.01)
    assert spread(normal(1, 32).expand(100, 32)) == 0.0
    assert spread(normal(1, 32) * torch.arange(1.0, 101)[:, None]) == pytest.approx(
        0.0, abs=1e-7
    )  # length is no matter


def test_the_spread_is_the_deviation_of_unit_vectors_against_one_over_the_root_of_d() -> None:
    rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # unit: (0.6, 0.8) and (1, 0): deviations 0.2 and 0.4
    assert spread(rows) == pytest.approx(0.3 * math.sqrt(2))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_equal_variation_in_k_directions_has_an_effective_rank_of_k(k: int) -> None:
    # unit vectors far from the origin along one axis, at the 2k ends of k others: k equal singular values once centred
    base = torch.zeros(2 * k, 12)
    base[:, 11] = 3.0
    for i in range(k):
        base[2 * i, i], base[2 * i + 1, i] = 1.0, -1.0
    assert effective_rank(base) == pytest.approx(k, rel=1e-6)


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    rows = torch.nn.functional.normalize(normal(40, 6) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.1]), dim=1)
    values = torch.linalg.svdvals((rows - rows.mean(0)).double())
    shares = [float(v / values.sum()) for v in values]
    assert effective_rank(rows) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)


def test_neither_figure_changes_with_a_rotation() -> None:
    rows = normal(50, 8) + 2
    turn = torch.linalg.qr(normal(8, 8, seed=1))[0]
    assert effective_rank(rows @ turn) == pytest.approx(effective_rank(rows), rel=1e-4)


def test_a_warning_says_which_collapse_it_is_and_healthy_embeddings_get_none() -> None:
    assert warning(0.4, 20.0) == ""
    assert "every slice has nearly the same embedding" in warning(0.001, 20.0)
    assert "in one direction only (effective rank 1.20)" in warning(0.4, 1.2)
    assert warning(spread(normal(64, 16)), effective_rank(normal(64, 16))) == ""


def test_the_last_embeddings_are_kept_and_no_more() -> None:
    recent = RecentEmbeddings()
    assert recent.figures() is None
    for step in range(5):
        recent.add(torch.full((200, 2), float(step)))
    assert len(recent.tensor) == ROWS
    assert recent.tensor[-1, 0] == 4.0
    again = RecentEmbeddings(recent.tensor)
    assert again.figures() == recent.figures()
    recent.add(torch.full((1, 2), math.nan))
    assert recent.figures() is None
