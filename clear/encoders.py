"""The encoders that `clear` knows by name, as plain data.

A new encoder is a new entry here; no other file branches on these names. `clear.frozen.load_encoder` turns an entry
into something that encodes.
"""

from __future__ import annotations

from clear.card import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, EncoderCard, WeightSource

_MAMBAOUT = "Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025"
_AUGREG = "Steiner et al., How to train your ViT?, TMLR 2022"
_DINOV2 = "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024"
_RESNET = "He et al., Deep Residual Learning, CVPR 2016; Wightman et al., ResNet strikes back, 2021"
_LECL = "Ligero, Lenz et al., CLEAR: lesion-enhanced contrastive learning for CT, MICCAI 2025"

_IMAGENET = "trained on ImageNet-1k photographs, no medical images"


def _mambaout(size: str, dim: int, size_mb: float) -> EncoderCard:
    """MambaOut: the embedding is the final LayerNorm of the spatial mean, d = width of the last stage."""
    return EncoderCard(
        name=f"mambaout-{size}",
        architecture=f"timm:mambaout_{size}",
        dim=dim,
        source=WeightSource("hub", f"timm/mambaout_{size}.in1k", size_mb=size_mb),
        trained_on=_IMAGENET,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling="mean_norm",
        ignored=("head.pre_logits.", "head.fc."),
        licence="Apache-2.0",
        citation=_MAMBAOUT,
    )


def _vit(name: str, size: str, dim: int, hub: str, size_mb: float) -> EncoderCard:
    """ViT of the AugReg recipe: class token after the final norm, 0.5 normalisation."""
    return EncoderCard(
        name=name,
        architecture=f"timm:vit_{size}_patch16_224",
        dim=dim,
        source=WeightSource("hub", hub, size_mb=size_mb),
        trained_on="trained on ImageNet-21k and ImageNet-1k photographs, no medical images",
        mean=INCEPTION_MEAN,
        std=INCEPTION_STD,
        pooling="class_token",
        ignored=("head.",),
        licence="Apache-2.0",
        citation=_AUGREG,
    )


def _dinov2(name: str, size: str, dim: int, size_mb: float) -> EncoderCard:
    """DINOv2 at 224 px: class token after the final norm; positions resized as its authors do."""
    return EncoderCard(
        name=name,
        architecture=f"timm:vit_{size}_patch14_dinov2",
        dim=dim,
        source=WeightSource("hub", f"timm/vit_{size}_patch14_dinov2.lvd142m", size_mb=size_mb),
        trained_on="trained on LVD-142M photographs, no medical images",
        settings={"img_size": 224},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling="class_token",
        positions="dinov2",
        ignored=("mask_token",),
        licence="Apache-2.0",
        citation=_DINOV2,
    )


_ENTRIES = (
    EncoderCard(
        name="mambaout-lecl",
        architecture="timm:mambaout_femto",
        dim=288,
        source=WeightSource("bundled", "mambaout-lecl", "weights.safetensors", size_mb=11.6, verified=True),
        trained_on="untrained random weights: for trying the software out, not for any conclusion",
        input_size=128,
        bfloat16=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize="bilinear",
        pooling="mean_norm",
        windows=("abdomen", "lung"),
        modalities=("CT",),
        licence="Apache-2.0",
        citation=_LECL,
    ),
    _mambaout("femto", 288, 29.2),
    _mambaout("tiny", 576, 106.2),
    _mambaout("small", 576, 194.0),
    _mambaout("base", 768, 339.3),
    _vit("vit-s", "small", 384, "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", 88.2),
    _vit("vit-b", "base", 768, "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", 346.3),
    _dinov2("dinov2-s", "small", 384, 88.2),
    _dinov2("dinov2-b", "base", 768, 346.3),
    EncoderCard(
        name="resnet50",
        architecture="timm:resnet50",
        dim=2048,
        source=WeightSource("hub", "timm/resnet50.a1_in1k", size_mb=102.5),
        trained_on=_IMAGENET,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling="mean",
        ignored=("fc.",),
        licence="Apache-2.0",
        citation=_RESNET,
    ),
)

ENCODERS = {card.name: card for card in _ENTRIES}
