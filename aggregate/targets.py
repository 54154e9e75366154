"""Targets: class codes of bags, and what a model is asked to do about them.

A model has one logit for each binary endpoint and one a class for each multi-class endpoint, side by side. Unknown
labels (nan) are masked: they add nothing to the loss and take no part in its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clear.endpoints import Endpoint


@dataclass(frozen=True)
class Targets:
    """endpoints: kinds settled; codes: (B, E) class codes, nan = unknown."""

    endpoints: tuple[Endpoint, ...]
    codes: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.endpoints):
            raise ValueError(f"codes {self.codes.shape} for {len(self.endpoints)} endpoints")

    @property
    def n_out(self) -> int:
        return sum(endpoint.n_out for endpoint in self.endpoints)

    @property
    def columns(self) -> list[slice]:
        """The logits of each endpoint."""
        stops = np.cumsum([endpoint.n_out for endpoint in self.endpoints]).tolist()
        return [slice(stop - e.n_out, stop) for stop, e in zip(stops, self.endpoints, strict=True)]

    def known(self, bags: Sequence[int] | NDArray[np.int64]) -> int:
        """How many labels of these bags are known, over all endpoints."""
        return int(np.isfinite(self.codes[np.asarray(bags, dtype=np.int64)]).sum())

    def indicators(self) -> NDArray[np.bool_]:
        """(B, C) one column for each class of each endpoint; an unknown label is in none of them."""
        columns = [
            self.codes[:, e] == code
            for e, endpoint in enumerate(self.endpoints)
            for code in range(len(endpoint.classes))
        ]
        return np.stack(columns, axis=1)

    def class_weights(self, bags: NDArray[np.int64]) -> list[Tensor]:
        """Balanced weights from these bags: binary (1,) negatives over positives; multi-class n / (classes x n_c)."""
        weights = []
        for e, endpoint in enumerate(self.endpoints):
            codes = self.codes[bags, e]
            counts = np.array([(codes == code).sum() for code in range(len(endpoint.classes))], dtype=np.float64)
            if endpoint.kind == "binary":
                ratio = counts[0] / counts[1] if counts.all() else 1.0
                weights.append(torch.tensor([ratio], dtype=torch.float32))
            else:
                present = np.where(counts > 0, counts, np.inf)
                weights.append(torch.as_tensor(counts.sum() / (len(counts) * present), dtype=torch.float32))
        return weights


def loss_sum(logits: Tensor, codes: Tensor, targets: Targets, weights: Sequence[Tensor] | None = None) -> Tensor:
    """Sum over known labels of binary cross-entropy (binary) and cross-entropy (multi-class).

    logits: (b, n_out); codes: (b, E), nan = unknown; weights: as `Targets.class_weights` gives them.
    """
    total = logits.sum() * 0
    for e, (endpoint, columns) in enumerate(zip(targets.endpoints, targets.columns, strict=True)):
        known = torch.isfinite(codes[:, e])
        wanted = codes[known, e]
        weight = None if weights is None else weights[e].to(logits.device)
        if endpoint.kind == "binary":
            score = logits[known, columns.start]
            total = total + F.binary_cross_entropy_with_logits(score, wanted, pos_weight=weight, reduction="sum")
        else:
            total = total + F.cross_entropy(logits[known, columns], wanted.long(), weight=weight, reduction="sum")
    return total


def probabilities(logits: Tensor, targets: Targets) -> NDArray[np.float64]:
    """(b, n_out): sigmoid of binary logits, softmax over a multi-class endpoint's, in float64."""
    logits = logits.double()
    parts = [
        torch.sigmoid(logits[:, columns]) if endpoint.kind == "binary" else torch.softmax(logits[:, columns], dim=1)
        for endpoint, columns in zip(targets.endpoints, targets.columns, strict=True)
    ]
    return np.asarray(torch.cat(parts, dim=1).numpy())
