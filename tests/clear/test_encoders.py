"""One battery over every registered encoder.

Full-size networks are built on the meta device and run on tensors that have shapes and no numbers. Numbers are the
golden outputs' (`test_goldens.py`) and, here, the small networks'.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clear.backbones import FAMILIES, build
from clear.card import EncoderCard
from clear.encoders import ENCODERS

SMALL = [card for card in ENCODERS.values() if card.name in ("mambaout-femto", "radio-dino-t", "dinov2-s")]
CARDS = pytest.mark.parametrize("card", ENCODERS.values(), ids=list(ENCODERS))


def on_meta(card: EncoderCard) -> torch.nn.Module:
    with torch.device("meta"):
        return build(card)


def parameters(card: EncoderCard) -> int:
    return sum(parameter.numel() for parameter in on_meta(card).parameters())


SHORT = {"vmamba": {"depths": (1, 1, 1, 1)}}  # its scan is a loop of thousands of steps, each of them followed here


@CARDS
def test_every_encoder_gives_an_embedding_and_a_map_of_the_size_its_card_promises(card: EncoderCard) -> None:
    settings = {**card.settings, **SHORT.get(card.architecture.partition(":")[0], {})}
    network: Any = on_meta(replace(card, settings=settings))
    inner = (card.input_size, card.input_size) if card.volume is None else card.volume.tensor_shape
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # buffers outside the state dict stay real
        network.to_empty(device="cpu")
        x = torch.empty(1, card.channels if card.volume is None else 1, *inner)
        embedding, features = network(x), network.feature_map(x)
    assert embedding.shape == (1, card.dim)
    assert features.ndim == (4 if card.volume is None else 5)
    assert min(features.shape[1:]) > 1
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("card", SMALL, ids=[card.name for card in SMALL])
def test_an_untrained_encoder_ends_in_a_norm_and_answers_twice_alike(card: EncoderCard) -> None:
    network = build(card)
    x = torch.randn(1, card.channels, card.input_size, card.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding, again = network(x), network(x)
    assert torch.equal(embedding, again)  # no dropout
    assert embedding.mean().abs() < 1e-5
    assert embedding.std(correction=0) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # of the papers' tables, of the part that we keep
        ("vit-s", 21.7),
        ("vit-b", 85.8),
        ("dino-b16", 85.8),
        ("dinov2-s", 22.1),
        ("dinov2-b", 86.6),
        ("dinov2-l", 304.4),
        ("resnet50", 23.5),
        ("medimageinsight", 362.7),
    ],
)
def test_networks_have_as_many_parameters_as_published(name: str, millions: float) -> None:
    card = ENCODERS[name]
    if name.startswith("dinov2"):  # counted there with the positions of 518 px
        card = replace(card, input_size=518, settings={"img_size": 518})
    assert parameters(card) / 1e6 == pytest.approx(millions, rel=0.005)


def test_sam2_and_merlin_have_exactly_the_parameters_of_the_published_classes(shared_data: Path) -> None:
    def meta(fixture: str) -> dict:
        with np.load(shared_data / "fixtures" / f"{fixture}.npz", allow_pickle=False) as file:
            return json.loads(str(file["meta_json"]))["real_model"]

    sizes = {"sam2-t": "tiny", "sam2-s": "small", "sam2-b": "base_plus", "sam2-l": "large"}
    published = meta("sam2_image_encoder_tiny")["image_encoder_parameters"]
    assert {name: parameters(ENCODERS[name]) for name in sizes} == {name: published[s] for name, s in sizes.items()}
    published = meta("merlin_image_tiny")["parameters"]
    assert parameters(ENCODERS["merlin"]) == published["backbone"]
    assert parameters(ENCODERS["merlin-contrastive"]) == published["backbone"] + published["contrastive_head"]


ONLY_THE_ENCODER = [c for c in ENCODERS.values() if c.source.place.startswith("timm/") or c.name == "rad-dino"]


@pytest.mark.parametrize("card", ONLY_THE_ENCODER, ids=[card.name for card in ONLY_THE_ENCODER])
def test_a_published_file_is_as_large_as_its_network(card: EncoderCard) -> None:
    assert card.source.size_mb is not None
    head = 1.45 if card.architecture.startswith("timm:mambaout") else 1.12  # its classifier is an MLP
    assert 0.995 < card.source.size_mb / (parameters(card) * 4 / 1e6) < head


def test_every_family_has_an_encoder() -> None:
    assert {card.architecture.partition(":")[0] for card in ENCODERS.values()} == set(FAMILIES)


@CARDS
def test_every_card_says_where_its_weights_are_and_on_what_terms(card: EncoderCard) -> None:
    assert card.licence
    assert card.citation
    assert card.trained_on.startswith(("trained on", "trained by", "untrained"))
    assert card.source.place
    assert card.source.kind != "hub" or (card.source.size_mb or 0) > 10
    if card.source.kind == "hub":
        owner, _, repository = card.source.place.removeprefix("datasets/").partition("/")
        assert owner
        assert repository
        assert "/" not in repository


def test_names_are_spelled_one_way() -> None:
    assert all(name == card.name == name.lower() and "_" not in name for name, card in ENCODERS.items())
