"""Tokens and last-layer attention of timm's vision transformers, plain or with rotary positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from clear.errors import InputError


def last_attention(vit: Any, x: Tensor) -> Tensor:
    """(N, heads, T, T) softmaxed attention of the last block, float32; T = prefix tokens + patches.

    timm computes attention fused, which keeps no weights; the last block alone is computed unfused here, and its
    weights are what reaches the (idle) dropout. Raises InputError when the network has no attention blocks.
    """
    seen: list[Tensor] = []
    with _unfused(vit, lambda module, inputs, output: seen.append(output)):
        vit.forward_features(x)
    return seen[0].float()


def through_attention(encoder: nn.Module, vit: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(embeddings (N, d), attention (N, heads, T, T)) of an encoder whose transformer is `vit`.

    The attention is `last_attention`'s, as the leaf of a graph that ends in the embeddings. Weights of a frozen encoder
    and its input need no gradient, so nothing before the last attention is recorded.
    """
    leaves: list[Tensor] = []

    def begin(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    with torch.enable_grad(), _unfused(vit, begin):
        embeddings: Tensor = encoder(x)
    return embeddings, leaves[0]


@contextmanager
def _unfused(vit: Any, hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """The last block's attention as products and a softmax, whose output goes through `hook`."""
    blocks = getattr(vit, "blocks", None)
    attention = getattr(blocks[-1], "attn", None) if blocks is not None and len(blocks) else None
    if attention is None or not hasattr(attention, "attn_drop"):
        raise InputError(f"{type(vit).__name__} has no attention over patches; use Grad-CAM or occlusion for it")
    handle = attention.attn_drop.register_forward_hook(hook)
    fused = attention.fused_attn
    attention.fused_attn = False
    try:
        yield
    finally:
        attention.fused_attn = fused
        handle.remove()


def patch_map(vit: Any, x: Tensor) -> Tensor:
    """(N, h, w, d) patch tokens after the final norm, on their grid; the image's rows first."""
    tokens: Tensor = vit.forward_features(x)
    tokens = tokens[:, int(vit.num_prefix_tokens) :]
    size = vit.patch_embed.patch_size
    rows, columns = x.shape[-2] // size[0], x.shape[-1] // size[1]
    return tokens.reshape(len(x), rows, columns, tokens.shape[-1])


class _WithoutMean(nn.Module):
    """Keys (N, heads, T, d) minus their mean over T."""

    def forward(self, keys: Tensor) -> Tensor:
        return keys - keys.mean(dim=-2, keepdim=True)


def use_plain_attention(network: nn.Module) -> None:
    """Two products and a softmax instead of torch's fused kernel, in every block of timm's plain attention, in place.

    In bfloat16 on a processor without AMX the fused kernel is the slower of the two. The plain one rounds the logits;
    so that less is lost, the keys' mean is taken off first, which adds one number to all logits of a query and
    leaves the softmax as it is (Zhang et al., SageAttention, ICLR 2025, section 4.2).
    """
    for module in network.modules():
        if isinstance(module, Attention) and isinstance(module.k_norm, nn.Identity):
            module.fused_attn = False
            module.k_norm = _WithoutMean()
