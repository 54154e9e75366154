"""Losses: what is unknown weighs nothing, weights lie the right way round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aggregate.targets import Targets, loss_sum, probabilities
from clear.endpoints import Endpoint

BINARY = Endpoint("a", "binary", ("absent", "present"))
STAGE = Endpoint("stage", "multiclass", ("I", "II", "III"))


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


def test_balanced_weights_raise_the_rare_class(targets: Targets) -> None:
    binary, stage = targets.class_weights(np.arange(4))
    assert binary.tolist() == [2.0]  # two absent, one present
    assert stage.tolist() == [1.0, 1.0, 1.0]
    rare = Targets((BINARY,), np.array([[1.0], [0], [0], [0], [0]]))
    assert rare.class_weights(np.arange(5))[0].tolist() == [4.0]


def test_probabilities_of_a_multiclass_endpoint_sum_to_one(targets: Targets) -> None:
    scores = probabilities(torch.randn(2, 4), targets)
    np.testing.assert_allclose(scores[:, 1:].sum(axis=1), 1)
    assert ((scores > 0) & (scores < 1)).all()


def test_an_unknown_label_is_in_no_class_for_the_folds(targets: Targets) -> None:
    assert targets.indicators().astype(int).tolist() == [
        [0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [1, 0, 0, 1, 0],
    ]
