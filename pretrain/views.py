"""Views: what an objective asks to see of a slice, and what it gets.

    stored slice ──plan_views──▶ where to look, which window, how much noise ──render──▶ (C, S, S) in [0, 1]

A plan is plain data drawn from generators keyed by (seed, epoch, repeat, row, view) alone: which process draws it,
after what, and how often changes nothing. Rendering is `clear.slices.prepare`, the path of extraction: an unaugmented
view of a whole slice is what extraction would encode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clear.errors import InputError
from clear.slices import prepare
from pretrain.augmentation import Augmentation
from pretrain.crops import Crop, body_crop, cut, lesion_crop, whole_square
from pretrain.intensity import Intensity, add_noise, draw_intensity, retouch

if TYPE_CHECKING:
    from clear.card import EncoderCard
    from pretrain.store import StoredSlice


@dataclass(frozen=True)
class ViewKind:
    """One view of a slice.

    size: side in pixels (global views: the card's input_size).
    scale: smallest and largest share of the slice's square in mm that a random crop covers.
    lesion: a crop around a lesion where the slice has a box, else an ordinary crop of `scale`.
    full: the whole slice where the slice has a box (LeCL's second view), else an ordinary crop of `scale`.
    """

    size: int
    scale: tuple[float, float]
    lesion: bool = False
    full: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"view: size is {self.size}; expected pixels, 1 or more")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"view: scale is {self.scale}; expected two shares of the slice with 0 < low <= high <= 1")
        if self.lesion and self.full:
            raise InputError("view: lesion and full exclude each other")


@dataclass(frozen=True)
class Views:
    """The views of a batch of slices.

    images: one tensor a ViewKind, (B, C, size, size) float32, channels last, prepared as extraction prepares slices.
    lesion: (B,) bool, this slice had a box, so its views are the lesion crop and the full slice.
    rows: (B,) int64, rows of the slice store.
    """

    images: list[Tensor]
    lesion: Tensor
    rows: Tensor

    def __len__(self) -> int:
        """B, slices in the batch."""
        return len(self.rows)


@dataclass(frozen=True)
class ViewPlan:
    """One view of one slice, drawn but not yet computed.

    crop: the pixels it shows; whole: they are the slice's own square, as extraction shows it.
    box: the lesion's box (y0, x0, y1, x1) that a lesion crop was made around, else None.
    """

    size: int
    crop: Crop
    intensity: Intensity
    whole: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    box: tuple[float, float, float, float] | None = None

    def map_boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (n, 4), y0, x0, y1, x1 in the slice's pixels, in pixels of the view."""
        return self.crop.map_boxes(boxes, self.size, flip_rows=self.flip_rows, flip_columns=self.flip_columns)


def plan_views(
    stored: StoredSlice,
    kinds: Sequence[ViewKind],
    augmentation: Augmentation,
    card: EncoderCard,
    *,
    seed: int,
    epoch: int,
    repeat: int = 0,
) -> list[ViewPlan]:
    """The plans of one slice's views, one a kind.

    What the views share, the window and which of several boxes, is drawn for the slice; the rest for each view.
    repeat: how often the epoch has shown this slice already.
    """
    key = (seed, epoch, repeat, stored.row)
    rng = np.random.default_rng([*key, 0])
    pick, window = rng.random(2)
    box = stored.boxes[int(pick * len(stored.boxes))] if len(stored.boxes) else None
    plans = []
    for view, kind in enumerate(kinds):
        rng = np.random.default_rng([*key, 1 + view])
        flips = rng.random(2) < 0.5
        own_window = rng.random()
        limits = _limits(augmentation, card, window if augmentation.share_window else own_window)
        intensity = draw_intensity(augmentation, limits, view, kind.size, rng)
        plan = _place(stored, kind, augmentation, card, box, intensity, rng)
        plans.append(
            replace(
                plan,
                flip_rows=bool(flips[0]) and augmentation.flips == "both",
                flip_columns=bool(flips[1]) and augmentation.flips != "none",
            )
        )
    return plans


def _limits(augmentation: Augmentation, card: EncoderCard, draw: float) -> list[tuple[float, float]]:
    """The window drawn by a number in [0, 1), or all those that the card stacks into its channels."""
    if card.channel_windows:
        return [(window.low, window.high) for window in card.channel_windows]
    window = augmentation.windows[int(draw * len(augmentation.windows))]
    return [(window.low, window.high)]


def _place(
    stored: StoredSlice,
    kind: ViewKind,
    augmentation: Augmentation,
    card: EncoderCard,
    box: NDArray[np.float64] | None,
    intensity: Intensity,
    rng: np.random.Generator,
) -> ViewPlan:
    """Where one view looks; flips come later."""
    spacing = stored.spacing_mm
    shape = (stored.hu.shape[0], stored.hu.shape[1])
    square = whole_square(shape, spacing, card.field_of_view_mm)
    if box is not None and kind.full:
        return ViewPlan(kind.size, square, intensity, whole=True)
    if box is not None and kind.lesion:
        square_mm = min(square.height * spacing[0], square.width * spacing[1])
        if augmentation.lesion_side_mm is None:
            side_mm = square_mm * math.sqrt(rng.uniform(*kind.scale))
        else:
            side_mm = min(rng.uniform(*augmentation.lesion_side_mm), square_mm)
        crop = lesion_crop(box, spacing, side_mm, augmentation.lesion_margin_mm, augmentation.lesion_jitter, rng)
        y0, x0, y1, x1 = (float(v) for v in box)
        return ViewPlan(kind.size, crop, intensity, box=(y0, x0, y1, x1))
    crop = body_crop(stored.hu, square, spacing, kind.scale, augmentation.aspect, augmentation.min_body, rng)
    return ViewPlan(kind.size, crop, intensity)


def render(stored: StoredSlice, plan: ViewPlan, card: EncoderCard) -> Tensor:
    """A view's values: (1, S, S) float32 in [0, 1], (C, S, S) where the card stacks windows, or standardised.

    Only the crop is touched: cut from int16, windowed, resized. `clear.slices.prepare` does it; mean and std are all
    that is missing to what extraction feeds the encoder.
    """
    intensity = plan.intensity
    channels = len(card.channel_windows) or 1
    grey_card = replace(
        card,
        channels=channels,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        input_size=plan.size,
        field_of_view_mm=card.field_of_view_mm if plan.whole else None,
    )
    if plan.whole:  # prepare's own rule for the square: equal to extraction to the last bit
        pixels, spacing = _acquired(stored.hu, intensity), stored.spacing_mm
    else:  # a square already, whatever half pixels say
        pixels = cut(stored.hu, plan.crop, partial(_acquired, intensity=intensity))
        spacing = (1 / plan.crop.height, 1 / plan.crop.width)
    grey = prepare(torch.from_numpy(pixels)[None], intensity.limits, spacing, grey_card)[0]
    flipped = [axis for axis, flip in ((1, plan.flip_rows), (2, plan.flip_columns)) if flip]
    return retouch(grey.flip(flipped) if flipped else grey, intensity)


def _acquired(hu: NDArray[np.int16], intensity: Intensity) -> NDArray[np.generic]:
    """The pixels as a scanner with more noise would give them; a copy."""
    return add_noise(hu, intensity.noise_hu, intensity.noise_seed) if intensity.noise_hu > 0 else np.array(hu)
