"""Objectives of pretraining, by name: `moco-v3`, `lecl`, `dino`, `dinov2`.

Each is one module that subclasses `objective.Objective`; the loop knows only that protocol. What several share has a
module of its own: heads, centring, masks, tokens, the KoLeo term.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clear.errors import InputError
from pretrain.objectives.options import read_options

if TYPE_CHECKING:
    from clear.card import EncoderCard
    from pretrain.objectives.objective import Objective

OBJECTIVES = {
    "moco-v3": ("pretrain.objectives.moco_v3", "MocoV3"),
    "lecl": ("pretrain.objectives.lecl", "Lecl"),
    "dino": ("pretrain.objectives.dino", "Dino"),
    "dinov2": ("pretrain.objectives.dinov2", "DinoV2"),
}


def full_options(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the objective `name`, what is not in `settings` at its default, but for the run's length.

    So two spellings of the same options are equal. Raises InputError for an unknown name, option or value.
    """
    options = asdict(read_options(_kind(name).options_type, name, settings))
    return {key: value for key, value in options.items() if key != "epochs"}


def build_objective(name: str, card: EncoderCard, settings: Mapping[str, Any]) -> Objective:
    """The objective `name` around a freshly built network of the card, its weights as constructed.

    settings: any field of the objective's options (see its module), and `epochs`, the run's length, which schedules
    counted in epochs need. The start depends on torch's generator; to begin elsewhere load weights into `.student` and
    call `.restart_teacher()`. Raises InputError for an unknown name or setting, or an architecture that does not fit.
    """
    kind = _kind(name)
    if card.volume is not None:
        raise InputError(f"encoder {card.name}: takes whole scans; objectives train encoders of slices")
    objective: Objective = kind(card, settings)
    return objective


def _kind(name: str) -> Any:
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r} is unknown; expected one of {', '.join(OBJECTIVES)}")
    module, kind = OBJECTIVES[name]
    return getattr(importlib.import_module(module), kind)
