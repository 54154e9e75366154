"""Biases that no loss can feel, kept as they begin.

Their gradient is 0 but for rounding, and AdamW, which divides a gradient by its own size, turns that rounding into
steps of full length: a random walk that differs with the number of processes, the machine and the precision, and that
is exported with the encoder.
"""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import Tensor, nn

from clear.card import EncoderCard


def keep_key_biases(network: nn.Module) -> None:
    """Attention keys' biases get a gradient of 0: they add one number to all logits of a query (BEiT has none).

    Of timm's plain attention with query, key and value in one layer, unless its keys are normed or rotated.
    """
    for module in network.modules():
        if isinstance(module, Attention) and isinstance(module.k_norm, nn.Identity) and module.qkv.bias is not None:
            module.qkv.bias.register_hook(_without_keys)


def keep_final_shift(network: nn.Module, card: EncoderCard) -> None:
    """The last norm's bias wants no gradient where it only shifts the embedding, in front of a projector.

    The projector's first BatchNorm takes any shift off again. Whether it does no more is tried out, on two images.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm) and module.bias is not None]
    if not norms:
        return
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, card.channels, card.input_size, card.input_size, generator=draw)
    bias = norms[-1].bias
    shift = torch.randn(bias.shape, generator=draw)
    with torch.no_grad():
        before, start = network(images), bias.clone()
        bias.add_(shift)
        moved = network(images) - before
        bias.copy_(start)
    if bool(moved.abs().max() > 0) and torch.allclose(moved[0], moved[1], rtol=1e-3, atol=1e-3):
        bias.requires_grad_(False)


def _without_keys(gradient: Tensor) -> Tensor:
    """(3d,) of query, key and value, the key's part 0."""
    query, key, value = gradient.chunk(3)
    return torch.cat([query, torch.zeros_like(key), value])
