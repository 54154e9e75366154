from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from clear.card import EncoderCard, write_card
from clear.errors import InputError
from clear.frozen import load_encoder
from clear.models import convert
from pretrain.objectives import build_objective
from pretrain.objectives.moco_checkpoint import published_state, write_checkpoint

HEADS = {"hidden": 24, "dim": 16}


def published_card(tiny: ModuleType, architecture: str) -> EncoderCard:
    """The tiny encoders that the listing was made of."""
    return {
        "mambaout": tiny.card(
            "mambaout",
            "timm:mambaout_tiny",
            40,
            size=64,
            settings={"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 40)},
            pooling="mean_norm",
        ),
        "vit_conv": tiny.card(
            "vit_conv", "vit_conv:small", 48, size=64, settings={"embed_dim": 48, "depth": 2, "num_heads": 3}
        ),
        "vmamba": tiny.card(
            "vmamba",
            "vmamba:vssm",
            64,
            size=64,
            settings={"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)},
            pooling="native",
        ),
    }[architecture]


@pytest.mark.parametrize("architecture", ["mambaout", "vit_conv", "vmamba"])
def test_names_and_shapes_are_those_of_the_published_scripts(
    shared_data: Path, tiny: ModuleType, architecture: str
) -> None:
    listing = json.loads((shared_data / "fixtures" / "moco_checkpoint_keys.json").read_text(encoding="utf-8"))
    expected = {name: tuple(shape) for name, shape in listing["archs"][architecture]["keys"].items()}
    objective = build_objective("moco-v3", published_card(tiny, architecture), HEADS)
    found = {name: tuple(tensor.shape) for name, tensor in published_state(objective).items()}
    if architecture == "vmamba":  # the scripts hard-code 768 inputs for its projector
        for branch in ("base", "momentum"):
            name = f"module.{branch}_encoder.classifier.head.0.weight"
            assert expected.pop(name) == (24, 768)
            assert found.pop(name) == (24, 64)
    assert found == expected


@pytest.mark.parametrize("architecture", ["mambaout", "vit_conv", "vmamba"])
@pytest.mark.parametrize("branch", [None, "momentum"])
def test_clear_models_convert_reads_a_written_checkpoint(
    tmp_path: Path, tiny: ModuleType, architecture: str, branch: str | None
) -> None:
    card = published_card(tiny, architecture)
    objective = build_objective("lecl", card, HEADS)
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_checkpoint(objective, tmp_path / "checkpoint_0001.pth.tar", epoch=1, arch=architecture)
    shape = write_card(replace(card, ignored=("head.pre_logits.", "head.fc.")), _folder(tmp_path / "shape"))
    convert(tmp_path / "checkpoint_0001.pth.tar", tmp_path / "encoder", arch=str(shape), branch=branch)
    encoder = load_encoder(str(tmp_path / "encoder" / "card.json"), device="cpu", precision="float32")
    network = objective.student if branch is None else objective.teacher
    images = torch.randn(2, 3, 64, 64)
    encoder.network.to(memory_format=torch.contiguous_format)  # as the other: the format alone moves results by 1e-6
    with torch.no_grad():
        torch.testing.assert_close(encoder.network(images), network.eval()(images), rtol=1e-6, atol=1e-7)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_an_encoder_with_a_head_of_its_own_has_no_published_name(tiny: ModuleType) -> None:
    objective = tiny.objective("moco-v3", "vit")
    objective.student.head = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"its head\.weight stands where MoCo checkpoints have the projector"):
        published_state(objective)
