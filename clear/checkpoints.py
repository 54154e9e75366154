"""Checkpoints: opened safely, unwrapped, loaded strictly.

Only formats that cannot run code are opened: safetensors, and PyTorch files through `weights_only=True`. A tensor that
is missing, surplus, of another shape or another kind of number is an error that names it.
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

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


class Checkpoint(dict[str, Tensor]):
    """Tensors by name, and where they come from, for messages."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        super().__init__(tensors)
        self.origin = origin


def read_tensors(path: Path, branch: Branch | None = None) -> Checkpoint:
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
            return Checkpoint(unwrap(load_file(path), branch, str(path)), str(path))
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
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: expected only tensors with names; entry {name!r} is {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise WeightsError(f"{path}: tensor {name} is {_kind(value)}; expected dense values")
    return Checkpoint(unwrap(dict(content), branch, str(path)), str(path))


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
    """Copy `tensors` into `network`, every one and nothing else, as float32; counters stay whole numbers.

    Raises WeightsError naming the first tensors that are missing, surplus, of another shape or another kind (see
    `check_kind`), and any that holds a value that is not finite.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in tensors]
    surplus = [name for name in tensors if name not in own]
    if missing or surplus:
        parts = [f"{word} {_some(names)}" for word, names in (("missing", missing), ("surplus", surplus)) if names]
        raise WeightsError(f"{origin}: does not fit this encoder: {'; '.join(parts)}")
    values = {}
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise WeightsError(
                f"{origin}: tensor {name} has shape {tuple(tensor.shape)}; expected {tuple(own[name].shape)}"
            )
        is_whole = not own[name].is_floating_point()
        try:
            check_kind(name, tensor, whole=is_whole)
        except WeightsError as error:
            raise WeightsError(f"{origin}: {error}") from None
        values[name] = tensor if is_whole else tensor.float()
        if not bool(torch.isfinite(values[name]).all()):
            raise WeightsError(f"{origin}: tensor {name} holds values that are not finite as float32")
    network.load_state_dict(values)


def check_kind(name: str, tensor: Tensor, *, whole: bool) -> None:
    """Raises WeightsError, naming the tensor, unless it holds what an encoder's does.

    Weights are dense float16, bfloat16, float32 or float64: 8-bit ones mean nothing without the scales that belong to
    them. Counters (whole) are dense integers.
    """
    wanted = WHOLE if whole else FLOATS
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in wanted:
        words = "whole numbers" if whole else ", ".join(_dtype(dtype) for dtype in FLOATS)
        raise WeightsError(f"tensor {name} is {_kind(tensor)}; expected dense {words}")


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


def _kind(tensor: Tensor) -> str:
    layout = "without values" if tensor.is_meta else "dense" if tensor.layout == torch.strided else "sparse"
    return f"{layout} {_dtype(tensor.dtype)}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _mapping(content: object, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
