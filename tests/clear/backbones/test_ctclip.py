from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clear.backbones import ctvit
from clear.backbones.ctclip import SETTINGS, build, convert, variant
from clear.backbones.variants import AnotherFamily
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.errors import InputError, WeightsError

TINY = {
    "dim": 20,
    "codebook_size": 48,
    "image_size": 24,
    "patch_size": 8,
    "temporal_patch_size": 4,
    "spatial_depth": 2,
    "temporal_depth": 2,
    "dim_head": 8,
    "heads": 2,
    "dim_latent": 10,
}
REAL = EncoderCard(
    name="ct-clip",
    architecture="ctclip:ctvit",
    dim=512,
    source=WeightSource("file", "-"),
    trained_on="untrained",
    channels=1,
    mean=(0.0,),
    std=(1.0,),
)
CARD = replace(REAL, dim=10, settings=TINY)


def loaded(card: EncoderCard, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = build(card)
    load_strictly(network, convert(card, tensors, network), "checkpoint")
    return network


@pytest.fixture
def reference(shared_data: Path) -> Any:
    return np.load(shared_data / "fixtures" / "ctclip_ctvit_tiny.npz", allow_pickle=False)


@pytest.fixture
def tensors(reference: Any) -> dict[str, torch.Tensor]:
    return {key[3:]: torch.from_numpy(reference[key]) for key in reference.files if key.startswith("sd/")}


@torch.inference_mode()
def test_every_step_is_the_published_classs(reference: Any, tensors: dict[str, torch.Tensor]) -> None:
    network = loaded(CARD, tensors)
    vit, x = network.visual_transformer, torch.from_numpy(reference["in/x"])
    patches = vit.embed(x)
    spatial = vit.encode_spatial(patches)
    tokens = vit.encode_temporal(spatial)
    for found, key, tolerance in (
        (patches, "patch_embedding", 2e-4),
        (vit.spatial_rel_pos_bias(3, 3), "spatial_bias", 1e-5),
        (spatial, "tokens_after_spatial", 2e-4),
        (tokens, "tokens_before_vq", 2e-4),
        (network.feature_map(x), "tokens_quantised", 1e-6),
        (network.feature_map(x).mean(dim=1).flatten(1), "pooled_flat", 1e-6),
        (network(x), "image_latents", 1e-6),
    ):
        assert found.shape == reference[f"out/{key}"].shape
        assert np.abs(found.numpy() - reference[f"out/{key}"]).max() < tolerance, key
    assert np.array_equal(vit.vq.indices(tokens).numpy(), reference["out/code_indices"])
    plain = loaded(replace(CARD, settings={**TINY, "output": "latent_unnormalised"}), tensors)
    assert np.abs(plain(x).numpy() - reference["out/image_latents_unnormalised"]).max() < 1e-6


@torch.inference_mode()
def test_the_size_of_pieces_and_the_company_change_nothing(
    reference: Any, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = loaded(CARD, tensors), torch.from_numpy(reference["in/x"])
    whole = network.visual_transformer.encode(network.visual_transformer.embed(x))
    latents = network(x)
    monkeypatch.setattr(ctvit, "PIECE_TOKENS", 10)
    monkeypatch.setattr(ctvit, "CODE_TOKENS", 7)
    assert torch.allclose(network.visual_transformer.encode(network.visual_transformer.embed(x)), whole, atol=1e-4)
    assert torch.allclose(network(x), latents, atol=1e-6)
    assert torch.allclose(torch.cat([network(x[:1]), network(x[1:])]), latents, atol=1e-6)
    last = network.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    assert torch.allclose(last, latents, atol=1e-6)


@torch.inference_mode()
def test_a_token_is_replaced_by_the_code_in_its_direction_whatever_its_length(
    reference: Any, tensors: dict[str, torch.Tensor]
) -> None:
    codebook = loaded(CARD, tensors).visual_transformer.vq
    codes = codebook.codes
    assert torch.equal(codebook.indices(codes * torch.linspace(0.1, 9, len(codes))[:, None]), torch.arange(len(codes)))
    assert torch.equal(codebook(7 * codes), codes)
    assert (codes.norm(dim=-1) - 1).abs().min() > 1e-3  # so that handing out unit vectors would be another embedding


@torch.inference_mode()
def test_slabs_are_seen_through_the_frames_before_them_only(tensors: dict[str, torch.Tensor]) -> None:
    # the position convolution looks back two frames and never ahead; spatial attention stays inside a slab
    vit = loaded(CARD, tensors).visual_transformer
    tokens = torch.randn(1, 5, 3, 3, 20, generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 3] += 1
    moved = (vit.encode_spatial(changed) - vit.encode_spatial(tokens)).abs().amax(dim=(0, 2, 3, 4))
    assert moved[:3].max() < 1e-5
    assert moved[3:].min() > 1e-2


def test_the_real_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = build(REAL)
    count = sum(parameter.numel() for parameter in network.visual_transformer.parameters())
    unused_norms = 8 * 512  # `context_norm.gamma` of eight layers, which the published count includes
    assert count + unused_norms == 23_425_864
    assert network.to_visual_latent.weight.numel() == 150_994_944
    assert network.visual_transformer.vq.codes.shape == (8192, 512)


def test_only_what_makes_no_image_latent_is_left_out(tensors: dict[str, torch.Tensor]) -> None:
    assert any("null_kv" in name for name in tensors)
    whole = tensors | {"text_transformer.embeddings.position_ids": torch.arange(3)}
    loaded(CARD, whole)
    name = "visual_transformer.enc_spatial_transformer.layers.0.1.null_kv"
    with pytest.raises(WeightsError, match=f"surplus {name}"):  # with rows it would take part in attention
        loaded(CARD, whole | {name: torch.ones(2, 1, 8)})
    for odd in ("visual_transformer.dec_spatial_transformer.norm_out.gamma", "to_visual_latent.bias", "scale"):
        with pytest.raises(WeightsError, match=f"surplus {odd}"):
            loaded(CARD, whole | {odd: torch.ones(1)})


def test_a_renamed_tensor_is_named(tensors: dict[str, torch.Tensor]) -> None:
    name = "visual_transformer.enc_temporal_transformer.layers.1.1.to_kv.weight"
    tensors["visual_transformer.enc_temporal_transformer.layers.1.1.kv.weight"] = tensors.pop(name)
    with pytest.raises(WeightsError) as error:
        loaded(CARD, tensors)
    assert f"missing {name}" in str(error.value)
    assert "surplus visual_transformer.enc_temporal_transformer.layers.1.1.kv.weight" in str(error.value)


def test_the_variant_read_from_a_checkpoint_builds_what_takes_it(tensors: dict[str, torch.Tensor]) -> None:
    found = variant(REAL, tensors)
    assert found.dim == 10
    assert {**SETTINGS, **found.settings} == {"output": "latent", **TINY}
    loaded(found.fit(REAL), tensors)
    del tensors["visual_transformer.vq._codebook.embed"]
    with pytest.raises(WeightsError, match=r"tensor visual_transformer\.vq\._codebook\.embed is missing"):
        variant(REAL, tensors)
    with pytest.raises(AnotherFamily, match="not CT-CLIP's weights"):
        variant(REAL, {"conv1.weight": torch.ones(4, 3, 7, 7)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 99}, "the card says d = 99, but ctvit gives 512"),
        ({"architecture": "ctclip:vivit"}, "ctclip has no model 'vivit'"),
        ({"settings": {"wings": 2}}, r"unknown setting\(s\) wings"),
        ({"settings": {"output": "text"}}, "output is 'text'; expected latent or latent_unnormalised"),
        ({"settings": {"patch_size": 7}}, "ctclip cannot build"),
        ({"settings": {"heads": 0}}, "ctclip cannot build"),
        ({"settings": {"dim": "wide"}}, "ctclip cannot build"),
    ],
)
def test_what_cannot_be_built_is_named_with_the_encoder(change: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=f"encoder ct-clip: .*{message}"):
        build(replace(REAL, **change))


def test_a_volume_of_another_size_is_not_taken(tensors: dict[str, torch.Tensor]) -> None:
    network = loaded(CARD, tensors)
    for shape in ((1, 1, 15, 24, 24), (1, 1, 16, 32, 24)):
        with pytest.raises(ValueError, match="expected frames in 4s and 24 x 24 pixels"):
            network(torch.zeros(shape))


@torch.inference_mode()
def test_bfloat16_moves_tokens_a_little_and_codes_stay_whole(reference: Any, tensors: dict[str, torch.Tensor]) -> None:
    network, x = loaded(CARD, tensors), torch.from_numpy(reference["in/x"])
    vit = network.visual_transformer
    tokens = vit.encode(vit.embed(x))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, maps, latents = vit.encode(vit.embed(x)), network.feature_map(x), network(x)
    assert 0 < (rounded - tokens).norm() < 0.05 * tokens.norm()
    assert latents.dtype == maps.dtype == torch.float32
    assert torch.allclose(latents.norm(dim=-1), torch.ones(2), atol=1e-6)
    # a token near the border of two codes may change sides, but what is handed out is a code to the last digit
    distances = torch.cdist(maps.reshape(-1, 20), vit.vq.codes, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(dim=1).max() == 0
    assert (vit.vq.indices(rounded) != vit.vq.indices(tokens)).float().mean() < 0.1


@torch.inference_mode()
def test_weights_rounded_once_are_worked_with_too(reference: Any, tensors: dict[str, torch.Tensor]) -> None:
    network, x = loaded(CARD, tensors), torch.from_numpy(reference["in/x"])
    vit = network.visual_transformer
    expected = vit.encode(vit.embed(x))
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            module.bfloat16()  # what autocast does in every batch
    with torch.autocast("cpu", torch.bfloat16):
        found, latents = vit.encode(vit.embed(x)), network(x)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    assert latents.dtype == torch.float32
    assert torch.allclose(latents.norm(dim=-1), torch.ones(2), atol=1e-6)
