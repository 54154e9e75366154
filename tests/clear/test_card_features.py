"""What a card decides beside the network: windows as channels, standardised slices, one grey channel for three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from clear.card import EncoderCard, WeightSource, write_card
from clear.errors import WeightsError
from clear.frozen import Encoder, load_encoder
from clear.slices import prepare
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, LUNG, Window

BONE = Window("bone", -450, 1050)
STACKED = (LUNG, ABDOMEN, BONE)
VIT = EncoderCard(
    name="small-vit",
    architecture="timm:vit_tiny_patch16_224",
    dim=64,
    source=WeightSource("file", "-"),
    trained_on="untrained",
    settings={"img_size": 48, "embed_dim": 64, "depth": 2, "num_heads": 2},
    input_size=48,
    ignored=("head.",),
)


def slices(n: int = 3, side: int = 48) -> NDArray[np.int16]:
    return np.random.default_rng(0).normal(-200, 500, (n, side, side)).astype(np.int16)


def volume(n: int = 3) -> Volume:
    geometry = stack_geometry([[0, 0, 5 * i] for i in range(n)], [1, 0, 0], [0, 1, 0], (48, 48), (0.8, 0.8))
    return Volume.from_stack(slices(n), geometry, "CT")


def prepared(values: NDArray[Any], card: EncoderCard, windows: tuple[Window, ...] = (), **settings: Any) -> Any:
    limits = [(window.low, window.high) for window in windows]
    return prepare(torch.from_numpy(values), limits, (1.0, 1.0), card, **settings).numpy()


def test_windows_of_a_card_become_the_channels_of_one_instance() -> None:
    card = replace(VIT, channel_windows=STACKED, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    found = prepared(slices(), card, STACKED)
    assert found.shape == (3, 3, 48, 48)
    for channel, window in enumerate(STACKED):
        grey = np.clip((slices().astype(np.float64) - window.low) / (window.high - window.low), 0, 1)
        expected = (grey - card.mean[channel]) / card.std[channel]
        np.testing.assert_allclose(found[:, channel], expected, atol=1e-5)


def test_stacked_windows_give_an_instance_a_slice_whatever_windows_are_asked_for(
    seeded: Callable[..., Encoder],
) -> None:
    encoder = seeded(replace(VIT, channel_windows=STACKED))
    found = encoder.encode(volume(), [ABDOMEN, LUNG])
    assert found.shape == (3, 64)
    assert encoder.windows_for(volume(), [ABDOMEN, LUNG]) == encoder.card.own_windows
    with torch.inference_mode():
        expected = encoder.forward(torch.from_numpy(prepared(slices(), encoder.card, STACKED))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = seeded(replace(VIT, channel_windows=(ABDOMEN, LUNG, BONE)))
    assert np.abs(other.encode(volume()) - found).max() > 0.01  # the order of the channels counts
    assert other.digest != encoder.digest


def test_a_standardised_slice_is_its_values_minus_their_mean_over_their_deviation() -> None:
    card = replace(VIT, intensity="slice_zscore", channels=1, mean=(0.0,), std=(1.0,))
    found = prepared(slices(), card)
    values = slices().astype(np.float64)
    expected = (values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), ddof=1, keepdims=True)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("side", [48, 100])
def test_scale_and_offset_of_the_scanner_do_not_reach_a_standardised_slice(side: int) -> None:
    card = replace(VIT, intensity="slice_zscore", channels=1, mean=(0.0,), std=(1.0,))
    values = np.random.default_rng(1).normal(0, 1, (2, side, side)).astype(np.float32)
    found = prepared(values, card, is_ct=False)
    np.testing.assert_allclose(prepared(values * 40 + 300, card, is_ct=False), found, atol=1e-3)
    assert found.mean() == pytest.approx(0, abs=1e-4)
    assert found[0].std(ddof=1) == pytest.approx(1, abs=1e-3)  # after the resize, not before


def test_a_constant_slice_is_zero_and_padding_is_air_before_it_is_standardised() -> None:
    card = replace(VIT, intensity="slice_zscore", channels=1, mean=(0.0,), std=(1.0,))
    assert not prepared(np.full((1, 48, 48), 40, np.int16), card).any()
    padded, air = slices(1), slices(1)
    padded[:, :10], air[:, :10] = -2000, -1000
    found = prepared(padded, card, padding=torch.tensor([[-2000, -2000]], dtype=torch.int16))
    assert np.array_equal(found, prepared(air, card))


FOLDED = {"channels": 1, "mean": (0.45,), "std": (0.25,)}


def both(card: EncoderCard, one_channel: EncoderCard, network: Any, folder: Path) -> tuple[Encoder, Encoder]:
    """The encoder of three equal channels and that of one, from one file."""
    tensors = {name.removeprefix("network."): tensor for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "weights.safetensors")
    found = []
    for name, chosen in (("three", card), ("one", one_channel)):
        write_card(chosen, folder / name)
        found.append(
            load_encoder(str(folder / name), folder / "weights.safetensors", device="cpu", precision="float32")
        )
    return found[0], found[1]


def test_folding_a_stem_into_one_channel_does_not_change_embeddings(
    tmp_path: Path, seeded_weights: Callable[..., Any]
) -> None:
    grey = replace(VIT, **FOLDED, stem_mean=VIT.mean, stem_std=VIT.std)
    three, one = both(VIT, grey, seeded_weights(VIT), tmp_path)
    assert one.network.network.patch_embed.proj.weight.shape[1] == 1
    expected = three.encode(volume(), [ABDOMEN, LUNG])
    np.testing.assert_allclose(one.encode(volume(), [ABDOMEN, LUNG]), expected, atol=2e-5)
    assert np.ptp(expected, axis=0).max() > 0.1
    assert one.digest != three.digest


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "patch_embed.proj.bias"])
@pytest.mark.parametrize("damage", ["missing", "wider", "longer", "flat", "int8"])
def test_a_damaged_stem_is_named_and_not_folded(
    name: str, damage: str, tmp_path: Path, seeded_weights: Callable[..., Any]
) -> None:
    tensors = {n.removeprefix("network."): tensor for n, tensor in seeded_weights(VIT).state_dict().items()}
    tensor = tensors.pop(name)
    changed = {
        "wider": lambda: torch.cat([tensor, tensor], dim=-1),
        "longer": lambda: torch.cat([tensor, tensor]),
        "flat": lambda: tensor.flatten()[:5],
        "int8": lambda: tensor.to(torch.int8),
    }
    if damage != "missing":
        tensors[name] = changed[damage]()
    save_file(tensors, tmp_path / "weights.safetensors")
    write_card(replace(VIT, **FOLDED, stem_mean=VIT.mean, stem_std=VIT.std), tmp_path)
    with pytest.raises(WeightsError, match=rf"weights\.safetensors: .*network\.{name}"):
        load_encoder(str(tmp_path), device="cpu")


def test_a_padded_stem_is_folded_where_its_channels_are_alike_and_refused_where_not(
    tmp_path: Path, seeded_weights: Callable[..., Any]
) -> None:
    resnet = replace(
        VIT,
        architecture="timm:resnet18",
        dim=512,
        settings={"layers": (1, 1, 1, 1)},
        pooling="mean",
        mean=(0.45,) * 3,
        std=(0.5,) * 3,
    )
    alike = replace(resnet, **FOLDED, stem_mean=resnet.mean, stem_std=resnet.std)
    three, one = both(resnet, alike, seeded_weights(resnet), tmp_path)
    expected = three.encode(volume(), [ABDOMEN])
    np.testing.assert_allclose(one.encode(volume(), [ABDOMEN]), expected, rtol=1e-4, atol=1e-4)
    write_card(replace(alike, stem_mean=(0.4, 0.45, 0.5)), tmp_path / "colours")
    with pytest.raises(WeightsError, match=r"its padded stem network\.conv1\.weight cannot be folded"):
        load_encoder(str(tmp_path / "colours"), tmp_path / "weights.safetensors", device="cpu")


@pytest.mark.parametrize("pooling", ["class_token", "patch_mean", "class_patch_mean"])
def test_each_pooling_of_tokens_is_what_its_name_says(pooling: str, seeded: Callable[..., Encoder]) -> None:
    wide = 128 if pooling == "class_patch_mean" else 64
    encoder = seeded(replace(VIT, pooling=pooling, dim=wide))
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = encoder.network.network.forward_features(x)
        found = encoder.forward(x)
    first, patches = tokens[:, 0], tokens[:, 1:].mean(1)
    expected = {"class_token": first, "patch_mean": patches, "class_patch_mean": torch.cat([first, patches], 1)}
    assert torch.equal(found, expected[pooling])
