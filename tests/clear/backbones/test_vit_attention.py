from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from clear.backbones.vit_attention import last_attention, patch_map
from clear.errors import InputError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def vit(model: str = "vit_tiny_patch16_224", **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(model, pretrained=False, **{**SMALL, **settings}).eval()
        for parameter in network.parameters():  # timm starts with attention that is almost even
            nn.init.normal_(parameter, std=0.3)
    return network


def image(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_attention_is_the_softmax_of_the_last_blocks_scaled_products() -> None:
    network = vit()
    seen: list[torch.Tensor] = []
    network.blocks[-1].attn.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.inference_mode():
        found = last_attention(network, image())
        qkv = network.blocks[-1].attn.qkv(seen[0]).view(2, 17, 3, 2, 16)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)
        expected = (q @ k.transpose(-2, -1) / 16**0.5).softmax(-1)
    assert found.shape == (2, 2, 17, 17)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.std() > 0.01  # an even attention would prove nothing


@pytest.mark.parametrize(("model", "tokens"), [("vit_small_patch14_reg4_dinov2", 21), ("vit_small_patch16_dinov3", 21)])
def test_registers_and_rotary_positions_have_attention_too(model: str, tokens: int) -> None:
    network = vit(model)
    with torch.inference_mode():
        found = last_attention(network, image())
    assert found.shape == (2, 2, tokens, tokens)
    assert torch.allclose(found.sum(-1), torch.ones(2, 2, tokens), atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_asking_leaves_the_network_as_it_was() -> None:
    network = vit()
    attention = network.blocks[-1].attn
    with torch.inference_mode():
        before, fused = network(image()), attention.fused_attn
        last_attention(network, image())
        assert torch.equal(network(image()), before)
    assert attention.fused_attn is fused
    assert not attention.attn_drop._forward_hooks
    with pytest.raises(AssertionError):  # timm refuses the size
        last_attention(network, image(40, 40))
    assert attention.fused_attn is fused
    assert not attention.attn_drop._forward_hooks


def test_patches_lie_on_their_grid_rows_first_without_the_class_token() -> None:
    network = vit(dynamic_img_size=True)
    with torch.inference_mode():
        tokens = network.forward_features(image(16, 32))
        found = patch_map(network, image(16, 32))
    assert found.shape == (2, 2, 4, 32)
    assert torch.equal(found[:, 1, 2], tokens[:, 1 + 4 + 2])


def test_a_convolutional_network_is_refused_by_its_class() -> None:
    with pytest.raises(InputError, match="ResNet has no attention over patches"):
        last_attention(timm.create_model("resnet18", pretrained=False), image())
