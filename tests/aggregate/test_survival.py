"""The Cox loss against its definition, the C-index against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aggregate.metrics import plain
from aggregate.survival import c_index, cox_loss


def slow_cox(risks: np.ndarray, times: np.ndarray, events: np.ndarray) -> float:
    """One event after the other, its risk set all whose time is not earlier."""
    return sum(
        np.log(np.exp(risks[times >= time]).sum()) - risk
        for risk, time, event in zip(risks, times, events, strict=True)
        if event
    )


def slow_c_index(truth: np.ndarray, risks: np.ndarray, weights: np.ndarray) -> float:
    """Every pair, as the definition says."""
    concordant = compared = 0.0
    for i, (time, event) in enumerate(truth):
        for j, (other_time, other_event) in enumerate(truth):
            if event == 1 and (time < other_time or (time == other_time and other_event == 0)):
                pair = weights[i] * weights[j]
                compared += pair
                concordant += pair * ((risks[i] > risks[j]) + 0.5 * (risks[i] == risks[j]))
    return concordant / compared if compared else float("nan")


@pytest.mark.parametrize("levels", [3, 10**9])
def test_the_cox_loss_equals_its_definition_with_tied_times(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(10):
        n = int(rng.integers(2, 30))
        risks, times, events = rng.standard_normal(n), rng.integers(0, levels, n) / levels, rng.integers(0, 2, n)
        loss = cox_loss(*(torch.as_tensor(each) for each in (risks, times, events)))
        assert float(loss) == pytest.approx(slow_cox(risks, times, events), abs=1e-10)


def test_the_cox_loss_of_two_patients_by_hand() -> None:
    loss = cox_loss(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert float(loss) == pytest.approx(np.log(np.e + 1) - 1)  # the second event has a risk set of its own


def test_the_cox_loss_knows_only_differences_of_risk() -> None:
    rng = torch.Generator().manual_seed(0)
    risks, times = torch.randn(20, generator=rng, dtype=torch.float64), torch.rand(20, generator=rng)
    events = torch.ones(20)
    assert float(cox_loss(risks + 1000, times, events)) == pytest.approx(float(cox_loss(risks, times, events)))
    order = torch.randperm(20, generator=rng)
    assert float(cox_loss(risks[order], times[order], events)) == pytest.approx(float(cox_loss(risks, times, events)))


def test_a_batch_without_an_event_teaches_nothing_and_raising_the_risk_of_an_early_death_pays() -> None:
    risks = torch.zeros(3, requires_grad=True)
    cox_loss(risks, torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)).backward()
    assert risks.grad is not None
    assert (risks.grad == 0).all()
    risks.grad = None
    cox_loss(risks, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0])).backward()
    assert risks.grad[0] < 0 < risks.grad[1] == risks.grad[2]


@pytest.mark.parametrize(("time_levels", "risk_levels"), [(4, 3), (10**9, 3), (5, 10**9), (10**9, 10**9)])
def test_the_fast_c_index_equals_all_pairs_with_ties_and_weights(time_levels: int, risk_levels: int) -> None:
    rng = np.random.default_rng(time_levels + risk_levels)
    for _ in range(5):
        n = int(rng.integers(2, 40))
        truth = np.stack([rng.integers(0, time_levels, n) / time_levels, rng.integers(0, 2, n)], axis=1)
        risks, weights = rng.integers(0, risk_levels, n) / risk_levels, rng.integers(0, 4, (6, n)).astype(float)
        slow = [slow_c_index(truth, risks, row) for row in weights]
        np.testing.assert_allclose(c_index(truth, risks, weights), slow, atol=1e-12)


def test_a_risk_that_orders_the_times_has_a_c_index_of_one_and_its_reverse_of_zero() -> None:
    truth = np.array([[3.0, 1], [1.0, 1], [2.0, 0], [5.0, 0]])
    risks = -truth[:, 0]
    assert plain(c_index, truth, risks) == 1
    assert plain(c_index, truth, -risks) == 0
    assert plain(c_index, truth, np.zeros(4)) == 0.5


def test_without_a_pair_to_compare_the_c_index_is_not_defined() -> None:
    censored = np.array([[1.0, 0], [2.0, 0]])
    assert np.isnan(plain(c_index, censored, np.array([1.0, 0])))
    together = np.array([[1.0, 1], [1.0, 1]])
    assert np.isnan(plain(c_index, together, np.array([1.0, 0])))
    assert np.isnan(plain(c_index, np.empty((0, 2)), np.empty(0)))
