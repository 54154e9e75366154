"""What turns one vector a bag into logits."""

from __future__ import annotations

from torch import Tensor, nn

HIDDEN = 256


class Head(nn.Module):
    """LayerNorm, Linear 256 to 256, dropout, SiLU, Linear to n_out: (B, 256) to (B, n_out) logits."""

    def __init__(self, n_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.hidden = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, n_out)

    def forward(self, pooled: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: (B, 256) what dropout multiplies by, see `Aggregator.draw_dropout`; nothing is dropped without it."""
        hidden = self.hidden(self.norm(pooled))
        logits: Tensor = self.out(nn.functional.silu(hidden if keep is None else hidden * keep))
        return logits


class LinearHead(nn.Module):
    """Dropout and one Linear: (B, m) to (B, n_out) logits."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, n_out)

    def forward(self, pooled: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: (B, m), as in `Head`."""
        logits: Tensor = self.out(pooled if keep is None else pooled * keep)
        return logits
