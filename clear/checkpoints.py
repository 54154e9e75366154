"""Checkpoints: opened safely, unwrapped, loaded strictly.

Only formats that cannot run code are opened: safetensors, and PyTorch files through `weights_only=True`. A tensor that
is missing, surplus or of another shape is an error that names it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from clear.errors import WeightsError

Branch = Literal["base", "momentum", "student", "teacher"]


def read_tensors(path: Path, branch: Branch | None = None) -> dict[str, Tensor]:
    """The image encoder's tensors of a checkpoint by name, on the CPU, with their stored dtypes.

    Reads safetensors, and PyTorch files that hold a state dict, bare or under `state_dict`, `model`, `teacher` or
    `student`. What training wraps around an encoder goes: see `unwrap`. branch: which of two copies, see there.
    Raises WeightsError when the file is neither, is damaged, would need code to be run, or has no such branch.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as stream:
            head = stream.read(10)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if head[8:10] in (b'{"', b"{ "):
        try:
            return unwrap(load_file(path), branch, str(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path}: damaged safetensors file; fetch it again") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO's files hold their arguments in one
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpicklers do; all of it means: not loadable safely
        raise WeightsError(
            f"{path}: expected safetensors or a PyTorch file of plain tensors; found something that cannot be opened "
            "without running code, or is damaged. Convert it to safetensors first"
        ) from error
    copies = [key for key in ("teacher", "student") if _mapping(content, key)]
    if copies:
        wanted = "teacher" if branch is None else branch
        if wanted not in copies:
            raise WeightsError(f"{path}: has no {wanted}; expected one of {', '.join(copies)}")
        content, branch = content[wanted], None
    for key in ("state_dict", "model"):
        if _mapping(content, key):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected a state dict; found {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content):
        odd = next(name for name, value in content.items() if not isinstance(value, Tensor))
        raise WeightsError(f"{path}: expected only tensors; entry {odd!r} is none")
    return unwrap(tensors, branch, str(path))


def unwrap(tensors: Mapping[str, Tensor], branch: Branch | None, origin: str) -> dict[str, Tensor]:
    """Tensors without what training put around the encoder.

    `module.` (DistributedDataParallel) and `_orig_mod.` (torch.compile) in front of every name go. Of MoCo v3 and CLEAR
    checkpoints one encoder stays, `base` (the trained one, without asking) or `momentum` (its moving average), without
    its projector and the predictor; of DINO's the `backbone.`, without its heads. Raises WeightsError for a branch
    that is not there.
    """
    out = dict(tensors)
    for prefix in ("module.", "_orig_mod."):
        if out and all(name.startswith(prefix) for name in out):
            out = {name.removeprefix(prefix): tensor for name, tensor in out.items()}
    encoders = [word for word in ("base", "momentum") if any(name.startswith(f"{word}_encoder.") for name in out)]
    if encoders:
        wanted = encoders[0] if branch is None else branch
        if wanted not in encoders:
            raise WeightsError(f"{origin}: has no {wanted} encoder; expected one of {', '.join(encoders)}")
        known = ("base_encoder.", "momentum_encoder.", "predictor.")
        surplus = [name for name in out if not name.startswith(known)]
        if surplus:
            raise WeightsError(f"{origin}: a MoCo checkpoint with tensors of no known part: {_some(surplus)}")
        prefix = f"{wanted}_encoder."
        chosen = {n.removeprefix(prefix): tensor for n, tensor in out.items() if n.startswith(prefix)}
        projector = ("head.", "classifier.head.")  # of ViT and MambaOut, and of VMamba
        return {name: tensor for name, tensor in chosen.items() if not name.startswith(projector)}
    if branch is not None:
        raise WeightsError(f"{origin}: holds one encoder only; leave out the branch {branch!r}")
    if any(name.startswith("backbone.") for name in out) and all(
        name.startswith(("backbone.", "head.", "dino_head.", "ibot_head.")) for name in out
    ):
        return {n.removeprefix("backbone."): tensor for n, tensor in out.items() if n.startswith("backbone.")}
    return out


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy `tensors` into `network`, every one and nothing else, as float32.

    Raises WeightsError naming the first tensors that are missing, surplus or of another shape, and any that holds a
    value that is not finite.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in tensors]
    surplus = [name for name in tensors if name not in own]
    if missing or surplus:
        parts = [f"{word} {_some(names)}" for word, names in (("missing", missing), ("surplus", surplus)) if names]
        raise WeightsError(f"{origin}: does not fit this encoder: {'; '.join(parts)}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise WeightsError(
                f"{origin}: tensor {name} has shape {tuple(tensor.shape)}; expected {tuple(own[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{origin}: tensor {name} holds values that are not finite")
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})


def digest_of(network: nn.Module) -> str:
    """sha256 over names, shapes and values of all tensors, in the order of their names.

    BatchNorm's count of batches is left out: it says how long a training was and moves nothing.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        array = tensor.detach().cpu().contiguous().numpy()
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _mapping(content: object, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
