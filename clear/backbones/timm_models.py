"""Networks from timm (huggingface/pytorch-image-models), without their classifiers.

timm's own `num_classes=0` is not always the embedding: MambaOut's head keeps an MLP four times the width
(yuweihao/MambaOut, class MlpHead). So the pooling is ours, by the card, and the rest of the head is dropped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from clear.errors import InputError

if TYPE_CHECKING:
    from clear.card import EncoderCard


class TimmEncoder(nn.Module):
    """A timm network and the pooling that makes one embedding of a slice.

    Tensor names are timm's own, with `network.` in front.
    """

    def __init__(self, network: Any, pooling: str) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        if pooling == "mean_norm":
            norm: nn.Module = network.get_submodule("head.norm")
            network.head = nn.ModuleDict({"norm": norm})
            for module in (network.stem, *(stage.downsample for stage in network.stages)):
                module.register_forward_hook(_keep_float32)
        elif pooling == "class_token":
            network.reset_classifier(0)
        else:
            network.reset_classifier(0, "")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to (N, d)."""
        features: Tensor = self.network.forward_features(x)
        if self.pooling == "mean_norm":  # MambaOut: maps are (N, H, W, d)
            pooled: Tensor = self.network.head["norm"](features.mean(dim=(1, 2)))
            return pooled
        if self.pooling == "class_token":  # (N, 1 + registers + patches, d), normed
            return features[:, 0]
        return features.mean(dim=(2, 3))


def _keep_float32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Under bfloat16 autocast the sum that runs past all blocks stays float32, as a ViT's does by its positions.

    Rounding it after every block doubles the error of MambaOut's embeddings; the products stay bfloat16.
    """
    return output.float()


def build(card: EncoderCard) -> nn.Module:
    """The card's timm network in eval mode, with weights as constructed. Nothing is downloaded.

    Raises InputError when timm has no such model, or its width is not the card's dim.
    """
    _, _, model = card.architecture.partition(":")
    if not timm.is_model(model):
        raise InputError(f"encoder {card.name}: timm {timm.__version__} has no model {model!r}; see timm.list_models()")
    try:
        network = timm.create_model(model, pretrained=False, in_chans=card.channels, **dict(card.settings))
    except (TypeError, AssertionError, ValueError) as error:
        raise InputError(f"encoder {card.name}: timm cannot build {model} with {dict(card.settings)}") from error
    if network.num_features != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but {model} has {network.num_features}")
    return TimmEncoder(network, card.pooling).eval()


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """timm checkpoint names to ours; positions resized where the card's input is of another size."""
    out = {f"network.{name}": tensor for name, tensor in tensors.items() if not name.startswith(card.ignored)}
    key = "network.pos_embed"
    wanted = dict(network.named_parameters()).get(key)
    if card.positions == "dinov2" and key in out and wanted is not None and out[key].shape != wanted.shape:
        out[key] = resize_positions(out[key], math.isqrt(wanted.shape[1] - 1))
    return out


def resize_positions(positions: Tensor, side: int, offset: float = 0.1) -> Tensor:
    """DINOv2's position embeddings (1, 1 + n*n, d) on another square grid, (1, 1 + side*side, d).

    Bicubic without antialiasing, sampled with the factor (side + 0.1) / n, as in facebookresearch/dinov2,
    `DinoVisionTransformer.interpolate_pos_encoding`; timm resizes to the exact size instead, which moves features.
    """
    class_token, grid = positions[:, :1], positions[:, 1:]
    native = math.isqrt(grid.shape[1])
    if native == side:
        return positions
    grid = grid.reshape(1, native, native, -1).permute(0, 3, 1, 2)
    factor = (side + offset) / native
    grid = functional.interpolate(grid.float(), scale_factor=(factor, factor), mode="bicubic", antialias=False)
    return torch.cat([class_token, grid.permute(0, 2, 3, 1).flatten(1, 2).to(class_token.dtype)], dim=1)
