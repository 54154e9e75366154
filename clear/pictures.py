"""Pictures of slices: grey values in a window, square pixels, WebP.

Windowing and padding are those of `clear.slices`, so a picture shows what an encoder gets to see, before it is made
square and resized. Orientation is the volume's own: row 0 on top, which is the radiological convention for its
canonical axes (`clear.volume`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clear.volume import Volume
from clear.windows import Window, in_window, outside_value

_EVERY_INT16 = np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.float32)  # in the order of their bits
MAX_SIDE = 4096  # pixels: what no picture passes, however much finer one spacing is than the other


def grey(volume: Volume, slice: int, window: Window, *, side: int | None = None) -> NDArray[np.uint8]:
    """One slice in one window: (H, W) square pixels, 0 at the window's lower end and 255 at its upper one.

    slice: index along Z. side: pixels that neither side passes; without, pixels are `pixel_mm(volume)` wide.
    Pixels outside the image (stored padding) are painted as in `clear.slices`: air in CT, 0 elsewhere.
    A percentile window looks at the whole volume each time; for many slices give `settled` windows.
    """
    limits = window.limits(volume.voxels)
    values = volume.voxels[slice]
    if values.dtype == np.int16:  # each of the values there can be, once, is less than each pixel
        image = np.take(_grey_levels(_EVERY_INT16, *limits), values.view(np.uint16))
    else:
        image = _grey_levels(values, *limits)
    if volume.padding is not None:
        first, last = volume.padding[slice]
        outside = np.float32(outside_value(volume.modality == "CT"))
        image[(values >= first) & (values <= last)] = _grey_levels(outside, *limits)
    return _resized(image, _square_shape(image.shape, volume.spacing_mm[1:], side))


def settled(volume: Volume, windows: Sequence[Window]) -> tuple[Window, ...]:
    """The same windows as ranges of this volume's values: what percentiles come to is worked out once."""
    return tuple(Window(window.name, *window.limits(volume.voxels)) for window in windows)


def pixel_mm(volume: Volume) -> float:
    """The side in millimetres of the square pixels of `grey`: the finer in-plane spacing.

    Coarser only where a side would pass `MAX_SIDE` pixels.
    """
    return _pixel_mm(volume.voxels.shape[1:], volume.spacing_mm[1:], MAX_SIDE)


def resized_to_square_pixels(plane: NDArray[np.floating], spacing_mm: tuple[float, float]) -> NDArray[np.float32]:
    """Values on a slice's own pixels, (Y, X), on the (H, W) pixels of its picture; bilinear, for overlays.

    spacing_mm: (between rows, between columns).
    """
    values = np.asarray(plane, dtype=np.float32)
    shape = _square_shape(values.shape, spacing_mm, None)
    if values.shape == shape:
        return values
    return np.asarray(Image.fromarray(values).resize(shape[::-1], Image.Resampling.BILINEAR))


def encoded(image: NDArray[np.uint8], *, side: int | None = None, quality: int = 75, effort: int = 4) -> bytes:
    """A picture, (H, W) grey or (H, W, 3) RGB, as WebP.

    side: the long side is reduced to this many pixels, never enlarged. quality: 0..100, lossy. effort: 0 (fast) to 6
    (small), the encoder's `method`.
    """
    height, width = image.shape[:2]
    if side is not None and max(height, width) > side:
        scale = side / max(height, width)
        image = _resized(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", quality=quality, method=effort)
    return out.getvalue()


def data_uri(webp: bytes) -> str:
    """The picture as text that can stand in an `src` attribute."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


def _grey_levels(values: Any, low: float, high: float) -> NDArray[np.uint8]:
    """float32 values in a window, as 0 to 255; what is no number is 0."""
    levels: NDArray[np.float32] = np.nan_to_num(in_window(values, low, high) * 255.0 + 0.5)
    return levels.astype(np.uint8)


def _resized(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear, and antialiased where it gets smaller; centres stay in place, as in `resized_to_square_pixels`."""
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))


def _square_shape(shape: tuple[int, ...], spacing_mm: tuple[float, ...], side: int | None) -> tuple[int, int]:
    """Rows and columns of square pixels that cover the slice, to half a pixel."""
    pixel = _pixel_mm(shape, spacing_mm, side or MAX_SIDE)
    rows, columns = (max(1, round(n * step / pixel)) for n, step in zip(shape, spacing_mm, strict=True))
    return rows, columns


def _pixel_mm(shape: tuple[int, ...], spacing_mm: tuple[float, ...], side: int) -> float:
    longest = max(n * step for n, step in zip(shape, spacing_mm, strict=True))
    return max(min(spacing_mm), longest / side)
