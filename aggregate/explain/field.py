"""From a map over an encoder's square input back to the scan's own pixels: `clear.slices` run backwards.

A slice of Y x X pixels is padded or cut to a square in millimetres (`square_margins`) and resized to the input.
Resizing keeps the extent, so a point of the square lies at the same fraction of every grid laid over it, and a grid of
h x w cells is read at a pixel by

    r' = (r + top + 1/2) / (Y + top + bottom) * h - 1/2          rows; columns alike

linearly between neighbouring cells, at the border by the outermost one: `torch.nn.functional.interpolate` with
align_corners=False onto the square, of which the slice is then cut out. Pixels outside the square are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear.card import EncoderCard
from clear.errors import InputError
from clear.slices import square_margins
from clear.volume import Volume


@dataclass(frozen=True)
class Field:
    """What an encoder sees of a slice.

    shape: (Y, X) of the slice; margins: pixels added (negative: cut) left, right, on top and below, as
    `clear.slices.square_margins` gives them.
    """

    shape: tuple[int, int]
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def of(cls, volume: Volume, card: EncoderCard) -> Field:
        """The field of every slice of a volume. Raises InputError for an encoder of whole volumes."""
        if card.volume is not None:
            raise InputError(
                f"encoder {card.name} takes whole volumes, resampled to a grid of their own; its maps cannot be laid "
                "onto slices"
            )
        shape = (volume.voxels.shape[1], volume.voxels.shape[2])
        spacing = (volume.spacing_mm[1], volume.spacing_mm[2])
        return cls(shape, square_margins(shape, spacing, card.field_of_view_mm))

    def onto_scan(self, grid: NDArray[np.floating]) -> NDArray[np.float32]:
        """(..., h, w) values of cells over the square to (..., Y, X) of the slice's pixels."""
        rows, columns = self.weights((grid.shape[-2], grid.shape[-1]))
        return np.asarray(rows @ np.asarray(grid, dtype=np.float64) @ columns.T, dtype=np.float32)

    def weights(self, cells: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """((Y, h), (X, w)) what each cell adds to each row and to each column of pixels."""
        left, right, top, bottom = self.margins
        return _weights(self.shape[0], top, bottom, cells[0]), _weights(self.shape[1], left, right, cells[1])


def _weights(n: int, before: int, after: int, cells: int) -> NDArray[np.float64]:
    """(n, cells) linear weights along one axis; lines of 0 where a pixel lies outside the square."""
    side = n + before + after
    pixel = np.arange(n) + before
    place = np.clip((pixel + 0.5) / side * cells - 0.5, 0, cells - 1)
    low = np.floor(place).astype(int)
    share = place - low
    out = np.zeros((n, cells))
    line = np.arange(n)
    out[line, low] += 1 - share
    out[line, np.minimum(low + 1, cells - 1)] += share
    out[(pixel < 0) | (pixel >= side)] = 0
    return out
