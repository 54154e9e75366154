"""ABMIL and gated ABMIL (Ilse, Tomczak, Welling, ICML 2018, eq. 8 and 9).

ABMIL has the shape of the CLEAR paper's model (its state-dict names differ: `PAPER_NAMES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from aggregate.aggregator import Aggregator
from aggregate.attention import ROWS, Weights, attention_pool, fused_attention_pool
from aggregate.gated import GatedWeights, fused_gated_pool, gated_pool
from aggregate.heads import HIDDEN, Head
from aggregate.packed import RowSource

# names in the released class ABMIL_Classification -> ours
PAPER_NAMES = MappingProxyType(
    {
        "encoder.0": "project",
        "aggregator.0": "attention_hidden",
        "aggregator.2": "attention_score",
        "head.0": "head.norm",
        "head.1": "head.hidden",
        "head.4": "head.out",
    }
)


class ABMIL(Aggregator):
    """Linear to 256 + ReLU; attention Linear 256-256, tanh, Linear 256-1, softmax by bag; weighted sum; `Head`."""

    def __init__(self, dim: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__(dim, dropout)
        self.project = nn.Linear(dim, HIDDEN)
        self.attention_hidden = nn.Linear(HIDDEN, HIDDEN)
        self.attention_score = nn.Linear(HIDDEN, 1)
        self.head = Head(n_out)

    def prepare(self, source: RowSource, precision: str = "float32") -> RowSource:
        return _prepared(self, source, precision)

    def _weights(self) -> Weights:
        layers = (self.project, self.attention_hidden, self.attention_score)
        (a, b), (c, d), (e, f) = ((layer.weight, layer.bias) for layer in layers)
        return a, b, c, d, e, f

    def pool(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        pool = fused_attention_pool if rows.device.type == "cpu" else attention_pool
        return pool(rows, offsets, self._weights())


class GatedABMIL(Aggregator):
    """ABMIL whose tanh branch is multiplied by a sigmoid gate of the same size before it is scored."""

    def __init__(self, dim: int, n_out: int, dropout: float = 0.5) -> None:
        super().__init__(dim, dropout)
        self.project = nn.Linear(dim, HIDDEN)
        self.attention_hidden = nn.Linear(HIDDEN, HIDDEN)
        self.attention_gate = nn.Linear(HIDDEN, HIDDEN)
        self.attention_score = nn.Linear(HIDDEN, 1)
        self.head = Head(n_out)

    def prepare(self, source: RowSource, precision: str = "float32") -> RowSource:
        return _prepared(self, source, precision)

    def _weights(self) -> GatedWeights:
        layers = (self.project, self.attention_hidden, self.attention_gate, self.attention_score)
        (a, b), (c, d), (e, f), (g, h) = ((layer.weight, layer.bias) for layer in layers)
        return a, b, c, d, e, f, g, h

    def pool(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        pool = fused_gated_pool if rows.device.type == "cpu" else gated_pool
        return pool(rows, offsets, self._weights())


def _prepared(model: Aggregator, source: RowSource, precision: str) -> RowSource:
    if precision == "bfloat16":
        return source.scaled(model.mean, model.scale, torch.bfloat16, multiple=ROWS)
    return source.scaled(model.mean, model.scale)


def from_paper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the released ABMIL_Classification under our names, for features that are not standardised."""
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{PAPER_NAMES[layer]}.{kind}"] = value
    dim = renamed["project.weight"].shape[1]
    return {**renamed, "mean": torch.zeros(dim), "scale": torch.ones(dim)}
