"""Pixels of unknown size: no crop in millimetres is cut from them, and anything else says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from clear.errors import InputError
from pretrain.augmentation import CT, PAPER, augmentation
from pretrain.spacing import check_spacing
from pretrain.views import ViewKind

LECL = (ViewKind(32, (0.2, 1.0), lesion=True), ViewKind(32, (0.2, 1.0), full=True))
MOCO = (ViewKind(32, (0.2, 1.0)),) * 2
ROWS = np.arange(6)


def memory(unknown: list[int], boxes: list[int]) -> Any:
    """A store of three scans of two slices; rows without spacing, rows with a box."""
    spacing = [None if row in unknown else 0.7 for row in ROWS.tolist()]
    table = pl.DataFrame(
        {
            "scan_id": [f"s{row // 2}" for row in ROWS.tolist()],
            "spacing_y_mm": pl.Series(spacing, dtype=pl.Float64),
            "spacing_x_mm": pl.Series(spacing, dtype=pl.Float64),
            "n_boxes": [int(row in boxes) for row in ROWS.tolist()],
        }
    )
    return SimpleNamespace(path=Path("slices.zarr"), table=table)


def test_known_spacing_is_worth_no_word(small: ModuleType) -> None:
    assert check_spacing(memory([], [0, 1]), ROWS, small.CARD, LECL, CT) == ""


@pytest.mark.parametrize("preset", [CT, PAPER])
def test_lesion_crops_in_mm_are_refused_without_spacing(small: ModuleType, preset: Any) -> None:
    with pytest.raises(InputError) as refused:
        check_spacing(memory([2, 3, 4, 5], [2, 3, 5]), ROWS, small.CARD, LECL, preset)
    assert str(refused.value) == (
        "slices.zarr: the pixel spacing of 2 scans (3 slices, first s1) is not known, and lesion crops are cut in mm. "
        "Build the store again with the table that says it (DeepLesion's DL_info.csv as --boxes), or leave these "
        "patients out; --augment lesion_side_mm=null --augment lesion_margin_mm=0 cuts crops by shares of the slice "
        "instead"
    )


def test_only_the_rows_that_are_trained_on_count(small: ModuleType) -> None:
    assert check_spacing(memory([2, 3], [2, 3]), np.array([0, 1, 4]), small.CARD, LECL, CT) == ""


def test_crops_by_shares_of_the_slice_need_no_spacing_and_say_what_is_assumed(small: ModuleType) -> None:
    said = "the pixel spacing of 1 scans (2 slices) is not known; their pixels are taken as square"
    store = memory([2, 3], [2])
    assert check_spacing(store, ROWS, small.CARD, MOCO, CT) == said
    assert check_spacing(memory([2, 3], [0]), ROWS, small.CARD, LECL, CT) == said  # no lesion is cut from them
    shares = augmentation({"preset": "ct", "lesion_side_mm": None, "lesion_margin_mm": 0})
    assert check_spacing(store, ROWS, small.CARD, LECL, shares) == said
    assert check_spacing(store, ROWS, small.CARD) == said


def test_a_field_of_view_in_mm_needs_spacing_of_every_slice(small: ModuleType) -> None:
    card = replace(small.CARD, field_of_view_mm=350.0)
    for kinds in ((), MOCO):
        with pytest.raises(
            InputError, match=r"1 scans \(2 slices, first s1\) is not known, and encoder small is shown 350"
        ):
            check_spacing(memory([2, 3], []), ROWS, card, kinds, CT)
