"""Position embeddings on another grid than they were trained on, as each author's code resizes them.

The rules differ, and with them the features: bicubic in every case, but sampled by a factor or to a size, with or
without the antialiased kernel, which is another one even when enlarging.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clear.errors import WeightsError


@dataclass(frozen=True)
class Rule:
    """offset: added to the new side before it is divided by the old one, 0 for the exact size; antialias: kernel."""

    offset: float
    antialias: bool


RULES = {
    # facebookresearch/dino and dinov2, `interpolate_pos_encoding`; sampled with the factor (side + 0.1) / n
    "dinov2": Rule(0.1, antialias=False),
    # facebookresearch/dinov2 with registers (hubconf: interpolate_offset 0, interpolate_antialias True)
    "dinov2_registers": Rule(0.0, antialias=True),
    # transformers' Dinov2Model, ViTModel and SiglipVisionModel, `interpolate_pos_encoding`
    "exact": Rule(0.0, antialias=False),
}


def resize_positions(positions: Tensor, grid_size: tuple[int, int], rule: str) -> Tensor:
    """Positions (1, p + n*n, d) of a square grid on one of (rows, columns); p is 1 with a class position, else 0.

    Returns (1, p + rows*columns, d); unchanged at the native size. Raises WeightsError when they are of no square grid.
    """
    count = positions.shape[1]
    native = math.isqrt(count)
    prefix = count - native * native
    if native == 0 or prefix > 1:
        raise WeightsError(
            f"tensor pos_embed: position embeddings for {count} tokens are of no square grid, with a class token or "
            "without"
        )
    rows, columns = grid_size
    if rows == columns == native:
        return positions
    grid = positions[:, prefix:].reshape(1, native, native, -1).permute(0, 3, 1, 2).float()
    chosen = RULES[rule]
    if chosen.offset:
        factors = (rows + chosen.offset) / native, (columns + chosen.offset) / native
        grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=chosen.antialias)
    else:
        grid = functional.interpolate(grid, size=grid_size, mode="bicubic", antialias=chosen.antialias)
    return torch.cat([positions[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)], dim=1)
