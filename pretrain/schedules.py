"""Learning rate, weight decay, momentum and temperature over a training, as MoCo v3's and DINO's code compute them.

All are plain functions, so a resumed run needs no state. MoCo v3 counts in fractional epochs, DINO in steps; both have
a linear warm-up and half a cosine, and differ in whether the warm-up's last step has reached the peak. timm's
CosineLRScheduler gives MoCo v3's numbers but only by writing them into an optimiser, and cannot give DINO's.
"""

from __future__ import annotations

import math


def cosine(progress: float, start: float, end: float) -> float:
    """From start at progress 0 to end at progress 1 along half a cosine; constant outside.

    MoCo v3's `adjust_moco_momentum` at progress = epoch / epochs; DINO's `cosine_scheduler` without a warm-up at
    progress = step / steps.
    """
    progress = min(max(progress, 0.0), 1.0)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def moco_learning_rate(epoch: float, *, peak: float, epochs: float, warmup_epochs: float = 0) -> float:
    """Proportional to the epoch up to `warmup_epochs`, then half a cosine to 0 (MoCo v3, `adjust_learning_rate`).

    epoch: fractional epochs that are done. The peak is already scaled with the batch (times batch / 256 there).
    """
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if epochs <= warmup_epochs:
        return peak
    return cosine((epoch - warmup_epochs) / (epochs - warmup_epochs), peak, 0.0)


def dino_learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int = 0, end: float = 1e-6) -> float:
    """0 at step 0, the peak at the last step of the warm-up, then half a cosine towards `end` (DINO, DINOv2).

    step: steps that are done. The step after the warm-up has the peak again; the cosine would reach `end` at `steps`.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    return cosine((step - warmup_steps) / max(1, steps - warmup_steps), peak, end)


def dino_temperature(epoch: int, *, start: float, end: float, warmup_epochs: int) -> float:
    """The teacher's temperature in an epoch: linear, both ends included, then constant (DINO, `DINOLoss`)."""
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * epoch / max(1, warmup_epochs - 1)


def completed_epochs(progress: float, epochs: int) -> int:
    """Whole epochs done at this share of the training, safe against the last bit of a division."""
    return int(progress * epochs + 1e-6)
