"""Networks behind encoder cards: each module here builds one family and reads its checkpoints.

A card's `architecture` is `family:model`; `build` hands it to the family. What comes back is a torch module whose
forward takes (N, C, S, S) and returns the pooled embedding (N, d).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from clear.errors import InputError

if TYPE_CHECKING:
    import torch

    from clear.card import EncoderCard

FAMILIES = {"timm": "clear.backbones.timm_models"}


def build(card: EncoderCard) -> torch.nn.Module:
    """The card's network with weights as constructed (not loaded), in eval mode, float32.

    Raises InputError when the architecture is unknown or gives another embedding size than the card says.
    """
    return importlib.import_module(_family(card)).build(card)  # type: ignore[no-any-return]


def convert(card: EncoderCard, tensors: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the network's own names and shapes, the card's ignored prefixes left out."""
    return importlib.import_module(_family(card)).convert(card, tensors, network)  # type: ignore[no-any-return]


def _family(card: EncoderCard) -> str:
    family, _, _ = card.architecture.partition(":")
    if family not in FAMILIES:
        raise InputError(
            f"encoder {card.name}: architecture {card.architecture!r} is of no known family; "
            f"expected {' or '.join(f'{name}:MODEL' for name in FAMILIES)}"
        )
    return FAMILIES[family]
