"""From the last map to the embedding: the same number as the whole way, for every registered architecture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clear.backbones import build, kind
from clear.card import EncoderCard
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.frozen import Encoder
from pretrain.initialise import random_network

SHORT = {"vmamba": {"depths": (1, 1, 1, 1)}}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
TINY: dict[str, dict[str, Any]] = {
    "mambaout-lecl": {"dim": 24, "settings": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, "input_size": 64},
    "vmamba-lecl": {"dim": 24, "settings": {"depths": (1, 1), "dims": (12, 24)}, "input_size": 32},
    "resnet50": {"dim": 2048, "settings": {"layers": (1, 1, 1, 1)}, "input_size": 64},
    "sam2-t": {
        "dim": 12,
        "input_size": 64,
        "settings": {
            "embed_dim": 8,
            "global_att_blocks": [4],
            "num_heads": 1,
            "stages": [1, 2, 3, 2],
            "window_pos_embed_bkg_spatial_size": [5, 5],
            "window_spec": [4, 2, 6, 3],
            "d_model": 12,
        },
    },
    "medsiglip": {"dim": 24, "settings": VIT | {"img_size": 56, "act_layer": "gelu_tanh"}, "input_size": 56},
    "medimageinsight": {
        "dim": 10,
        "input_size": 64,
        "settings": {
            "embed_dims": (8, 16, 24, 32),
            "num_heads": (2, 2, 3, 4),
            "depths": (1, 1, 1, 1),
            "window_size": 2,
        },
    },
    "merlin": {
        "dim": 24,
        "settings": {"output": "embedding", "layers": [1, 1, 1, 1], "planes": [2, 3, 4, 6], "stem": 4},
    },
    "merlin-contrastive": {
        "dim": 5,
        "settings": {
            "output": "contrastive",
            "layers": [1, 1, 1, 1],
            "planes": [2, 3, 4, 6],
            "stem": 4,
            "contrastive_dim": 5,
        },
    },
    "ct-clip": {
        "dim": 10,
        "settings": {
            "codebook_size": 48,
            "dim": 20,
            "dim_head": 8,
            "heads": 2,
            "image_size": 24,
            "patch_size": 8,
            "spatial_depth": 1,
            "temporal_depth": 1,
            "temporal_patch_size": 4,
            "dim_latent": 10,
        },
    },
}


def tiny(name: str) -> EncoderCard:
    card = ENCODERS[name]
    volume = replace(card.volume, shape=(16, 24, 24)) if name == "ct-clip" and card.volume else card.volume
    return replace(card, volume=volume, **TINY[name])


def inputs(card: EncoderCard) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if card.volume is None:
        return torch.randn(2, card.channels, card.input_size, card.input_size, generator=generator)
    return torch.rand(2, 1, *((16, 24, 24) if "clip" in card.architecture else (40, 40, 32)), generator=generator)


@pytest.mark.parametrize("name", TINY)
def test_map_and_rest_of_the_way_make_the_embedding(name: str) -> None:
    card = tiny(name)
    encoder = Encoder(card, random_network(card, seed=1), "note", device="cpu", precision="float32")
    x = inputs(card)
    with torch.inference_mode():
        found, expected = encoder.embed_map(encoder.feature_map(x)), encoder.forward(x)
    assert encoder.pools_map
    assert not encoder.reads_class_token
    assert (expected[0] - expected[1]).abs().max() > 1e-4  # a constant would prove nothing
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in TINY if ENCODERS[name].bfloat16])
def test_the_rest_of_the_way_has_a_gradient_in_bfloat16_too(name: str) -> None:
    card = tiny(name)
    encoder = Encoder(card, random_network(card, seed=1), "note", device="cpu", precision="bfloat16")
    with torch.no_grad():
        features = encoder.feature_map(inputs(card))
    features.requires_grad_(True)
    (slope,) = torch.autograd.grad(encoder.embed_map(features)[:, 0].sum(), features)
    assert slope.dtype == features.dtype == torch.float32
    assert slope.isfinite().all()
    assert slope.abs().max() > 0


@pytest.mark.parametrize("card", ENCODERS.values(), ids=list(ENCODERS))
def test_every_encoder_can_be_explained_by_its_map_or_by_its_class_token(card: EncoderCard) -> None:
    settings = {**card.settings, **SHORT.get(card.architecture.partition(":")[0], {})}
    with torch.device("meta"):
        network: Any = build(replace(card, settings=settings))
    assert network.pools_map != getattr(network, "reads_class_token", False)
    if not network.pools_map:
        assert hasattr(network, "through_attention")
        return
    assert kind(card) in {kind(ENCODERS[name]) for name in TINY} or card.pooling == "mean"
    inner = (card.input_size, card.input_size) if card.volume is None else card.volume.tensor_shape
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network.to_empty(device="cpu")
        features = network.feature_map(torch.empty(1, card.channels if card.volume is None else 1, *inner))
        assert network.embed_map(features).shape == (1, card.dim)


@pytest.mark.parametrize(
    ("pooling", "pools", "reads"),
    [
        ("class_token", False, True),
        ("patch_mean", True, False),
        ("class_patch_mean", False, True),
        ("native", False, True),
    ],
)
def test_a_vision_transformers_pooling_says_which_way_leads_to_its_embedding(
    pooling: str, pools: bool, reads: bool
) -> None:
    card = replace(
        ENCODERS["vit-s"],
        dim=48 if pooling == "class_patch_mean" else 24,
        settings=VIT | {"img_size": 32, "patch_size": 8},
        input_size=32,
        pooling=pooling,  # type: ignore[arg-type]
    )
    encoder = Encoder(card, random_network(card, seed=1), "note", device="cpu", precision="float32")
    assert (encoder.pools_map, encoder.reads_class_token) == (pools, reads)
    x = inputs(card)
    if pools:
        with torch.inference_mode():
            assert torch.allclose(encoder.embed_map(encoder.feature_map(x)), encoder.forward(x), atol=1e-6)
        with pytest.raises(InputError, match="no class token leads"):
            encoder.through_attention(x)
    else:
        with pytest.raises(InputError, match="not pooled from its last map"):
            encoder.embed_map(torch.zeros(1, 4, 4, 24))


@pytest.mark.parametrize(("model", "dim"), [("xcit_nano_12_p16_224", 128), ("cait_xxs24_224", 192)])
def test_attention_that_is_not_a_class_tokens_over_patches_is_not_taken_for_it(model: str, dim: int) -> None:
    """Both have blocks, patches and a class token; XCiT's blocks attend over channels, CaiT's know no class token."""
    card = replace(ENCODERS["vit-s"], architecture=f"timm:{model}", dim=dim, settings={"depth": 1}, pooling="native")
    with torch.device("meta"):
        network: Any = build(card)
    assert not network.reads_class_token
    assert not network.pools_map


@pytest.mark.parametrize("name", ["vit-s", "dinov2-s-reg", "dinov3-s", "vit-conv-lecl", "biomedclip"])
def test_the_gradient_through_the_last_attention_is_the_change_of_the_embedding(name: str) -> None:
    changes: dict[str, Any] = {
        "vit-s": {"dim": 24, "settings": VIT | {"img_size": 32, "patch_size": 8}, "input_size": 32},
        "dinov2-s-reg": {"dim": 24, "settings": VIT | {"img_size": 56, "init_values": 1.0}, "input_size": 56},
        "dinov3-s": {"dim": 24, "settings": VIT | {"img_size": 64, "init_values": 1.0}, "input_size": 64},
        "vit-conv-lecl": {"dim": 24, "settings": VIT, "input_size": 64},
        "biomedclip": {"dim": 10, "settings": VIT | {"patch_size": 8, "projection": 10}, "input_size": 32},
    }[name]
    card = replace(ENCODERS[name], **changes)
    encoder = Encoder(card, random_network(card, seed=1), "note", device="cpu", precision="float32")
    x = inputs(card)
    embedding, attention = encoder.through_attention(x)
    with torch.inference_mode():
        assert torch.allclose(embedding.detach(), encoder.forward(x), atol=1e-5)
        assert torch.allclose(attention.detach(), encoder.last_attention(x), atol=1e-6)
    direction = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(2))
    (slope,) = torch.autograd.grad((embedding * direction).sum(), attention)
    change = torch.zeros_like(attention)
    change[:, :, 0] = 1e-2 * torch.randn(attention[:, :, 0].shape, generator=torch.Generator().manual_seed(3))

    def moved(sign: int) -> torch.Tensor:
        vit = next(m for m in encoder.network.modules() if hasattr(m, "blocks"))
        drop = vit.blocks[-1].attn.attn_drop
        handle = drop.register_forward_hook(lambda module, args, output: output + sign * change)
        vit.blocks[-1].attn.fused_attn = False
        try:
            with torch.inference_mode():
                return (encoder.forward(x) * direction).sum()
        finally:
            handle.remove()
            vit.blocks[-1].attn.fused_attn = True

    expected = (moved(1) - moved(-1)) / 2
    assert expected.abs() > 1e-4
    assert torch.allclose((slope * change).sum(), expected, rtol=2e-2)
