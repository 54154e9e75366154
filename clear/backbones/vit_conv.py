"""ViT with a convolutional stem, as MoCo v3 and CLEAR train it; the embedding is the class token.

Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021 (facebookresearch/moco-v3,
`vit_conv_small` and `vit_conv_base` of vits.py); stem: Xiao et al., Early Convolutions Help Transformers See Better,
NeurIPS 2021. The stem stands for one transformer block, so there are 11. Positions are the fixed 2D sine and cosine
table of MoCo v3, stored in every checkpoint. Tensor names are MoCo v3's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clear.backbones.building import building, check_run
from clear.backbones.variants import AnotherFamily, At, Sizes, Variant, any_named, counts, ratio
from clear.backbones.vit_attention import last_attention, patch_map, through_attention
from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

PATCH = 16  # pixels: four stride-2 convolutions
SIZES: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 384, "depth": 11, "num_heads": 12, "mlp_ratio": 4},
    "base": {"embed_dim": 768, "depth": 11, "num_heads": 12, "mlp_ratio": 4},
}
PROJECTOR = "head."  # MoCo's projector, or the classifier of its linear evaluation: not the encoder's
HALF_PRECISION = 1e-3  # four times what storing a sine as float16 may cost


class ConvStem(nn.Module):
    """Four 3x3 convolutions of stride 2, each with BatchNorm and ReLU, and a 1x1 one: (N, C, H, W) to patch tokens.

    Widths d/8, d/4, d/2, d, d. The signature and attributes are those that timm's VisionTransformer asks of an
    `embed_layer`; arguments of its own patch embedding that mean nothing here are taken and left.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **others: Any) -> None:
        super().__init__()
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // PATCH, img_size // PATCH)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        width = in_chans
        for wider in (embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim):
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
            width = wider
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, kernel_size=1))

    def feat_ratio(self) -> int:
        """Pixels a token, which timm's feature lists ask for."""
        return PATCH

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, H/16 * W/16, d), row by row. Raises InputError for another size than it was built for.

        The first convolution and its norm stay in float32 under autocast: rounding the slice itself to bfloat16 makes a
        quarter of the whole network's error, and they are less than a hundredth of its work.
        """
        if tuple(x.shape[-2:]) != self.img_size:
            raise InputError(f"expected slices of {self.img_size} pixels; found {tuple(x.shape[-2:])}")
        with torch.autocast(x.device.type, enabled=False):
            x = self.proj[:2](x.float())
        tokens: Tensor = self.proj[2:](x).flatten(2).transpose(1, 2)
        return tokens


class ConvViT(VisionTransformer):  # type: ignore[misc]  # timm has no types
    """timm's pre-norm ViT on a ConvStem with fixed positions. Weights start as MoCo v3's do."""

    prefix_tokens = 1
    reads_class_token = True
    pools_map = False
    patch_size = PATCH

    def __init__(
        self, img_size: int, in_chans: int, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=PATCH,
            in_chans=in_chans,
            num_classes=0,
            global_pool="token",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            weight_init="moco",
            embed_layer=ConvStem,
        )
        side = self.patch_embed.grid_size[0]
        self.pos_embed = nn.Parameter(sine_positions(side, embed_dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to the class token after the final norm, (N, d)."""
        tokens: Tensor = self.forward_features(x)
        return tokens[:, 0]

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to the patch tokens after the final norm on their grid, (N, S/16, S/16, d)."""
        return patch_map(self, x)

    def last_attention(self, x: Tensor) -> Tensor:
        """Softmaxed attention of the last block, (N, heads, T, T); the class token is token 0."""
        return last_attention(self, x)

    def through_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(embeddings (N, d), attention of the last block as the leaf of their graph)."""
        return through_attention(self, self, x)


def sine_positions(side: int, dim: int) -> Tensor:
    """MoCo v3's fixed position embeddings of a square grid, (1, 1 + side * side, dim) float32, class token zero.

    With frequencies w_i = 10000^(-4i/dim), i < dim/4, token t = r * side + c, counted along rows, has sin(r w),
    cos(r w), sin(c w), cos(c w): the official code (`build_2d_sincos_position_embedding`) calls r the horizontal
    coordinate, because it builds its grid with "ij" indexing.
    """
    frequencies = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    steps = torch.arange(side, dtype=torch.float32)
    rows = steps.repeat_interleave(side)[:, None] * frequencies
    columns = steps.repeat(side)[:, None] * frequencies
    grid = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)
    return torch.cat([torch.zeros(1, dim), grid])[None]


def build(card: EncoderCard) -> nn.Module:
    """The card's network (`vit_conv:small` or `vit_conv:base`) at card.input_size, in eval mode.

    card.settings override embed_dim, depth, num_heads and mlp_ratio. Raises InputError for another size or setting,
    a width that is not card.dim, or an input size that is no multiple of 16.
    """
    size = card.architecture.partition(":")[2]
    if size not in SIZES:
        raise InputError(f"encoder {card.name}: vit_conv has no size {size!r}; expected one of {', '.join(SIZES)}")
    values = {**SIZES[size], **card.settings}
    if unknown := sorted(set(values) - set(SIZES[size])):
        raise InputError(
            f"encoder {card.name}: unknown setting(s) {', '.join(unknown)}; expected {', '.join(SIZES[size])}"
        )
    width = values["embed_dim"]
    if width != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but vit_conv:{size} has {width}")
    if width % 8 or card.input_size % PATCH:
        raise InputError(
            f"encoder {card.name}: expected a width that is a multiple of 8 and an input_size that is one of {PATCH}; "
            f"found {width} and {card.input_size}"
        )
    with building(card, "cannot build vit_conv"):
        network = ConvViT(img_size=card.input_size, in_chans=card.channels, **values)
    check_run(card, network.blocks, (1, 2, width))
    return network.eval()  # type: ignore[no-any-return]  # timm has no types


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A MoCo v3 encoder's tensors (`module.base_encoder.` removed), without projector or classifier (`head.`).

    Positions of another grid are computed anew for the network's when the stored ones are the fixed table; learned
    ones are left as they are, which the strict load refuses.
    """
    out = {name: tensor for name, tensor in tensors.items() if not name.startswith((PROJECTOR, *card.ignored))}
    stored, wanted = out.get("pos_embed"), dict(network.named_parameters())["pos_embed"]
    if stored is not None and stored.ndim == 3 and stored.shape != wanted.shape and _is_sine_table(stored):
        out["pos_embed"] = sine_positions(math.isqrt(wanted.shape[1] - 1), stored.shape[2])
    return out


def variant(card: EncoderCard, tensors: Mapping[str, Tensor]) -> Variant:
    """Which size a checkpoint is.

    Raises AnotherFamily when it has no convolutional stem, WeightsError for a width whose number of heads neither its
    tensors nor the card tell, and naming a tensor that does not fit the others.
    """
    if not any_named(tensors, r"patch_embed\.proj\.\d+\.") or not any_named(tensors, r"blocks\.\d+\."):
        raise AnotherFamily(
            "not a ViT with MoCo v3's convolutional stem; expected names like patch_embed.proj.0.weight and "
            "blocks.0.attn.qkv.weight"
        )
    sizes = Sizes(tensors)
    layers = [f"blocks.0.mlp.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight")]
    width = sizes.agreed(
        "the width",
        At("patch_embed.proj.12.weight", 0),
        At("patch_embed.proj.12.bias", 0),
        At("cls_token", 2),
        At("pos_embed", 2),
        At(layers[0], 1),
    )
    hidden = sizes.agreed("the width of layers", *(At(name, int("fc2" in name)) for name in layers))
    told = {"embed_dim": width, "depth": counts(tensors, r"(blocks)\.(\d+)\.")[0], "mlp_ratio": ratio(hidden, width)}
    for size, values in SIZES.items():
        if values["embed_dim"] == width:
            settings = {name: value for name, value in told.items() if value != values[name]}
            return Variant(f"vit_conv:{size}", width, settings, told)
    if "num_heads" in card.settings:
        return Variant("vit_conv:base", width, told, told)
    raise WeightsError(
        f"a ViT with convolutional stem of width {width}, whose number of heads no tensor tells; known are "
        + ", ".join(f"{size} ({values['embed_dim']})" for size, values in SIZES.items())
        + ", for another state num_heads in the card's settings"
    )


def _is_sine_table(positions: Tensor) -> bool:
    side = math.isqrt(max(0, positions.shape[1] - 1))
    if positions.shape[1] != 1 + side * side or positions.shape[2] % 4:
        return False
    expected = sine_positions(side, positions.shape[2])
    return positions.shape == expected.shape and bool(
        torch.allclose(positions.float(), expected, rtol=0, atol=HALF_PRECISION)
    )
