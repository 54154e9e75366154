"""Where a vision transformer's class token looks, and which of these looks the endpoint asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregate.aggregators import Aggregator
from aggregate.explain.endpoint_gradient import embedding_gradient, embeddings_of
from aggregate.explain.instances import BATCH, check_slices, maps_of_instances, to_one
from clear.errors import InputError
from clear.frozen import Encoder
from clear.volume import Volume
from clear.windows import Window

ATTENTION_VALUES = 2**22  # of one head, over all instances of a batch: 16 MB


def class_token_attention(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None = None,
    *,
    per_head: bool = False,
    batch: int = BATCH,
) -> NDArray[np.float32]:
    """(Z, W, h, w), each summing to 1: attention of the class token to the patches in the last block.

    MST's plane attention (Müller-Franzes et al., arXiv:2411.15802): the class token's row without class token and
    registers, made to sum to 1 in each head, then averaged over the heads. per_head: (Z, W, heads, h, w) instead.
    batch: at most so many instances at a time (`at_once`). Raises InputError for an encoder whose embedding is no class
    token.
    """
    _check_class_token(encoder)

    def make(first: int, x: Tensor) -> Tensor:
        with torch.no_grad():
            share = class_token_share(encoder.last_attention(x), encoder.prefix_tokens)
        share = _on_grid(share, encoder)
        return share if per_head else share.mean(dim=1)

    return maps_of_instances(encoder, volume, windows, make, batch=at_once(encoder, batch))


def class_token_share(attention: Tensor, prefix_tokens: int) -> Tensor:
    """(N, heads, P) shares of the patches in the class token's attention (N, heads, T, T), each head's sum 1."""
    return to_one(attention[:, :, 0, prefix_tokens:], dims=1)


def attention_gradient(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    models: Sequence[Aggregator],
    target: int,
    *,
    embeddings: NDArray[np.floating] | None = None,
    batch: int = BATCH,
) -> NDArray[np.float32]:
    """(Z, W, h, w), each summing to 1 or 0 everywhere: the class token's looks that raise the endpoint's answer.

    Last block's attention A times its gradient, what is negative left out, mean over the heads (Chefer, Gur and Wolf,
    ICCV 2021, eq. 5: E_h((dy/dA * A)+)), class token's row without special tokens; y is the target of the bag
    (`aggregate.explain.endpoint_gradient`). Mean over the models. embeddings: (Z * W, d) of the scan, saves a pass.
    Raises InputError for an encoder whose embedding is no class token.
    """
    _check_class_token(encoder)
    rows = embeddings_of(encoder, volume, windows, embeddings)
    gradients = [embedding_gradient(model, rows, target).to(encoder.device) for model in models]

    def make(first: int, x: Tensor) -> Tensor:
        embedding, attention = encoder.through_attention(x)
        maps = []
        for gradient in gradients:
            product = (embedding * gradient[first : first + len(x)]).sum()
            (slope,) = torch.autograd.grad(product, attention, retain_graph=True)
            kept = (slope * attention.detach())[:, :, 0, encoder.prefix_tokens :].float()
            maps.append(to_one(_on_grid(kept.clamp_min(0).mean(dim=1), encoder)))
        return to_one(torch.stack(maps).mean(dim=0))

    return maps_of_instances(encoder, volume, windows, make, batch=at_once(encoder, batch))


def _check_class_token(encoder: Encoder) -> None:
    check_slices(encoder)
    if not encoder.reads_class_token:
        other = "Grad-CAM or occlusion" if encoder.pools_map else "occlusion"
        raise InputError(
            f"encoder {encoder.name}: its embedding is no class token, so no attention says where it looks; use {other}"
        )


def at_once(encoder: Encoder, batch: int) -> int:
    """How many instances go through a vision transformer together: fewer where their attention is large."""
    tokens = (encoder.card.input_size // encoder.patch_size) ** 2 + encoder.prefix_tokens
    return max(1, min(batch, ATTENTION_VALUES // tokens**2))


def _on_grid(patches: Tensor, encoder: Encoder) -> Tensor:
    """(..., P) to (..., h, w), the image's rows first."""
    side = encoder.card.input_size // encoder.patch_size
    return patches.reshape(*patches.shape[:-1], side, side)
