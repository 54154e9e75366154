"""The card's network where an objective wants more of it than an embedding at one size.

Multi-crop training shows it smaller views; DINOv2 wants its patch tokens, some of them masked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clear.backbones import build
from clear.errors import InputError

if TYPE_CHECKING:
    from clear.card import EncoderCard

CONVOLUTIONAL_STRIDE = 32  # of a network of maps, from its input to its last map
LOCAL_SHARE = 96 / 224  # a local view's side over a global one's, in DINO


def build_for_local_views(card: EncoderCard, size: int = 0) -> tuple[nn.Module, int]:
    """The card's network, weights as constructed, able to take local views too; and their side in pixels.

    size: 0 for 96 of 224 pixels, to the nearest multiple of the patch or stride. A vision transformer resizes its
    positions to the smaller grid as timm does; at the card's own size nothing changes. Raises InputError when the
    architecture takes one size only.
    """
    network = build(card)
    body: Any = getattr(network, "network", network)
    if not size:
        patch = getattr(getattr(body, "patch_embed", None), "patch_size", None)
        step = int(patch[0]) if isinstance(patch, tuple | list) else CONVOLUTIONAL_STRIDE
        size = max(1, round(card.input_size * LOCAL_SHARE / step)) * step
    if size == card.input_size:
        return network, size
    if card.architecture.startswith("timm:") and getattr(body, "dynamic_img_size", None) is False:
        network = build(replace(card, settings={**card.settings, "dynamic_img_size": True}))
    try:
        with torch.no_grad():
            network(torch.zeros(1, card.channels, size, size))
    except (InputError, AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"encoder {card.name}: {card.architecture} takes {card.input_size} pixels only, and local views have "
            f"{size}; set local_size to {card.input_size}, or local_views to 0, or choose another architecture"
        ) from error
    return network, size


class Tokens:
    """Class and patch tokens of a vision transformer, with patches masked on request.

    network: as `clear.backbones.build` gives it. side: of the patch grid; width: d of a token. Raises InputError where
    there is no class token or there are no patches.
    """

    def __init__(self, card: EncoderCard, network: nn.Module) -> None:
        body: Any = getattr(network, "network", network)
        patches = getattr(getattr(body, "patch_embed", None), "patch_size", None)
        if patches is None or not getattr(body, "num_prefix_tokens", 0) or not hasattr(body, "forward_features"):
            raise InputError(
                f"objective dinov2: {card.architecture} has no class token beside patch tokens, which it masks and "
                "predicts; choose a vision transformer, or the objective dino, which takes any architecture"
            )
        self.side = card.input_size // int(patches[0])
        self.width = int(body.num_features)

    def __call__(
        self, network: nn.Module, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(N, C, S, S) to the class token (N, d) and the patch tokens (N, T, d), both after the final norm.

        mask: (N, T) bool, embedded patches to replace by mask_token (d,) before positions are added, as in DINOv2's
        `prepare_tokens_with_masks`.
        """
        body: Any = getattr(network, "network", network)
        if mask is None or mask_token is None:
            tokens = body.forward_features(images)
        else:
            hook = body.patch_embed.register_forward_hook(_mask_with(mask, mask_token))
            try:
                tokens = body.forward_features(images)
            finally:
                hook.remove()
        return tokens[:, 0], tokens[:, int(body.num_prefix_tokens) :]


def _mask_with(mask: Tensor, mask_token: Tensor) -> Any:
    """A forward hook that replaces masked patches; the patches are (N, T, d) or (N, h, w, d)."""

    def replace_masked(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        chosen = mask.view(*output.shape[:-1], 1)
        return torch.where(chosen, mask_token.to(output.dtype), output)

    return replace_masked
