from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clear.backbones.merlin import PREFIX, build, convert, variant
from clear.backbones.variants import AnotherFamily
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.errors import InputError, WeightsError

TINY = {"layers": (1, 2, 1, 1), "planes": (2, 3, 4, 6), "stem": 4, "contrastive_dim": 5, "class_nb": 7}
REAL = EncoderCard(
    name="merlin",
    architecture="merlin:i3_resnet152",
    dim=2048,
    source=WeightSource("file", "-"),
    trained_on="untrained",
    channels=1,
    mean=(0.0,),
    std=(1.0,),
)


def tiny(output: str, dim: int) -> EncoderCard:
    return replace(REAL, dim=dim, settings={**TINY, "output": output})


def loaded(card: EncoderCard, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = build(card)
    load_strictly(network, convert(card, tensors, network), "checkpoint")
    return network


@pytest.fixture
def reference(shared_data: Path) -> Any:
    return np.load(shared_data / "fixtures" / "merlin_image_tiny.npz", allow_pickle=False)


def tensors_of(reference: Any, group: str = "sd/") -> dict[str, torch.Tensor]:
    return {key[len(group) :]: torch.from_numpy(reference[key]) for key in reference.files if key.startswith(group)}


@torch.inference_mode()
def test_all_outputs_and_maps_are_the_published_classs(reference: Any) -> None:
    x = torch.from_numpy(reference["in/x"])
    for output, key in (("embedding", "embedding"), ("contrastive", "contrastive"), ("phenotypes", "phenotype_logits")):
        expected = reference[f"out/{key}"]
        network = loaded(tiny(output, expected.shape[1]), tensors_of(reference))
        assert np.abs(network(x).numpy() - expected).max() < 1e-5
    maps = network.feature_map(x)
    assert np.abs(maps.movedim(-1, 1).numpy() - reference["out/feature_map"]).max() < 2e-5
    stem = network.encode_image["i3_resnet"].stem(x)
    assert np.abs(stem.numpy() - reference["out/stem"]).max() < 2e-5
    probabilities = torch.sigmoid(network(x)).numpy()
    assert np.abs(probabilities - reference["out/phenotype_probabilities"]).max() < 1e-5


def test_the_real_network_has_the_published_number_of_parameters() -> None:
    counts = {}
    for output, dim in (("embedding", 2048), ("contrastive", 512), ("phenotypes", 1692)):
        with torch.device("meta"):
            network = build(replace(REAL, dim=dim, settings={"output": output}))
        counts[output] = sum(parameter.numel() for parameter in network.parameters())
        assert len(network.state_dict()) == (930 if output == "embedding" else 932)
    assert counts["embedding"] == 117_366_208
    assert counts["contrastive"] - counts["embedding"] == 1_049_088
    assert counts["phenotypes"] - counts["embedding"] == 3_466_908


def test_only_text_and_unused_heads_are_left_out(reference: Any) -> None:
    tensors = tensors_of(reference)
    whole = tensors | {"encode_text.linear_layer.weight": torch.ones(2), "logit_scale": torch.ones(())}
    for output, dim in (("embedding", 24), ("contrastive", 5), ("phenotypes", 7)):
        loaded(tiny(output, dim), whole)
    loaded(tiny("embedding", 24), {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    with pytest.raises(WeightsError, match=r"surplus encode_audio\.weight"):
        loaded(tiny("embedding", 24), whole | {"encode_audio.weight": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"missing encode_image.i3_resnet.contrastive_head.bias"):
        loaded(tiny("contrastive", 5), {n: t for n, t in whole.items() if not n.endswith("contrastive_head.bias")})


def test_a_renamed_tensor_is_named(reference: Any) -> None:
    tensors = tensors_of(reference)
    name = f"{PREFIX}layer2.1.conv2.weight"
    tensors[f"{PREFIX}layer2.1.conv.weight"] = tensors.pop(name)
    with pytest.raises(WeightsError) as error:
        loaded(tiny("embedding", 24), tensors)
    assert f"missing {name}" in str(error.value)
    assert f"surplus {PREFIX}layer2.1.conv.weight" in str(error.value)


def test_the_variant_read_from_a_checkpoint_builds_what_takes_it(reference: Any) -> None:
    tensors = tensors_of(reference)
    card = variant(REAL, tensors).fit(REAL)
    assert card.dim == 24
    assert {**card.settings, "output": "contrastive"} == tiny("contrastive", 5).settings
    loaded(card, tensors)
    contrastive = replace(REAL, settings={"output": "contrastive"})
    loaded(variant(contrastive, tensors).fit(contrastive), tensors)
    with torch.device("meta"):
        real = build(replace(contrastive, dim=512)).state_dict()
    found = variant(REAL, real)
    assert (found.architecture, found.dim, found.settings) == ("merlin:i3_resnet152", 2048, {"output": "embedding"})
    with pytest.raises(AnotherFamily, match="not Merlin's weights"):
        variant(REAL, {"conv1.weight": torch.ones(4, 3, 7, 7)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 99}, "the card says d = 99, but i3_resnet152 gives 2048"),
        ({"architecture": "merlin:i3_resnet18"}, "merlin has no model 'i3_resnet18'"),
        ({"settings": {"wings": 2}}, r"unknown setting\(s\) wings"),
        ({"settings": {"output": "text"}}, "output is 'text'; expected one of embedding, contrastive, phenotypes"),
        ({"settings": {"layers": (1, 2)}}, "merlin cannot build"),
        ({"settings": {"stem": 0}}, "merlin cannot build"),
    ],
)
def test_what_cannot_be_built_is_named_with_the_encoder(change: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=f"encoder merlin: .*{message}"):
        build(replace(REAL, **change))


@torch.inference_mode()
def test_neither_company_nor_memory_format_changes_an_embedding(reference: Any) -> None:
    network = loaded(tiny("embedding", 24), tensors_of(reference))
    x = torch.from_numpy(reference["in/x"])
    together = network(x)
    assert torch.allclose(torch.cat([network(x[:1]), network(x[1:])]), together, atol=1e-6)
    last = network.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    assert torch.allclose(last, together, atol=1e-5)
    assert torch.allclose(network.feature_map(x).mean(dim=(1, 2, 3)), together, atol=1e-5)
    assert not torch.allclose(network(x.flip(2)), together, atol=1e-3)


@torch.inference_mode()
def test_bfloat16_moves_the_tiny_embedding_by_less_than_a_hundredth(reference: Any) -> None:
    network = loaded(tiny("contrastive", 5), tensors_of(reference))
    x = torch.from_numpy(reference["in/x"])
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.bfloat16()  # what autocast does in every batch, done once
        rounded_once = network(x)
    assert found.dtype == rounded_once.dtype == torch.float32
    assert 0 < (found - expected).norm() < 0.01 * expected.norm()
    assert 0 < (rounded_once - expected).norm() < 0.01 * expected.norm()
