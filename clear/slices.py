"""From slices to encoder inputs: the one preprocessing path of extraction, pretraining and explanation.

    values ──window──▶ [0, 1] ──square in mm──▶ antialiased resize ──mean/std──▶ (N, C, S, S)

Everything is batched in torch and runs where the voxels are, so a GPU gets raw int16 slices and does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from clear.volume import AIR_HU
from clear.windows import in_window, outside_value

if TYPE_CHECKING:
    from clear.card import EncoderCard


def prepare(
    slices: Tensor,
    limits: Sequence[tuple[float, float]],
    pixel_spacing_mm: tuple[float, float],
    card: EncoderCard,
    *,
    is_ct: bool = True,
    padding: Tensor | None = None,
) -> Tensor:
    """Raw slices as an encoder's input.

    slices: (n, Y, X) int16 HU or float32 values, on the device that shall do the work.
    limits: one (low, high) a window, in the slices' own values (`Window.limits`); one a channel where the card stacks
    windows into channels; idle where it standardises slices instead.
    pixel_spacing_mm: (between rows, between columns).
    padding: (n, 2) inclusive range of values outside the image, painted as air; low > high for none.
    Returns (n * len(limits), C, S, S) float32, channels last, slice by slice with the windows inside a slice; (n, C, S,
    S) where the card has windows of its own.

    What lies outside the slice, once it is made square, is air in CT and the window's lower end elsewhere.
    """
    # a processor works through one slice at a time, which stays in its cache; a GPU takes them all at once
    step = 1 if slices.device.type == "cpu" else len(slices)
    grey = torch.cat(
        [
            _grey(
                slices[i : i + step],
                limits,
                pixel_spacing_mm,
                card,
                is_ct,
                None if padding is None else padding[i : i + step],
            )
            for i in range(0, len(slices), step)
        ]
    )
    mean = torch.tensor(card.mean, device=grey.device).view(1, -1, 1, 1)
    std = torch.tensor(card.std, device=grey.device).view(1, -1, 1, 1)
    if card.channel_windows:
        grey = grey.reshape(len(slices), card.channels, card.input_size, card.input_size)
    shape = (len(grey), card.channels, card.input_size, card.input_size)
    out = torch.empty(shape, device=grey.device, memory_format=torch.channels_last)
    return torch.sub(grey, mean, out=out).div_(std)


def _grey(
    slices: Tensor,
    limits: Sequence[tuple[float, float]],
    pixel_spacing_mm: tuple[float, float],
    card: EncoderCard,
    is_ct: bool,
    padding: Tensor | None,
) -> Tensor:
    """(n, Y, X) values to (n * windows, 1, S, S) in [0, 1], or standardised by slice."""
    values = slices.float()
    if padding is not None and bool((padding[:, 0] <= padding[:, 1]).any()):
        first, last = (padding[:, i].to(values)[:, None, None] for i in (0, 1))
        values = values.masked_fill((values >= first) & (values <= last), outside_value(is_ct))
    if card.intensity == "slice_zscore":
        return _standardised(values, pixel_spacing_mm, card, outside_value(is_ct))[:, None]
    planes = []
    for low, high in limits:
        windowed = in_window(values, low, high)
        beyond = min(max((AIR_HU - low) * (1.0 / (high - low)), 0.0), 1.0) if is_ct else 0.0
        planes.append(_resize(_square(windowed, pixel_spacing_mm, card.field_of_view_mm, beyond), card))
    return torch.stack(planes, dim=1).flatten(0, 1)[:, None]


def _standardised(values: Tensor, pixel_spacing_mm: tuple[float, float], card: EncoderCard, beyond: float) -> Tensor:
    """Each slice resized, minus its mean, over its standard deviation (n - 1); a constant slice is 0."""
    image = _square(values, pixel_spacing_mm, card.field_of_view_mm, beyond)
    side = card.input_size
    if image.shape[-2:] != (side, side):
        image = functional.interpolate(
            image[:, None], (side, side), mode=card.resize, antialias=True, align_corners=False
        )[:, 0]
    deviation = image.std(dim=(1, 2), keepdim=True)
    return (image - image.mean(dim=(1, 2), keepdim=True)) / torch.where(deviation < 1e-6, 1.0, deviation)


def square_margins(
    shape: tuple[int, int], pixel_spacing_mm: tuple[float, float], field_of_view_mm: float | None
) -> tuple[int, int, int, int]:
    """Pixels to add (or, negative, to cut) before and after columns and before and after rows.

    The square's side is `field_of_view_mm`, else the longer side of the slice; it keeps the slice's centre, to half a
    pixel. Returns (left, right, top, bottom), the order of `torch.nn.functional.pad`.
    """
    sides_mm = [n * step for n, step in zip(shape, pixel_spacing_mm, strict=True)]
    side_mm = field_of_view_mm or max(sides_mm)
    margins = []
    for n, step in zip(reversed(shape), reversed(pixel_spacing_mm), strict=True):
        extra = max(round(side_mm / step), 1) - n
        margins += [extra // 2, extra - extra // 2]
    left, right, top, bottom = margins
    return left, right, top, bottom


def _square(
    image: Tensor, pixel_spacing_mm: tuple[float, float], field_of_view_mm: float | None, beyond: float
) -> Tensor:
    margins = square_margins((image.shape[-2], image.shape[-1]), pixel_spacing_mm, field_of_view_mm)
    return functional.pad(image, margins, value=beyond) if any(margins) else image


def _resize(image: Tensor, card: EncoderCard) -> Tensor:
    """(n, H, W) in [0, 1] to (n, S, S) in [0, 1]; bicubic overshoot is clipped, as in 8-bit image libraries."""
    side = card.input_size
    if image.shape[-2:] == (side, side):
        return image
    resized = functional.interpolate(
        image[:, None], (side, side), mode=card.resize, antialias=True, align_corners=False
    )[:, 0]
    return resized.clamp_(0.0, 1.0) if card.resize == "bicubic" else resized
