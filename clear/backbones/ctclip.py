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

from clear.backbones.ctvit import CTViT
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

    def __init__(self, output: str, dim_latent: int, **ctvit: int) -> None:
        super().__init__()
        if min(dim_latent, *ctvit.values()) < 1 or ctvit["image_size"] % ctvit["patch_size"]:
            raise ValueError("all numbers must be positive, and image_size a multiple of patch_size")
        self.normalised = output == "latent"
        self.visual_transformer = CTViT(**ctvit)
        self.to_visual_latent = nn.Linear(self.visual_transformer.side**2 * ctvit["dim"], dim_latent, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, z, x, y), grown to the patient's head, left and back, in -1..1, to (N, d) float32."""
        pooled = self.feature_map(x).mean(dim=1).flatten(1)  # (N, h * w * d)
        with torch.autocast(x.device.type, enabled=False):  # a product with one row takes no time worth saving
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
    try:
        network = CTCLIPEncoder(**settings)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"encoder {card.name}: ctclip cannot build {model} with {dict(card.settings)}") from error
    if network.to_visual_latent.out_features != card.dim:
        raise InputError(
            f"encoder {card.name}: the card says d = {card.dim}, but {model} gives "
            f"{network.to_visual_latent.out_features}"
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


def variant(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a card must say for a network that takes these tensors, read from their shapes; output is `latent`.

    Raises WeightsError when they are not CT-CLIP's. The patch size is that of the unused `to_patch_emb_first_frame`:
    nothing else tells the frames of a patch from its rows and columns.
    """
    named = dict(tensors)
    try:
        codes = named["visual_transformer.vq._codebook.embed"].shape[1:]
        latent = named["to_visual_latent.weight"].shape
        frame = named["visual_transformer.to_patch_emb_first_frame.1.weight"].numel()
        patch = named["visual_transformer.to_patch_emb.1.weight"].numel()
        first = "visual_transformer.enc_spatial_transformer.layers.0.1."
        dim_head, inner = named[f"{first}q_scale"].numel(), named[f"{first}to_q.weight"].shape[0]
        depths = [
            1
            + max(int(m[1]) for name in named if (m := re.match(rf"visual_transformer\.{kind}\.layers\.(\d+)\.", name)))
            for kind in ("enc_spatial_transformer", "enc_temporal_transformer")
        ]
        side, size = math.isqrt(latent[1] // codes[1]), math.isqrt(frame)
        settings = {
            "output": "latent",
            "dim": codes[1],
            "codebook_size": codes[0],
            "image_size": side * size,
            "patch_size": size,
            "temporal_patch_size": patch // frame,
            "spatial_depth": depths[0],
            "temporal_depth": depths[1],
            "dim_head": dim_head,
            "heads": inner // dim_head,
            "dim_latent": latent[0],
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(
            "not CT-CLIP's weights: expected visual_transformer.*, with its codebook, and to_visual_latent.weight"
        ) from error
    changed = {name: value for name, value in settings.items() if value != SETTINGS[name] or name == "output"}
    return {"architecture": "ctclip:ctvit", "dim": latent[0], "settings": changed}
