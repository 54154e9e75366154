"""Where a pretraining begins: the card that is trained, and the objective with its first weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear.backbones import convert, fitted_card
from clear.card import EncoderCard, read_card
from clear.checkpoints import load_strictly, read_tensors
from clear.errors import InputError
from clear.sources import as_installed, find_card, find_weights
from pretrain.distributed import broadcast_state
from pretrain.objectives import build_objective
from pretrain.objectives.objective import Objective
from pretrain.settings import OWN, RANDOM, PretrainSettings


def starting_point(settings: PretrainSettings) -> tuple[EncoderCard, dict[str, Tensor] | None]:
    """The card that is trained, and the weights that it begins with, None for a random start.

    A name means what `clear extract --model` means by it here; weights given decide the size where the card takes any.
    Raises InputError and WeightsError.
    """
    card, tensors = find_card(settings.model), None
    if settings.init == RANDOM:
        card = as_installed(card)
    else:
        given = None if settings.init == OWN else _weights_file(Path(settings.init))
        found = find_weights(card, given)
        tensors = read_tensors(found.path)
        card = fitted_card(found.card, tensors)
    changes: dict[str, Any] = {"any_size": False}
    if settings.input_size is not None:
        changes["input_size"] = settings.input_size
        if "img_size" in card.settings:
            changes["settings"] = {**card.settings, "img_size": settings.input_size}
    return replace(card, **changes), tensors


def starting_objective(
    settings: PretrainSettings, card: EncoderCard, tensors: dict[str, Tensor] | None, device: torch.device
) -> Objective:
    """The objective at its start, on its device: of the seed alone, or with these weights in student and teacher."""
    if "epochs" in settings.options:
        raise InputError("--option epochs: is the run's length; give --epochs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        objective = build_objective(settings.objective, card, {**settings.options, "epochs": settings.epochs})
    if tensors is not None:
        load_strictly(objective.student, convert(card, tensors, objective.student), f"--init {settings.init}")
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
