"""Contributions: of a linear answer they add up to it, and only what raised it counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aggregate.aggregators import Aggregator, build_aggregator
from aggregate.explain.contribution import contributions
from aggregate.explain.endpoint_gradient import bag_outputs
from aggregate.explain.slice_attention import aggregators_of, instance_weights, kind_of

DIM, ROWS = 12, 9


def aggregator(name: str, seed: int = 3) -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_aggregator(name, DIM, 2, 0.0, None).eval()
        model.mean.normal_()
        model.scale.uniform_(0.5, 2)
    return model


def bag(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, DIM)).astype(np.float32)


def output(model: Aggregator, rows: np.ndarray, target: int) -> float:
    with torch.no_grad():
        return float(bag_outputs(model, torch.from_numpy(rows)[None], target)[0])


ONE = np.zeros(ROWS, dtype=np.int64)  # a bag in one window


@pytest.mark.parametrize("target", [0, 1])
def test_of_linear_logits_they_are_what_the_answer_loses_with_a_mean_slice_in_its_place(target: int) -> None:
    model, rows = aggregator("linear"), bag()
    windows = np.arange(ROWS) % 2
    lost = []
    for k in range(ROWS):
        other = rows.copy()
        other[k] = rows[windows == windows[k]].mean(axis=0)
        lost.append(output(model, rows, target) - output(model, other, target))
    raised = np.clip(lost, 0, None)
    assert 0 < (raised > 0).sum() < ROWS
    np.testing.assert_allclose(contributions(model, rows, windows, target), raised / raised.sum(), atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "linear", "abmil"])
def test_they_sum_to_1_and_follow_the_slices(name: str) -> None:
    model, rows = aggregator(name), bag()
    found = contributions(model, rows, ONE, 1)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    order = np.random.default_rng(5).permutation(ROWS)
    np.testing.assert_allclose(contributions(model, rows[order], ONE, 1), found[order], atol=1e-6)


def test_what_sets_two_windows_apart_everywhere_changes_nothing() -> None:
    model, rows = aggregator("linear"), bag()
    windows = np.arange(ROWS) % 2
    offset = 10 * np.random.default_rng(4).standard_normal(DIM).astype(np.float32)
    moved = rows + np.where(windows[:, None] == 1, offset, -offset).astype(np.float32)
    np.testing.assert_allclose(
        contributions(model, moved, windows, 1), contributions(model, rows, windows, 1), atol=1e-5
    )
    assert np.abs(contributions(model, moved, ONE, 1) - contributions(model, rows, ONE, 1)).max() > 0.1


def test_where_no_slice_raised_the_answer_all_are_alike() -> None:
    same = np.tile(bag()[:1], (ROWS, 1))
    assert contributions(aggregator("linear"), same, ONE, 0).tolist() == pytest.approx([1 / ROWS] * ROWS)


def test_weights_are_of_the_kind_that_is_asked_for_whatever_the_model() -> None:
    models = [aggregator("abmil"), aggregator("mean")]
    weights = instance_weights(models, bag(), ONE, "contribution", 1)
    for model, own in zip(models, weights, strict=True):
        np.testing.assert_allclose(own, contributions(model, bag(), ONE, 1))
    (attention,) = instance_weights(models[:1], bag(), ONE, "attention", 1)
    assert attention.sum() == pytest.approx(1)
    assert not np.allclose(attention, weights[0], atol=1e-3)


@pytest.mark.parametrize(
    ("chosen", "kind", "names"),
    [
        (["abmil", "abmil"], "attention", ["abmil"]),
        (["abmil", "mean"], "contribution", ["abmil", "mean"]),
        ([None, None], "attention", ["abmil"]),
    ],
)
def test_a_run_is_explained_by_one_kind_throughout(chosen: list[str | None], kind: str, names: list[str]) -> None:
    fits = [{"aggregator": name} if name else {} for name in chosen]
    run: Any = SimpleNamespace(settings={"aggregator": "abmil", "fits": fits})
    assert kind_of(run) == kind
    assert aggregators_of(run) == names
