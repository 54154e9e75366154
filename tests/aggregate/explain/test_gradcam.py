"""Grad-CAM: MONAI's and MST's numbers, captum's, and one graph over the whole bag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn
from torch.nn import functional

from aggregate.aggregators import AGGREGATORS, Aggregator, build_aggregator
from aggregate.explain.endpoint_gradient import bag_outputs
from aggregate.explain.gradcam import (
    class_activation,
    class_activation_plus_plus,
    gradcam,
    gradcam_plus_plus,
    hirescam,
    place_activation,
)
from clear.card import EncoderCard
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.frozen import Encoder
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, LUNG
from pretrain.initialise import random_network

WINDOWS = (ABDOMEN, LUNG)
CARDS = {
    "mambaout": replace(
        ENCODERS["mambaout-femto"], dim=24, settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, input_size=96
    ),
    "vmamba": replace(ENCODERS["vmamba-tiny"], dim=24, settings={"depths": (1, 1), "dims": (12, 24)}, input_size=32),
    "resnet": replace(ENCODERS["resnet50"], settings={"layers": (1, 1, 1, 1)}, input_size=96),
    "patch-mean": replace(
        ENCODERS["vit-s"],
        dim=24,
        settings={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
        input_size=32,
        pooling="patch_mean",
    ),
}


def encoder(name: str, precision: str = "float32") -> Encoder:
    card: EncoderCard = CARDS[name]
    return Encoder(card, random_network(card, seed=1), "note", device="cpu", precision=precision)


def volume(n: int = 3, seed: int = 0) -> Volume:
    values = np.random.default_rng(seed).normal(-200, 400, (n, 40, 48))
    geometry = stack_geometry([[0, 0, 5 * i] for i in range(n)], [1, 0, 0], [0, 1, 0], (40, 48), (0.8, 0.8))
    return Volume.from_stack(values.astype(np.int16), geometry, "CT")


def aggregator(dim: int, name: str = "abmil", seed: int = 0) -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_aggregator(name, dim, 3, 0.0).eval()
        model.mean.normal_()
        model.scale.uniform_(1, 20)  # untrained embeddings hardly differ
    return model


@pytest.mark.parametrize("size", ["", "_large"])
def test_monais_and_msts_maps_are_reproduced(size: str, shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "resnet3d_monai.npz", allow_pickle=False)
    weight, bias = (torch.from_numpy(fixture[f"sd/fc.{name}"]) for name in ("weight", "bias"))
    activation = torch.from_numpy(fixture[f"out/activation{size}"]).movedim(1, -1).clone().requires_grad_(True)
    pooled = activation.mean(dim=(1, 2, 3))
    logits = functional.linear(pooled, weight, bias)
    target = int(fixture[f"in/target{size}"][0])
    assert np.abs(logits.detach().numpy() - fixture[f"out/logits{size}"]).max() < 1e-5
    maps = {}
    for number in (target, (target + 1) % 2):
        (slope,) = torch.autograd.grad(logits[0, number], activation, retain_graph=True)
        maps[number] = class_activation(activation.detach(), slope).numpy()
        if number == target:
            assert np.abs(slope.movedim(-1, 1).numpy() - fixture[f"out/gradient{size}"]).max() < 1e-5
            plus = class_activation_plus_plus(activation.detach(), slope).numpy()
    assert np.abs(maps[target] - fixture[f"out/gradcam{size}"][:, 0]).max() < 1e-5
    assert np.abs(maps[(target + 1) % 2] - fixture[f"out/gradcam_other_class{size}"][:, 0]).max() < 1e-5
    assert np.abs(plus - fixture[f"out/gradcampp{size}"][:, 0]).max() < 1e-5
    spread = plus - plus.min()
    assert np.abs(spread / spread.max() - fixture[f"out/gradcampp_normalised{size}"][:, 0]).max() < 2e-5


class Whole(nn.Module):
    """Slices to the bag's logits, with a layer at which the map has channels first, as captum expects it."""

    def __init__(self, encoder: Encoder, model: Aggregator) -> None:
        super().__init__()
        self.encoder, self.model, self.place = encoder, model, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.place(self.encoder.feature_map(x).permute(0, 3, 1, 2))
        embeddings = self.encoder.embed_map(maps.permute(0, 2, 3, 1))
        return torch.stack([bag_outputs(self.model, embeddings[None], i) for i in range(3)], dim=1)


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("kind", ["abmil", "mean", "slice-transformer"])
def test_captum_finds_the_same_map_through_encoder_and_aggregator(name: str, kind: str) -> None:
    own = encoder(name)
    model = aggregator(own.dim, kind)
    x = torch.cat([x for _, x in own.prepared(volume(), WINDOWS, batch=100)])
    whole = Whole(own, model)
    spread = []
    for target in range(3):
        found = gradcam(own, volume(), WINDOWS, [model], target, batch=2)
        theirs = LayerGradCam(whole, whole.place).attribute(x, target=target, relu_attributions=True)
        expected = theirs.detach().numpy().reshape(found.shape)
        total = expected.sum((2, 3), keepdims=True)
        expected = expected / np.where(total > 0, total, 1)
        assert np.abs(found - expected).max() < 1e-4
        spread.append(expected.std())
    assert max(spread) > 0.01  # empty maps would prove nothing


def test_captum_agrees_at_a_real_layer_of_the_network() -> None:
    """Without our `feature_map` and `embed_map`: captum hooks the ResNet's own last stage."""
    own = encoder("resnet")
    model = aggregator(own.dim)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network: Any = own.network

        def forward(self, x: Tensor) -> Tensor:
            return bag_outputs(model, self.network(x)[None], 2)[:, None]

    plain = Plain()
    x = torch.cat([x for _, x in own.prepared(volume(), WINDOWS, batch=100)])
    theirs = LayerGradCam(plain, plain.network.network.layer4).attribute(x, target=0, relu_attributions=True)
    expected = theirs.detach().numpy().reshape(3, 2, 3, 3)
    expected = expected / np.maximum(expected.sum((2, 3), keepdims=True), 1e-30)
    assert np.abs(gradcam(own, volume(), WINDOWS, [model], 2) - expected).max() < 1e-4


@pytest.mark.parametrize("kind", [name for name in AGGREGATORS if name != "mlp"])
def test_taken_slice_by_slice_it_is_the_gradient_of_the_whole_bag(kind: str) -> None:
    own = encoder("mambaout")
    models = [aggregator(own.dim, kind, seed) for seed in (0, 1)]
    x = torch.cat([x for _, x in own.prepared(volume(), WINDOWS, batch=100)])
    with torch.no_grad():
        activation = own.feature_map(x)
    activation.requires_grad_(True)
    for make, found in (
        (class_activation, gradcam(own, volume(), WINDOWS, models, 0, batch=2)),
        (class_activation_plus_plus, gradcam_plus_plus(own, volume(), WINDOWS, models, 0, batch=2)),
    ):
        expected = torch.zeros(6, 3, 3)
        for model in models:
            answer = bag_outputs(model, own.embed_map(activation)[None], 0)
            (slope,) = torch.autograd.grad(answer, activation)
            one = make(activation.detach(), slope)
            expected += one / one.sum((1, 2), keepdim=True).clamp_min(1e-30)
        expected /= expected.sum((1, 2), keepdim=True).clamp_min(1e-30)
        np.testing.assert_allclose(found.reshape(6, 3, 3), expected.numpy(), atol=1e-4)


def test_embeddings_that_are_known_give_the_same_map() -> None:
    own, model = encoder("mambaout"), aggregator(24)
    rows = own.encode(volume(), WINDOWS)
    np.testing.assert_allclose(
        gradcam(own, volume(), WINDOWS, [model], 0, embeddings=rows), gradcam(own, volume(), WINDOWS, [model], 0)
    )
    with pytest.raises(ValueError, match="embeddings"):
        gradcam(own, volume(), WINDOWS, [model], 0, embeddings=rows[1:])


def test_no_more_than_a_batch_is_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own, model, sizes = encoder("mambaout"), aggregator(24), []
    inner = own.network.feature_map
    monkeypatch.setattr(own.network, "feature_map", lambda x: (sizes.append(len(x)), inner(x))[1])
    whole = gradcam(own, volume(7), WINDOWS, [model], 0, batch=100)
    for batch, expected in ((1, [2] * 7), (4, [4, 4, 4, 2])):
        sizes.clear()
        np.testing.assert_allclose(gradcam(own, volume(7), WINDOWS, [model], 0, batch=batch), whole, atol=1e-5)
        assert sizes == expected


def test_slices_in_another_order_have_their_maps_in_that_order() -> None:
    own, model, order = encoder("mambaout"), aggregator(24), [2, 0, 1]
    straight = volume()
    mixed = replace(straight, voxels=straight.voxels[order])
    first, second = (gradcam(own, scan, WINDOWS, [model], 0) for scan in (straight, mixed))
    np.testing.assert_allclose(second, first[order], atol=1e-5)


def test_a_model_that_answers_the_same_whatever_it_sees_has_an_empty_map() -> None:
    own, model = encoder("mambaout"), aggregator(24)
    with torch.no_grad():
        model.head.out.weight.zero_()  # type: ignore[union-attr, operator]  # ABMIL's head
    for make in (gradcam, gradcam_plus_plus):
        assert not make(own, volume(), WINDOWS, [model], 0).any()


def test_in_bfloat16_the_map_is_float32_and_close() -> None:
    model = aggregator(24)
    fine, coarse = (gradcam(encoder("mambaout", p), volume(), WINDOWS, [model], 0) for p in ("float32", "bfloat16"))
    assert coarse.dtype == np.float32
    assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.98


def test_an_embedding_that_no_map_leads_to_is_refused_with_what_to_use() -> None:
    card = replace(CARDS["patch-mean"], pooling="class_token")
    vit = Encoder(card, random_network(card, seed=1), "note", device="cpu")
    with pytest.raises(InputError, match=r"does not come from its last map.*use attention"):
        gradcam(vit, volume(), WINDOWS, [aggregator(24)], 0)


def test_an_encoder_of_whole_volumes_is_refused() -> None:
    card = replace(
        ENCODERS["merlin"],
        dim=24,
        settings={"output": "embedding", "layers": [1, 1, 1, 1], "planes": [2, 3, 4, 6], "stem": 4},
    )
    merlin = Encoder(card, random_network(card, seed=1), "note", device="cpu")
    with pytest.raises(InputError, match="takes whole volumes, so there is no map of a slice"):
        gradcam(merlin, volume(), None, [aggregator(24)], 0)


@pytest.mark.parametrize("name", ["mambaout", "vmamba", "resnet"])
def test_captum_finds_the_same_gradient_times_activation_at_the_inner_stage(name: str) -> None:
    own = encoder(name)
    model = aggregator(own.dim)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network: Any = own.network

        def forward(self, x: Tensor) -> Tensor:
            embeddings = self.network(x)[None]
            return torch.stack([bag_outputs(model, embeddings, i) for i in range(3)], dim=1)

    x = torch.cat([x for _, x in own.prepared(volume(), WINDOWS, batch=100)])
    plain = Plain()
    channels = 3 if own.network.inner_channels_last else 1
    spread = []
    for target in range(3):
        found = hirescam(own, volume(), WINDOWS, [model], target, batch=2)
        side = own.card.input_size // 8
        assert found.shape == (3, 2, side, side)
        theirs = LayerGradientXActivation(plain, own.network.inner_stage).attribute(x, target=target)
        expected = theirs.detach().sum(channels).clamp_min(0).numpy().reshape(found.shape)
        total = expected.sum((2, 3), keepdims=True)
        expected = expected / np.where(total > 0, total, 1)
        assert np.abs(found - expected).max() <= 1e-4 * expected.max()
        spread.append(expected.std())
    assert max(spread) > 1e-4


def test_at_a_map_that_is_pooled_by_its_mean_hirescam_is_grad_cam() -> None:
    rng = np.random.default_rng(0)
    activation = torch.from_numpy(rng.standard_normal((2, 5, 4, 6)))
    slope = torch.from_numpy(rng.standard_normal((2, 1, 1, 6))).expand(2, 5, 4, 6)
    assert torch.allclose(place_activation(activation, slope), class_activation(activation, slope))
    uneven = slope * torch.linspace(0, 2, 5).view(1, 5, 1, 1)
    assert not torch.allclose(place_activation(activation, uneven), class_activation(activation, uneven))


def test_an_encoder_without_an_inner_map_is_refused_and_its_hooks_are_gone() -> None:
    own = encoder("patch-mean")
    with pytest.raises(InputError, match="no inner map of a cell for 8 pixels; use attention, gradcam or occlusion"):
        hirescam(own, volume(), WINDOWS, [aggregator(own.dim)], 0)
    side_branch = replace(CARDS["resnet"], architecture="timm:xception41", dim=2048, settings={}, input_size=64)
    assert Encoder(side_branch, random_network(side_branch, seed=1), "note", device="cpu").network.inner_stage is None
    convolutional = encoder("mambaout")
    x = torch.cat([x for _, x in convolutional.prepared(volume(), WINDOWS, batch=100)])
    embeddings, inner = convolutional.through_inner_map(x)
    assert inner.is_leaf
    assert embeddings.grad_fn is not None
    assert torch.allclose(embeddings.detach(), convolutional.forward(x), atol=1e-6)
    assert not convolutional.network.inner_stage._forward_hooks
