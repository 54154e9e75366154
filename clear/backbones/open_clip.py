"""Image towers of open_clip checkpoints that are a timm ViT and a linear projection, such as BiomedCLIP's.

Zhang et al., BiomedCLIP, arXiv 2303.00915, 2023; mlfoundations/open_clip, class TimmModel with `timm_pool`
"" and `timm_proj` "linear". The embedding is what `encode_image` returns: the projected class token, not brought to
unit length. open_clip itself is not needed. Tensor names are open_clip's without `visual.`: `trunk.*` (timm's names)
and `head.proj.weight`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones.positions import resize_positions
from clear.backbones.vit_attention import last_attention, patch_map
from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

PROJECTION = 512  # values of BiomedCLIP's image_features
OUTPUTS = ("projection", "trunk")

# What an open_clip checkpoint holds beside the image tower: the scales of its loss and the text tower, whose names
# lack the `text.` in the class CLIP; `text_decoder.` is CoCa's.
_NOT_THE_IMAGE_TOWER = (
    "logit_scale",
    "logit_bias",
    "text.",
    "text_decoder.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "attn_mask",
)
_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}


class OpenClipEncoder(nn.Module):
    """A timm ViT and, unless the class token itself is the embedding, a projection without bias."""

    def __init__(self, trunk: Any, projection: int | None, normalise: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.normalise = normalise
        self.prefix_tokens = int(trunk.num_prefix_tokens)
        self.head = (
            None
            if projection is None
            else nn.Sequential(OrderedDict(proj=nn.Linear(trunk.num_features, projection, bias=False)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to (N, d), float32 under autocast too: the last product costs nothing and decides the digits."""
        embedding: Tensor = self.trunk.forward_features(x)[:, 0].float()
        if self.head is not None:
            with torch.autocast(x.device.type, enabled=False):
                embedding = self.head(embedding)
        return functional.normalize(embedding, dim=-1) if self.normalise else embedding

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to the trunk's patch tokens after its final norm, (N, S/p, S/p, width)."""
        return patch_map(self.trunk, x)

    def last_attention(self, x: Tensor) -> Tensor:
        """Softmaxed attention of the trunk's last block, (N, heads, T, T); the class token is token 0."""
        return last_attention(self.trunk, x)


def build(card: EncoderCard) -> nn.Module:
    """The card's image tower (`open_clip:` and a timm ViT's name) at card.input_size, in eval mode.

    card.settings: `output` ("projection", or "trunk" for the class token before it), `projection` (its width, 512),
    `normalise` (True: unit length); all others go to timm. Raises InputError when timm has no such ViT, a setting is
    wrong, or the width is not card.dim.
    """
    model = card.architecture.partition(":")[2]
    settings = dict(card.settings)
    output = settings.pop("output", OUTPUTS[0])
    projection = settings.pop("projection", PROJECTION)
    normalise = settings.pop("normalise", False)
    if output not in OUTPUTS or not isinstance(normalise, bool) or not isinstance(projection, int) or projection < 1:
        raise InputError(
            f"encoder {card.name}: expected output {' or '.join(OUTPUTS)}, projection as a number of values and "
            f"normalise true or false; found {output!r}, {projection!r} and {normalise!r}"
        )
    if not timm.is_model(model):
        raise InputError(f"encoder {card.name}: timm {timm.__version__} has no model {model!r}; see timm.list_models()")
    try:
        trunk = timm.create_model(
            model, pretrained=False, num_classes=0, in_chans=card.channels, img_size=card.input_size, **settings
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"encoder {card.name}: timm cannot build {model} with {settings} ({error})") from error
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token or trunk.global_pool != "token":
        raise InputError(f"encoder {card.name}: {model} is no ViT with a class token, which this family needs")
    if card.input_size % trunk.patch_embed.patch_size[0]:
        raise InputError(
            f"encoder {card.name}: expected an input_size that is a multiple of {trunk.patch_embed.patch_size[0]}; "
            f"found {card.input_size}"
        )
    width = trunk.num_features if output == "trunk" else projection
    if width != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but the {output} of {model} has {width}")
    return OpenClipEncoder(trunk, None if output == "trunk" else projection, normalise).eval()


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """An open_clip checkpoint's image tower under the network's names; the text tower and the scales are left out.

    The projection is left out too when the network ends at the trunk. Positions of another grid are resized as
    open_clip does it (`TimmModel.set_input_size`): bicubic with antialiasing, the class token's untouched.
    """
    left_out = (*_NOT_THE_IMAGE_TOWER, *card.ignored)
    out = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if not name.startswith(left_out)}
    tower: Any = network
    if tower.head is None:
        out = {name: tensor for name, tensor in out.items() if not name.startswith("head.")}
    key = "trunk.pos_embed"
    if key in out and _is_square(out[key], tower.prefix_tokens) and out[key].shape != tower.trunk.pos_embed.shape:
        # open_clip leaves it to timm: bicubic to the exact size, antialiased, as DINOv2 with registers does
        out[key] = resize_positions(out[key], tower.trunk.patch_embed.grid_size, "dinov2_registers")
    return out


def variant(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Which ViT an open_clip checkpoint's image tower is: architecture, dim and settings for its card.

    A file with the trunk alone gives the class token (`output` "trunk"). Raises WeightsError when it holds no such
    tower, or one of a width that no standard ViT has.
    """
    own = {name.removeprefix("visual."): tensor for name, tensor in tensors.items()}
    try:
        patches = own["trunk.patch_embed.proj.weight"]
        own["trunk.cls_token"], own["trunk.pos_embed"], own["trunk.blocks.0.attn.qkv.weight"]
    except KeyError as error:
        raise WeightsError(
            f"not an open_clip image tower with a timm ViT: no tensor visual.{error.args[0]}; expected names like "
            "visual.trunk.blocks.0.attn.qkv.weight and visual.head.proj.weight"
        ) from None
    width, patch = patches.shape[0], patches.shape[-1]
    depth = 1 + max(int(name.split(".")[2]) for name in own if name.startswith("trunk.blocks."))
    model = f"vit_{_WIDTHS.get(width)}_patch{patch}_224"
    if width not in _WIDTHS or not timm.is_model(model):
        raise WeightsError(f"an open_clip image tower of width {width} with patches of {patch}: no ViT that timm knows")
    settings: dict[str, Any] = {} if depth == (24 if width == 1024 else 12) else {"depth": depth}
    head = own.get("head.proj.weight")
    if head is None:
        return {"architecture": f"open_clip:{model}", "dim": width, "settings": {**settings, "output": "trunk"}}
    dim = head.shape[0]
    return {
        "architecture": f"open_clip:{model}",
        "dim": dim,
        "settings": settings if dim == PROJECTION else {**settings, "projection": dim},
    }


def _is_square(positions: Tensor, prefix_tokens: int) -> bool:
    side = math.isqrt(max(0, positions.shape[1] - prefix_tokens)) if positions.ndim == 3 else 0
    return side > 0 and positions.shape[1] == prefix_tokens + side * side
