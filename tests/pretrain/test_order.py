from __future__ import annotations

import numpy as np
import pytest

from clear.errors import InputError
from pretrain.order import Order


def order(n: int = 103, annotated: int = 10, batch: int = 8, seed: int = 0, share: float | None = None) -> Order:
    return Order(np.arange(n) + 1000, np.arange(n) < annotated, batch, seed, share)


def test_an_epoch_shows_each_slice_once_but_for_the_ragged_end() -> None:
    rows, repeats = order().epoch(0)
    assert rows.shape == repeats.shape == (12, 8)
    assert len(np.unique(rows)) == 96
    assert set(rows.ravel()) <= set(range(1000, 1103))
    assert not repeats.any()


def test_the_order_depends_on_seed_and_epoch() -> None:
    first = order().epoch(0)[0]
    assert np.array_equal(first, order().epoch(0)[0])
    assert not np.array_equal(first, order().epoch(1)[0])
    assert not np.array_equal(first, order(seed=1).epoch(0)[0])
    left_out = [set(range(1000, 1103)) - set(order().epoch(e)[0].ravel()) for e in range(200)]
    assert set.union(*left_out) == set(range(1000, 1103))  # no slice is always the ragged end


def test_a_share_of_annotated_slices_holds_in_every_batch() -> None:
    balanced = order(share=0.5)
    rows, repeats = balanced.epoch(0)
    assert rows.shape == (12, 8)
    annotated = rows < 1010
    assert (annotated.sum(axis=1) == 4).all()
    assert all(len(set(batch)) == 8 for batch in rows.tolist())
    assert len({(row, turn) for row, turn in zip(rows.ravel(), repeats.ravel(), strict=True)}) == rows.size
    counts = np.bincount(rows[annotated] - 1000, minlength=10)
    assert counts.max() - counts.min() <= 6  # 48 places, 10 slices, two dropped in each of six passes
    assert 0.3 < annotated[:, :4].mean() < 0.7  # every process gets its part of them


def test_all_or_none_may_be_annotated() -> None:
    assert (order(share=1.0).epoch(0)[0] < 1010).all()
    assert (order(share=0.0).epoch(0)[0] >= 1010).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n": 7}, "7 slices do not fill one batch of 8"),
        ({"share": 1.5}, "share of annotated slices in a batch is 1.5"),
        ({"share": 0.5, "annotated": 3}, "needs 4 annotated slices, but only 3 are there"),
        ({"share": 0.5, "annotated": 100}, "needs 4 other slices, but only 3 are there"),
    ],
)
def test_what_cannot_be_filled_is_said(values: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        order(**values)  # type: ignore[arg-type]
