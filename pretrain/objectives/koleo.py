"""KoLeo: spread the embeddings of a batch evenly (Sablayrolles et al., Spreading vectors for similarity search, 2019).

The Kozachenko-Leonenko estimate of entropy: -mean log of the distance to the nearest neighbour, on the unit sphere, as
in DINOv2's `KoLeoLoss`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.objectives.heads import wide

EPS = 1e-8


def koleo_loss(embeddings: Tensor) -> Tensor:
    """(N, d) embeddings of any length, N of 2 or more, to a scalar; float32 at least, also under autocast."""
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = functional.normalize(wide(embeddings), dim=-1, eps=EPS)
        neighbours = unit[nearest(unit.detach())]
        return -torch.log(functional.pairwise_distance(unit, neighbours, eps=EPS) + EPS).mean()


def nearest(unit: Tensor) -> Tensor:
    """(N, d) unit vectors to (N,) indices of each one's nearest other by cosine."""
    return (unit @ unit.T).fill_diagonal_(-2.0).argmax(dim=1)
