"""Packed bags: the rows that were given, all of them, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aggregate.packed import PackedRows, segment_softmax, segment_sum, segments, tiles


@pytest.fixture
def bags() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((k, 5)).astype(np.float32) * 3 + 100 for k in (4, 1, 7)]


def test_taking_bags_gives_their_rows_in_the_asked_order(bags: list[np.ndarray]) -> None:
    rows, offsets = PackedRows.of(bags).take([2, 0])
    assert offsets.tolist() == [0, 7, 11]
    assert np.array_equal(rows.numpy(), np.concatenate([bags[2], bags[0]]))


def test_strided_parts_and_pooled_parts_make_up_a_bag() -> None:
    data = np.arange(20, dtype=np.float16).reshape(10, 2)
    source = PackedRows(data, [[slice(0, 6, 2)], [slice(1, 3), slice(8, 10)]])
    assert source.lengths.tolist() == [3, 4]
    expected = data[[0, 2, 4, 1, 2, 8, 9]].astype(np.float32)
    for each in (source, source.in_memory()):
        assert np.array_equal(each.take([0, 1])[0].numpy(), expected)


def test_mean_and_spread_are_those_of_the_rows_of_the_chosen_bags(bags: list[np.ndarray]) -> None:
    mean, sd = PackedRows.of(bags).moments(np.array([0, 2]))
    rows = np.concatenate([bags[0], bags[2]]).astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sd.numpy(), rows.std(0), rtol=1e-5)


def test_scaling_is_the_same_in_memory_and_while_reading(bags: list[np.ndarray]) -> None:
    source = PackedRows.of(bags)
    mean, sd = source.moments(np.arange(3))
    in_memory = source.scaled(mean, 1 / sd).take([1, 2])[0]
    mapped = PackedRows(np.concatenate(bags), source.parts).scaled(mean, 1 / sd).take([1, 2])[0]
    expected = (np.concatenate(bags[1:]) - mean.numpy()) / sd.numpy()
    np.testing.assert_allclose(in_memory.numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mapped, in_memory)


def test_bag_means_are_one_row_a_bag(bags: list[np.ndarray]) -> None:
    means = PackedRows.of(bags).bag_means()
    assert means.lengths.tolist() == [1, 1, 1]
    np.testing.assert_allclose(means.take([0, 1, 2])[0].numpy(), [bag.mean(0) for bag in bags], rtol=1e-6)


def test_an_empty_bag_is_refused() -> None:
    with pytest.raises(ValueError, match="bag 1 has no rows"):
        PackedRows(np.zeros((3, 2), np.float32), [[slice(0, 3)], [slice(3, 3)]])


def test_rows_of_no_bag_fill_up_what_is_taken(bags: list[np.ndarray]) -> None:
    source = PackedRows.of(bags)
    mean, sd = source.moments(np.arange(3))
    plain, filled = (source.scaled(mean, 1 / sd, multiple=each) for each in (1, 8))
    for chosen, number in (([0, 1, 2], 16), ([2, 1], 8), ([0], 8)):
        (expected, offsets), (rows, same) = plain.take(chosen), filled.take(chosen)
        assert rows.shape == (number, 5)
        assert torch.equal(rows[: offsets[-1]], expected)
        assert not rows[offsets[-1] :].any()
        assert torch.equal(offsets, same)


def test_a_scaled_bag_is_the_same_whenever_and_beside_whatever_it_is_taken(bags: list[np.ndarray]) -> None:
    source = PackedRows(np.concatenate(bags), [[slice(0, 12, 3), slice(1, 2)], [slice(4, 5)]]).in_memory()
    scaled = source.scaled(torch.full((5,), 100.0), torch.full((5,), 0.5), torch.bfloat16)
    both, alone, again = scaled.take([1, 0])[0], scaled.take([0])[0], scaled.take([0, 0])[0]
    assert torch.equal(both[1:], alone)
    assert torch.equal(again, torch.cat([alone, alone]))
    expected = (np.concatenate(bags)[[0, 3, 6, 9, 1]] - 100) * 0.5
    np.testing.assert_allclose(alone.float().numpy(), expected, rtol=2**-8)


def test_tiles_keep_the_order_and_share_the_rows_evenly() -> None:
    assert tiles([2, 0, 1], np.array([300, 200, 900]), 1400) == [[2, 0, 1]]
    assert tiles([], np.array([3]), 5) == []
    lengths = np.random.default_rng(0).integers(100, 200, 500)
    order = np.random.default_rng(1).permutation(500)
    groups = tiles(order, lengths, 4000)
    assert np.concatenate(groups).tolist() == order.tolist()
    assert len(groups) % 4 == 0
    rows = np.array([lengths[group].sum() for group in groups])
    assert np.abs(rows - rows.mean()).max() <= 200


def test_segment_softmax_equals_a_softmax_of_each_bag_alone() -> None:
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 50
    offsets = torch.tensor([0, 4, 5, 12])
    alone = torch.cat([scores[a:b].softmax(0) for a, b in ((0, 4), (4, 5), (5, 12))])
    torch.testing.assert_close(segment_softmax(scores, offsets), alone)


def test_segment_softmax_survives_scores_that_would_overflow() -> None:
    weights = segment_softmax(torch.tensor([1e4, -1e4, 3e38, 3e38]), torch.tensor([0, 2, 4]))
    assert weights.tolist() == [1.0, 0.0, 0.5, 0.5]


def test_segment_sum_equals_a_loop() -> None:
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    summed = segment_sum(rows, torch.tensor([0, 4, 5, 12]))
    torch.testing.assert_close(summed, torch.stack([rows[:4].sum(0), rows[4:5].sum(0), rows[5:].sum(0)]))


def test_segments_are_the_rows_of_each_bag() -> None:
    rows = torch.arange(12.0).view(6, 2)
    pieces = segments(rows, torch.tensor([0, 1, 4, 6]))
    assert [piece[:, 0].tolist() for piece in pieces] == [[0], [2, 4, 6], [8, 10]]
