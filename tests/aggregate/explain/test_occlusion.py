"""Occlusion: the fall of the bag's answer, counted by hand, and where it is credited."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from aggregate.aggregators import Aggregator, build_aggregator
from aggregate.explain.occlusion import _covers, occlusion
from clear.encoders import ENCODERS
from clear.frozen import Encoder
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, LUNG
from pretrain.initialise import random_network

CARD = replace(
    ENCODERS["mambaout-femto"], dim=24, settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, input_size=64
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(CARD, random_network(CARD, seed=1), "note", device="cpu", precision="float32")


def volume(n: int = 3) -> Volume:
    values = np.random.default_rng(0).normal(-200, 400, (n, 40, 48))
    geometry = stack_geometry([[0, 0, 5 * i] for i in range(n)], [1, 0, 0], [0, 1, 0], (40, 48), (0.8, 0.8))
    return Volume.from_stack(values.astype(np.int16), geometry, "CT")


def aggregator(seed: int = 0, name: str = "abmil") -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_aggregator(name, 24, 2, 0.0).eval()
        model.scale.uniform_(1, 20)
    return model


@pytest.mark.parametrize("name", ["abmil", "mean"])
def test_a_cell_holds_the_mean_fall_of_the_answer_over_the_windows_that_cover_it(encoder: Encoder, name: str) -> None:
    model, cells, width, target = aggregator(name=name), 4, 2, 1
    found = occlusion(encoder, volume(), [ABDOMEN, LUNG], [model], target, cells=cells, width=width, batch=5)
    images = torch.cat([x for _, x in encoder.prepared(volume(), (ABDOMEN, LUNG), batch=100)])
    rows = torch.from_numpy(encoder.encode(volume(), [ABDOMEN, LUNG]))

    def answer(bag: torch.Tensor) -> float:
        with torch.no_grad():
            return float(model(bag, torch.tensor([0, len(bag)]))[0][0, target])

    found_any = []
    for k in range(6):
        total, count = np.zeros((cells, cells)), np.zeros((cells, cells))
        for top in range(-1, cells):
            for left in range(-1, cells):
                covered = images[k].clone()
                rows_of, columns_of = slice(max(0, top * 16), (top + 2) * 16), slice(max(0, left * 16), (left + 2) * 16)
                covered[:, rows_of, columns_of] = images[k].mean((1, 2), keepdim=True)
                bag = rows.clone()
                with torch.inference_mode():
                    bag[k] = encoder.forward(covered[None])[0]
                area = np.s_[max(0, top) : top + 2, max(0, left) : left + 2]
                total[area] += answer(rows) - answer(bag)
                count[area] += 1
        expected = np.maximum(total / count, 0)
        assert (count == 4).all()
        found_any.append(bool(expected.any()))
        np.testing.assert_allclose(found[k // 2, k % 2], expected / max(expected.sum(), 1e-30), atol=2e-3)
    assert any(found_any)


def test_several_models_have_the_mean_of_their_maps(encoder: Encoder) -> None:
    one, two = aggregator(0), aggregator(1)
    maps = [occlusion(encoder, volume(1), [ABDOMEN], [m], 0, cells=4) for m in (one, two)]
    both = occlusion(encoder, volume(1), [ABDOMEN], [one, two], 0, cells=4)
    np.testing.assert_allclose(both, (maps[0] + maps[1]) / 2, atol=1e-5)


def test_only_the_slices_asked_for_are_done(encoder: Encoder) -> None:
    whole = occlusion(encoder, volume(), [ABDOMEN], [aggregator()], 0, cells=4)
    one = occlusion(encoder, volume(), [ABDOMEN], [aggregator()], 0, cells=4, slices=[1])
    np.testing.assert_allclose(one[1], whole[1], atol=1e-5)
    assert not one[[0, 2]].any()
    assert one[1].any()


def test_a_model_that_answers_the_same_whatever_it_sees_loses_nothing(encoder: Encoder) -> None:
    model = aggregator()
    with torch.no_grad():
        model.head.out.weight.zero_()  # type: ignore[union-attr, operator]  # ABMIL's head
    assert not occlusion(encoder, volume(1), [ABDOMEN], [model], 0, cells=4).any()


@pytest.mark.parametrize(("side", "cells", "width"), [(224, 7, 2), (64, 7, 3), (30, 4, 1), (5, 5, 5)])
def test_every_pixel_is_covered_equally_often(side: int, cells: int, width: int) -> None:
    count = np.zeros((side, side), dtype=int)
    windows = _covers(side, cells, width)
    for rows, columns in windows:
        count[rows, columns] += 1
    assert len(windows) == (cells + width - 1) ** 2
    assert (count == width**2).all()


def test_a_grid_that_cannot_be_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="1 <= width <= cells <= 64"):
        occlusion(encoder, volume(1), [ABDOMEN], [aggregator()], 0, cells=2, width=3)
