from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from clear.backbones import build, convert
from clear.backbones.positions import resize_positions
from clear.backbones.timm_models import card_of
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.encoders import ENCODERS
from clear.errors import InputError


def test_mambaout_gives_the_normed_mean_and_not_timms_wide_head(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "mambaout_official_tiny.npz", allow_pickle=False)
    card = EncoderCard(
        name="tiny",
        architecture="timm:mambaout_femto",
        dim=40,
        source=WeightSource("file", "-"),
        trained_on="untrained",
        settings={"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 40)},
        pooling="mean_norm",
        ignored=ENCODERS["mambaout-femto"].ignored,
    )
    renamed = {}
    for key in fixture.files:
        if key.startswith("sd/"):
            name = key[3:]
            if name.startswith("downsample_layers.0."):
                name = name.replace("downsample_layers.0.", "stem.")
            elif name.startswith("downsample_layers."):
                _, stage, rest = name.split(".", 2)
                name = f"stages.{stage}.downsample.{rest}"
            elif name.startswith("stages."):
                _, stage, block, rest = name.split(".", 3)
                name = f"stages.{stage}.blocks.{block}.{rest}"
            elif name.startswith("norm."):
                name = "head." + name
            elif name.startswith("head."):
                name = "head.fc." + name  # the official classifier: none of the encoder's business
            renamed[name] = torch.from_numpy(fixture[key])
    network = build(card)
    load_strictly(network, convert(card, renamed, network), "fixture")
    with torch.inference_mode():
        embedding = network(torch.from_numpy(fixture["in/x"]))
    assert np.abs(embedding.numpy() - fixture["out/embedding"]).max() < 2e-5


def test_dinov2_at_its_own_and_another_size_gives_the_authors_class_token(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "dinov2_vit_tiny.npz", allow_pickle=False)
    tensors = {key[3:]: torch.from_numpy(fixture[key]) for key in fixture.files if key.startswith("sd/")}
    for size, suffix in ((70, ""), (112, "_large")):
        card = replace(
            ENCODERS["dinov2-s"],
            dim=48,
            settings={"img_size": size, "embed_dim": 48, "depth": 3, "num_heads": 4},
            input_size=size,
        )
        network = build(card)
        load_strictly(network, convert(card, tensors, network), "fixture")
        with torch.inference_mode():
            found = network(torch.from_numpy(fixture[f"in/x{suffix}"]))
        assert np.abs(found.numpy() - fixture[f"out/cls{suffix}"]).max() < 5e-5


def test_dinov2_positions_are_resized_as_its_authors_do(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "dinov2_vit_tiny.npz", allow_pickle=False)
    resized = resize_positions(torch.from_numpy(fixture["sd/pos_embed"]), (8, 8), "dinov2")
    assert np.abs(resized.numpy() - fixture["out/pos_embed_large"]).max() < 1e-5


@pytest.mark.parametrize("name", ["mambaout-femto", "vit-s", "resnet50"])
def test_a_whole_timm_checkpoint_loads_without_its_classifier(name: str) -> None:
    card = ENCODERS[name]
    whole = timm.create_model(card.architecture.partition(":")[2]).eval()
    network = build(card)
    load_strictly(network, convert(card, whole.state_dict(), network), "checkpoint")
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = whole.forward_features(x)
        expected = {
            "mean_norm": lambda: whole.head.norm(maps.mean((1, 2))),
            "class_token": lambda: maps[:, 0],
            "mean": lambda: maps.mean((2, 3)),
        }[card.pooling]()
        assert torch.allclose(network(x), expected, atol=1e-5)


@pytest.mark.parametrize("model", ["qwen3_vit_416m_enc.qwen3_vl_8b", "qwen3_vit_416m_enc"])
def test_a_model_that_gives_no_embedding_of_an_image_is_refused_before_anything_is_fetched(model: str) -> None:
    if not timm.is_model(model.partition(".")[0]):
        pytest.skip(f"timm {timm.__version__} has no {model}")
    with pytest.raises(InputError, match=f"timm:{model}: not a network that gives one embedding of an image by itself"):
        card_of(model)


@pytest.mark.parametrize("model", ["resnet18.a1_in1k", "vit_small_patch16_224.dino", "mambaout_femto.in1k"])
def test_the_card_of_a_timm_model_builds_what_it_says(model: str) -> None:
    card = card_of(model)
    with torch.device("meta"):
        network = build(card)
    assert network(torch.empty(1, 3, card.input_size, card.input_size, device="meta")).shape == (1, card.dim)


def test_an_architecture_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match="no model 'mambaout_giant'"):
        build(replace(ENCODERS["mambaout-femto"], architecture="timm:mambaout_giant"))
    with pytest.raises(InputError, match="is of no known family"):
        build(replace(ENCODERS["mambaout-femto"], architecture="mamba:large"))
    with pytest.raises(InputError, match="the card says d = 99, but mambaout_femto has 288"):
        build(replace(ENCODERS["mambaout-femto"], dim=99))
    with pytest.raises(InputError, match="cannot build"):
        build(replace(ENCODERS["mambaout-femto"], settings={"wings": 2}))
