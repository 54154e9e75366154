"""A card that no network can be built of, or none that takes its input, is refused in a sentence that names it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from clear.backbones import FAMILIES, VOLUME_FAMILIES, build
from clear.card import EncoderCard, WeightSource
from clear.encoders import ENCODERS
from clear.errors import InputError

OWN = WeightSource("file", "-")
TINY: dict[str, dict[str, Any]] = {
    "dino-s16": {"embed_dim": 64, "depth": 1, "num_heads": 2},
    "dinov3-s": {"embed_dim": 64, "depth": 1, "num_heads": 2},
    "mambaout-tiny": {"depths": (1, 1), "dims": (8, 16)},
    "resnet50": {"layers": (1, 1, 1, 1)},
    "vit-conv-lecl": {"embed_dim": 64, "depth": 1, "num_heads": 2},
    "biomedclip": {"embed_dim": 64, "depth": 1, "num_heads": 2},
    "sam2-t": {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
    "medimageinsight": {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)},
    "vmamba-lecl": {"depths": (1, 1), "dims": (8, 16)},
}
DIMS = {"dino-s16": 64, "dinov3-s": 64, "mambaout-tiny": 16, "vit-conv-lecl": 64, "vmamba-lecl": 16}


def card(name: str, **settings: Any) -> EncoderCard:
    base = ENCODERS[name]
    return replace(base, source=OWN, dim=DIMS.get(name, base.dim), settings={**TINY[name], **settings})


@pytest.mark.parametrize("name", TINY)
def test_a_card_of_ones_own_is_built_and_run_without_values(name: str) -> None:
    network = build(card(name))
    side = ENCODERS[name].input_size
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, side, side)).shape == (1, card(name).dim)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dino-s16", {"num_heads": 0}),
        ("dino-s16", {"num_heads": 2.0}),
        ("dino-s16", {"num_heads": 3}),
        ("dino-s16", {"patch_size": 0}),
        ("dino-s16", {"patch_size": 300}),
        ("dino-s16", {"act_layer": "nope"}),
        ("dino-s16", {"norm_layer": "nope"}),
        ("dino-s16", {"img_size": None, "patch_size": "x"}),
        ("dino-s16", {"embed_dim": "x"}),
        ("dinov3-s", {"num_heads": 2.0}),
        ("mambaout-tiny", {"depths": 3}),
        ("mambaout-tiny", {"kernel_size": 2}),
        ("mambaout-tiny", {"act_layer": "nope"}),
        ("resnet50", {"layers": ()}),
        ("vit-conv-lecl", {"num_heads": 0}),
        ("vit-conv-lecl", {"num_heads": 2.0}),
        ("vit-conv-lecl", {"depth": 1.5}),
        ("biomedclip", {"act_layer": "nope"}),
        ("biomedclip", {"num_heads": 2.0}),
        ("sam2-t", {"num_heads": 0}),
        ("sam2-t", {"num_heads": 1.0}),
        ("sam2-t", {"window_spec": (0, 0, 0, 0)}),
        ("sam2-t", {"window_pos_embed_bkg_spatial_size": (0, 0)}),
        ("medimageinsight", {"num_heads": (0, 0, 0, 0)}),
        ("medimageinsight", {"num_heads": (1.0, 2.0, 3.0, 4.0)}),
        ("medimageinsight", {"window_size": 0}),
        ("vmamba-lecl", {"dims": ()}),
        ("vmamba-lecl", {"ssm_ratio": 0}),
        ("vmamba-lecl", {"dims": (8.0, 16.0)}),
    ],
)
def test_settings_that_no_network_has_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"encoder {name}: ") as error:
        build(card(name, **settings))
    assert all(key in str(error.value) or "d = " in str(error.value) for key in settings)


def test_a_network_of_another_input_than_the_card_prepares_is_refused() -> None:
    for settings, size in (({"img_size": 64}, 224), ({}, 96), ({"img_size": [48, 224]}, 224)):
        with pytest.raises(InputError, match=rf"but the card's input_size is {size}; expected settings with"):
            build(replace(card("dino-s16", **settings), input_size=size))
    with pytest.raises(InputError, match="cannot take an input of 100 pixels"):
        build(replace(card("dinov3-s"), input_size=100))
    build(replace(card("dino-s16", img_size=96), input_size=96))


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_are_for_networks_of_slices_and_volumes_for_those_of_volumes(family: str) -> None:
    own = next(c for c in ENCODERS.values() if c.architecture.startswith(f"{family}:"))
    volume = ENCODERS["merlin"].volume
    wrong = replace(own, volume=None if own.volume else volume, channel_windows=())
    takes, prepares = ("volumes", "slices") if family in VOLUME_FAMILIES else ("slices", "volumes")
    expected = f"encoder {own.name}: {own.architecture} takes {takes}, but the card prepares {prepares}"
    with torch.device("meta"), pytest.raises(InputError, match=expected):
        build(wrong)


def test_a_volume_that_the_patches_do_not_fill_is_refused() -> None:
    own = ENCODERS["ct-clip"]
    assert own.volume is not None
    for shape in ((235, 480, 480), (240, 460, 480), (240, 480, 500)):
        with torch.device("meta"), pytest.raises(InputError, match="takes frames in 10s of 480 x 480 pixels, but the"):
            build(replace(own, volume=replace(own.volume, shape=shape)))
