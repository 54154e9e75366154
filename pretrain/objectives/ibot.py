"""iBOT's masked patches: which are masked, and the loss of predicting what the teacher sees there.

Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022, Eq. 2, as DINOv2 has it (`iBOTPatchLoss`,
`MaskingGenerator`, `collate_data_and_cast`). The blocks are BEiT's (Bao et al. 2022, Algorithm 1).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.objectives.heads import wide

ATTEMPTS = 10  # at placing a block, before the mask is taken as it is
SMALLEST_BLOCK = 4  # patches
ASPECT = 0.3  # a block's height over its width is between this and its inverse


def ibot_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy at masked patches, the mean over an image's masked patches, then over images.

    student: (M, K) logits; teacher: (M, K) probabilities, both of the masked patches in row order; mask: (N, T) bool
    with M True. An image without a masked patch counts as one with loss 0, as in DINOv2.
    """
    per_patch = -(teacher * (wide(student) / temperature).log_softmax(dim=-1)).sum(-1)
    weights = (1 / mask.sum(1).clamp(min=1)).to(per_patch.dtype)[:, None].expand(mask.shape)[mask]
    return (per_patch * weights).sum() / len(mask)


def draw_masks(images: Tensor, side: int, share: tuple[float, float], probability: float) -> Tensor:
    """(N, C, S, S) images to (N, side * side) bool: which patches to mask, in blocks; on the images' device.

    Each image is masked with this probability, a uniformly drawn share of its patches. DINOv2 masks exactly that part
    of a batch with stratified shares; here every mask is drawn from its own image's pixels, so that it is the same in
    any micro-batch, on any number of processes and after a resume.
    """
    masks = [_mask(seed, side, share, probability) for seed in _seeds(images)]
    return torch.from_numpy(np.stack(masks)).to(images.device)


def _seeds(images: Tensor) -> list[int]:
    """A number from each image's pixels; random crops and noise make it another in every epoch."""
    bits = images.detach().float().flatten(1)[:, ::13].contiguous().view(torch.int32).to(torch.int64)
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device) % 65521
    return [int(value) & (2**63 - 1) for value in (bits * places).sum(1).tolist()]


def _mask(seed: int, side: int, share: tuple[float, float], probability: float) -> NDArray[np.bool_]:
    """One image's mask, (side * side,)."""
    draw = np.random.default_rng(seed)
    mask = np.zeros((side, side), dtype=bool)
    wanted = int(side * side * draw.uniform(*share)) if draw.random() < probability else 0
    while mask.sum() < wanted and _add_block(mask, wanted - int(mask.sum()), draw):
        pass
    return mask.reshape(-1)


def _add_block(mask: NDArray[np.bool_], most: int, draw: np.random.Generator) -> bool:
    """Mask one block that adds 1 to `most` patches, in place; False when no attempt found one."""
    side = len(mask)
    for _ in range(ATTEMPTS):
        area = draw.uniform(min(SMALLEST_BLOCK, most), most)
        aspect = math.exp(draw.uniform(math.log(ASPECT), -math.log(ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < side and 0 < width < side):
            continue
        top, left = draw.integers(0, side - height + 1), draw.integers(0, side - width + 1)
        block = mask[top : top + height, left : left + width]
        if 0 < block.size - block.sum() <= most:
            block[:] = True
            return True
    return False
