"""Two tensors of a file that would come by one name are an error, whichever family renames them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clear.backbones import convert
from clear.backbones.huggingface import to_timm
from clear.backbones.renaming import renamed
from clear.card import EncoderCard, WeightSource
from clear.encoders import ENCODERS
from clear.errors import WeightsError

ONE = torch.ones(1)


def test_every_tensor_gets_its_name_and_none_is_left_out_but_by_wish() -> None:
    tensors = {"a.x": torch.ones(1), "a.y": torch.ones(2), "text.z": torch.ones(3)}
    found = renamed(tensors, lambda name: None if name.startswith("text.") else name.removeprefix("a."))
    assert list(found) == ["x", "y"]
    assert all(found[name] is tensors[f"a.{name}"] for name in found)
    assert found.origins == {"x": "a.x", "y": "a.y"}
    with pytest.raises(WeightsError, match=r"tensors a\.x and x are two for one place, x of the encoder"):
        renamed({**tensors, "x": ONE}, lambda name: name.removeprefix("a."))


BLOCK = {f"attention.attention.{part}": torch.ones(2, 2) for part in ("query.weight", "key.weight", "value.weight")}
CASES: dict[str, tuple[list[str], str, str]] = {
    # the form's own names, and two that become one
    "transformers-vit": (["embeddings.patch_embeddings.projection.weight"], "embeddings.cls_token", "cls_token"),
    "transformers-dinov3": (["embeddings.patch_embeddings.weight"], "embeddings.register_tokens", "reg_token"),
    "siglip": (["embeddings.patch_embedding.weight"], "post_layernorm.weight", "norm.weight"),
    "dinov2": (["mask_token"], "register_tokens", "reg_token"),
    "dinov2-chunked": (["blocks.0.0.ls1.gamma"], "blocks.0.3.norm1.weight", "blocks.3.norm1.weight"),
    "dinov2-wrapped": (["backbone.mask_token"], "backbone.norm.weight", "norm.weight"),
    "dinov3": (["storage_tokens"], "blocks.0.ls1.gamma", "blocks.0.gamma_1"),
    "davit": (["image_encoder.convs.0.proj.weight"], "image_projection", "vision_projection"),
    "resnet": (["4.0.conv1.weight"], "0.weight", "conv1.weight"),
}


@pytest.mark.parametrize(("own", "first", "second"), CASES.values(), ids=list(CASES))
def test_two_names_for_one_place_are_an_error_in_every_form_that_timm_reads(
    own: list[str], first: str, second: str
) -> None:
    tensors = dict.fromkeys([*own, first], ONE)
    assert len(to_timm(tensors)) == len({name for name in tensors if not name.endswith("mask_token")})
    for pair in ({first: ONE, second: ONE}, {second: ONE, first: ONE}):
        with pytest.raises(WeightsError) as error:
            to_timm({**dict.fromkeys(own, ONE), **pair})
        assert "are two for one place" in str(error.value)
        assert first in str(error.value)
        assert second in str(error.value)


def test_a_whole_beside_its_parts_is_an_error() -> None:
    block = "encoder.layer.0."
    tensors: dict[str, Tensor] = {"embeddings.patch_embeddings.projection.weight": ONE}
    tensors |= {block + name: tensor for name, tensor in BLOCK.items()}
    assert to_timm(tensors)["blocks.0.attn.qkv.weight"].shape == (6, 2)
    with pytest.raises(
        WeightsError, match=r"tensors blocks\.0\.attn\.qkv\.weight and encoder\.layer\.0\S+query\.weight"
    ):
        to_timm({**tensors, "blocks.0.attn.qkv.weight": ONE})


@pytest.mark.parametrize("odd", list(BLOCK))
def test_a_part_that_does_not_fit_the_others_is_named(odd: str) -> None:
    block = "encoder.layer.0."
    for wrong in (torch.ones(3, 2), torch.ones(2, 3), torch.ones(2), torch.ones(2, 2, dtype=torch.int8)):
        tensors: dict[str, Tensor] = {"embeddings.patch_embeddings.projection.weight": ONE}
        tensors |= {block + name: wrong if name == odd else tensor for name, tensor in BLOCK.items()}
        with pytest.raises(WeightsError, match=rf"tensor encoder\.layer\.0\.{odd} (has shape|is dense int8)"):
            to_timm(tensors)


class Tower(torch.nn.Module):
    """As much of an open_clip tower as its names' conversion asks of one."""

    prefix_tokens, head = 1, None


FAMILIES: dict[str, tuple[str, Any, list[str]]] = {
    "mambaout-tiny": ("stem.conv1.weight", torch.nn.Module(), ["downsample_layers.0.conv1.weight"]),
    "vmamba-lecl": ("layers.0.blocks.0.norm.weight", torch.nn.Module(), ["layers.0.blocks.0.ln_1.weight"]),
    "biomedclip": ("trunk.cls_token", Tower(), ["visual.trunk.cls_token"]),
    "sam2-t": (
        "trunk.pos_embed",
        torch.nn.Module(),
        ["image_encoder.trunk.pos_embed", "vision_encoder.trunk.pos_embed"],
    ),
    "merlin": ("encode_image.i3_resnet.bn1.bias", torch.nn.Module(), ["bn1.bias"]),
    "medimageinsight": ("head.norm.weight", torch.nn.Module(), ["image_encoder.norms.weight"]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_two_names_for_one_place_are_an_error_in_every_family(name: str) -> None:
    own, network, others = FAMILIES[name]
    card = ENCODERS[name]
    marker = {"image_encoder.convs.0.proj.weight": ONE} if name == "medimageinsight" else {}
    for other in others:
        assert len(convert(card, {**marker, other: ONE}, network)) == 1 + len(marker)
        with pytest.raises(WeightsError, match="are two for one place"):
            convert(card, {**marker, own: ONE, other: 2 * ONE}, network)


def test_a_card_of_a_family_that_renames_nothing_takes_every_name_once() -> None:
    card = EncoderCard("x", "ctclip:ctvit", 8, WeightSource("file", "-"), "untrained")
    tensors = {"visual_transformer.a": ONE, "visual_transformer.b": ONE, "text_transformer.c": ONE}
    assert list(convert(card, tensors, torch.nn.Module())) == ["visual_transformer.a", "visual_transformer.b"]
    assert list(convert(replace(card, ignored=("visual_transformer.b",)), tensors, torch.nn.Module())) == [
        "visual_transformer.a"
    ]
