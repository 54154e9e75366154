"""Where a view looks: rectangles of whole pixels that are square in millimetres.

A slice's pixels may be longer than wide, so sides are drawn in mm and become pixels along each axis by its own spacing,
to half a pixel, as `clear.slices.square_margins` does it. Pixel i of an axis covers i..i+1; boxes are half-open, (y0,
x0, y1, x1). A rectangle may reach beyond its slice: there is air.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear.slices import square_margins
from clear.volume import AIR_HU

BODY_HU = AIR_HU + 100  # more than this is no air: soft tissue, and lung but for its emptiest parts
BODY_DRAWS = 10
BODY_SAMPLES = 24  # looked at along each axis
ASPECT_DRAWS = 10  # of torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Crop:
    """Rows top..top+height and columns left..left+width of a slice, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column to its right."""
        return self.left + self.width

    def contains(self, box: NDArray[np.float64]) -> bool:
        """Whether a box (y0, x0, y1, x1) of the slice's pixels lies inside."""
        y0, x0, y1, x1 = (float(v) for v in box)
        return self.top <= y0 and self.left <= x0 and y1 <= self.bottom and x1 <= self.right

    def map_boxes(
        self, boxes: NDArray[np.float64], size: int, *, flip_rows: bool = False, flip_columns: bool = False
    ) -> NDArray[np.float64]:
        """Boxes (n, 4) of the slice's pixels in those of the view of size x size pixels that this crop becomes."""
        offset = np.array([self.top, self.left] * 2, np.float64)
        scale = np.array([size / self.height, size / self.width] * 2)
        mapped: NDArray[np.float64] = (np.asarray(boxes, np.float64).reshape(-1, 4) - offset) * scale
        for axis, flipped in ((0, flip_rows), (1, flip_columns)):
            if flipped:
                mapped[:, [axis, axis + 2]] = size - mapped[:, [axis + 2, axis]]
        return mapped


def whole_square(
    shape: tuple[int, int], spacing_mm: tuple[float, float], field_of_view_mm: float | None = None
) -> Crop:
    """The square that extraction shows of a slice: its longer side in mm, or the encoder's field of view."""
    left, right, top, bottom = square_margins(shape, spacing_mm, field_of_view_mm)
    return Crop(-top, -left, shape[0] + top + bottom, shape[1] + left + right)


def random_crop(
    square: Crop,
    shape: tuple[int, int],
    spacing_mm: tuple[float, float],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Crop:
    """A random resized crop (torchvision's RandomResizedCrop) in millimetres.

    square: what is drawn from (`whole_square`); scale: share of its area, uniform; aspect: width over height in mm,
    log-uniform. The place is uniform among those inside the square that show no more of what lies beyond the slice than
    they must. An aspect that never fits gives the whole square.
    """
    area = square.height * spacing_mm[0] * square.width * spacing_mm[1]
    for _ in range(ASPECT_DRAWS):
        share = rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        height = max(round(math.sqrt(share * area / ratio) / spacing_mm[0]), 1)
        width = max(round(math.sqrt(share * area * ratio) / spacing_mm[1]), 1)
        if aspect[0] == aspect[1] == 1:  # the square's own two sides may differ by half a pixel
            height, width = min(height, square.height), min(width, square.width)
        if height <= square.height and width <= square.width:
            return Crop(
                _place(square.top, square.bottom, shape[0], height, rng),
                _place(square.left, square.right, shape[1], width, rng),
                height,
                width,
            )
    return square


def _place(first: int, end: int, n: int, length: int, rng: np.random.Generator) -> int:
    """Where `length` pixels start inside first..end, showing as many of the slice's pixels 0..n as they can."""
    seen_first, seen_end = max(first, 0), min(end, n)
    low, high = sorted((seen_first, seen_end - length))
    return int(rng.integers(max(low, first), min(high, end - length), endpoint=True))


def body_share(hu: NDArray[np.int16], crop: Crop) -> float:
    """Share of a crop's area that is more than air, on a grid of BODY_SAMPLES² pixels."""
    rows = max(crop.height // BODY_SAMPLES, 1)
    columns = max(crop.width // BODY_SAMPLES, 1)
    seen = hu[max(crop.top, 0) : max(crop.bottom, 0) : rows, max(crop.left, 0) : max(crop.right, 0) : columns]
    return float((seen > BODY_HU).sum()) * rows * columns / (crop.height * crop.width)


def body_crop(
    hu: NDArray[np.int16],
    square: Crop,
    spacing_mm: tuple[float, float],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    min_body: float,
    rng: np.random.Generator,
) -> Crop:
    """A random crop of which at least `min_body` is no air; after BODY_DRAWS draws the fullest of them.

    Two views of nothing but air would ask the encoder to tell equal images apart.
    """
    shape = (hu.shape[0], hu.shape[1])
    best, fullest = random_crop(square, shape, spacing_mm, scale, aspect, rng), -1.0
    if min_body <= 0:
        return best
    crop = best
    for _ in range(BODY_DRAWS):
        share = body_share(hu, crop)
        if share >= min_body:
            return crop
        if share > fullest:
            best, fullest = crop, share
        crop = random_crop(square, shape, spacing_mm, scale, aspect, rng)
    return best


def lesion_crop(
    box: NDArray[np.float64],
    spacing_mm: tuple[float, float],
    side_mm: float,
    margin_mm: float,
    jitter: float,
    rng: np.random.Generator,
) -> Crop:
    """A crop around a box (y0, x0, y1, x1) that always contains the whole box and `margin_mm` on each side of it.

    Its side is `side_mm`, or what box and margin need. The box's centre is the crop's, to half a pixel; with jitter
    the crop moves by up to that share of the room that box and margin leave it.
    """
    inner = []  # first pixel, one past the last, centre: what must be inside, along each axis
    for axis in (0, 1):
        low, high = float(box[axis]), float(box[axis + 2])
        margin = margin_mm / spacing_mm[axis]
        first, end = math.floor(low - margin), math.ceil(high + margin)
        inner.append((first, max(end, first + 1), (low + high) / 2))
    side_mm = max(side_mm, *((end - first) * step for (first, end, _), step in zip(inner, spacing_mm, strict=True)))
    places = []
    for (first, end, centre), step in zip(inner, spacing_mm, strict=True):
        length = round(side_mm / step)
        low, high = end - length, first  # where it may start; only a rounding error could be outside
        start = min(max(round(centre - length / 2), low), high)
        shift = jitter * rng.uniform(-1, 1)
        start += round(shift * ((start - low) if shift < 0 else (high - start)))
        places.append((start, length))
    (top, height), (left, width) = places
    return Crop(top, left, height, width)


def cut(
    hu: NDArray[np.int16],
    crop: Crop,
    change: Callable[[NDArray[np.int16]], NDArray[np.generic]] = np.array,
) -> NDArray[np.generic]:
    """The crop's pixels (height, width); air where it reaches outside the slice.

    change: what makes the slice's pixels inside the crop, a view, those of the result; a copy as they are by default.
    """
    top, left = max(crop.top, 0), max(crop.left, 0)
    bottom, right = max(min(crop.bottom, hu.shape[0]), top), max(min(crop.right, hu.shape[1]), left)
    seen = change(hu[top:bottom, left:right])
    if seen.shape == (crop.height, crop.width):
        return seen
    out = np.full((crop.height, crop.width), AIR_HU, seen.dtype)
    y, x = top - crop.top, left - crop.left
    out[y : y + seen.shape[0], x : x + seen.shape[1]] = seen
    return out
