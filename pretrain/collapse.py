"""Watching for collapse: whether embeddings still tell slices from each other.

Two figures of the embeddings of some hundred slices, cut to unit length: how much they vary in all (their standard
deviation, which falls to 0 when every slice gets one embedding, the complete collapse), and in how many directions (the
effective rank, which falls to 1 when they vary along a line, the dimensional collapse).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROWS = 512  # embeddings that a figure is computed on: the last ones of an epoch
# below these no encoder tells much; an untrained MambaOut has a spread of 0.1 and a rank of 8 to 30
LEAST_SPREAD = 0.01
LEAST_RANK = 2.0


def spread(embeddings: Tensor) -> float:
    """Standard deviation of unit vectors over slices, its mean over the d values, times sqrt(d).

    embeddings: (n, d). 1 where directions are spread evenly, as on a sphere (each value then has 1/sqrt(d)); 0 where
    all are one. Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, section 4.1.
    """
    unit = _unit(embeddings)
    return float(unit.std(0, correction=0).mean()) * math.sqrt(unit.shape[1])


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the singular values of the centred unit vectors, as shares of their sum.

    embeddings: (n, d). At most min(n - 1, d); 1 where all lie on a line or in a point. Roy and Vetterli, The effective
    rank, EUSIPCO 2007, definition 1.
    """
    unit = _unit(embeddings)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    total = values.sum()
    if float(total) <= 1e-12:
        return 1.0
    shares = values / total
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def warning(spread_now: float, rank_now: float) -> str:
    """One sentence when embeddings have collapsed, "" while they have not."""
    if spread_now < LEAST_SPREAD:
        return (
            f"collapse: every slice has nearly the same embedding (standard deviation {spread_now:.4f} of the 1 that "
            "evenly spread ones have). Lower --lr, raise --batch or the objective's momentum"
        )
    if rank_now < LEAST_RANK:
        return (
            f"collapse: embeddings vary in one direction only (effective rank {rank_now:.2f}). Lower --lr, raise "
            "--batch or the objective's momentum"
        )
    return ""


class RecentEmbeddings:
    """The embeddings of the last ROWS slices, on the processor; a checkpoint keeps them (`tensor`)."""

    def __init__(self, tensor: Tensor | None = None) -> None:
        self.tensor = tensor if tensor is not None else torch.empty(0)

    def add(self, embeddings: Tensor) -> None:
        """(B, d) of one step."""
        new = embeddings.detach().float().cpu()
        self.tensor = (new if self.tensor.numel() == 0 else torch.cat([self.tensor, new]))[-ROWS:]

    def figures(self) -> tuple[float, float] | None:
        """(spread, effective rank); None of fewer than two slices or of values that are not finite."""
        if len(self.tensor) < 2 or not bool(torch.isfinite(self.tensor).all()):
            return None
        return spread(self.tensor), effective_rank(self.tensor)


def _unit(embeddings: Tensor) -> Tensor:
    """Unit length, in double precision: the spread of a collapsed encoder is near the rounding of single."""
    return torch.nn.functional.normalize(embeddings.double(), dim=1)
