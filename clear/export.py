"""A network as an encoder card: the file that `clear extract --model` opens."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save

from clear.card import CARD_FILE, WEIGHTS_FILE, EncoderCard, write_card
from clear.errors import InputError


def export_encoder(
    card: EncoderCard, network: torch.nn.Module, folder: Path, *, half: bool = False, overwrite: bool = False
) -> Path:
    """Write `folder/weights.safetensors` and `folder/card.json`; returns the card's path.

    Tensor names are those of the architecture's own library. half: store float16, half the size; loading returns to
    float32. Each file is written aside and renamed, the card last, so that no card ever stands beside other weights.
    Raises InputError when the folder holds either and `overwrite` is not given.
    """
    check_folder(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.detach().cpu().contiguous()
        tensors[name.removeprefix("network.")] = stored.half() if half and stored.is_floating_point() else stored
    aside = folder / f".{WEIGHTS_FILE}.tmp"
    with aside.open("wb") as stream:
        stream.write(save(tensors))
        stream.flush()
        os.fsync(stream.fileno())
    (folder / CARD_FILE).unlink(missing_ok=True)
    aside.replace(folder / WEIGHTS_FILE)
    return write_card(card, folder)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises InputError where a card cannot be written, or would be over one, or over weights, unasked."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected a folder, or a name for one")
    if not overwrite and (there := [name for name in (CARD_FILE, WEIGHTS_FILE) if (folder / name).exists()]):
        raise InputError(f"{folder}: holds {' and '.join(there)} already. Name another folder, or give --overwrite")
