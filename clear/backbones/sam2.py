"""SAM 2's image encoder: a Hiera trunk and a neck whose stride-16 map, averaged, is the embedding.

Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024 (facebookresearch/sam2, class ImageEncoder); trunk:
Ryali et al., Hiera, ICML 2023, with the window-aware positions of Bolya et al., Window Attention is Bugged, ICLR 2024.
The trunk is timm's HieraDet, the neck is ours. SAM 2 and SAM 2.1 have the same image encoder.

Tensor names are the official ones without `image_encoder.`, but `mlp.fc1` and `mlp.fc2` (timm) where SAM 2 has
`mlp.layers.0` and `mlp.layers.1`.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones.building import building, check_run
from clear.backbones.renaming import renamed
from clear.backbones.residual import keep_float32
from clear.backbones.variants import AnotherFamily, At, Sizes, Variant, any_named, counts
from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

# Arguments of the official class Hiera and the neck's d_model, from sam2/configs/sam2 and sam2.1: {t,s,b+,l}.yaml.
_COMMON = {"window_spec": (8, 4, 14, 7), "window_pos_embed_bkg_spatial_size": (7, 7), "d_model": 256}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**_COMMON, "embed_dim": 96, "num_heads": 1, "stages": (1, 2, 7, 2), "global_att_blocks": (5, 7, 9)},
    "small": {**_COMMON, "embed_dim": 96, "num_heads": 1, "stages": (1, 2, 11, 2), "global_att_blocks": (7, 10, 13)},
    "base_plus": {
        **_COMMON,
        "embed_dim": 112,
        "num_heads": 2,
        "stages": (2, 3, 16, 3),
        "global_att_blocks": (12, 16, 20),
        "window_pos_embed_bkg_spatial_size": (14, 14),
    },
    "large": {
        **_COMMON,
        "embed_dim": 144,
        "num_heads": 2,
        "stages": (2, 6, 36, 4),
        "global_att_blocks": (23, 33, 43),
        "window_spec": (8, 4, 16, 8),
    },
}
STRIDE = 4  # of the patch embedding; each of the three later stages halves its map

# Other names for the same tensors: SAM 2's own and those of transformers (classes Sam2Model and Sam2VideoModel).
_RENAMED = (
    (r"^backbone\.", "trunk."),
    (r"\.mlp\.(layers\.0|proj_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(layers\.1|proj_out)\.", ".mlp.fc2."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"^neck\.convs\.(\d+)\.(weight|bias)$", r"neck.convs.\1.conv.\2"),
)


class Neck(nn.Module):
    """The part of SAM 2's feature pyramid (class FpnNeck) that reaches the stride-16 map.

    `convs.0` belongs to the deepest stage, `convs.3` to the first. Those of stages 1 and 2 serve SAM 2's mask decoder
    only; they are here because the checkpoints hold them, and no embedding depends on them.
    """

    def __init__(self, widths: list[int], d_model: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(width, d_model, kernel_size=1))) for width in reversed(widths)
        )

    def forward(self, third: Tensor, fourth: Tensor) -> Tensor:
        """Maps of stage 3 (N, h, w, c) and stage 4 (N, h/2, w/2, 2c) to (N, d, h, w) float32."""
        above = functional.interpolate(self.lateral(3, fourth), scale_factor=2.0, mode="nearest")
        return self.lateral(2, third) + above

    def lateral(self, stage: int, features: Tensor) -> Tensor:
        """The 1x1 convolution of stage 0..3: (N, h, w, c) to (N, d, h, w).

        In float32 under autocast too: it costs little, and what it returns is the embedding but for a mean.
        """
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.convs[len(self.convs) - 1 - stage](features.float().permute(0, 3, 1, 2))
        return out


class Sam2Encoder(nn.Module):
    """Trunk, neck and the mean over positions. Height and width must be multiples of 32 pixels (see `build`)."""

    pools_map = True

    def __init__(self, trunk: Any, neck: Neck) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = neck
        trunk.head = nn.Identity()  # timm's own, absent from SAM 2
        for block in trunk.blocks:
            if block.dim != block.dim_out:
                keep_float32(block.proj)  # where a stage begins, a projection starts the sum anew

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, d)."""
        return self.embed_map(self.feature_map(x))

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the `vision_features` of SAM 2, (N, H/16, W/16, d)."""
        third, fourth = self.trunk.forward_intermediates(x, indices=[2, 3], output_fmt="NHWC", intermediates_only=True)
        features: Tensor = self.neck(third, fourth)
        return features.permute(0, 2, 3, 1)

    def embed_map(self, features: Tensor) -> Tensor:
        """(N, h, w, d) of `feature_map` to (N, d): their mean."""
        return features.mean(dim=(1, 2))


def build(card: EncoderCard) -> nn.Module:
    """The card's image encoder (`sam2:tiny`, `small`, `base_plus` or `large`), as constructed, in eval mode.

    card.settings override the official arguments of SIZES. Raises InputError for another size or setting, a width
    that is not card.dim, and an input size for which the official network would stop: its window positions are laid
    on the token grid (a quarter of the input) as tiles, and the grid is halved three times.
    """
    size = card.architecture.partition(":")[2]
    if size not in SIZES:
        raise InputError(f"encoder {card.name}: SAM 2 has no size {size!r}; expected one of {', '.join(SIZES)}")
    values = {**SIZES[size], **card.settings}
    if unknown := sorted(set(values) - set(SIZES[size])):
        raise InputError(
            f"encoder {card.name}: unknown setting(s) {', '.join(unknown)}; expected {', '.join(SIZES[size])}"
        )
    if values["d_model"] != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but sam2:{size} has {values['d_model']}")
    with building(card, "cannot build SAM 2"):
        if values["embed_dim"] % values["num_heads"]:
            raise ValueError("the heads do not divide the width")
        trunk = HieraDet(
            in_chans=card.channels,
            num_classes=0,
            embed_dim=values["embed_dim"],
            num_heads=values["num_heads"],
            stages=tuple(values["stages"]),
            global_att_blocks=tuple(values["global_att_blocks"]),
            window_spec=tuple(values["window_spec"]),
            global_pos_size=tuple(values["window_pos_embed_bkg_spatial_size"]),
        )
        neck = Neck([stage["num_chs"] for stage in trunk.feature_info], values["d_model"])
        if min(*trunk.window_spec, *values["window_pos_embed_bkg_spatial_size"]) < 1:
            raise ValueError("its windows have no tokens")
        multiple = STRIDE * math.lcm(trunk.window_spec[0], 2 ** (len(trunk.stage_ends) - 1))
    if card.input_size % multiple:
        raise InputError(
            f"encoder {card.name}: SAM 2 needs an input_size that is a multiple of {multiple} pixels "
            f"(windows of {trunk.window_spec[0]} tokens of {STRIDE} pixels); found {card.input_size}"
        )
    encoder = Sam2Encoder(trunk, neck).eval()
    check_run(card, encoder.trunk, (1, card.channels, card.input_size, card.input_size))
    return encoder


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A SAM 2 checkpoint's image encoder (official names or those of transformers) under the network's names.

    Left out: all outside the image encoder (memory, prompts, mask decoder), and the card's ignored prefixes.
    """
    return _image_encoder({name: tensor for name, tensor in tensors.items() if not name.startswith(card.ignored)})


def variant(card: EncoderCard, tensors: Mapping[str, Tensor]) -> Variant:
    """Which size a checkpoint is, from its width and blocks.

    Raises AnotherFamily when there is no SAM 2 image encoder in it, WeightsError for one of unknown size, whose heads,
    windows and global blocks no tensor tells, unless the card does, and naming a tensor that does not fit the others.
    """
    own = _image_encoder(tensors)
    if not any_named(own, r"trunk\.blocks\.\d+\.") or not any_named(own, r"neck\.convs\.\d+\.conv\."):
        raise AnotherFamily(
            "not a SAM 2 image encoder; expected the names image_encoder.trunk.* and image_encoder.neck.* of "
            "facebookresearch/sam2"
        )
    sizes = Sizes(own)
    width = sizes.agreed(
        "the width",
        At("trunk.patch_embed.proj.weight", 0),
        At("trunk.patch_embed.proj.bias", 0),
        At("trunk.blocks.0.norm1.weight", 0),
        At("trunk.pos_embed", 1),
    )
    necks = [f"neck.convs.{level}.conv." for level in range(counts(own, r"neck\.(convs)\.(\d+)\.")[0])]
    dim = sizes.agreed(
        "the width of the neck", *(At(f"{neck}{kind}", 0) for neck in necks for kind in ("weight", "bias"))
    )
    blocks = {int(match[1]) for name in own if (match := re.match(r"trunk\.blocks\.(\d{1,4})\.", name))}
    starts = [block for block in sorted(blocks) if any_named(own, rf"trunk\.blocks\.{block}\.proj\.")]
    stages = tuple(end - start for start, end in pairwise([0, *starts, len(blocks)]))
    told = {"embed_dim": width, "stages": stages, "d_model": dim}
    for size, values in SIZES.items():
        if (values["embed_dim"], values["stages"]) == (width, stages):
            return Variant(f"sam2:{size}", dim, {} if dim == values["d_model"] else {"d_model": dim}, told)
    if all(name in card.settings for name in ("num_heads", "global_att_blocks", "window_spec")):
        return Variant("sam2:tiny", dim, told, told)
    raise WeightsError(
        f"a SAM 2 image encoder of width {width} with {stages} blocks a stage; known are "
        + ", ".join(f"{size} ({values['embed_dim']}, {values['stages']})" for size, values in SIZES.items())
        + ", for another state num_heads, global_att_blocks and window_spec in the card's settings"
    )


def _image_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors under the network's names; what lies outside it is left out."""

    def rename(name: str) -> str | None:
        own = name.removeprefix("image_encoder.").removeprefix("vision_encoder.")
        if own == name and not name.startswith(("trunk.", "neck.")):
            return None
        for pattern, replacement in _RENAMED:
            own = re.sub(pattern, replacement, own)
        return own

    return renamed(tensors, rename)
