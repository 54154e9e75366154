"""A teacher that follows its student: an exponential moving average of the parameters.

MoCo v3 (`_update_momentum_encoder`), DINO and DINOv2 average parameters only. Buffers are left alone: a teacher's
BatchNorm normalises with the statistics of its own batches and keeps running ones of its own. timm's ModelEmaV3
averages or copies buffers too, so it is not the same thing.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def twin(module: nn.Module) -> nn.Module:
    """A copy with the same weights and buffers, whose parameters want no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Every parameter of the teacher becomes momentum * itself + (1 - momentum) * the student's, in place."""
    theirs: list[Tensor] = list(teacher.parameters())
    ours = [parameter.detach() for parameter in student.parameters()]
    torch._foreach_mul_(theirs, momentum)
    torch._foreach_add_(theirs, ours, alpha=1 - momentum)
