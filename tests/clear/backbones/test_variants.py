"""Cards that take any size: sizes are the file's, all else is the card's; where they contradict, both are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clear.backbones import build, convert, fitted_card, variant
from clear.backbones.variants import AnotherFamily, At, Sizes, counts, ratio
from clear.card import EncoderCard
from clear.checkpoints import Checkpoint, load_strictly
from clear.encoders import ENCODERS
from clear.errors import WeightsError

Tensors = dict[str, Tensor]
TINY = {"img_size": 48, "embed_dim": 64, "depth": 2, "num_heads": 1}
BASE = replace(ENCODERS["dino-s16"], dim=64, input_size=48, settings=TINY)


@pytest.fixture
def vit(seeded_weights: Any) -> Tensors:
    return {name.removeprefix("network."): tensor for name, tensor in seeded_weights(BASE).state_dict().items()}


def tensors_of(shared_data: Path, fixture: str) -> Tensors:
    with np.load(shared_data / "fixtures" / f"{fixture}.npz", allow_pickle=False) as file:
        return {key[3:]: torch.from_numpy(file[key]) for key in file.files if key.startswith("sd/")}


def loaded(card: EncoderCard, tensors: Tensors) -> Any:
    network = build(card)
    load_strictly(network, convert(card, tensors, network), "file")
    return network


# ---- what the card states stays


@pytest.mark.parametrize(
    ("changes", "dim"),
    [
        ({"pooling": "patch_mean"}, 64),
        ({"pooling": "class_patch_mean", "dim": 128}, 128),
        ({"pooling": "class_patch_mean", "dim": 64}, 128),
        ({"positions": "exact"}, 64),
        ({"positions": "dinov2_registers"}, 64),
        ({"positions": "native"}, 64),
        ({"settings": {**TINY, "num_heads": 4}}, 64),
        ({"settings": {"num_heads": 4}}, 64),
        ({"settings": {"num_heads": 2, "act_layer": "gelu_tanh"}}, 64),
        ({"architecture": "timm:vit_base_patch16_clip_quickgelu_224", "settings": {"pre_norm": False}}, 64),
        ({"ignored": ("fc.",)}, 64),
        ({"input_size": 96, "settings": {"num_heads": 1}}, 64),
    ],
)
def test_what_a_card_states_is_not_overruled(vit: Tensors, changes: dict[str, Any], dim: int) -> None:
    card = replace(BASE, **{"any_size": True, "settings": {}, **changes})
    found = fitted_card(card, vit)
    assert (found.pooling, found.positions, found.dim) == (card.pooling, card.positions, dim)
    assert (found.input_size, found.mean, found.resize) == (card.input_size, card.mean, card.resize)
    assert found.settings["img_size"] == card.input_size
    for name, value in card.settings.items():
        assert found.settings[name] == value or name == "img_size"
    if "architecture" in changes:
        assert found.architecture == changes["architecture"]
    if "ignored" in changes:
        assert found.ignored == changes["ignored"]
    if "quickgelu" not in card.architecture:
        loaded(found, vit)


def test_heads_that_the_card_states_make_another_embedding(vit: Tensors) -> None:
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, four = (
            loaded(fitted_card(replace(BASE, any_size=True, settings={"num_heads": heads}), vit), vit)(x)
            for heads in (1, 4)
        )
        usual = loaded(fitted_card(replace(BASE, any_size=True, settings={}), vit), vit)(x)
        exact = loaded(replace(BASE, settings={**TINY, "num_heads": 4}), vit)(x)
    assert torch.equal(usual, one)
    assert torch.equal(four, exact)
    assert (one - four).abs().max() > 0.01


# ---- what it states against the tensors is an error


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("depth", 3, 2),
        ("embed_dim", 128, 64),
        ("patch_size", 8, 16),
        ("patch_size", [16, 8], 16),
        ("mlp_ratio", 3.0, 4.0),
        ("reg_tokens", 4, 0),
        ("init_values", 1e-5, None),
    ],
)
def test_a_setting_against_the_tensors_is_an_error_that_names_both(
    vit: Tensors, setting: str, value: Any, told: Any
) -> None:
    card = replace(BASE, any_size=True, settings={setting: value})
    with pytest.raises(WeightsError) as error:
        fitted_card(card, Checkpoint(vit, "theirs.pth"))
    message = str(error.value)
    assert message.startswith(f"theirs.pth: encoder dino-s16: its card says {setting} = {value!r}, but the tensors")
    assert f"{setting} = {told!r}" in message


def test_one_setting_may_be_written_in_several_ways(vit: Tensors) -> None:
    settings = {"depth": 2, "patch_size": [16, 16], "mlp_ratio": 4, "init_values": None, "reg_tokens": 0}
    found = fitted_card(replace(BASE, any_size=True, settings=settings), vit)
    assert found.settings["patch_size"] == [16, 16]
    loaded(found, vit)


FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # fixture, what no tensor tells, and what contradicts the tensors
    "mambaout-lecl": ("mambaout_official_tiny", {}, {"dims": [8, 16, 24, 48]}),
    "vmamba-lecl": ("vmamba_official_tiny", {}, {"ssm_d_state": 8}),
    "vit-conv-lecl": ("vit_conv_tiny", {"num_heads": 3}, {"depth": 11}),
    "biomedclip": ("biomedclip_visual_tiny", {"num_heads": 3}, {"projection": 24}),
    "sam2-t": (
        "sam2_image_encoder_tiny",
        {
            "num_heads": 1,
            "global_att_blocks": [4],
            "window_spec": [4, 2, 6, 3],
            "window_pos_embed_bkg_spatial_size": [5, 5],
        },
        {"stages": [1, 2, 7, 2]},
    ),
    "radio-dinov2": ("dinov2_vit_tiny", {"num_heads": 4}, {"init_values": None}),
    "merlin": ("merlin_image_tiny", {"output": "contrastive"}, {"planes": [64, 128, 256, 512]}),
    "ct-clip": ("ctclip_ctvit_tiny", {"output": "latent_unnormalised"}, {"heads": 8}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_what_its_card_states_and_no_contradiction(name: str, shared_data: Path) -> None:
    fixture, untold, wrong = FAMILIES[name]
    tensors = tensors_of(shared_data, fixture)
    side = 64 if name in ("vit-conv-lecl", "biomedclip", "sam2-t") else ENCODERS[name].input_size
    card = replace(ENCODERS[name], any_size=True, settings=untold, input_size=side, channels=3)
    if name == "ct-clip":
        card = replace(card, volume=replace(card.volume, shape=(16, 24, 24)))
    found = fitted_card(card, tensors)
    assert {**found.settings, **untold} == found.settings
    loaded(found, tensors)
    setting, value = next(iter(wrong.items()))
    with pytest.raises(WeightsError, match=rf"its card says {setting} = .*, but the tensors .*{setting} = "):
        fitted_card(replace(card, settings={**untold, **wrong}), tensors)
    assert value is not found.settings.get(setting, ())


def test_an_output_that_the_card_states_has_its_own_width(shared_data: Path) -> None:
    tensors = tensors_of(shared_data, "merlin_image_tiny")
    merlin = replace(ENCODERS["merlin"], any_size=True)
    for output, dim in (("embedding", 24), ("contrastive", 5), ("phenotypes", 7)):
        assert fitted_card(replace(merlin, settings={"output": output}), tensors).dim == dim
    clip = replace(ENCODERS["biomedclip"], any_size=True, input_size=32, settings={"num_heads": 3, "output": "trunk"})
    tensors = tensors_of(shared_data, "biomedclip_visual_tiny")
    assert fitted_card(clip, tensors).dim == 48
    loaded(fitted_card(clip, tensors), tensors)


# ---- registered cards are for the files that they were for


def test_registered_cards_fit_what_they_did(shared_data: Path) -> None:
    tensors = tensors_of(shared_data, "mambaout_official_tiny")
    found = fitted_card(ENCODERS["mambaout-lecl"], tensors)
    assert (found.architecture, found.dim, found.pooling) == ("timm:mambaout_tiny", 40, "mean_norm")
    assert found.settings == {"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 40)}
    assert found.ignored == ("head.pre_logits.", "head.fc.")
    tensors = tensors_of(shared_data, "dinov2_vit_tiny")
    found = fitted_card(ENCODERS["radio-dinov2"], tensors)
    assert (found.architecture, found.dim, found.positions) == ("timm:vit_small_patch16_224", 48, "dinov2")
    assert found.settings == {
        "img_size": 224,
        "patch_size": 14,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 1,
        "mlp_ratio": 4.0,
        "init_values": 1.0,
        "reg_tokens": 0,
        "no_embed_class": False,
    }
    tensors = tensors_of(shared_data, "vmamba_official_tiny")
    found = fitted_card(ENCODERS["vmamba-moco"], tensors)
    assert (found.architecture, found.dim) == ("vmamba:vssm", 64)
    assert found.settings["depths"] == (1, 1, 2, 1)
    assert fitted_card(ENCODERS["dino-s16"], tensors) == ENCODERS["dino-s16"]  # of one size


@pytest.mark.parametrize("name", ["vit-conv-lecl", "vit-conv-moco", "vmamba-lecl", "mambaout-moco", "radio-dinov2"])
def test_a_registered_card_fits_a_file_of_its_own_size_unchanged(name: str) -> None:
    card = ENCODERS[name]
    with torch.device("meta"):
        tensors = {n.removeprefix("network."): t for n, t in build(card).state_dict().items()}
    if "pos_embed" in tensors:
        tensors["pos_embed"] = torch.ones(tensors["pos_embed"].shape)
    found = fitted_card(card, tensors)
    assert (found.dim, found.input_size) == (card.dim, card.input_size)
    with torch.device("meta"):
        own, again = build(card), build(found)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in own.state_dict().items()}


def test_registers_that_a_card_has_by_its_name_cannot_be_missing(shared_data: Path) -> None:
    tensors = tensors_of(shared_data, "dinov2_vit_tiny_reg4")
    card = replace(ENCODERS["dinov2-s-reg"], any_size=True, settings={"num_heads": 4})
    assert fitted_card(card, tensors).settings["reg_tokens"] == 4
    del tensors["register_tokens"]
    with pytest.raises(WeightsError, match=r"tensor reg_token is missing; the card's timm:vit_\S+ has 4 registers"):
        fitted_card(card, tensors)


# ---- other families and damaged files are told apart


def test_another_family_is_no_damaged_file_of_this_one(vit: Tensors, shared_data: Path) -> None:
    mambaout = tensors_of(shared_data, "mambaout_official_tiny")
    for name in ("vmamba-lecl", "vit-conv-lecl", "biomedclip", "sam2-t", "merlin", "ct-clip", "medimageinsight"):
        for tensors in (vit, mambaout):
            with pytest.raises(AnotherFamily):
                variant(ENCODERS[name], tensors)
    with pytest.raises(AnotherFamily, match="not the tensors of a MambaOut or a ViT"):
        variant(ENCODERS["dino-s16"], {"conv1.weight": torch.ones(1)})
    with pytest.raises(WeightsError, match="the weights are of a vit, not of a mambaout"):
        fitted_card(replace(ENCODERS["mambaout-lecl"], settings={"depths": (1, 1)}), vit)
    assert variant(ENCODERS["vit-s"], vit).positions == "dinov2"  # as usual for such files, whatever the card has


def test_a_size_is_what_most_tensors_have() -> None:
    sizes = Sizes({"a": torch.ones(4, 6), "b": torch.ones(6), "c": torch.ones(9), "d": torch.ones(13)})
    places = At("a", 1), At("b", 0), At("c", 0)
    assert sizes.agreed("the width", *places) == 6
    assert sizes.agreed("the width", *places[:2], At("gone", 0), At("b", 3)) == 6
    assert sizes.agreed("the width", At("d", 0, 2, 1)) == 6
    for disagree in (places[1:], (At("gone", 0),), (At("d", 0, 2),)):
        with pytest.raises(WeightsError, match="its tensors do not tell the width: ") as error:
            sizes.agreed("the width", *disagree)
        assert all(place.name in str(error.value) for place in disagree)
    with pytest.raises(WeightsError, match=r"tensor a has shape \(4, 6\); expected 3 axes"):
        sizes.shape("a", 3)
    with pytest.raises(WeightsError, match="tensor gone is missing"):
        sizes.shape("gone", 1)
    with pytest.raises(WeightsError, match=r"do not tell the width: e \(0,\)"):
        Sizes({"e": torch.ones(0)}).agreed("the width", At("e", 0))


def test_blocks_are_counted_whatever_their_names_hold() -> None:
    names = ["blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.extra.a", "blocks.10.a", "blocks", "x.blocks.7.a"]
    assert counts(names, r"(blocks)\.(\d+)\.") == (3,)
    assert counts(["s.0.b.0.", "s.10.b.0.", "s.2.b.0.", "s.2.b.1."], r"s\.(\d+)\.b\.(\d+)\.") == (1, 2, 1)


def test_a_ratio_gives_the_width_back_as_libraries_compute_it() -> None:
    for part in range(1, 200):
        for whole in range(1, 4 * part):
            assert int(part * ratio(whole, part)) == whole
    assert ratio(3072, 768) == 4.0


def test_a_name_of_no_number_is_surplus_and_not_a_crash(vit: Tensors, shared_data: Path) -> None:
    for name, tensors, prefix in (
        ("radio-dinov2", vit, "blocks."),
        ("vit-conv-lecl", tensors_of(shared_data, "vit_conv_tiny"), "blocks."),
        ("biomedclip", tensors_of(shared_data, "biomedclip_visual_tiny"), "visual.trunk.blocks."),
        ("sam2-t", tensors_of(shared_data, "sam2_image_encoder_tiny"), "image_encoder.trunk.blocks."),
    ):
        untold = FAMILIES[name][1]
        card = replace(ENCODERS[name], any_size=True, settings=untold, input_size=64 if name != "radio-dinov2" else 224)
        for odd in ("extra.norm1.weight", "9999999999.norm1.weight", "١.norm1.weight"):
            file = {**tensors, prefix + odd: torch.ones(1)}
            with pytest.raises(WeightsError):
                loaded(fitted_card(card, file), file)
