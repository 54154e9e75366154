"""Tokens and last-layer attention of timm's vision transformers, plain or with rotary positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clear.errors import InputError


def last_attention(vit: Any, x: Tensor) -> Tensor:
    """(N, heads, T, T) softmaxed attention of the last block, float32; T = prefix tokens + patches.

    timm computes attention fused, which keeps no weights; the last block alone is computed unfused here, and its
    weights are what reaches the (idle) dropout. Raises InputError when the network has no attention blocks.
    """
    blocks = getattr(vit, "blocks", None)
    attention = getattr(blocks[-1], "attn", None) if blocks is not None and len(blocks) else None
    if attention is None or not hasattr(attention, "attn_drop"):
        raise InputError(f"{type(vit).__name__} has no attention over patches; use Grad-CAM or occlusion for it")
    seen: list[Tensor] = []
    hook = attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    fused = attention.fused_attn
    attention.fused_attn = False
    try:
        vit.forward_features(x)
    finally:
        attention.fused_attn = fused
        hook.remove()
    return seen[0].float()


def patch_map(vit: Any, x: Tensor) -> Tensor:
    """(N, h, w, d) patch tokens after the final norm, on their grid; the image's rows first."""
    tokens: Tensor = vit.forward_features(x)
    tokens = tokens[:, int(vit.num_prefix_tokens) :]
    size = vit.patch_embed.patch_size
    rows, columns = x.shape[-2] // size[0], x.shape[-1] // size[1]
    return tokens.reshape(len(x), rows, columns, tokens.shape[-1])
