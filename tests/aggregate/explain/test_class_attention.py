"""Class-token attention: MST's own numbers, and the laws that they follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from aggregate.aggregators import Aggregator, build_aggregator
from aggregate.explain.class_attention import at_once, attention_gradient, class_token_attention, class_token_share
from aggregate.explain.endpoint_gradient import bag_outputs
from aggregate.explain.field import Field
from aggregate.slice_transformer import SliceTransformer, from_mst
from clear.backbones import build, convert
from clear.checkpoints import load_strictly
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.frozen import Encoder
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, LUNG
from pretrain.initialise import random_network

# fixture: registered card, constructor of the tiny encoder, width, special tokens
MST = {
    "vit_attention_saliency": ("dinov2-s", {"img_size": 70, "depth": 2, "num_heads": 4}, 48, 1),
    "vit_attention_saliency_reg4": ("dinov2-s-reg", {"img_size": 56, "depth": 2, "num_heads": 3}, 24, 5),
}
CARD = replace(
    ENCODERS["vit-s"],
    dim=24,
    settings={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    input_size=32,
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    network = random_network(CARD, seed=1)
    with torch.no_grad():  # timm starts with attention that is almost even
        for name, tensor in network.named_parameters():
            if "qkv" in name:
                tensor.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return Encoder(CARD, network, "note", device="cpu", precision="float32")


def volume(n: int = 4) -> Volume:
    values = np.random.default_rng(0).normal(-200, 400, (n, 40, 48))
    geometry = stack_geometry([[0, 0, 5 * i] for i in range(n)], [1, 0, 0], [0, 1, 0], (40, 48), (0.8, 0.8))
    return Volume.from_stack(values.astype(np.int16), geometry, "CT")


def abmil(dim: int = 24, n_out: int = 2, seed: int = 0) -> Aggregator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_aggregator("abmil", dim, n_out, 0.0).eval()


@pytest.mark.parametrize("name", MST)
def test_msts_attention_and_saliency_are_reproduced(name: str, shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / f"{name}.npz", allow_pickle=False)
    base, settings, dim, special = MST[name]
    state = {key[3:]: torch.from_numpy(fixture[key]) for key in fixture.files if key.startswith("sd/")}
    slices = torch.from_numpy(fixture["in/x"])[0, 0][:, None].expand(-1, 3, -1, -1)
    size = tuple(slices.shape[-2:])
    card = replace(ENCODERS[base], dim=dim, input_size=settings["img_size"], settings={**settings, "embed_dim": dim})
    network: Any = build(card)
    network.network.set_input_size(img_size=size)
    tensors = {key.removeprefix("encoder."): tensor for key, tensor in state.items() if key.startswith("encoder.")}
    load_strictly(network, convert(card, tensors, network), "fixture")
    assert network.prefix_tokens == special
    model = SliceTransformer(dim, 2)
    model.load_state_dict(from_mst(state))
    with torch.inference_mode():
        embeddings, attention = network(slices), network.last_attention(slices)
        logits, weights = model.eval()(embeddings, torch.tensor([0, len(slices)]))
        per_head = class_token_share(attention, special)
    rows, columns = size[0] // 14, size[1] // 14
    in_plane = per_head.mean(1).numpy().reshape(-1, rows, columns)
    assert np.abs(attention[:, :, 0].numpy() - fixture["out/cls_to_all_last_layer"]).max() < 5e-5
    assert np.abs(per_head.numpy() - fixture["out/plane_attention_per_head"]).max() < 5e-5
    assert np.abs(in_plane - fixture["out/plane_attention_mean"]).max() < 5e-5
    assert np.abs(logits.numpy() - fixture["out/logits"]).max() < 2e-5
    assert np.abs(weights.numpy() - fixture["out/slice_attention"]).max() < 5e-6
    field = Field(cast("tuple[int, int]", size))
    for of_slices, key in ((weights.numpy(), "out/saliency"), (fixture["in/slice_attention_given"],) * 2):
        grid = np.asarray(of_slices)[:, None, None] * in_plane
        wanted = fixture[key if isinstance(key, str) else "out/saliency_given_slices"][0, 0]
        assert np.abs(field.onto_scan(grid) - wanted).max() < 5e-6
    grid = weights.numpy()[:, None, None] * in_plane
    assert np.abs(grid - fixture["out/saliency_grid"][0, 0]).max() < 5e-6


def test_each_map_sums_to_1_and_the_mean_of_the_heads_is_the_map(encoder: Encoder) -> None:
    maps = class_token_attention(encoder, volume(), [ABDOMEN, LUNG])
    heads = class_token_attention(encoder, volume(), [ABDOMEN, LUNG], per_head=True)
    assert maps.shape == (4, 2, 4, 4)
    assert heads.shape == (4, 2, 3, 4, 4)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum((2, 3)), 1, atol=1e-6)
    np.testing.assert_allclose(heads.sum((3, 4)), 1, atol=1e-6)
    np.testing.assert_allclose(heads.mean(2), maps, atol=1e-7)
    assert maps.std() > 1e-3


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_change_nothing(encoder: Encoder, batch: int) -> None:
    one = class_token_attention(encoder, volume(), [ABDOMEN], batch=batch)
    np.testing.assert_allclose(one, class_token_attention(encoder, volume(), [ABDOMEN, LUNG])[:, :1], atol=1e-6)


def test_many_patches_make_small_batches() -> None:
    large = replace(
        ENCODERS["rad-dino"], settings={"img_size": 518, "embed_dim": 24, "depth": 1, "num_heads": 1}, dim=24
    )
    rad_dino = Encoder(large, build(large), "note", device="cpu", precision="float32")
    assert at_once(rad_dino, 8) == 2  # 1370 tokens
    small = Encoder(CARD, build(CARD), "note", device="cpu", precision="float32")
    assert at_once(small, 8) == 8


def test_special_tokens_take_no_part() -> None:
    attention = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    moved = attention.clone()
    moved[:, :, 0, :3] *= 5
    assert torch.equal(class_token_share(attention, 3), class_token_share(moved, 3))


def test_the_endpoints_part_of_attention_is_the_class_rows_gradient_times_attention(encoder: Encoder) -> None:
    """Against one graph over all slices at once, written from the paper."""
    models, target = [abmil(seed=0), abmil(seed=1)], 1
    found = attention_gradient(encoder, volume(), [ABDOMEN, LUNG], models, target, batch=3)
    x = torch.cat([x for _, x in encoder.prepared(volume(), (ABDOMEN, LUNG), batch=100)])
    embeddings, attention = encoder.through_attention(x)
    expected = torch.zeros(8, 16)
    for model in models:
        answer = bag_outputs(model, embeddings[None], target)
        (slope,) = torch.autograd.grad(answer, attention, retain_graph=True)
        one = (slope * attention).detach().clamp_min(0).mean(1)[:, 0, 1:]
        expected += one / one.sum(1, keepdim=True)
    expected /= expected.sum(1, keepdim=True)
    np.testing.assert_allclose(found.reshape(8, 16), expected.numpy(), atol=1e-5)
    other = attention_gradient(encoder, volume(), [ABDOMEN, LUNG], models, 0)
    assert np.abs(other - found).max() > 1e-3  # it is of the endpoint


def test_an_encoder_without_a_class_token_is_refused_with_what_to_use() -> None:
    card = replace(
        ENCODERS["mambaout-femto"], dim=24, settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, input_size=64
    )
    mambaout = Encoder(card, random_network(card, seed=0), "note", device="cpu")
    with pytest.raises(InputError, match=r"no class token.*use Grad-CAM or occlusion"):
        class_token_attention(mambaout, volume())
    with pytest.raises(InputError, match="no class token"):
        attention_gradient(mambaout, volume(), None, [abmil()], 0)


def test_patches_that_do_not_tile_the_slice_are_refused() -> None:
    card = replace(CARD, settings={**CARD.settings, "img_size": 36}, input_size=36)
    odd = Encoder(card, random_network(card, seed=0), "note", device="cpu", precision="float32")
    with pytest.raises(InputError, match="patches of 8 pixels do not tile slices of 36"):
        class_token_attention(odd, volume())
