"""The saliency volume: a lesion is found where it lies, and every map follows its own laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aggregate.aggregators import Aggregator, build_aggregator
from aggregate.explain.saliency import ENDPOINT_MAPS, MAPS, default_map, saliency
from clear.card import EncoderCard, WeightSource
from clear.encoders import ENCODERS
from clear.errors import InputError, ScanRefused
from clear.frozen import Encoder
from clear.volume import Volume, stack_geometry
from clear.windows import Window
from pretrain.initialise import random_network

WINDOW = Window("soft", -100, 300)
SIDE, CELL = 64, 8
CARD = EncoderCard(
    name="by-hand",
    architecture="timm:mambaout_femto",
    dim=1,
    source=WeightSource("file", "-"),
    trained_on="set by hand",
    input_size=SIDE,
    channels=1,
    mean=(0.0,),
    std=(1.0,),
    resize="bilinear",
    pooling="mean_norm",
    modalities=("CT",),
)
TOKENS = replace(
    ENCODERS["vit-s"],
    dim=24,
    settings={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    input_size=32,
)


class Brightness(nn.Module):
    """Mean brightness of cells of 8 x 8 pixels; the embedding is their mean. One head attends by brightness."""

    pools_map, reads_class_token = True, True
    prefix_tokens, patch_size, inner_channels_last = 1, CELL, False

    def __init__(self) -> None:
        super().__init__()
        self.inner_stage = nn.AvgPool2d(CELL)
        self.gain = nn.Parameter(torch.ones(1))

    def feature_map(self, x: Tensor) -> Tensor:
        return self.gain * self.inner_stage(x).permute(0, 2, 3, 1)

    def embed_map(self, features: Tensor) -> Tensor:
        return features.mean(dim=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed_map(self.feature_map(x))

    def last_attention(self, x: Tensor) -> Tensor:
        cells = self.feature_map(x).flatten(1)
        row = nn.functional.pad(cells, (1, 0))
        row = row / row.sum(1, keepdim=True).clamp_min(1e-12)
        return row[:, None, None].expand(-1, 1, row.shape[1], -1)

    def through_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attention = self.last_attention(x).detach().clone().requires_grad_(True)
        return attention[:, 0, 0, 1:].sum(1, keepdim=True), attention


def by_hand(field_mm: float | None = None) -> Encoder:
    return Encoder(replace(CARD, field_of_view_mm=field_mm), Brightness(), "set by hand", device="cpu")


def brighter() -> Aggregator:
    """Answers 1: the brighter the scan, the higher; answers 2: the darker."""
    model = build_aggregator("linear", 1, 2, 0.0).eval()
    with torch.no_grad():
        model.head.out.weight.copy_(torch.tensor([[1.0], [-1.0]]))  # type: ignore[union-attr, operator]  # LinearHead
    return model


def phantom(
    shape: tuple[int, int], spacing: tuple[float, float], centre_mm: tuple[float, float], radius_mm: float, at: int = 1
) -> Volume:
    """Three slices of soft tissue, a bright disc in one; its centre in mm (rows, columns) from the slice's middle."""
    voxels = np.full((3, *shape), -120, dtype=np.int16)
    y, x = np.mgrid[: shape[0], : shape[1]]
    dy = (y - (shape[0] - 1) / 2) * spacing[0] - centre_mm[0]
    dx = (x - (shape[1] - 1) / 2) * spacing[1] - centre_mm[1]
    voxels[at][dy**2 + dx**2 <= radius_mm**2] = 300
    geometry = stack_geometry([[0, 0, 5 * i] for i in range(3)], [1, 0, 0], [0, 1, 0], shape, spacing)
    return Volume.from_stack(voxels, geometry, "CT")


@pytest.mark.parametrize("name", list(MAPS))
@pytest.mark.parametrize(
    ("shape", "spacing", "field_mm"),
    [
        ((128, 128), (1.0, 1.0), None),
        ((96, 160), (0.8, 0.8), None),
        ((150, 60), (1.0, 1.0), None),
        ((80, 128), (1.6, 1.0), None),
        ((64, 190), (2.0, 0.7), None),
        ((128, 128), (1.0, 1.0), 90.0),
        ((150, 110), (0.7, 1.1), 75.0),
        ((70, 64), (1.0, 1.5), 160.0),
    ],
)
@pytest.mark.parametrize("where", [(0.0, 0.0), (-0.24, 0.2), (0.27, -0.23)])
def test_a_lesion_is_found_at_its_place_in_the_scan(
    name: str, shape: tuple[int, int], spacing: tuple[float, float], field_mm: float | None, where: tuple[float, float]
) -> None:
    visible = min(shape[0] * spacing[0], shape[1] * spacing[1], field_mm or np.inf)
    side_mm = field_mm or max(shape[0] * spacing[0], shape[1] * spacing[1])
    cell_mm = side_mm / (7 if name == "occlusion" else SIDE / CELL)
    centre = (where[0] * visible, where[1] * visible)
    volume = phantom(shape, spacing, centre, 0.9 * cell_mm)
    encoder, model = by_hand(field_mm), brighter()
    maps = MAPS[name](encoder, volume, [WINDOW], [model], 0)
    heat = saliency(np.array([[0.2], [0.6], [0.2]]), maps, volume, encoder.card)
    assert heat.shape == volume.voxels.shape
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert int(heat.sum((1, 2)).argmax()) == 1
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = heat[1] * (heat[1] >= heat[1].max() / 2)
    middle = (np.array([(found * y).sum(), (found * x).sum()]) / found.sum() - (np.array(shape) - 1) / 2) * spacing
    assert np.abs(middle - centre).max() < cell_mm / 2
    peak = (np.array(np.unravel_index(heat[1].argmax(), shape)) - (np.array(shape) - 1) / 2) * spacing
    assert np.abs(peak - centre).max() < cell_mm


def test_where_the_answer_falls_with_brightness_the_lesion_speaks_against_it() -> None:
    volume = phantom((64, 64), (1.0, 1.0), (12.0, 12.0), 8.0)
    for name in ("gradcam", "gradcam++", "hirescam", "attention-gradient"):
        assert not MAPS[name](by_hand(), volume, [WINDOW], [brighter()], 1)[1].any()
    heat = saliency(np.eye(3)[:, [1]], MAPS["occlusion"](by_hand(), volume, [WINDOW], [brighter()], 1), volume, CARD)[1]
    assert not heat[42:46, 42:46].any()
    assert heat.any()  # its dark surroundings do speak for darkness


@pytest.fixture(scope="module")
def tokens() -> Encoder:
    network = random_network(TOKENS, seed=1)
    with torch.no_grad():  # timm starts with attention that is almost even
        for name, tensor in network.named_parameters():
            if "qkv" in name:
                tensor.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return Encoder(TOKENS, network, "note", device="cpu", precision="float32")


def noise(n: int = 3) -> Volume:
    values = np.random.default_rng(0).normal(0, 200, (n, 40, 48))
    geometry = stack_geometry([[0, 0, 5 * i] for i in range(n)], [1, 0, 0], [0, 1, 0], (40, 48), (0.8, 0.8))
    return Volume.from_stack(values.astype(np.int16), geometry, "CT")


def abmil() -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_aggregator("abmil", 24, 2, 0.0).eval()
        model.scale.uniform_(1, 20)
    return model


def test_the_saliency_of_a_model_that_answers_always_the_same_is_flat(tokens: Encoder) -> None:
    model, volume, even = abmil(), noise(), np.full((3, 1), 1 / 3)
    with torch.no_grad():
        model.head.out.weight.zero_()  # type: ignore[union-attr, operator]  # ABMIL's head
    for name in ("attention-gradient", "occlusion"):
        assert not saliency(even, MAPS[name](tokens, volume, [WINDOW], [model], 0), volume, TOKENS).any()
    network: Any = random_network(TOKENS, seed=1)
    with torch.no_grad():
        network.network.blocks[-1].attn.qkv.weight.zero_()
    blind = Encoder(TOKENS, network, "note", device="cpu", precision="float32")
    flat = saliency(even, MAPS["attention"](blind, volume, [WINDOW], [model], 0), volume, TOKENS)
    np.testing.assert_allclose(flat, 1 / 3 / 16, rtol=1e-5)


@pytest.mark.parametrize("name", ["attention", "attention-gradient", "occlusion"])
def test_slices_in_another_order_have_their_maps_in_that_order(name: str, tokens: Encoder) -> None:
    volume, order = noise(), [2, 0, 1]
    mixed = replace(volume, voxels=volume.voxels[order])
    first, second = (MAPS[name](tokens, scan, [WINDOW], [abmil()], 0) for scan in (volume, mixed))
    np.testing.assert_allclose(second, first[order], atol=1e-4)
    assert np.abs(first - first[order]).max() > 1e-3


@pytest.mark.parametrize("name", list(MAPS))
def test_maps_do_not_change_the_encoder_or_the_model(name: str) -> None:
    encoder, model, volume = by_hand(), brighter(), phantom((64, 64), (1.0, 1.0), (5.0, 5.0), 8.0)
    before = encoder.encode(volume, [WINDOW])
    MAPS[name](encoder, volume, [WINDOW], [model], 0)
    assert np.array_equal(encoder.encode(volume, [WINDOW]), before)
    assert all(p.grad is None for p in [*model.parameters(), *encoder.network.parameters()])
    assert not any(p.requires_grad for p in encoder.network.parameters())


def test_the_windows_add_up_by_their_weight() -> None:
    volume = noise()
    maps = np.random.default_rng(1).random((3, 2, 4, 4)).astype(np.float32)
    weights = np.random.default_rng(2).random((3, 2))
    whole = saliency(weights, maps, volume, CARD)
    parts = [saliency(weights[:, [w]], maps[:, [w]], volume, CARD) for w in range(2)]
    np.testing.assert_allclose(whole, parts[0] + parts[1], rtol=1e-5)
    with pytest.raises(ValueError, match="do not fit"):
        saliency(weights[:2], maps, volume, CARD)


def test_the_default_is_what_the_embedding_is_made_of(tokens: Encoder) -> None:
    assert default_map(tokens) == "attention"
    mambaout = replace(ENCODERS["mambaout-femto"], dim=24, settings={"depths": (1,) * 4, "dims": (8, 12, 16, 24)})
    assert default_map(Encoder(mambaout, random_network(mambaout, seed=0), "note", device="cpu")) == "gradcam"
    merlin = replace(ENCODERS["merlin"], dim=24, settings={"layers": [1] * 4, "planes": [2, 3, 4, 6], "stem": 4})
    with pytest.raises(InputError, match="takes whole volumes"):
        default_map(Encoder(merlin, random_network(merlin, seed=0), "note", device="cpu"))
    assert set(MAPS) - ENDPOINT_MAPS == {"attention"}


def test_a_scan_that_the_encoder_is_not_for_is_refused() -> None:
    volume = replace(noise(), voxels=noise().voxels.astype(np.float32), modality="MR")
    with pytest.raises(ScanRefused, match="knows CT only"):
        MAPS["gradcam"](by_hand(), volume, [WINDOW], [brighter()], 0)
