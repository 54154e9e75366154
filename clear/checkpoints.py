"""Weights: found on this machine or the hub, opened safely, loaded strictly.

Only formats that cannot run code are opened: safetensors, and PyTorch files through `weights_only=True`. A tensor that
is missing, surplus or of another shape is an error that names it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from clear.errors import WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

WEIGHTS_ENVIRONMENT = "CLEAR_WEIGHTS"
HUB_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 1.0
BUNDLED = Path(__file__).parent / "weights"


Branch = Literal["base", "momentum", "student", "teacher"]


@dataclass(frozen=True)
class FoundWeights:
    """A file of weights, the card that goes with them, and one line that says what they are."""

    path: Path
    card: EncoderCard
    note: str


def find_weights(card: EncoderCard, weights: Path | None = None) -> FoundWeights:
    """The file that holds a card's weights: `weights` if given, else $CLEAR_WEIGHTS, the package, the cache, the hub.

    $CLEAR_WEIGHTS is a folder with `NAME.safetensors`, or the file under its author's name. Weights that come with the
    package bring a card of their own. Raises WeightsError at once when nothing is there, saying which file to fetch and
    where to put it.
    """
    if weights is not None:
        if not weights.is_file():
            raise WeightsError(f"--weights {weights}: no such file; expected a .safetensors or PyTorch checkpoint")
        return FoundWeights(weights, card, f"weights given by the user: {weights.name}")
    place = local_weights(card)
    if place is not None and card.source.kind == "bundled" and place.parent == BUNDLED / card.source.place:
        from clear.card import read_card

        own = replace(read_card(place.parent), name=card.name)
        return FoundWeights(place, own, own.trained_on)
    if place is not None:
        beside = f" (from ${WEIGHTS_ENVIRONMENT})" if _given_folder() in place.parents else ""
        return FoundWeights(place, card, f"{card.trained_on}{beside}")
    return FoundWeights(_download(card), card, card.trained_on)


def local_weights(card: EncoderCard) -> Path | None:
    """Where a card's weights are on this machine, without the network; None when they are not."""
    source = card.source
    if (folder := _given_folder()) is not None:
        for name in (f"{_file_name(card)}.safetensors", source.file):
            if (place := folder / name).is_file():
                return place
    if source.kind == "bundled":
        place = BUNDLED / source.place / source.file
        return place if place.is_file() else None
    if source.kind == "file":
        return Path(source.place) if Path(source.place).is_file() else None
    if source.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        repository, kind = _repository(source.place)
        cached = try_to_load_from_cache(repository, source.file, repo_type=kind)
        return Path(cached) if isinstance(cached, str) else None
    place = torch_cache() / source.file
    return place if source.kind == "url" and place.is_file() else None


def torch_cache() -> Path:
    """Where torch.hub keeps files fetched by address."""
    return Path(torch.hub.get_dir()) / "checkpoints"


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


def _mapping(content: object, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _repository(place: str) -> tuple[str, str]:
    """A repository id and its kind; weights in a data set's repository are written `datasets/OWNER/NAME`."""
    is_data = place.startswith("datasets/")
    return place.removeprefix("datasets/"), "dataset" if is_data else "model"


def _given_folder() -> Path | None:
    folder = os.environ.get(WEIGHTS_ENVIRONMENT)
    return Path(folder) if folder else None


def _file_name(card: EncoderCard) -> str:
    return card.name.replace("/", "_").replace(":", "_")


def _download(card: EncoderCard) -> Path:
    """The file of the hub or of an address; whatever stands in the way, the answer says how to get it by hand."""
    source = card.source
    if source.kind in ("bundled", "file"):
        raise WeightsError(f"encoder {card.name}: its weights {source.file} are missing at {source.place}")
    if source.kind == "none":
        raise WeightsError(
            f"encoder {card.name}: its authors have published no weights. {source.place} "
            f"Pass a checkpoint with --weights FILE, or put it as {_file_name(card)}.safetensors into the folder that "
            f"${WEIGHTS_ENVIRONMENT} names"
        )
    page = f"https://huggingface.co/{source.place}" if source.kind == "hub" else source.place
    size = f" ({source.size_mb:.0f} MB)" if source.size_mb else ""
    gate = f"Accept its licence at {page} first. " if source.gated else ""
    help_text = (
        f"encoder {card.name}: its weights are not on this machine and could not be fetched. {gate}"
        f"Fetch {source.file}{size} from {page} and pass it with --weights, "
        f"or put it as {_file_name(card)}.safetensors into the folder that ${WEIGHTS_ENVIRONMENT} names "
        f"(a file under its own name, {Path(source.file).name}, is found there too). "
        f"Licence: {card.licence or 'see there'}"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") or not _reachable(page):
        raise WeightsError(help_text)
    try:
        if source.kind == "hub":
            from huggingface_hub import hf_hub_download

            repository, kind = _repository(source.place)
            return Path(hf_hub_download(repository, source.file, repo_type=kind, etag_timeout=HUB_TIMEOUT_S))
        target = torch_cache() / source.file
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(source.place, str(target))  # writes aside, then renames
        return target
    except Exception as error:  # the clients raise many kinds; each means the same to the user
        raise WeightsError(help_text) from error


def _reachable(page: str) -> bool:
    """Whether the page's host takes a connection within a moment: the hub's own client tries for minutes.

    In a thread, because looking up a name knows no time limit. Behind a proxy or a mirror only the client can tell.
    """
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT")):
        return True
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((urlsplit(page).hostname or "", 443), timeout=CONNECT_TIMEOUT_S).close()
        except OSError:
            return
        answers.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    return bool(answers)
