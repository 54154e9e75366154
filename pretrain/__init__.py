"""Slices to encoders.

`build` puts the slices of scans into a store (`store`): int16 HU, lesion boxes, each slice readable alone. `batches`
draws views of them (`views`, `crops`, `intensity`, `augmentation`), `objectives` says what a student must learn from
them, and `engine` settles settings, weights and the run folder and runs the `loop`: steps of the optimiser, in
micro-batches where memory is short (`accumulate`), in one process or many (`processes`, `distributed`), with a
checkpoint after every epoch, a watch for `collapse`, and a `judge` that scores the encoder on a labelled set. What
comes out is an encoder card, `card.json` beside `weights.safetensors`, which `clear extract --model` takes as it is
(`card_export`). `initialise` makes the reproducible random start that untrained baselines are measured against.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# looked up on first use: looking at a store needs no torch
_PLACES = {
    "BuildResult": "pretrain.build",
    "PretrainResult": "pretrain.engine",
    "PretrainSettings": "pretrain.settings",
    "SliceStore": "pretrain.store",
    "build_slices": "pretrain.build",
    "pretrain": "pretrain.engine",
}
__all__ = ["BuildResult", "PretrainResult", "PretrainSettings", "SliceStore", "build_slices", "pretrain"]

if TYPE_CHECKING:
    from pretrain.build import BuildResult, build_slices
    from pretrain.engine import PretrainResult, pretrain
    from pretrain.settings import PretrainSettings
    from pretrain.store import SliceStore


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
