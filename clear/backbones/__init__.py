"""Networks behind encoder cards: each module here builds one family and reads its checkpoints.

A card's `architecture` is `family:model`; `build` hands it to the family. What comes back is a torch module whose
forward takes (N, C, S, S), or (N, 1, A, B, C) for whole volumes, and returns the embedding (N, d). `feature_map` gives
the last map before pooling, channels last. Where the embedding is made of that map alone (`pools_map`), `embed_map` is
the rest of the way. `inner_stage`, where a network has one, is the module whose map has a cell for 8 pixels. Vision
transformers also have `last_attention`, `prefix_tokens` and, where the embedding is their class token
(`reads_class_token`), `through_attention`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    import torch

    from clear.backbones.variants import Variant
    from clear.card import EncoderCard, Positions

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


VOLUME_FAMILIES = ("merlin", "ctclip")


def build(card: EncoderCard) -> torch.nn.Module:
    """The card's network with weights as constructed (not loaded), in eval mode, float32.

    Raises InputError when the architecture is unknown, gives another embedding size than the card says or takes slices
    where the card prepares volumes.
    """
    module, family = _family(card), card.architecture.partition(":")[0]
    if (card.volume is not None) != (family in VOLUME_FAMILIES):
        takes, prepares = ("volumes", "slices") if card.volume is None else ("slices", "volumes")
        raise InputError(
            f"encoder {card.name}: {card.architecture} takes {takes}, but the card prepares {prepares}; expected "
            f"`volume` {'in its card' if card.volume is None else 'null'}"
        )
    return importlib.import_module(module).build(card)  # type: ignore[no-any-return]


def convert(card: EncoderCard, tensors: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the network's own names and shapes, the card's ignored prefixes left out.

    Raises WeightsError where two tensors come by one name or pieces of one do not fit together.
    """
    with _named_file(tensors):
        return importlib.import_module(_family(card)).convert(card, tensors, network)  # type: ignore[no-any-return]


def fitted_card(card: EncoderCard, tensors: dict[str, torch.Tensor]) -> EncoderCard:
    """The card for just these tensors where it takes any size of its family, else the card as it is.

    Width, depth and the like come from the tensors; what the card states stays: pooling, positions and settings that no
    tensor tells, such as the number of heads. Raises WeightsError when the tensors are of another family, of another
    size than the card states, or when one of them does not fit the others.
    """
    if not card.any_size:
        return card
    with _named_file(tensors):
        found = _variant(card, tensors)
        if _kind(found.architecture) != kind(card):
            raise WeightsError(
                f"encoder {card.name}: the weights are of a {_kind(found.architecture)}, not of a {kind(card)}; choose "
                "the encoder that they belong to (see `clear models`)"
            )
        found.check(card)
    return found.fit(card)


def variant(card: EncoderCard, tensors: Mapping[str, torch.Tensor]) -> EncoderCard:
    """A card of the member of a family that these tensors are of, with the positions that are usual for such files.

    Raises `clear.backbones.variants.AnotherFamily` when they are of none that the card's family knows, WeightsError
    when one of them does not fit the others.
    """
    with _named_file(tensors):
        found = _variant(card, tensors)
    return replace(found.fit(card), positions=cast("Positions", found.positions or card.positions))


def _variant(card: EncoderCard, tensors: Mapping[str, torch.Tensor]) -> Variant:
    module = importlib.import_module(_family(card))
    if not hasattr(module, "variant"):
        from clear.backbones.variants import AnotherFamily

        raise AnotherFamily(f"encoder {card.name}: the size of its family cannot be read off tensors")
    return module.variant(card, tensors)  # type: ignore[no-any-return]


@contextmanager
def _named_file(tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Puts the file in front of what is said of its tensors, where they come from one (`checkpoints.Checkpoint`)."""
    try:
        yield
    except WeightsError as error:
        if (origin := getattr(tensors, "origin", None)) is None:
            raise
        raise type(error)(f"{origin}: {error}") from error


def kind(card: EncoderCard) -> str:
    """The family, within timm the part of a model's name before its size."""
    return _kind(card.architecture)


def _kind(architecture: str) -> str:
    family, _, model = architecture.partition(":")
    return model.partition("_")[0] if family == "timm" else family


def _family(card: EncoderCard) -> str:
    family, _, _ = card.architecture.partition(":")
    if family not in FAMILIES:
        raise InputError(
            f"encoder {card.name}: architecture {card.architecture!r} is of no known family; "
            f"expected {' or '.join(f'{name}:MODEL' for name in FAMILIES)}"
        )
    return FAMILIES[family]
