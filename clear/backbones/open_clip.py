"""Image towers of open_clip checkpoints that are a timm ViT and a linear projection, such as BiomedCLIP's.

Zhang et al., BiomedCLIP, arXiv 2303.00915, 2023; mlfoundations/open_clip, class TimmModel with `timm_pool`
"" and `timm_proj` "linear". The embedding is what `encode_image` returns: the projected class token, not brought to
unit length. open_clip itself is not needed. Tensor names are open_clip's without `visual.`: `trunk.*` (timm's names)
and `head.proj.weight`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones.building import building, check_run
from clear.backbones.positions import resize_positions
from clear.backbones.renaming import renamed
from clear.backbones.variants import AnotherFamily, At, Sizes, Variant, any_named, counts
from clear.backbones.vit_attention import last_attention, patch_map, through_attention
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

    reads_class_token = True
    pools_map = False

    def __init__(self, trunk: Any, projection: int | None, normalise: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.normalise = normalise
        self.prefix_tokens = int(trunk.num_prefix_tokens)
        self.patch_size = int(trunk.patch_embed.patch_size[0])
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

    def through_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(embeddings (N, d), attention of the trunk's last block as the leaf of their graph)."""
        return through_attention(self, self.trunk, x)


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
    with building(card, f"timm cannot build {model}"):
        trunk = timm.create_model(
            model, pretrained=False, num_classes=0, in_chans=card.channels, img_size=card.input_size, **settings
        )
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
    check_run(card, trunk, (1, card.channels, card.input_size, card.input_size))
    return OpenClipEncoder(trunk, None if output == "trunk" else projection, normalise).eval()


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """An open_clip checkpoint's image tower under the network's names; the text tower and the scales are left out.

    The projection is left out too when the network ends at the trunk. Positions of another grid are resized as
    open_clip does it (`TimmModel.set_input_size`): bicubic with antialiasing, the class token's untouched.
    """
    left_out = (*_NOT_THE_IMAGE_TOWER, *card.ignored)
    tower: Any = network

    def rename(name: str) -> str | None:
        own = name.removeprefix("visual.")
        needless = name.startswith(left_out) or (tower.head is None and own.startswith("head."))
        return None if needless else own

    out = renamed(tensors, rename)
    key = "trunk.pos_embed"
    if key in out and _is_square(out[key], tower.prefix_tokens) and out[key].shape != tower.trunk.pos_embed.shape:
        # open_clip leaves it to timm: bicubic to the exact size, antialiased, as DINOv2 with registers does
        out[key] = resize_positions(out[key], tower.trunk.patch_embed.grid_size, "dinov2_registers")
    return out


def variant(card: EncoderCard, tensors: Mapping[str, Tensor]) -> Variant:
    """Which ViT an open_clip checkpoint's image tower is.

    A file with the trunk alone gives the class token (`output` "trunk"). Raises AnotherFamily when it holds no such
    tower, WeightsError for one of a width that no standard ViT has, unless the card states its heads, and naming a
    tensor that does not fit the others.
    """
    own = renamed(tensors, lambda name: None if name.startswith(_NOT_THE_IMAGE_TOWER) else name.removeprefix("visual."))
    if not any_named(own, r"trunk\.blocks\.\d+\.attn\.qkv\."):
        raise AnotherFamily(
            "not an open_clip image tower with a timm ViT; expected names like visual.trunk.blocks.0.attn.qkv.weight "
            "and visual.head.proj.weight"
        )
    sizes = Sizes(own)
    name = "trunk.patch_embed.proj.weight"
    width = sizes.agreed(
        "the width",
        At(name, 0),
        At("trunk.cls_token", 2),
        At("trunk.pos_embed", 2),
        At("trunk.blocks.0.norm1.weight", 0),
        At("trunk.blocks.0.attn.qkv.weight", 1),
    )
    patch = sizes.agreed("the patch size", At(name, 2), At(name, 3))
    depth = counts(own, r"trunk\.(blocks)\.(\d+)\.")[0]
    told: dict[str, Any] = {"embed_dim": width, "patch_size": patch, "depth": depth}
    model = f"vit_{_WIDTHS.get(width)}_patch{patch}_224"
    settings: dict[str, Any] = {} if depth == (24 if width == 1024 else 12) else {"depth": depth}
    if width not in _WIDTHS or not timm.is_model(model):
        if "num_heads" not in card.settings:
            raise WeightsError(
                f"an open_clip image tower of width {width} with patches of {patch}: no ViT that timm knows; state "
                "num_heads in the card's settings"
            )
        model, settings = "vit_base_patch16_224", dict(told)
    has_head = "projection" in card.settings or any_named(own, r"head\.")
    output = card.settings.get("output", OUTPUTS[0] if has_head else "trunk")
    if output == "trunk":
        return Variant(f"open_clip:{model}", width, {**settings, "output": "trunk"}, told)
    sizes.agreed("the width", At("head.proj.weight", 1), At("trunk.cls_token", 2), At("trunk.norm.weight", 0))
    dim = sizes.shape("head.proj.weight", 2)[0]
    if dim != PROJECTION:
        settings = {**settings, "projection": dim}
    told["projection"] = dim
    return Variant(f"open_clip:{model}", dim, settings, told, {"projection": "head.proj.weight"})


def _is_square(positions: Tensor, prefix_tokens: int) -> bool:
    side = math.isqrt(max(0, positions.shape[1] - prefix_tokens)) if positions.ndim == 3 else 0
    return side > 0 and positions.shape[1] == prefix_tokens + side * side
