"""Objectives of pretraining, by name: `moco-v3`, `lecl`, `dino`, `dinov2`.

Each is one module that subclasses `objective.Objective`; the loop knows only that protocol. What several share has a
module of its own: heads, centring, masks, tokens, the KoLeo term.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clear.errors import InputError

if TYPE_CHECKING:
    from clear.card import EncoderCard
    from pretrain.objectives.objective import Objective

OBJECTIVES = {
    "moco-v3": ("pretrain.objectives.moco_v3", "MocoV3"),
    "lecl": ("pretrain.objectives.lecl", "Lecl"),
    "dino": ("pretrain.objectives.dino", "Dino"),
    "dinov2": ("pretrain.objectives.dinov2", "DinoV2"),
}


def build_objective(name: str, card: EncoderCard, settings: Mapping[str, Any]) -> Objective:
    """The objective `name` around a freshly built network of the card, its weights as constructed.

    settings: any field of the objective's options (see its module), and `epochs`, the run's length, which schedules
    counted in epochs need. The start depends on torch's generator; to begin elsewhere load weights into `.student` and
    call `.restart_teacher()`. Raises InputError for an unknown name or setting, or an architecture that does not fit.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r} is unknown; expected one of {', '.join(OBJECTIVES)}")
    if card.volume is not None:
        raise InputError(f"encoder {card.name}: takes whole scans; objectives train encoders of slices")
    module, kind = OBJECTIVES[name]
    objective: Objective = getattr(importlib.import_module(module), kind)(card, settings)
    return objective
