"""Pixels of unknown size: usable for what is measured in pixels, and refused for what is cut in millimetres.

DeepLesion's PNG slices have no spacing of their own; it stands in DL_info.csv. Without it 1 mm is read
(`pretrain.store.SliceStore.read`), so that pixels count as square, but 64 to 160 mm would be as many pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clear.errors import InputError

if TYPE_CHECKING:
    from clear.card import EncoderCard
    from pretrain.augmentation import Augmentation
    from pretrain.store import SliceStore
    from pretrain.views import ViewKind

_BY_SHARES = "--augment lesion_side_mm=null --augment lesion_margin_mm=0"


def unknown_spacing(table: pl.DataFrame) -> pl.DataFrame:
    """The rows whose pixels have no known size; of a table of scans or of slices."""
    return table.filter(pl.col("spacing_y_mm").is_null() | pl.col("spacing_x_mm").is_null())


def check_spacing(
    store: SliceStore,
    rows: NDArray[np.int64],
    card: EncoderCard,
    kinds: Sequence[ViewKind] = (),
    augmentation: Augmentation | None = None,
) -> str:
    """A sentence where these rows' pixels are of unknown size and count as square; "" where all are known.

    kinds, augmentation: of the views; none for slices that are shown as extraction shows them. Raises InputError where
    something would be cut in millimetres: lesion crops of slices with a box, a card's field of view.
    """
    slices = unknown_spacing(store.table[rows])
    if not slices.height:
        return ""
    in_mm = augmentation is not None and any((augmentation.lesion_side_mm, augmentation.lesion_margin_mm))
    lesions = slices.filter(pl.col("n_boxes") > 0)
    if card.field_of_view_mm is not None:
        refused, what = slices, f"encoder {card.name} is shown {card.field_of_view_mm:g} mm"
    elif in_mm and any(kind.lesion for kind in kinds):
        refused, what = lesions, "lesion crops are cut in mm"
    else:
        refused, what = lesions.clear(), ""
    if refused.height:
        raise InputError(
            f"{store.path}: the pixel spacing of {refused['scan_id'].n_unique()} scans ({refused.height} slices, first "
            f"{refused['scan_id'][0]}) is not known, and {what}. Build the store again with the table that says it "
            "(DeepLesion's DL_info.csv as --boxes), or leave these patients out"
            + ("" if card.field_of_view_mm else f"; {_BY_SHARES} cuts crops by shares of the slice instead")
        )
    return (
        f"the pixel spacing of {slices['scan_id'].n_unique()} scans ({slices.height} slices) is not known; their "
        "pixels are taken as square"
    )
