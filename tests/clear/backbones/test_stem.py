from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from clear.backbones.stem import fold_stem
from clear.card import IMAGENET_MEAN, IMAGENET_STD
from clear.encoders import ENCODERS
from clear.errors import WeightsError

CARD = replace(
    ENCODERS["dinov2-s"],
    channels=1,
    mean=(0.3,),
    std=(0.7,),
    stem_mean=IMAGENET_MEAN,
    stem_std=IMAGENET_STD,
)


def tensors(*, bias: bool = True) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 4, 4, generator=draw)
    return {"weight": weight, "bias": torch.randn(5, generator=draw)} if bias else {"weight": weight}


def stem(channels: int, values: dict[str, torch.Tensor], padding: int = 0) -> nn.Sequential:
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(channels, 5, 4, stride=4, padding=padding, bias="bias" in values))
    network.load_state_dict({f"stem.{name}": tensor for name, tensor in values.items()})
    return network


def folded(values: dict[str, torch.Tensor], card=CARD, padding: int = 0) -> dict[str, torch.Tensor]:
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(1, 5, 4, stride=4, padding=padding, bias="bias" in values))
    found = fold_stem(card, {f"stem.{name}": tensor.clone() for name, tensor in values.items()}, network)
    return {name.removeprefix("stem."): tensor for name, tensor in found.items()}


def as_channels(grey: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (grey - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


def test_one_channel_gives_what_three_gave() -> None:
    grey = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = stem(3, tensors())(as_channels(grey, IMAGENET_MEAN, IMAGENET_STD))
    found = stem(1, folded(tensors()))(as_channels(grey, CARD.mean, CARD.std))
    assert torch.allclose(found, expected, atol=1e-5)
    plain_sum = {"weight": tensors()["weight"].sum(1, keepdim=True), "bias": tensors()["bias"]}
    assert not torch.allclose(stem(1, plain_sum)(as_channels(grey, CARD.mean, CARD.std)), expected, atol=0.1)


def test_a_stem_that_has_one_channel_already_is_left_alone() -> None:
    values = {"weight": torch.ones(5, 1, 4, 4), "bias": torch.ones(5)}
    found = folded(values)
    assert all(torch.equal(found[name], values[name]) for name in values)


def test_padding_is_folded_only_where_it_is_one_grey_value_in_all_channels() -> None:
    with pytest.raises(WeightsError, match=r"its padded stem stem\.weight cannot be folded.*use a card with 3"):
        folded(tensors(), padding=1)
    alike = replace(CARD, mean=(0.5,), std=(0.5,), stem_mean=(0.5,) * 3, stem_std=(0.2, 0.25, 0.4))
    grey = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = stem(3, tensors(), 1)(as_channels(grey, alike.stem_mean, alike.stem_std))
    found = stem(1, folded(tensors(), alike, 1), 1)(as_channels(grey, alike.mean, alike.std))
    assert torch.allclose(found, expected, atol=1e-5)


def test_colour_means_need_a_bias_to_go_to() -> None:
    with pytest.raises(WeightsError, match="has no bias to take up the colour means"):
        folded(tensors(bias=False))
