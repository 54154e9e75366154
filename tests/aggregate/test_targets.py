"""Losses: what is unknown weighs nothing, weights lie the right way round, predictions come in the label's unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aggregate.survival import cox_loss
from aggregate.targets import Targets, loss_sum, ordinal_log_probabilities, predicted
from clear.endpoints import Endpoint

BINARY = Endpoint("a", "binary", ("absent", "present"))
STAGE = Endpoint("stage", "multiclass", ("I", "II", "III"))
GRADE = Endpoint("grade", "ordinal", ("low", "middle", "high"))
AGE = Endpoint("age", "regression")
DEATH = Endpoint("os", "survival", event="dead")


@pytest.fixture
def targets() -> Targets:
    return Targets((BINARY, STAGE), np.array([[1, 0], [0, np.nan], [np.nan, 2], [0, 1]], dtype=float))


def test_the_loss_is_the_sum_over_known_labels(targets: Targets) -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    expected = F.binary_cross_entropy_with_logits(
        logits[[0, 1, 3], 0], torch.tensor([1.0, 0.0, 0.0]), reduction="sum"
    ) + F.cross_entropy(logits[[0, 2, 3], 1:], torch.tensor([0, 2, 1]), reduction="sum")
    codes = torch.as_tensor(targets.codes, dtype=torch.float32)
    torch.testing.assert_close(loss_sum(logits, codes, targets), expected)
    assert targets.known([0, 1, 2, 3]) == 6


def test_an_unknown_label_sends_no_gradient(targets: Targets) -> None:
    logits = torch.zeros(4, 4, requires_grad=True)
    loss_sum(logits, torch.as_tensor(targets.codes, dtype=torch.float32), targets).backward()
    assert logits.grad is not None
    assert logits.grad[2, 0] == 0
    assert (logits.grad[1, 1:] == 0).all()
    assert (logits.grad[0] != 0).all()


@pytest.mark.parametrize("endpoint", [BINARY, STAGE, GRADE, AGE, DEATH], ids=lambda e: e.kind)
def test_of_every_kind_an_unknown_label_changes_nothing_and_known_ones_teach(endpoint: Endpoint) -> None:
    codes = np.array([[1.0], [0.0], [2.0], [0.5]]) if not endpoint.is_classes else np.array([[1.0], [0], [1], [0]])
    events = np.array([[1.0], [1], [0], [1]])
    with_unknown = np.vstack([codes, [[np.nan]]]), np.vstack([events, [[np.nan]]])
    known = Targets((endpoint,), codes, events)
    more = Targets((endpoint,), *with_unknown)
    logits = torch.randn(5, endpoint.n_out, generator=torch.Generator().manual_seed(1), requires_grad=True)
    whole = loss_sum(logits, torch.as_tensor(more.codes), more, events=torch.as_tensor(more.events))
    part = loss_sum(logits[:4], torch.as_tensor(known.codes), known, events=torch.as_tensor(known.events))
    torch.testing.assert_close(whole, part)
    whole.backward()
    assert logits.grad is not None
    assert (logits.grad[4] == 0).all()
    assert (logits.grad[:4] != 0).any()
    assert known.known(range(4)) == more.known(range(5)) == (3 if endpoint.kind == "survival" else 4)


def test_balanced_weights_raise_the_rare_class(targets: Targets) -> None:
    binary, stage = targets.class_weights(np.arange(4))
    assert binary.tolist() == [2.0]  # two absent, one present
    assert stage.tolist() == [1.0, 1.0, 1.0]
    rare = Targets((BINARY, GRADE, AGE), np.array([[1.0, 0, 7], [0, 0, 7], [0, 0, 7], [0, 1, 7], [0, 2, 7]]))
    binary, grade, age = rare.class_weights(np.arange(5))
    assert binary.tolist() == [4.0]
    assert grade.tolist() == pytest.approx([5 / 9, 5 / 3, 5 / 3])
    assert age.tolist() == [1.0]


def test_probabilities_of_a_multiclass_endpoint_sum_to_one(targets: Targets) -> None:
    scores = predicted(torch.randn(2, 4), targets)
    np.testing.assert_allclose(scores[:, 1:].sum(axis=1), 1)
    assert ((scores > 0) & (scores < 1)).all()


def test_ordinal_probabilities_are_those_of_the_cumulative_model() -> None:
    outputs = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    probabilities = ordinal_log_probabilities(outputs).exp()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(50, dtype=torch.float64))
    above = probabilities.flip(1).cumsum(1).flip(1)[:, 1:]  # P(y > k)
    torch.testing.assert_close(above[:, 0], torch.sigmoid(outputs[:, 0]))
    gaps = torch.logit(above[:, :-1]) - torch.logit(above[:, 1:])
    torch.testing.assert_close(gaps, F.softplus(outputs[:, 1:]), atol=1e-5, rtol=1e-5)


def test_ordinal_losses_stay_finite_where_outputs_are_extreme() -> None:
    outputs = torch.tensor([[100.0, -200.0], [-100.0, 200.0], [0.0, -1e4]], requires_grad=True)
    target = Targets((GRADE,), np.array([[0.0], [1], [1]]))
    loss = loss_sum(outputs, torch.as_tensor(target.codes, dtype=torch.float32), target)
    loss.backward()
    assert torch.isfinite(loss)
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


def test_quantities_are_learnt_standardised_and_predicted_in_their_unit() -> None:
    ages = Targets((BINARY, AGE), np.array([[0, 50.0], [1, 70.0], [0, np.nan], [1, 900.0]]))
    scale = ages.scale(np.array([0, 1, 2]))  # not the last: it is no training bag
    assert scale.tolist() == [[0, 1], [60, 10]]
    learnt = ages.scaled(scale)
    assert learnt.codes[:, 1].tolist()[:2] == [-1, 1]
    assert learnt.codes[:, 0].tolist() == [0, 1, 0, 1]
    right = torch.as_tensor(np.nan_to_num(learnt.codes))
    np.testing.assert_allclose(predicted(right, ages, scale)[[0, 1, 3], 1], [50, 70, 900])
    right[0, 1] += 0.5
    loss = loss_sum(right, torch.as_tensor(learnt.codes), Targets((BINARY, AGE), learnt.codes))
    only_binary = loss_sum(right[:, :1], torch.as_tensor(learnt.codes[:, :1]), Targets((BINARY,), learnt.codes[:, :1]))
    assert float(loss - only_binary) == pytest.approx(0.125)


def test_a_constant_quantity_has_a_scale_that_divides_by_one() -> None:
    assert Targets((AGE,), np.full((3, 1), 5.0)).scale(np.arange(3)).tolist() == [[5, 1]]


def test_survival_learns_by_the_cox_loss_of_the_bags_it_is_given() -> None:
    times, events = np.array([[3.0], [1.0], [2.0]]), np.array([[1.0], [0], [1]])
    target = Targets((DEATH,), times, events)
    risks = torch.tensor([[0.3], [1.0], [-2.0]])
    loss = loss_sum(risks, torch.as_tensor(times), target, events=torch.as_tensor(events))
    torch.testing.assert_close(loss, cox_loss(risks[:, 0], torch.as_tensor(times[:, 0]), torch.as_tensor(events[:, 0])))
    assert not target.additive
    assert Targets((AGE,), times).additive
    assert predicted(risks, target)[:, 0].tolist() == risks[:, 0].tolist()
    with pytest.raises(ValueError, match="needs events"):
        Targets((DEATH,), times)


def test_outputs_and_score_columns_follow_the_kinds() -> None:
    endpoints = (BINARY, STAGE, GRADE, AGE, DEATH)
    codes = np.zeros((2, 5))
    target = Targets(endpoints, codes, codes)
    assert target.n_out == 1 + 3 + 2 + 1 + 1
    assert [c.stop - c.start for c in target.columns] == [1, 3, 2, 1, 1]
    assert [c.stop - c.start for c in target.score_columns] == [1, 3, 3, 1, 1]
    assert predicted(torch.randn(2, 8), target).shape == (2, 9)


def test_an_unknown_label_is_in_no_class_for_the_folds(targets: Targets) -> None:
    assert targets.indicators().astype(int).tolist() == [
        [0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [1, 0, 0, 1, 0],
    ]


def test_folds_are_stratified_by_quarters_of_a_quantity_and_by_events() -> None:
    codes = np.array([[1.0, 5], [2, 5], [3, 5], [4, 5], [np.nan, np.nan]])
    events = np.array([[np.nan, 1.0], [np.nan, 0], [np.nan, 0], [np.nan, 1], [np.nan, np.nan]])
    found = Targets((AGE, DEATH), codes, events).indicators().astype(int).tolist()
    assert [row[:4] for row in found] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert [row[4:] for row in found] == [[1, 0], [0, 1], [0, 1], [1, 0], [0, 0]]


def test_a_balanced_draw_takes_an_endpoint_then_a_class_then_a_bag() -> None:
    a, b, c = (Endpoint(name, "binary", ("0", "1")) for name in "abc")
    nan = np.nan
    codes = np.array([[0, 1, nan], [0, nan, nan], [0, 0, nan], [1, 0, nan], [nan, nan, nan]])
    chances = Targets((a, b, c), codes).balanced_chances(np.arange(5))
    of_a = np.array([1 / 6, 1 / 6, 1 / 6, 1 / 2, 0])
    of_b = np.array([1 / 2, 0, 1 / 4, 1 / 4, 0])
    np.testing.assert_allclose(chances, (of_a + of_b) / 2)  # nothing is known of c, and nothing of the last bag
    np.testing.assert_allclose(Targets((a,), codes[:, :1]).balanced_chances(np.array([3, 0])), [0.5, 0.5])


def test_a_balanced_draw_treats_quantities_as_one_class() -> None:
    size = Endpoint("size", "regression")
    codes = np.array([[1.5], [2.5], [np.nan], [9.0]])
    np.testing.assert_allclose(Targets((size,), codes).balanced_chances(np.arange(4)), [1 / 3, 1 / 3, 0, 1 / 3])
    np.testing.assert_allclose(Targets((size,), codes * np.nan).balanced_chances(np.arange(4)), [0.25] * 4)
