"""Folding a stem of three colour channels into one grey channel, which must not change the embedding.

A grey value g reaches a colour network as x_c = (g - m_c) / s_c in each channel c. With one channel of mean m and
standard deviation s, x = (g - m) / s, so x_c = (s x + m - m_c) / s_c, and a convolution of the x_c is one of x with

    w = Σ_c w_c s / s_c        and        b' = b + Σ_c Σ_pixels w_c (m - m_c) / s_c

The second sum assumes that every pixel under the filter is there. A padded stem pads the x_c with 0, which is another
grey value in each channel, so it is folded only where all channels have the same mean and deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clear.checkpoints import check_kind
from clear.errors import WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard


def fold_stem(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors with a stem of one channel where theirs has three and the network's one; else unchanged.

    `card.stem_mean` and `card.stem_std` are what the three channels were trained with. Raises WeightsError where
    folding would move embeddings.
    """
    own = network.state_dict()
    names = [
        name
        for name, tensor in tensors.items()
        if name in own
        and tensor.ndim == own[name].ndim == 4
        and (tensor.shape[1], own[name].shape[1]) == (3, 1)
        and (len(tensor), *tensor.shape[2:]) == (len(own[name]), *own[name].shape[2:])  # else the strict load names it
    ]
    for name in names:
        stem = network.get_submodule(name.removesuffix(".weight"))
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (card.stem_mean, card.stem_std))
        own_mean, own_std = card.mean[0], card.std[0]
        shift = ((own_mean - mean) / std)[None, :, None, None]
        check_kind(name, tensors[name], whole=False)
        weight = tensors[name].double()
        constant = (weight * shift).sum(dim=(1, 2, 3))
        if type(stem) is not nn.Conv2d:  # a subclass may do more to its weights than multiply by them
            raise WeightsError(f"encoder {card.name}: its stem {name} is no plain convolution and cannot be folded")
        padded = stem.padding != (0, 0)
        if padded and bool((shift.abs() > 1e-12).any()):
            raise WeightsError(
                f"encoder {card.name}: its padded stem {name} cannot be folded into one channel, because the colour "
                f"channels have different means ({card.stem_mean}); use a card with 3 channels"
            )
        bias = name.removesuffix("weight") + "bias"
        if bias not in tensors and bias not in own and bool((constant.abs() > 1e-12).any()):
            raise WeightsError(f"encoder {card.name}: its stem {name} has no bias to take up the colour means")
        tensors[name] = (weight * (own_std / std)[None, :, None, None]).sum(dim=1, keepdim=True).float()
        if bias in tensors and tensors[bias].shape == constant.shape:
            check_kind(bias, tensors[bias], whole=False)
            tensors[bias] = (tensors[bias].double() + constant).float()
    return tensors
