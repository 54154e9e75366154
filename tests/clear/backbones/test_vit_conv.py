from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clear.backbones import fitted_card
from clear.backbones.variants import AnotherFamily
from clear.backbones.vit_conv import SIZES, build, convert, sine_positions, variant
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.errors import InputError, WeightsError

CARD = EncoderCard(
    name="conv", architecture="vit_conv:base", dim=768, source=WeightSource("file", "-"), trained_on="untrained"
)
TINY = replace(CARD, dim=48, input_size=64, settings={"embed_dim": 48, "depth": 2, "num_heads": 3})


@pytest.fixture(scope="module")
def official(shared_data: Path) -> dict[str, Any]:
    """MoCo v3's tensors, input and outputs."""
    file = np.load(shared_data / "fixtures" / "vit_conv_tiny.npz", allow_pickle=False)
    arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta_json"}
    return {**arrays, "tensors": {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}}


def load(tensors: dict[str, Tensor], card: EncoderCard = TINY) -> Any:
    network = build(card)
    load_strictly(network, convert(card, tensors, network), "checkpoint")
    return network


def test_every_output_of_moco_v3_is_reproduced(official: dict[str, Any]) -> None:
    tensors, x = official["tensors"], official["in/x"]
    network = load(tensors)
    with torch.inference_mode():
        found = {
            "stem_tokens": network.patch_embed(x),
            "tokens_after_norm": network.forward_features(x),
            "embedding": network(x),
            "logits": network(x) @ tensors["head.weight"].T + tensors["head.bias"],
        }
        for name, value in found.items():
            torch.testing.assert_close(value, official[f"out/{name}"], atol=1e-5, rtol=1e-5)
        channels_last = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network(channels_last), official["out/embedding"], atol=1e-5, rtol=1e-5)


def test_the_feature_map_is_the_patch_tokens_row_by_row(official: dict[str, Any]) -> None:
    network = load(official["tensors"])
    features = network.feature_map(official["in/x"])
    assert features.shape == (2, 4, 4, 48)
    tokens = official["out/tokens_after_norm"]
    for row, column in ((0, 0), (1, 3), (3, 2)):
        token = tokens[:, network.prefix_tokens + 4 * row + column]
        torch.testing.assert_close(features[:, row, column], token, atol=1e-5, rtol=1e-5)


def test_the_last_attention_is_the_one_that_makes_the_embedding(official: dict[str, Any]) -> None:
    network, x = load(official["tensors"]), official["in/x"]
    with torch.inference_mode():
        attention = network.last_attention(x)
        tokens = network.blocks[0](
            torch.cat([network.cls_token.expand(2, -1, -1), network.patch_embed(x)], 1) + network.pos_embed
        )
        block = network.blocks[1]
        values = block.attn.qkv(block.norm1(tokens))[..., 96:].reshape(2, 17, 3, 16).transpose(1, 2)
        tokens = tokens + block.attn.proj((attention @ values).transpose(1, 2).flatten(2))
        tokens = network.norm(tokens + block.mlp(block.norm2(tokens)))
    assert attention.shape == (2, 3, 17, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 17))
    torch.testing.assert_close(tokens, official["out/tokens_after_norm"], atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_the_training_script_fits_once_unwrapped(shared_data: Path) -> None:
    listing = json.loads((shared_data / "fixtures" / "moco_checkpoint_keys.json").read_text(encoding="utf-8"))
    wrapper = "module.base_encoder."
    tensors = {
        name.removeprefix(wrapper): torch.ones(shape)
        for name, shape in listing["archs"]["vit_conv"]["keys"].items()
        if name.startswith(wrapper)
    }
    assert any(name.startswith("head.") for name in tensors)
    network = load({name: tensor.long() if tensor.ndim == 0 else tensor for name, tensor in tensors.items()})
    assert all(bool((tensor == 1).all()) for tensor in network.state_dict().values())


def test_positions_are_sines_and_cosines_of_row_and_column(official: dict[str, Any]) -> None:
    table = sine_positions(4, 48)
    assert torch.equal(table, official["tensors"]["pos_embed"])
    for row, column, i in ((0, 0, 0), (2, 1, 0), (3, 2, 5), (1, 3, 11)):
        frequency = 10000 ** (-4 * i / 48)
        expected = [f(side * frequency) for side in (row, column) for f in (math.sin, math.cos)]
        torch.testing.assert_close(table[0, 1 + 4 * row + column, i::12], torch.tensor(expected), atol=1e-6, rtol=0)
    grown = sine_positions(6, 48)[0, 1:].reshape(6, 6, 48)
    assert torch.equal(grown[:4, :4].flatten(0, 1), table[0, 1:])  # a position means the same on every grid


def test_at_another_size_the_fixed_positions_are_computed_and_learned_ones_refused(official: dict[str, Any]) -> None:
    tensors, larger = official["tensors"], replace(TINY, input_size=96)
    for stored in (tensors["pos_embed"], tensors["pos_embed"].half()):
        network = load(tensors | {"pos_embed": stored}, larger)
        assert torch.equal(network.pos_embed, sine_positions(6, 48))
    with pytest.raises(WeightsError, match=r"tensor pos_embed has shape \(1, 17, 48\); expected \(1, 37, 48\)"):
        load(tensors | {"pos_embed": tensors["pos_embed"] + 0.01}, larger)
    other = tensors["pos_embed"] + 0.01
    assert torch.equal(load(tensors | {"pos_embed": other}).pos_embed, other)


@pytest.mark.parametrize("name", ["patch_embed.proj.4.running_var", "blocks.1.attn.qkv.bias", "cls_token", "pos_embed"])
def test_a_tensor_that_is_missing_renamed_or_of_another_shape_is_named(official: dict[str, Any], name: str) -> None:
    tensors = dict(official["tensors"])
    tensor = tensors.pop(name)
    with pytest.raises(WeightsError, match=f"missing {name}"):
        load(tensors)
    with pytest.raises(WeightsError, match=f"missing {name}; surplus {name}_old"):
        load(tensors | {f"{name}_old": tensor})
    with pytest.raises(WeightsError, match=rf"tensor {name} has shape \(5, 2\); expected"):
        load(tensors | {name: torch.ones(5, 2)})


@pytest.mark.parametrize("size", ["small", "base"])
def test_the_real_sizes_have_the_parameters_that_the_paper_s_network_has(size: str) -> None:
    width = {"small": 384, "base": 768}[size]
    with torch.device("meta"):
        network: Any = build(replace(CARD, architecture=f"vit_conv:{size}", dim=width))
    steps = [3, width // 8, width // 4, width // 2, width]
    stem = sum(9 * a * b + 2 * b for a, b in pairwise(steps)) + width * width + width
    blocks = 11 * (12 * width * width + 13 * width)
    assert sum(p.numel() for p in network.parameters()) == stem + blocks + (1 + 197 + 2) * width
    assert network.blocks[0].attn.num_heads == 12
    found = variant(CARD, network.state_dict())
    assert (found.architecture, found.dim, found.settings) == (f"vit_conv:{size}", width, {})


def test_a_checkpoint_tells_its_size_and_depth_and_what_it_is_not(official: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = build(replace(CARD, settings={"depth": 3}))
    found = variant(CARD, {**network.state_dict(), "head.0.weight": torch.ones(2, 2)})
    assert (found.architecture, found.dim, found.settings) == ("vit_conv:base", 768, {"depth": 3})
    with torch.device("meta"):
        again = build(found.fit(CARD))
    assert [t.shape for t in again.state_dict().values()] == [t.shape for t in network.state_dict().values()]
    with pytest.raises(WeightsError, match=r"width 48, .* known are small \(384\), base \(768\)"):
        variant(CARD, official["tensors"])
    load(official["tensors"], fitted_card(replace(TINY, settings={"num_heads": 3}, any_size=True), official["tensors"]))
    with pytest.raises(AnotherFamily, match=r"not a ViT with MoCo v3's convolutional stem"):
        variant(CARD, {"patch_embed.proj.weight": torch.ones(384, 3, 16, 16)})


def test_bfloat16_keeps_the_residual_sum_and_the_first_convolution_in_float32_and_the_embedding_near(
    official: dict[str, Any],
) -> None:
    network = load(official["tensors"])
    kinds: list[torch.dtype] = []
    for block in (*network.patch_embed.proj[:2], *network.blocks):
        block.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    x = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1)).cumsum(2).cumsum(3) / 20
    with torch.inference_mode():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x)
    assert set(kinds) == {torch.float32}
    centred = exact - exact.mean(0)
    assert (rounded - rounded.mean(0) - centred).norm() < 0.05 * centred.norm()


def test_a_slice_of_another_size_is_refused_also_when_it_has_as_many_patches(official: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected slices of \(64, 64\) pixels; found \(32, 128\)"):
        load(official["tensors"])(torch.ones(1, 3, 32, 128))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_conv:huge"}, "vit_conv has no size 'huge'; expected one of small, base"),
        ({"settings": {"wings": 2}}, r"unknown setting\(s\) wings"),
        ({"dim": 99}, "the card says d = 99, but vit_conv:base has 768"),
        ({"input_size": 100}, "input_size that is one of 16; found 768 and 100"),
        ({"settings": {"num_heads": 5}}, "cannot build vit_conv with"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=f"encoder conv: .*{message}"):
        build(replace(CARD, **change))


def test_weights_start_as_moco_v3_s_do() -> None:
    width = SIZES["small"]["embed_dim"]
    network: Any = build(replace(CARD, architecture="vit_conv:small", dim=width, settings={"depth": 1}))
    block = network.blocks[0]
    for weight, fans in ((block.attn.qkv.weight, 2 * width), (block.mlp.fc1.weight, 5 * width)):
        limit = math.sqrt(6 / fans)  # uniform; queries, keys and values are three matrices, not one
        assert 0.99 * limit < float(weight.detach().abs().max()) <= limit
    assert not block.mlp.fc1.bias.any()
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["pos_embed"]
