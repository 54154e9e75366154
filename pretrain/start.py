"""Where a pretraining begins: the card that is trained, its first weights, and who was seen in making those."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear.backbones import convert, fitted_card
from clear.card import EncoderCard, card_beside, read_card
from clear.checkpoints import load_strictly, read_tensors
from clear.sources import as_installed, find_card, find_weights
from pretrain.distributed import broadcast_state
from pretrain.objectives import build_objective
from pretrain.objectives.objective import Objective
from pretrain.settings import OWN, RANDOM, PretrainSettings


@dataclass(frozen=True)
class Start:
    """Where a pretraining begins.

    card: what is trained. tensors: the weights that it begins with, None for a random start. origin: the card of those
    weights, None for a random start and for weights that no card describes. digest: sha256 of the tensors, "" for a
    random start, which follows from the seed.
    """

    card: EncoderCard
    tensors: dict[str, Tensor] | None = field(default=None, repr=False)
    origin: EncoderCard | None = None
    digest: str = ""


def starting_point(settings: PretrainSettings) -> Start:
    """The card that is trained and the weights that it begins with.

    A name means what `clear extract --model` means by it here; weights given decide the size where the card takes any.
    Weights that lie beside their card bring its record of who was seen. Raises InputError and WeightsError.
    """
    card, tensors, origin = find_card(settings.model), None, None
    if settings.init == RANDOM:
        card = as_installed(card)
    else:
        given = None if settings.init == OWN else _weights_file(Path(settings.init))
        found = find_weights(card, given)
        tensors = read_tensors(found.path)
        card = fitted_card(found.card, tensors)
        origin = card if given is None else card_beside(given)
    changes: dict[str, Any] = {"any_size": False}
    if settings.input_size is not None:
        changes["input_size"] = settings.input_size
        if "img_size" in card.settings:
            changes["settings"] = {**card.settings, "img_size": settings.input_size}
    return Start(replace(card, **changes), tensors, origin, "" if tensors is None else _digest(tensors))


def starting_objective(settings: PretrainSettings, start: Start, device: torch.device) -> Objective:
    """The objective at its start, on its device: of the seed alone, or with these weights in student and teacher."""
    card = start.card
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        objective = build_objective(settings.objective, card, {**settings.options, "epochs": settings.epochs})
    if start.tensors is not None:
        tensors = convert(card, start.tensors, objective.student)
        load_strictly(objective.student, tensors, f"--init {settings.init}")
        objective.restart_teacher()
    objective.to(device)
    objective.to(memory_format=torch.channels_last)
    broadcast_state(objective)
    return objective


def _weights_file(path: Path) -> Path:
    """The file itself, or that beside a card."""
    if path.is_dir() or path.suffix == ".json":
        return Path(read_card(path).source.place)
    return path


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        sha.update(whole.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
