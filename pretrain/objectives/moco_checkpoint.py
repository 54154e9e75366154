"""An objective's tensors under the names that MoCo v3's and CLEAR's training scripts write.

`module.base_encoder.` is the trained encoder with its projector in place of the classifier, `module.momentum_encoder.`
its teacher, `module.predictor.` the predictor. `clear models convert` reads such a file, and so do the authors'
scripts. The objective's own state dict is another one: it has the encoder by itself, under the names that the encoder
card's file has, which is what an export and a resumed run need.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from clear.errors import InputError
from pretrain.objectives.moco_v3 import MocoV3

_MAMBAOUT = (  # timm's names to yuweihao/MambaOut's
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^head\.norm\.", "norm."),
)


def published_state(objective: MocoV3) -> dict[str, Tensor]:
    """The state dict as a distributed run of the published scripts names it.

    Raises InputError for an encoder whose own tensors are where the scripts put the projector.
    """
    branches = (
        ("base_encoder", objective.student, objective.projector),
        ("momentum_encoder", objective.teacher, objective.teacher_projector),
    )
    state: dict[str, Tensor] = {}
    for branch, encoder, projector in branches:
        own = _official(encoder)
        place = "classifier.head." if any(name.startswith("classifier.") for name in own) else "head."
        if taken := next((name for name in own if name.startswith(place)), None):
            raise InputError(f"{type(encoder).__name__}: its {taken} stands where MoCo checkpoints have the projector")
        state |= {f"module.{branch}.{name}": tensor for name, tensor in own.items()}
        state |= {f"module.{branch}.{place}{name}": tensor for name, tensor in projector.state_dict().items()}
    return state | {f"module.predictor.{name}": tensor for name, tensor in objective.predictor.state_dict().items()}


def write_checkpoint(objective: MocoV3, path: Path, *, epoch: int, arch: str) -> None:
    """A file as the published scripts write it, without the optimiser: epoch, arch, state_dict."""
    torch.save({"epoch": epoch, "arch": arch, "state_dict": published_state(objective)}, path)


def _official(encoder: nn.Module) -> dict[str, Tensor]:
    """An encoder's tensors under its authors' names."""
    own = {name.removeprefix("network."): tensor for name, tensor in encoder.state_dict().items()}
    if "stem.conv1.weight" not in own or "head.norm.weight" not in own:
        return own
    out = {}
    for name, tensor in own.items():
        for pattern, replacement in _MAMBAOUT:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out
