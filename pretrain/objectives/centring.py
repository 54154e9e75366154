"""What keeps a teacher's assignments from collapsing: a running centre, or Sinkhorn-Knopp's equal shares.

The centre is DINO's (Caron et al. 2021, Eq. 4), over all processes; it is used before it moves. Sinkhorn-Knopp is
SwAV's (Caron et al. 2020) as DINOv2 uses it, computed with logarithms so that no temperature overflows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretrain.distributed import gather, sum_over_processes
from pretrain.objectives.heads import wide

SINKHORN_ITERATIONS = 3  # of DINOv2


class Centre(nn.Module):
    """Running mean of a teacher's logits, (K,).

    `observe` takes note of a batch and `follow` moves the centre, so that computing a loss twice moves nothing.
    """

    value: Tensor

    def __init__(self, width: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(width))
        self._observed: Tensor | None = None

    @torch.no_grad()
    def probabilities(self, logits: Tensor, temperature: float) -> Tensor:
        """(N, K) logits to probabilities, centred and sharpened."""
        return ((wide(logits) - self.value) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def observe(self, logits: Tensor) -> None:
        """Note the mean of these (N, K) logits over all processes, N their own; none at all leaves the centre."""
        sums = torch.cat([wide(logits).sum(0), self.value.new_tensor([len(logits)])])
        sums = sum_over_processes(sums)
        self._observed = sums[:-1] / sums[-1] if sums[-1] > 0 else None

    @torch.no_grad()
    def follow(self) -> None:
        """The centre becomes momentum * itself + (1 - momentum) * the mean last observed."""
        if self._observed is not None:
            self.value.mul_(self.momentum).add_(self._observed, alpha=1 - self.momentum)
            self._observed = None


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """(N, K) logits to assignments whose rows sum to 1 and whose columns, over all processes, to nearly equal shares.

    Rows of the processes may differ in number. The last normalisation is of rows, as in DINOv2.
    """
    scores = wide(logits) / temperature
    for _ in range(iterations):
        scores = scores - _column_logsumexp(scores) - math.log(scores.shape[1])
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.exp()


def _column_logsumexp(scores: Tensor) -> Tensor:
    """(N, K) to (K,): over the rows of all processes, of which this one may have none."""
    nothing = scores.new_full((1, scores.shape[1]), -math.inf)
    return gather(torch.cat([scores, nothing]).logsumexp(0, keepdim=True)).logsumexp(0)
