"""Networks built as a card says, where every wrong setting ends in a sentence that names the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from clear.errors import InputError

if TYPE_CHECKING:
    from clear.card import EncoderCard

# what libraries raise at an argument that they did not think of
LIBRARY_ERRORS = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
)


@contextmanager
def building(card: EncoderCard, cannot: str) -> Iterator[None]:
    """Turns what a library raises inside into an InputError: the card, `cannot`, its settings and the library's words.

    cannot: such as "timm cannot build vit_small_patch16_224".
    """
    try:
        yield
    except LIBRARY_ERRORS as error:
        words = f" ({error})" if str(error) else ""
        raise InputError(f"encoder {card.name}: {cannot} with {dict(card.settings)}{words}") from error


def check_run(card: EncoderCard, network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises InputError when `network` does not take an input of this shape.

    A card of a user's own may hold settings with which a network is built but not run: half a head, a number of pixels
    that no patch divides. Nothing is computed: the network runs without values (torch's `meta` device).
    """
    if card.source.kind != "file":  # cards that come with the package are run by its tests
        return
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    empty = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with (
        building(card, f"{card.architecture} cannot take an input of {card.input_size} pixels"),
        torch.inference_mode(),
    ):
        torch.func.functional_call(network, empty, (torch.empty(shape, device="meta"),))
