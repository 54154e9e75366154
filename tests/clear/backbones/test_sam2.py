from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clear.backbones.sam2 import SIZES, build, convert, variant
from clear.backbones.variants import AnotherFamily
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.errors import InputError, WeightsError

CARD = EncoderCard(
    name="sam",
    architecture="sam2:tiny",
    dim=256,
    source=WeightSource("file", "-"),
    trained_on="untrained",
    input_size=1024,
)


@pytest.fixture(scope="module")
def official(shared_data: Path) -> dict[str, Any]:
    """The official class's tensors, inputs and outputs, and the card of so small an encoder."""
    file = np.load(shared_data / "fixtures" / "sam2_image_encoder_tiny.npz", allow_pickle=False)
    arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta_json"}
    made = json.loads(str(file["meta_json"]))["constructor"]
    settings = {**made["trunk"], "d_model": made["neck"]["d_model"]}
    tensors = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    return {**arrays, "card": replace(CARD, dim=12, input_size=64, settings=settings), "tensors": tensors}


def load(official: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Any:
    card, tensors = official["card"], official["tensors"] if tensors is None else tensors
    network = build(card)
    load_strictly(network, convert(card, tensors, network), "checkpoint")
    return network


@pytest.mark.parametrize("suffix", ["", "_wide"])
def test_every_map_of_the_official_encoder_is_reproduced(official: dict[str, Any], suffix: str) -> None:
    network = load(official)
    x = official[f"in/x{suffix}"]
    with torch.inference_mode():
        stages = network.trunk.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        found = {f"trunk_stage{i}": stage.permute(0, 3, 1, 2) for i, stage in enumerate(stages)}
        found |= {f"backbone_fpn{i}": network.neck.lateral(i, stages[i]) for i in (0, 1)}
        found["vision_features"] = network.feature_map(x).permute(0, 3, 1, 2)
        found["embedding"] = network(x)
    for name, value in found.items():
        tolerance = 2e-5 if name == "embedding" else 5e-5
        torch.testing.assert_close(value, official[f"out/{name}{suffix}"], atol=tolerance, rtol=1e-5)


def test_the_rest_of_sam_2_in_a_checkpoint_is_left_out(official: dict[str, Any]) -> None:
    rest = ["sam_mask_decoder.iou_token.weight", "memory_encoder.fuser.layers.0.gamma", "maskmem_tpos_enc", "neck_of"]
    network = load(official, official["tensors"] | {name: torch.ones(3) for name in rest})
    assert torch.equal(network(official["in/x"]), load(official)(official["in/x"]))


def test_the_names_of_transformers_load_as_the_official_ones_do(official: dict[str, Any]) -> None:
    theirs = {}
    for name, tensor in official["tensors"].items():
        new = name.replace("image_encoder.trunk.", "vision_encoder.backbone.").replace(
            "image_encoder.", "vision_encoder."
        )
        new = new.replace("mlp.layers.0", "mlp.proj_in").replace("mlp.layers.1", "mlp.proj_out")
        new = new.replace(".norm", ".layer_norm").replace("patch_embed.proj.", "patch_embed.projection.")
        theirs[new.replace(".conv.", ".")] = tensor
    assert "vision_encoder.neck.convs.3.weight" in theirs
    network = load(official, theirs | {"mask_decoder.output_tokens.weight": torch.ones(2)})
    assert torch.equal(network(official["in/x"]), load(official)(official["in/x"]))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("image_encoder.trunk.blocks.3.attn.qkv.weight", "trunk.blocks.3.attn.qkv.weight"),
        ("image_encoder.trunk.blocks.7.mlp.layers.1.bias", "trunk.blocks.7.mlp.fc2.bias"),
        ("image_encoder.trunk.pos_embed_window", "trunk.pos_embed_window"),
        ("image_encoder.neck.convs.1.conv.bias", "neck.convs.1.conv.bias"),
    ],
)
def test_a_tensor_that_is_missing_renamed_or_of_another_shape_is_named(
    official: dict[str, Any], name: str, named: str
) -> None:
    tensors = dict(official["tensors"])
    tensor = tensors.pop(name)
    with pytest.raises(WeightsError, match=f"missing {named}"):
        load(official, tensors)
    with pytest.raises(WeightsError, match=f"missing {named}; surplus {named}_old"):
        load(official, tensors | {f"{name}_old": tensor})
    with pytest.raises(WeightsError, match=rf"tensor {named} has shape \(5, 2\); expected"):
        load(official, tensors | {name: torch.ones(5, 2)})


def test_two_tensors_for_one_place_are_an_error(official: dict[str, Any]) -> None:
    twice = "image_encoder.trunk.blocks.0.mlp.fc1.bias"
    with pytest.raises(WeightsError, match=rf"tensors \S+layers\.0\.bias and {twice} are two for one place"):
        load(official, official["tensors"] | {twice: torch.ones(32)})


def test_every_size_has_the_published_number_of_parameters_and_is_read_back_from_its_tensors() -> None:
    published = {"tiny": 27219136, "small": 34316992, "base_plus": 69106816, "large": 212703280}
    for size, parameters in published.items():
        card = replace(CARD, architecture=f"sam2:{size}")
        with torch.device("meta"):
            network = build(card)
        assert sum(p.numel() for p in network.parameters()) == parameters
        found = variant(CARD, {f"image_encoder.{name}": tensor for name, tensor in network.state_dict().items()})
        assert (found.architecture, found.dim, found.settings) == (f"sam2:{size}", 256, {})


def test_the_arguments_of_every_size_are_those_of_the_official_configurations(shared_data: Path) -> None:
    file = np.load(shared_data / "fixtures" / "sam2_image_encoder_tiny.npz", allow_pickle=False)
    real = json.loads(str(file["meta_json"]))["real_model"]
    found = {
        size: {key: value for key, value in arguments.items() if key != "d_model"} for size, arguments in SIZES.items()
    }
    assert json.loads(json.dumps(found)) == real["trunk"]
    assert {arguments["d_model"] for arguments in SIZES.values()} == {real["neck"]["d_model"]}


def test_what_no_tensor_tells_is_not_guessed(official: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"width 8 with \(1, 2, 3, 2\) blocks a stage; known are tiny \(96"):
        variant(CARD, official["tensors"])
    with pytest.raises(AnotherFamily, match="not a SAM 2 image encoder"):
        variant(CARD, {"cls_token": torch.ones(1, 1, 8)})


def test_the_embedding_is_the_mean_of_the_map_and_needs_no_shallow_stage_of_the_neck(official: dict[str, Any]) -> None:
    network, x = load(official), official["in/x"]
    before = network(x)
    torch.testing.assert_close(network.feature_map(x).mean((1, 2)), before)
    for level in (2, 3):
        nn.init.zeros_(network.neck.convs[level].conv.weight)
    assert torch.equal(network(x), before)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(channels_last), before, atol=2e-5, rtol=1e-5)


def test_an_input_on_which_the_windows_do_not_fit_stops_at_build_as_the_network_would(official: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"input_size that is a multiple of 32 pixels .* found 250"):
        build(replace(CARD, input_size=250))
    for side in (48, 56):  # the map of stage 4 is no half of stage 3's; the tiles of window positions do not fit
        with pytest.raises(InputError, match=rf"multiple of 32 pixels .* found {side}"):
            build(replace(official["card"], input_size=side))
        with pytest.raises(RuntimeError, match="size of tensor"):
            load(official)(torch.ones(1, 3, side, side))


def test_bfloat16_keeps_the_residual_sum_in_float32_and_the_embedding_near(official: dict[str, Any]) -> None:
    network = load(official)
    kinds: list[torch.dtype] = []
    for block in network.trunk.blocks:
        block.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    x = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1)).cumsum(2).cumsum(3) / 20
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
        ({"architecture": "sam2:huge"}, "SAM 2 has no size 'huge'; expected one of tiny, small, base_plus, large"),
        ({"settings": {"wings": 2}}, r"unknown setting\(s\) wings"),
        ({"dim": 99}, "the card says d = 99, but sam2:tiny has 256"),
        ({"settings": {"num_heads": 5}}, "the heads do not divide the width"),
        ({"settings": {"window_spec": [8, 4]}}, "cannot build SAM 2 with"),
        ({"settings": {"stages": "many"}}, "cannot build SAM 2 with"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=f"encoder sam: .*{message}"):
        build(replace(CARD, **change))


def test_settings_survive_json() -> None:
    settings = json.loads(json.dumps({**SIZES["tiny"], "stages": (1, 1, 2, 1), "global_att_blocks": (3,)}))
    with torch.device("meta"):
        network: Any = build(replace(CARD, settings=settings))
    assert [block.window_size[0] for block in network.trunk.blocks] == [8, 8, 4, 0, 14]
