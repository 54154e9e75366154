from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from clear.backbones import build, convert
from clear.checkpoints import load_strictly
from clear.errors import InputError
from pretrain.objectives.backbone import Tokens, build_for_local_views

FIXTURES = {"dinov2_vit_tiny": {}, "dinov2_vit_tiny_reg4": {"reg_tokens": 4, "no_embed_class": True}}


@pytest.mark.parametrize("name", FIXTURES)
def test_masked_patches_give_dinov2s_tokens(shared_data: Path, tiny: ModuleType, name: str) -> None:
    file = np.load(shared_data / "fixtures" / f"{name}.npz", allow_pickle=False)
    sizes = json.loads(str(file["meta_json"]))["constructor"]
    settings: dict[str, Any] = {
        "img_size": 70,
        "patch_size": 14,
        "embed_dim": sizes["embed_dim"],
        "depth": sizes["depth"],
        "num_heads": sizes["num_heads"],
        "mlp_ratio": sizes["mlp_ratio"],
        "init_values": 1.0,
        **FIXTURES[name],
    }
    card = tiny.card("v2", "timm:vit_small_patch14_dinov2", sizes["embed_dim"], size=70, settings=settings)
    tensors = {key.removeprefix("sd/"): torch.from_numpy(file[key]) for key in file.files if key.startswith("sd/")}
    network = build(card)
    mask_token = tensors["mask_token"].reshape(-1)
    load_strictly(network, convert(replace(card, ignored=("mask_token",)), tensors, network), name)
    tokens = Tokens(card, network)
    images, mask = torch.from_numpy(file["in/x"]), torch.from_numpy(file["in/masks"])
    with torch.no_grad():
        plain = tokens(network, images)
        masked = tokens(network, images, mask, mask_token)
        after = tokens(network, images)
    for found, suffix in ((plain, ""), (masked, "_masked"), (after, "")):
        np.testing.assert_allclose(found[0], file[f"out/cls{suffix}"], rtol=1e-5, atol=5e-5)
        np.testing.assert_allclose(found[1], file[f"out/patch_tokens{suffix}"], rtol=1e-5, atol=1e-4)
    assert (tokens.side, tokens.width) == (5, sizes["embed_dim"])


@pytest.mark.parametrize("architecture", ["vit", "vit_conv"])
def test_a_mask_hides_what_is_under_it(tiny: ModuleType, architecture: str) -> None:
    card = tiny.CARDS[architecture]
    network = build(card)
    tokens = Tokens(card, network)
    torch.manual_seed(0)
    images = torch.randn(2, card.channels, card.input_size, card.input_size)
    mask = torch.ones(2, tokens.side**2, dtype=torch.bool)
    with torch.no_grad():
        seen = tokens(network, images, torch.zeros_like(mask), torch.zeros(tokens.width))
        hidden = tokens(network, images, mask, torch.zeros(tokens.width))
    torch.testing.assert_close(seen[0], tokens(network, images)[0])
    torch.testing.assert_close(hidden[0][0], hidden[0][1])  # nothing of the images is left
    assert not torch.allclose(seen[0][0], seen[0][1])


def test_a_network_that_also_takes_local_views_is_the_same_at_its_own_size(tiny: ModuleType) -> None:
    card = tiny.CARDS["vit"]
    plain = build(card)
    network, side = build_for_local_views(card, 16)
    network.load_state_dict(plain.state_dict())
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), plain(images))
        assert network(torch.randn(2, 1, 16, 16)).shape == (2, 24)
    assert side == 16


@pytest.mark.parametrize(
    ("architecture", "size", "expected"), [("vit", 32, 16), ("mambaout", 224, 96), ("resnet", 128, 64)]
)
def test_a_local_views_side_is_96_of_224_to_the_nearest_patch(
    tiny: ModuleType, architecture: str, size: int, expected: int
) -> None:
    card = replace(tiny.CARDS[architecture], input_size=size)
    assert build_for_local_views(card)[1] == expected


def test_an_architecture_of_one_size_is_refused_with_what_to_do(tiny: ModuleType) -> None:
    with pytest.raises(
        InputError, match=r"vit_conv:small takes 64 pixels only.*set local_size to 64, or local_views to 0"
    ):
        build_for_local_views(tiny.CARDS["vit_conv"])
    network, side = build_for_local_views(tiny.CARDS["vit_conv"], 64)
    assert side == 64
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 48)
