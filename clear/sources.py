"""Where an encoder comes from: its card by name, and the file of its weights on this machine or the hub.

Nothing here needs torch, so that what is missing is said before anything is loaded.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from clear.card import WEIGHTS_FILE, EncoderCard, read_card
from clear.encoders import ENCODERS
from clear.errors import InputError, WeightsError

WEIGHTS_ENVIRONMENT = "CLEAR_WEIGHTS"
BUNDLED = Path(__file__).parent / "weights"
CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 10.0
# names that many authors give their files; such a file in a folder of many says nothing of whose it is
GENERIC_NAMES = frozenset(
    {"model.safetensors", WEIGHTS_FILE, "pytorch_model.bin", "model.pt", "resnet50.pt", "tiny.pth"}
)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class FoundWeights:
    """A file of weights, the card that goes with them, and one line that says what they are."""

    path: Path
    card: EncoderCard
    note: str


def find_card(name: str) -> EncoderCard:
    """A registered card by name, that of any timm model as `timm:MODEL`, or one read from a path.

    Raises InputError listing the names that exist.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    family, _, model = name.partition(":")
    if family == "timm" and model:
        from clear.backbones.timm_models import card_of

        return card_of(model)
    path = Path(name)
    if path.suffix == ".json" or path.is_dir():
        return read_card(path)
    close = get_close_matches(name, ENCODERS, n=3)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    raise InputError(
        f"--model {name}: no such encoder.{meant} Expected one of {', '.join(ENCODERS)}; timm:MODEL for any of timm's; "
        "or the path of an encoder card"
    )


def find_weights(card: EncoderCard, weights: Path | None = None) -> FoundWeights:
    """The file that holds a card's weights: `weights` if given, else $CLEAR_WEIGHTS, the package, the cache, the hub.

    $CLEAR_WEIGHTS is a folder with `NAME.safetensors` (or .pth, .pt, .bin), or with the file under its author's name
    where that name is nobody else's. The weights of a card of one's own lie beside it. Weights that come with the
    package bring a card of their own. Raises WeightsError at once when nothing is there, saying which file to fetch and
    where to put it.
    """
    if weights is not None:
        if not weights.is_file():
            raise WeightsError(f"--weights {weights}: no such file; expected a .safetensors or PyTorch checkpoint")
        return FoundWeights(weights, card, f"weights given by the user: {weights.name}")
    place = local_weights(card)
    if place is None:
        return FoundWeights(_download(card), card, card.trained_on)
    if from_package(place):
        own = as_installed(card)
        return FoundWeights(place, own, own.trained_on)
    beside = f" (from ${WEIGHTS_ENVIRONMENT})" if _given_folder() in place.parents else ""
    return FoundWeights(place, card, f"{card.trained_on}{beside}")


def local_weights(card: EncoderCard) -> Path | None:
    """Where a card's weights are on this machine, without the network; None when they are not."""
    source = card.source
    if source.kind == "file":
        return Path(source.place) if Path(source.place).is_file() else None
    if (folder := _given_folder()) is not None:
        for name in _names_in_folder(card):
            if (place := folder / name).is_file():
                return place
    if source.kind == "bundled":
        place = BUNDLED / source.place / source.file
        return place if place.is_file() else None
    if source.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        repository, kind = _repository(source.place)
        cached = try_to_load_from_cache(repository, source.file, repo_type=kind)
        return Path(cached) if isinstance(cached, str) else None
    return None


def from_package(place: Path | None) -> bool:
    """Whether this file of weights is one that comes with the package."""
    return place is not None and BUNDLED in place.parents


def as_installed(card: EncoderCard) -> EncoderCard:
    """The card that `--model NAME` means here: that of the package's own weights where nothing stands before them."""
    place = local_weights(card)
    return replace(read_card(place.parent), name=card.name) if place and from_package(place) else card


def _names_in_folder(card: EncoderCard) -> list[str]:
    own = card.name.replace("/", "_").replace(":", "_")
    authors = Path(card.source.file).name
    return [
        *(f"{own}{ending}" for ending in (".safetensors", ".pth", ".pt", ".bin")),
        *([authors] if authors.lower() not in GENERIC_NAMES else []),
    ]


def _given_folder() -> Path | None:
    folder = os.environ.get(WEIGHTS_ENVIRONMENT)
    return Path(folder) if folder else None


def _repository(place: str) -> tuple[str, str]:
    """A repository id and its kind; weights in a data set's repository are written `datasets/OWNER/NAME`."""
    is_data = place.startswith("datasets/")
    return place.removeprefix("datasets/"), "dataset" if is_data else "model"


def _download(card: EncoderCard) -> Path:
    """The file of the hub; whatever stands in the way, the answer says how to get it by hand."""
    source = card.source
    if source.kind in ("bundled", "file"):
        raise WeightsError(f"encoder {card.name}: its weights {source.file} are missing at {source.place}")
    names = _names_in_folder(card)
    if source.kind == "none":
        raise WeightsError(
            f"encoder {card.name}: its authors have published no weights that can be fetched. {source.place} "
            f"Pass a checkpoint with --weights FILE, or put it as {names[0]} into the folder that "
            f"${WEIGHTS_ENVIRONMENT} names"
        )
    page = f"https://huggingface.co/{source.place}"
    size = f" ({source.size_mb:.0f} MB)" if source.size_mb else ""
    gate = f"Accept its licence at {page} first. " if source.gated else ""
    own_name = f" (or under its own name, {names[-1]})" if len(names) > 4 else ""
    help_text = (
        f"encoder {card.name}: its weights are not on this machine and could not be fetched. {gate}"
        f"Fetch {source.file}{size} from {page} and pass it with --weights, "
        f"or put it as {names[0]}{own_name} into the folder that ${WEIGHTS_ENVIRONMENT} names. "
        f"Licence: {card.licence or 'see there'}"
    )
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline or not _hub_answers(source.place, source.file):
        raise WeightsError(help_text)
    from huggingface_hub import hf_hub_download

    repository, kind = _repository(source.place)
    try:
        return Path(hf_hub_download(repository, source.file, repo_type=kind, etag_timeout=ANSWER_TIMEOUT_S))
    except Exception as error:  # the client raises many kinds; each means the same to the user
        raise WeightsError(help_text) from error


def _hub_answers(place: str, file: str) -> bool:
    """Whether the hub says anything of this file within seconds; its client alone would try for minutes.

    First a bare connection (not behind a proxy, where only the client knows the way), then the file's header.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if not any(os.environ.get(name) for name in proxies):
        address = urlsplit(constants.ENDPOINT)
        host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)

        def connect() -> bool:
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
            return True

        if not _within(CONNECT_TIMEOUT_S, connect):
            return False
    repository, kind = _repository(place)
    url = hf_hub_url(repository, file, repo_type=kind)
    return _within(ANSWER_TIMEOUT_S, lambda: get_hf_file_metadata(url, timeout=ANSWER_TIMEOUT_S)) is not None


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer | None:
    """What `ask` gives within so many seconds, else None: when it fails, too. Names are looked up without a limit,
    and some clients try again and again, so it runs in a thread that is left behind."""
    answers: list[Answer] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception:  # no answer is an answer here, whatever the reason
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
