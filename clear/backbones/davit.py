"""DaViT with a projection: the image encoder of MedImageInsight (Codella et al., 2024, arXiv:2410.06542).

timm's `davit_*_fl` (Florence's DaViT: LayerNorm before each downsampling convolution, channel attention scaled by the
number of tokens) is the same network. The embedding is what the authors' `encode_image` returns: the final LayerNorm of
the spatial mean, projected, of length 1 (MedImageInsight's UniCLModel).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones.building import building, check_run
from clear.backbones.huggingface import to_timm
from clear.backbones.residual import keep_float32
from clear.errors import InputError

if TYPE_CHECKING:
    from clear.card import EncoderCard


class DaViTEncoder(nn.Module):
    """timm's DaViT with a projection to d for its classifier. Tensor names are timm's with `network.` in front."""

    prefix_tokens = 0
    pools_map = True

    def __init__(self, network: Any, dim: int) -> None:
        super().__init__()
        self.network = network
        network.head.fc = nn.Linear(network.num_features, dim, bias=False)
        keep_float32(network.stem, *(stage.downsample for stage in network.stages))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, d), each of length 1. S a multiple of 32."""
        return self.embed_map(self.feature_map(x))

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, S/32, S/32, width), before the final LayerNorm, which follows the mean."""
        features: Tensor = self.network.forward_features(x)
        return features.permute(0, 2, 3, 1)

    def embed_map(self, features: Tensor) -> Tensor:
        """(N, h, w, width) of `feature_map` to (N, d): mean, LayerNorm, projection, length 1."""
        pooled = features.permute(0, 3, 1, 2).mean(dim=(2, 3), keepdim=True)
        projected = self.network.head.fc(self.network.head.norm(pooled).flatten(1))
        return functional.normalize(projected.float(), dim=-1)


def build(card: EncoderCard) -> nn.Module:
    """The card's network in eval mode, with weights as constructed; `architecture` is `davit:davit_huge_fl`.

    card.dim is the projection's width. Raises InputError when timm has no such DaViT or refuses the settings.
    """
    _, _, model = card.architecture.partition(":")
    if not model.startswith("davit_") or not timm.is_model(model):
        raise InputError(f"encoder {card.name}: timm {timm.__version__} has no DaViT called {model!r}")
    with building(card, f"timm cannot build {model}"):
        network = timm.create_model(
            model, pretrained=False, num_classes=0, in_chans=card.channels, **dict(card.settings)
        )
        encoder = DaViTEncoder(network, card.dim).eval()
    check_run(card, encoder, (1, card.channels, card.input_size, card.input_size))
    return encoder


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """MedImageInsight's tensors (whole model or image encoder) or timm's under our names; the text tower left out."""
    return {f"network.{name}": tensor for name, tensor in to_timm(tensors).items() if not name.startswith(card.ignored)}
