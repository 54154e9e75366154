"""Correctness: values by hand, and that the expected score of a random map is the mean over all maps."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from aggregate.explain.correctness import (
    brightest,
    centre_prior,
    dice,
    energy,
    lesion_correctness,
    random_correctness,
    slice_correctness,
    top_chance,
)

WEIGHTS = np.array([0.1, 0.4, 0.2, 0.2, 0.1])


def holding(*slices: int) -> np.ndarray:
    holds = np.zeros(5, dtype=bool)
    holds[list(slices)] = True
    return holds


@pytest.mark.parametrize(
    ("slices", "top1", "top3", "share"),
    [
        ((1,), 1.0, 1.0, 0.4),
        ((2,), 0.0, 1.0, 0.2),
        ((0,), 0.0, 0.0, 0.1),
        ((2, 3), 0.0, 1.0, 0.4),
        ((), 0.0, 0.0, 0.0),
    ],
)
def test_slices_are_right_where_the_attended_ones_hold_the_lesion(slices, top1, top3, share) -> None:
    found = slice_correctness(WEIGHTS, holding(*slices))
    assert found == pytest.approx({"slice_top1": top1, "slice_top3": top3, "slice_energy": share})


def test_of_equal_slices_one_is_drawn_and_the_chance_is_exact() -> None:
    assert top_chance(np.array([0.4, 0.4, 0.2]), np.array([True, False, False]), 1) == 0.5
    # one is sure, two of the three that share the next rank are drawn: 1 - C(2, 2) / C(3, 2)
    assert top_chance(WEIGHTS[[1, 2, 3, 2]], np.array([False, True, False, False]), 3) == pytest.approx(2 / 3)
    assert top_chance(WEIGHTS, holding(0), 9) == 1.0, "more slices than there are: all of them"


def test_places_are_right_where_the_brightest_voxel_lies_in_the_lesion() -> None:
    saliency = np.zeros((2, 3, 4), dtype=np.float32)
    saliency[1, 2, 0], saliency[0, 1, 1] = 0.6, 0.4
    region = np.zeros(saliency.shape, dtype=bool)
    region[1, 2, :2] = True
    found = lesion_correctness(saliency, region)
    # half of the maximum is 0.3: both voxels; one of them is among the region's two
    assert found == pytest.approx({"pointing": 1.0, "energy": 0.6, "dice": 2 * 1 / (2 + 2)})
    assert lesion_correctness(saliency, ~region) == pytest.approx(
        {"pointing": 0.0, "energy": 0.4, "dice": 2 / (2 + 22)}
    )


def test_a_map_that_says_nothing_scores_what_a_random_one_is_expected_to() -> None:
    region = np.zeros((3, 4, 5), dtype=bool)
    region[1, 1:3, 2:4] = True
    holds = region.any(axis=(1, 2))
    for nothing in (np.zeros(region.shape, dtype=np.float32), np.full(region.shape, 0.2, dtype=np.float32)):
        random = random_correctness(holds, region, int(brightest(nothing).sum()))
        assert random == pytest.approx(slice_correctness(np.ones(3), holds) | lesion_correctness(nothing, region))


def test_what_is_expected_of_a_random_map_is_the_mean_over_every_order_of_its_values() -> None:
    values = np.array([9.0, 5.0, 3.0, 2.0, 1.0, 0.5])
    region = np.zeros((3, 1, 2), dtype=bool)
    region[0, 0, 1] = region[2, 0, 0] = True
    holds = region.any(axis=(1, 2))
    orders = [np.array(order) for order in permutations(values)]
    of_places = [lesion_correctness(order.reshape(region.shape), region) for order in orders]
    of_slices = [slice_correctness(np.array(order), holds) for order in permutations(values[:3])]
    expected = {name: np.mean([each[name] for each in of_places]) for name in of_places[0]}
    expected |= {name: np.mean([each[name] for each in of_slices]) for name in of_slices[0]}
    bright = int((values >= values.max() / 2).sum())
    assert random_correctness(holds, region, bright) == pytest.approx(expected)


def test_energy_is_the_share_inside_and_dice_counts_voxels_twice() -> None:
    assert energy(np.array([1.0, 3.0]), np.array([False, True])) == 0.75
    assert dice(np.array([True, True, False]), np.array([True, False, False])) == pytest.approx(2 / 3)
    assert dice(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)) == 0.0


def test_the_centre_prior_is_a_bell_in_the_middle() -> None:
    bell = centre_prior((4, 6, 8))
    for axis in range(3):
        assert np.allclose(bell, np.flip(bell, axis))
    assert np.unravel_index(bell.argmax(), bell.shape) in [(z, y, x) for z in (1, 2) for y in (2, 3) for x in (3, 4)]
    assert bell[0, 0, 0] < 0.1 * bell.max()
