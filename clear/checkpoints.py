"""Weights: found on this machine or the hub, opened safely, loaded strictly.

Only formats that cannot run code are opened: safetensors, and PyTorch files through `weights_only=True`. A tensor that
is missing, surplus or of another shape is an error that names it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clear.errors import WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

WEIGHTS_ENVIRONMENT = "CLEAR_WEIGHTS"
HUB_TIMEOUT_S = 10


@dataclass(frozen=True)
class FoundWeights:
    """A file of weights and one line that says what they are."""

    path: Path
    note: str


def find_weights(card: EncoderCard, weights: Path | None = None) -> FoundWeights:
    """The file that holds a card's weights: `weights` if given, else $CLEAR_WEIGHTS, the package, the cache, the hub.

    $CLEAR_WEIGHTS is a folder with `NAME.safetensors`. Raises WeightsError at once when nothing is there, saying which
    file to fetch and where to put it.
    """
    if weights is not None:
        if not weights.is_file():
            raise WeightsError(f"--weights {weights}: no such file; expected a .safetensors or PyTorch checkpoint")
        return FoundWeights(weights, f"weights given by the user: {weights.name}")
    folder = os.environ.get(WEIGHTS_ENVIRONMENT)
    if folder and (local := Path(folder) / f"{card.name}.safetensors").is_file():
        return FoundWeights(local, f"{card.trained_on} (from ${WEIGHTS_ENVIRONMENT})")
    note = card.trained_on
    source = card.source
    if source.kind == "hub":
        return FoundWeights(_from_hub(card), note)
    place = (
        Path(__file__).parent / "weights" / source.place / source.file
        if source.kind == "bundled"
        else Path(source.place)
    )
    if not place.is_file():
        raise WeightsError(f"encoder {card.name}: its weights {place.name} are missing at {place}")
    return FoundWeights(place, note)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, with their stored dtypes.

    Reads safetensors, and PyTorch files that hold a state dict, bare or under `state_dict`, `model` or `teacher`.
    Raises WeightsError when the file is neither, is damaged, or would need code to be run.
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
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path}: damaged safetensors file; fetch it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpicklers do; all of it means: not loadable safely
        raise WeightsError(
            f"{path}: expected safetensors or a PyTorch file of plain tensors; found something that cannot be opened "
            "without running code, or is damaged. Convert it to safetensors first"
        ) from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected a state dict; found {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content):
        odd = next(name for name, value in content.items() if not isinstance(value, Tensor))
        raise WeightsError(f"{path}: expected only tensors; entry {odd!r} is none")
    return tensors


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
    """sha256 over names, shapes and values of all tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _from_hub(card: EncoderCard) -> Path:
    """The hub's file, from the local cache if it is there, else downloaded."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    source = card.source
    cached = try_to_load_from_cache(source.place, source.file)
    if isinstance(cached, str):
        return Path(cached)
    size = f" ({source.size_mb:.0f} MB)" if source.size_mb else ""
    help_text = (
        f"encoder {card.name}: its weights are not on this machine and the hub did not give them. "
        f"Fetch {source.file}{size} from https://huggingface.co/{source.place} and pass it with --weights, "
        f"or put it as {card.name}.safetensors into the folder that ${WEIGHTS_ENVIRONMENT} names. "
        f"Licence: {card.licence or 'see there'}"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise WeightsError(help_text)
    try:
        return Path(hf_hub_download(source.place, source.file, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # the hub's client raises many kinds; each means the same to the user
        raise WeightsError(help_text) from error
