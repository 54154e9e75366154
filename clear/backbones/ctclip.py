"""CT-CLIP's image encoder: CTViT and the projection that was aligned with reports, for chest CT as one volume.

Written from the structure of ibrahimethemhamamci/CT-CLIP, class `ct_clip.CTCLIP` (Hamamci et al., Nature Biomedical
Engineering 2026; arXiv 2403.17834), with its tensor names untouched: `visual_transformer.*`, `to_visual_latent.weight`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones.building import building
from clear.backbones.ctvit import CTViT
from clear.backbones.variants import AnotherFamily, At, Sizes, Variant, any_named, counts
from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

OUTPUTS = ("latent", "latent_unnormalised")
SETTINGS: dict[str, Any] = {
    "output": "latent",
    "dim": 512,
    "codebook_size": 8192,
    "image_size": 480,
    "patch_size": 20,
    "temporal_patch_size": 10,
    "spatial_depth": 4,
    "temporal_depth": 4,
    "dim_head": 32,
    "heads": 8,
    "dim_latent": 512,
}
MODELS = {"ctvit": SETTINGS}
# what a checkpoint holds beside the image encoder: text encoder and its projection, the second pair of projections,
# parts of CTViT that serve reconstruction or single images, a norm that self-attention never calls, and two counters
# of the codebook's training
NOT_IMAGE = re.compile(
    r"text_transformer\..+|temperature|to_text_latent(_extra)?\.weight|to_visual_latent_extra\.weight"
    r"|visual_transformer\.(to_patch_emb_first_frame|to_pixels|to_pixels_first_frame)\..+"
    r"|visual_transformer\.enc_(spatial|temporal)_transformer\.layers\.\d+\.1\.context_norm\.(gamma|beta)"
    r"|visual_transformer\.vq\._codebook\.(initted|cluster_size)"
)
NULL_KV = re.compile(r"visual_transformer\.enc_(spatial|temporal)_transformer\.layers\.\d+\.1\.null_kv")


class CTCLIPEncoder(nn.Module):
    """CT-CLIP's latent of a volume.

    output: `latent`, of unit length, as the published class compares it with reports; `latent_unnormalised`.
    """

    pools_map = True

    def __init__(self, output: str, dim_latent: int, **ctvit: int) -> None:
        super().__init__()
        if min(dim_latent, *ctvit.values()) < 1 or ctvit["image_size"] % ctvit["patch_size"]:
            raise ValueError("all numbers must be positive, and image_size a multiple of patch_size")
        self.normalised = output == "latent"
        self.visual_transformer = CTViT(**ctvit)
        self.to_visual_latent = nn.Linear(self.visual_transformer.side**2 * ctvit["dim"], dim_latent, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, z, x, y), grown to the patient's head, left and back, in -1..1, to (N, d) float32."""
        return self.embed_map(self.feature_map(x))

    def embed_map(self, features: Tensor) -> Tensor:
        """(N, t, h, w, d') of `feature_map` to (N, d)."""
        pooled = features.mean(dim=1).flatten(1)  # (N, h * w * d')
        with torch.autocast(features.device.type, enabled=False):  # a product with one row takes no time worth saving
            latent: Tensor = self.to_visual_latent(pooled.to(self.to_visual_latent.weight.dtype)).float()
        return functional.normalize(latent, dim=-1) if self.normalised else latent

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, 1, z, x, y) to the quantised tokens, channels last: (N, z / 10, x / 20, y / 20, 512)."""
        return self.visual_transformer(x)  # type: ignore[no-any-return]  # CTViT's tensor


def build(card: EncoderCard) -> nn.Module:
    """The card's network in eval mode, with weights as constructed. Settings: see SETTINGS.

    Raises InputError when the model or a setting is unknown, or the width is not the card's dim.
    """
    _, _, model = card.architecture.partition(":")
    if model not in MODELS:
        raise InputError(f"encoder {card.name}: ctclip has no model {model!r}; expected {', '.join(MODELS)}")
    settings = {**MODELS[model], **card.settings}
    if surplus := sorted(set(settings) - set(SETTINGS)):
        raise InputError(
            f"encoder {card.name}: unknown setting(s) {', '.join(surplus)}; ctclip knows {', '.join(SETTINGS)}"
        )
    if settings["output"] not in OUTPUTS:
        raise InputError(f"encoder {card.name}: output is {settings['output']!r}; expected {' or '.join(OUTPUTS)}")
    with building(card, f"ctclip cannot build {model}"):
        network = CTCLIPEncoder(**settings)
    if network.to_visual_latent.out_features != card.dim:
        raise InputError(
            f"encoder {card.name}: the card says d = {card.dim}, but {model} gives "
            f"{network.to_visual_latent.out_features}"
        )
    if card.volume is not None:
        frames, *sides = card.volume.tensor_shape
        slab, size = settings["temporal_patch_size"], settings["image_size"]
        if frames % slab or sides != [size, size]:
            raise InputError(
                f"encoder {card.name}: {model} takes frames in {slab}s of {size} x {size} pixels, but the card's "
                f"volume is {card.volume.tensor_shape} along {card.volume.axes}"
            )
    return network.eval()


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's tensors without what is known not to belong to image latents; the rest stays, to be loaded.

    `null_kv` is left out where it has no rows, as in the published
    weights; with rows it would take part in attention, so it stays and the strict load names it.
    """
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(card.ignored)
        and not NOT_IMAGE.fullmatch(name)
        and not (NULL_KV.fullmatch(name) and tensor.numel() == 0)
    }


def variant(card: EncoderCard, tensors: Mapping[str, Tensor]) -> Variant:
    """What the card must say for a network that takes these tensors; its output is the card's, else `latent`.

    The patch size is that of the unused `to_patch_emb_first_frame`: nothing else tells the frames of a patch from its
    rows and columns, unless the card states it. Raises AnotherFamily when the tensors are not CT-CLIP's, WeightsError
    naming the one that does not fit the others.
    """
    vit = "visual_transformer."
    if not any_named(tensors, r"visual_transformer\.enc_(spatial|temporal)_transformer\.layers\.\d+\."):
        raise AnotherFamily(
            "not CT-CLIP's weights: expected visual_transformer.*, with its codebook, and to_visual_latent.weight"
        )
    sizes = Sizes(tensors)
    book, first = f"{vit}vq._codebook.embed", f"{vit}enc_spatial_transformer.layers.0.1."
    dim = sizes.agreed("the width", At(book, 2), At(f"{vit}to_patch_emb.2.weight", 0), At(f"{first}norm.gamma", 0))
    values = [At(f"{vit}to_patch_emb.{name}", axis) for name, axis in (("1.weight", 0), ("1.bias", 0), ("2.weight", 1))]
    values_of_patch = sizes.agreed("the values of a patch", *values)
    dim_head = sizes.agreed("the width of a head", At(f"{first}q_scale", 0), At(f"{first}k_scale", 0))
    inner = [At(f"{first}{name}.weight", axis) for name, axis in (("to_q", 0), ("to_out", 1))]
    heads = sizes.agreed("the heads", *(place._replace(times=dim_head) for place in inner))
    latent, pooled = sizes.shape("to_visual_latent.weight", 2)
    side = math.isqrt(pooled // dim)
    if side * side * dim != pooled:
        raise WeightsError(
            f"tensor to_visual_latent.weight has shape {(latent, pooled)}; expected a square of tokens of {dim} values"
        )
    kinds = ("enc_spatial_transformer", "enc_temporal_transformer")
    depths = [sum(counts(tensors, rf"visual_transformer\.({kind})\.layers\.(\d+)\.")) for kind in kinds]
    told = {
        "dim": dim,
        "codebook_size": sizes.shape(book, 3)[1],
        "spatial_depth": depths[0],
        "temporal_depth": depths[1],
        "dim_head": dim_head,
        "heads": heads,
        "dim_latent": latent,
    }
    stated = card.settings.get("patch_size")
    size = stated if isinstance(stated, int) and stated > 0 else _patch_size(sizes)
    if values_of_patch % size**2:
        raise WeightsError(f"its patches of {values_of_patch} values are no slabs of {size} x {size} pixels")
    told |= {"image_size": side * size, "patch_size": size, "temporal_patch_size": values_of_patch // size**2}
    settings = {"output": SETTINGS["output"], **told}
    changed = {name: value for name, value in settings.items() if value != SETTINGS[name] or name == "output"}
    witnesses = {"dim_latent": "to_visual_latent.weight", "codebook_size": book}
    return Variant("ctclip:ctvit", latent, changed, told, witnesses)


def _patch_size(sizes: Sizes) -> int:
    frame = [At(f"visual_transformer.to_patch_emb_first_frame.1.{name}", 0) for name in ("weight", "bias")]
    values = sizes.agreed("the values of a frame's patch", *frame)
    if math.isqrt(values) ** 2 != values:
        raise WeightsError(f"tensor {frame[0].name} has {values} values; expected those of a square patch")
    return math.isqrt(values)
