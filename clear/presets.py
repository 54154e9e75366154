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

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
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
    sampling: `none`, every training bag once an epoch; or `balanced`, as many bags drawn with replacement, rare classes
        more often (`aggregate.targets.Targets.balanced_chances`). Not together with class weights: each alone evens
        the classes out, both would turn the imbalance round.
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
    sampling: Literal["none", "balanced"] = "none"
    standardise: bool = True

    def __post_init__(self) -> None:
        for name, good, what in (
            ("lr", _number(self.lr) and self.lr > 0, "a number above 0"),
            ("weight_decay", _number(self.weight_decay) and self.weight_decay >= 0, "a number, 0 or more"),
            ("dropout", _number(self.dropout) and 0 <= self.dropout < 1, "a number from 0 to below 1"),
            (
                "inner_fraction",
                _number(self.inner_fraction) and 0 < self.inner_fraction < 1,
                "a number between 0 and 1",
            ),
            ("batch", _whole(self.batch) and self.batch > 0, "a whole number above 0"),
            ("epochs", _whole(self.epochs) and self.epochs > 0, "a whole number above 0"),
            ("patience", _whole(self.patience) and self.patience > 0, "a whole number above 0"),
            ("min_steps", _whole(self.min_steps) and self.min_steps >= 0, "a whole number, 0 or more"),
            ("only_if_short", isinstance(self.only_if_short, bool), "true or false"),
            ("standardise", isinstance(self.standardise, bool), "true or false"),
            ("class_weights", self.class_weights in ("none", "balanced"), "none or balanced"),
            ("sampling", self.sampling in ("none", "balanced"), "none or balanced"),
        ):
            if not good:
                found = reprlib.repr(getattr(self, name))
                raise InputError(f"training preset {self.name}: {name} is {found}; expected {what}")
        if self.class_weights == self.sampling == "balanced":
            raise InputError(
                f"training preset {self.name}: class_weights and sampling are both balanced, and each alone evens the "
                "classes out; set one of them to none"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def with_changes(self, **changes: Any) -> Preset:
        """The same preset with what is not None replaced, and `+changed` in its name when anything was."""
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self, name=f"{self.name}+changed", **given) if given else self


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# what nested-cv may try; the inner share is not of them, because the outer folds are dealt with it
GRID_NAMES = ("aggregator", *(each.name for each in fields(Preset) if each.name not in ("name", "inner_fraction")))
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset("paper", min_steps=500, only_if_short=True, class_weights="balanced"),
        "adaptive": Preset("adaptive", lr=3e-4, min_steps=500),
    }
)
