"""Networks behind encoder cards: each module here builds one family and reads its checkpoints.

A card's `architecture` is `family:model`; `build` hands it to the family. What comes back is a torch module whose
forward takes (N, C, S, S), or (N, 1, A, B, C) for whole volumes, and returns the embedding (N, d). `feature_map` gives
the last map before pooling, channels last; vision transformers also have `last_attention` and `prefix_tokens`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    import torch

    from clear.card import EncoderCard

FAMILIES = {
    "timm": "clear.backbones.timm_models",
    "vmamba": "clear.backbones.vmamba",
    "vit_conv": "clear.backbones.vit_conv",
    "open_clip": "clear.backbones.open_clip",
    "sam2": "clear.backbones.sam2",
    "davit": "clear.backbones.davit",
    "merlin": "clear.backbones.merlin",
    "ctclip": "clear.backbones.ctclip",
}


def build(card: EncoderCard) -> torch.nn.Module:
    """The card's network with weights as constructed (not loaded), in eval mode, float32.

    Raises InputError when the architecture is unknown or gives another embedding size than the card says.
    """
    return importlib.import_module(_family(card)).build(card)  # type: ignore[no-any-return]


def convert(card: EncoderCard, tensors: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the network's own names and shapes, the card's ignored prefixes left out."""
    return importlib.import_module(_family(card)).convert(card, tensors, network)  # type: ignore[no-any-return]


def fitted_card(card: EncoderCard, tensors: dict[str, torch.Tensor]) -> EncoderCard:
    """The card for just these tensors where it takes any size of its family, else the card as it is.

    Width, depth and the like come from the tensors, the input's size and all else from the card. Raises WeightsError
    when the tensors are of another family.
    """
    if not card.any_size:
        return card
    found = variant(card, tensors)
    if kind(found) != kind(card):
        raise WeightsError(
            f"encoder {card.name}: the weights are of a {kind(found)}, not of a {kind(card)}; choose the encoder "
            "that they belong to (see `clear models`)"
        )
    return found


def variant(card: EncoderCard, tensors: Mapping[str, torch.Tensor]) -> EncoderCard:
    """The card for the member of its family that these tensors are of; see `fitted_card`."""
    module = importlib.import_module(_family(card))
    if not hasattr(module, "variant"):
        raise WeightsError(f"encoder {card.name}: the size of its family cannot be read off tensors")
    found = module.variant(dict(tensors))
    if "img_size" in found["settings"]:
        found["settings"]["img_size"] = card.input_size
    found["settings"] = {**card.settings, **found["settings"]}
    if card.pooling == "class_patch_mean":
        found["dim"] *= 2
    return replace(card, **found)


def kind(card: EncoderCard) -> str:
    """The family, within timm the part of a model's name before its size."""
    family, _, model = card.architecture.partition(":")
    return model.partition("_")[0] if family == "timm" else family


def _family(card: EncoderCard) -> str:
    family, _, _ = card.architecture.partition(":")
    if family not in FAMILIES:
        raise InputError(
            f"encoder {card.name}: architecture {card.architecture!r} is of no known family; "
            f"expected {' or '.join(f'{name}:MODEL' for name in FAMILIES)}"
        )
    return FAMILIES[family]
