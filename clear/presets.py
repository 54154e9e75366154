"""Training presets: how a fold is trained, as plain data, because a run must be able to say which one it used.

`paper` holds the settings of the CLEAR paper (Ligero, Lenz et al., MICCAI 2025) and its released configuration: AdamW,
learning rate 1e-4 kept constant, batches of 128 scans, at most 32 epochs, patience 8, dropout 0.5. Its class weights
are the training fold's negatives over positives (the released code has this ratio upside down). Where 32 epochs make
fewer than 500 steps (below about 2,000 training scans) they would end a fit before it has learnt anything; there batch
and epochs adapt as in `adaptive`.

`adaptive` is for cohorts of any size: learning rate 3e-4, and where the cohort is too small for the paper's batch and
epochs a smaller batch and more of them, so that at least 500 optimiser steps are made before early stopping can end a
fit; it weighs no class, so that its scores stay probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from clear.errors import InputError


@dataclass(frozen=True)
class Preset:
    """How a fold is trained; what a run records under `training`.

    batch: scans a step. epochs: at most this many. patience: epochs without a better inner loss before stopping.
    min_steps: optimiser steps before stopping may fire; 0 takes batch and epochs as they are, otherwise both adapt.
    only_if_short: they adapt only where `epochs` epochs would not make `min_steps` steps.
    inner_fraction: share of the training patients held back for early stopping.
    class_weights: `none`, or `balanced` (negatives over positives, respectively n / (classes x n of the class)).
    standardise: features to mean 0 and sd 1 with the training patients' statistics, kept in the model.
    """

    name: str
    lr: float = 1e-4
    weight_decay: float = 1e-2
    batch: int = 128
    epochs: int = 32
    patience: int = 8
    min_steps: int = 0
    only_if_short: bool = False
    inner_fraction: float = 0.2
    dropout: float = 0.5
    class_weights: Literal["none", "balanced"] = "none"
    standardise: bool = True

    def __post_init__(self) -> None:
        for name in ("lr", "batch", "epochs", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"training preset {self.name}: {name} is {getattr(self, name)}; expected above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"training preset {self.name}: dropout is {self.dropout}; expected 0 or more, below 1")
        if not 0 < self.inner_fraction < 1:
            raise InputError(f"training preset {self.name}: inner_fraction is {self.inner_fraction}; expected 0..1")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def with_changes(self, **changes: Any) -> Preset:
        """The same preset with what is not None replaced, and `+changed` in its name when anything was."""
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self, name=f"{self.name}+changed", **given) if given else self


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset("paper", min_steps=500, only_if_short=True, class_weights="balanced"),
        "adaptive": Preset("adaptive", lr=3e-4, min_steps=500),
    }
)
