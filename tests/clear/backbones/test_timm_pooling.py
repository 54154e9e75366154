"""What timm's networks give is pooled as the card says, or refused: never something else under that name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from clear.backbones import build, convert, fitted_card
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.encoders import ENCODERS
from clear.errors import InputError, WeightsError


def card(model: str, dim: int, pooling: str, **settings: object) -> EncoderCard:
    return EncoderCard(
        name="one",
        architecture=f"timm:{model}",
        dim=dim,
        source=WeightSource("file", "-"),
        trained_on="untrained random weights",
        settings=settings,
        pooling=pooling,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("model", "dim", "pooling", "why"),
    [
        ("beit_base_patch16_224", 768, "class_token", "final norm"),
        ("vit_little_patch16_reg4_gap_256", 320, "patch_mean", "final norm"),
        ("convnext_atto", 320, "mean_norm", "a MambaOut"),
        ("vit_small_patch16_224", 384, "mean", "maps, not of tokens"),
        ("resnet18", 512, "class_token", "vision transformer"),
        ("vit_base_patch16_siglip_224", 768, "class_token", "class token"),
    ],
)
def test_a_pooling_that_a_network_cannot_have_is_refused(model: str, dim: int, pooling: str, why: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=why):
        build(card(model, dim, pooling))


def test_the_mean_of_a_map_is_taken_over_its_positions_whichever_axes_they_are() -> None:
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for model, dim in (("swin_tiny_patch4_window7_224", 768), ("convnext_atto", 320)):
        network = build(card(model, dim, "mean"))
        with torch.inference_mode():
            assert torch.allclose(network(x), network.feature_map(x).mean(dim=(1, 2)), atol=1e-5)
            assert network.feature_map(x).shape == (2, 7, 7, dim)


def test_class_and_patches_stand_one_after_the_other() -> None:
    both = build(card("vit_tiny_patch16_224", 384, "class_patch_mean", depth=1))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = both.network.forward_features(x)
        assert torch.equal(both(x), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1))
        assert torch.equal(both.feature_map(x).flatten(1, 2), tokens[:, 1:])


def test_moco_v3_has_twelve_heads_at_a_width_where_others_have_six() -> None:
    """facebookresearch/moco-v3, vits.py: vit_small is 384 wide with 12 heads; its positions begin with a row of 0."""
    moco = timm.create_model("vit_small_patch16_224", num_heads=12, depth=2, num_classes=0).eval()
    with torch.no_grad():
        moco.pos_embed[:, 0] = 0
    tensors = dict(moco.state_dict())
    open_to_any = replace(ENCODERS["dino-s16"], any_size=True)
    found = fitted_card(open_to_any, tensors)
    assert found.settings["num_heads"] == 12
    network = build(found)
    load_strictly(network, convert(found, tensors, network), "here")
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(network(x), moco.forward_features(x)[:, 0], atol=1e-5)
    with torch.no_grad():
        moco.pos_embed[:, 0] = 0.1
    assert fitted_card(open_to_any, dict(moco.state_dict())).settings["num_heads"] == 6


def test_a_mambaouts_name_does_not_stand_for_a_vit() -> None:
    tensors = dict(timm.create_model("vit_tiny_patch16_224", depth=1).state_dict())
    with pytest.raises(WeightsError, match="the weights are of a vit, not of a mambaout"):
        fitted_card(ENCODERS["mambaout-lecl"], tensors)


@pytest.mark.parametrize("model", ["vit_small_patch16_dinov3", "beit_base_patch16_224", "vit_giant_patch14_dinov2"])
def test_what_cannot_be_read_off_tensors_is_said(model: str) -> None:
    with torch.device("meta"):
        tensors = dict(timm.create_model(model, depth=1, num_classes=0).state_dict())
    tensors = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
    with pytest.raises(WeightsError, match=r"--arch|not the tensors"):
        fitted_card(replace(ENCODERS["dino-s16"], any_size=True), tensors)
