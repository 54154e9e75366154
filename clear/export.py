"""A network as an encoder card: the file that `clear extract --model` opens."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save

from clear.card import WEIGHTS_FILE, EncoderCard, write_card


def export_encoder(card: EncoderCard, network: torch.nn.Module, folder: Path, *, half: bool = False) -> Path:
    """Write `folder/weights.safetensors` and `folder/card.json`; returns the card's path.

    Tensor names are those of the architecture's own library. half: store float16, half the size; loading returns to
    float32. Each file is written aside and renamed, the card last.
    """
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
    aside.replace(folder / WEIGHTS_FILE)
    return write_card(card, folder)
