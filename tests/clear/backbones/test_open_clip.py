from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from clear.backbones.open_clip import build, convert, variant
from clear.backbones.variants import AnotherFamily
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.errors import InputError, WeightsError

CARD = EncoderCard(
    name="clip",
    architecture="open_clip:vit_base_patch16_224",
    dim=512,
    source=WeightSource("file", "-"),
    trained_on="untrained",
)
TRUNK = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
TINY = replace(CARD, dim=20, input_size=32, settings={**TRUNK, "projection": 20})
ENDS_AT_TRUNK = replace(TINY, dim=48, settings={**TRUNK, "output": "trunk"})
# As in open_clip_pytorch_model.bin, and what other open_clip models hold beside their image tower.
REST = {
    "logit_scale": torch.tensor(4.6),
    "logit_bias": torch.tensor(-10.0),
    "text.transformer.embeddings.position_ids": torch.arange(4)[None],
    "text.proj.0.weight": torch.ones(4, 4),
    "text_decoder.text_projection": torch.ones(4, 4),
    "token_embedding.weight": torch.ones(4, 4),
    "transformer.resblocks.0.ln_1.weight": torch.ones(4),
}


@pytest.fixture(scope="module")
def official(shared_data: Path) -> dict[str, Any]:
    """open_clip's tensors, input and outputs."""
    file = np.load(shared_data / "fixtures" / "biomedclip_visual_tiny.npz", allow_pickle=False)
    arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta_json"}
    return {**arrays, "tensors": {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}}


def load(tensors: dict[str, Tensor], card: EncoderCard = TINY) -> Any:
    network = build(card)
    load_strictly(network, convert(card, tensors, network), "checkpoint")
    return network


@pytest.mark.parametrize(
    ("card", "output"),
    [
        (TINY, "image_features"),
        (replace(TINY, settings={**TINY.settings, "normalise": True}), "image_features_l2"),
        (ENDS_AT_TRUNK, "trunk_embedding"),
    ],
)
def test_every_output_of_open_clip_is_reproduced_from_a_whole_checkpoint(
    official: dict[str, Any], card: EncoderCard, output: str
) -> None:
    network, x = load(official["tensors"] | REST, card), official["in/x"]
    channels_last = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for value in (network(x), network(channels_last)):
            torch.testing.assert_close(value, official[f"out/{output}"], atol=1e-5, rtol=1e-5)
        tokens = official["out/tokens_after_norm"]
        torch.testing.assert_close(network.feature_map(x).flatten(1, 2), tokens[:, 1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network.feature_map(x)[:, 2, 3], tokens[:, 1 + 4 * 2 + 3], atol=1e-5, rtol=1e-5)


def test_a_file_of_the_trunk_alone_gives_the_class_token_and_no_projection(official: dict[str, Any]) -> None:
    trunk = {name: tensor for name, tensor in official["tensors"].items() if name.startswith("visual.trunk.")}
    found = load(trunk, ENDS_AT_TRUNK)(official["in/x"])
    torch.testing.assert_close(found, official["out/trunk_embedding"], atol=1e-5, rtol=1e-5)
    with pytest.raises(WeightsError, match=r"missing head\.proj\.weight"):
        load(trunk)


def test_the_last_attention_is_the_one_that_makes_the_tokens(official: dict[str, Any]) -> None:
    network, x = load(official["tensors"]), official["in/x"]
    trunk = network.trunk
    with torch.inference_mode():
        attention = network.last_attention(x)
        patches = trunk.patch_embed(x)
        tokens = trunk.blocks[0](torch.cat([trunk.cls_token.expand(2, -1, -1), patches], 1) + trunk.pos_embed)
        block = trunk.blocks[1]
        values = block.attn.qkv(block.norm1(tokens))[..., 96:].reshape(2, 17, 3, 16).transpose(1, 2)
        tokens = tokens + block.attn.proj((attention @ values).transpose(1, 2).flatten(2))
        tokens = trunk.norm(tokens + block.mlp(block.norm2(tokens)))
    assert network.prefix_tokens == 1
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 17))
    torch.testing.assert_close(tokens, official["out/tokens_after_norm"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [16, 48])
def test_at_another_size_positions_are_resized_as_open_clip_does(official: dict[str, Any], side: int) -> None:
    name = "visual.trunk."
    whole = timm.create_model("vit_base_patch16_224", num_classes=0, img_size=32, **TRUNK).eval()
    whole.load_state_dict({k.removeprefix(name): v for k, v in official["tensors"].items() if k.startswith(name)})
    whole.set_input_size(side)  # open_clip 3.3.0, TimmModel.set_input_size, after the weights are loaded
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    network = load(official["tensors"], replace(TINY, input_size=side))
    with torch.inference_mode():
        expected = whole(x) @ official["tensors"]["visual.head.proj.weight"].T
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["trunk.blocks.1.mlp.fc2.weight", "trunk.norm.bias", "trunk.pos_embed", "head.proj.weight"]
)
def test_a_tensor_that_is_missing_renamed_or_of_another_shape_is_named(official: dict[str, Any], name: str) -> None:
    tensors = dict(official["tensors"])
    tensor = tensors.pop(f"visual.{name}")
    with pytest.raises(WeightsError, match=f"missing {name}"):
        load(tensors)
    with pytest.raises(WeightsError, match=f"missing {name}; surplus {name}_old"):
        load(tensors | {f"visual.{name}_old": tensor})
    with pytest.raises(WeightsError, match=rf"tensor {name} has shape \(5, 2\); expected"):
        load(tensors | {f"visual.{name}": torch.ones(5, 2)})


def test_another_image_tower_is_not_left_out_in_silence(official: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"surplus conv1\.weight"):
        load(official["tensors"] | {"visual.conv1.weight": torch.ones(3)})


def test_biomedclip_has_its_number_of_parameters_and_is_read_back_from_its_tensors() -> None:
    width = 768
    with torch.device("meta"):
        network = build(CARD)
    vit = 3 * 16 * 16 * width + width + (1 + 197 + 2) * width + 12 * (12 * width * width + 13 * width)
    assert sum(p.numel() for p in network.parameters()) == vit + width * 512 == 86_191_872
    tensors = {f"visual.{name}": tensor for name, tensor in network.state_dict().items()}

    def read(tensors: dict[str, Tensor]) -> tuple[str, int, Any]:
        found = variant(CARD, tensors)
        return found.architecture, found.dim, found.settings

    vit = "open_clip:vit_base_patch16_224"
    assert read(tensors | REST) == (vit, 512, {})
    head = tensors.pop("visual.head.proj.weight")
    assert read(tensors) == (vit, width, {"output": "trunk"})
    assert read(tensors | {"visual.head.proj.weight": head[:99]}) == (vit, 99, {"projection": 99})


@pytest.mark.parametrize("model", ["vit_small_patch16_224", "vit_base_patch32_224", "vit_large_patch16_224"])
@pytest.mark.parametrize("depth", [{}, {"depth": 3}])
def test_a_checkpoint_tells_its_vit_and_the_card_then_takes_it(model: str, depth: dict[str, int]) -> None:
    settings = {**depth, "projection": 64}
    with torch.device("meta"):
        network = build(replace(CARD, architecture=f"open_clip:{model}", dim=64, settings=settings))
        found = variant(CARD, {f"visual.{name}": tensor for name, tensor in network.state_dict().items()})
        again = build(found.fit(CARD))
    assert (found.architecture, found.dim, found.settings) == (f"open_clip:{model}", 64, settings)
    assert [t.shape for t in again.state_dict().values()] == [t.shape for t in network.state_dict().values()]


def test_what_is_no_such_tower_is_not_guessed(official: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="width 48 with patches of 8: no ViT that timm knows"):
        variant(CARD, official["tensors"])
    with pytest.raises(AnotherFamily, match="not an open_clip image tower"):
        variant(CARD, {"visual.conv1.weight": torch.ones(3)})


def test_bfloat16_keeps_the_residual_sum_in_float32_and_the_embedding_near(official: dict[str, Any]) -> None:
    network = load(official["tensors"])
    kinds: list[torch.dtype] = []
    for block in network.trunk.blocks:
        block.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cumsum(2).cumsum(3) / 20
    with torch.inference_mode():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x)
    assert set(kinds) == {torch.float32}
    assert rounded.dtype == torch.float32
    centred = exact - exact.mean(0)
    assert (rounded - rounded.mean(0) - centred).norm() < 0.02 * centred.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "open_clip:vit_giant_for_cats"}, "has no model 'vit_giant_for_cats'"),
        ({"architecture": "open_clip:resnet18"}, "cannot build resnet18|is no ViT with a class token"),
        ({"architecture": "open_clip:vit_base_patch16_siglip_224"}, "is no ViT with a class token"),
        ({"settings": {"wings": 2}}, "timm cannot build vit_base_patch16_224 with {'wings': 2}"),
        ({"settings": {"output": "tail"}}, "expected output projection or trunk"),
        ({"settings": {"normalise": "yes"}}, "normalise true or false; found 'projection', 512 and 'yes'"),
        ({"dim": 99}, "the card says d = 99, but the projection of vit_base_patch16_224 has 512"),
        ({"settings": {"output": "trunk"}}, "the card says d = 512, but the trunk of vit_base_patch16_224 has 768"),
        ({"input_size": 100}, "input_size that is a multiple of 16; found 100"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=f"encoder clip: .*({message})"):
        build(replace(CARD, **change))
