"""Where an encoder comes from: its card by name, and the file of its weights on this machine or the hub.

Nothing here needs torch, so that what is missing is said before anything is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from clear.card import WEIGHTS_FILE, EncoderCard, WeightSource, card_beside, read_card
from clear.encoders import ENCODERS
from clear.errors import InputError, WeightsError
from clear.hub import HubError, cached, fetch, place_of_timm, silence

WEIGHTS_ENVIRONMENT = "CLEAR_WEIGHTS"
BUNDLED = Path(__file__).parent / "weights"
# names that many authors give their files; such a file in a folder of many says nothing of whose it is
GENERIC_NAMES = frozenset(
    {"model.safetensors", WEIGHTS_FILE, "pytorch_model.bin", "model.pt", "resnet50.pt", "tiny.pth"}
)


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


def expect_weights(name: str, weights: Path | None = None) -> None:
    """Raise WeightsError where a name alone says that its weights cannot be had; to be asked before `find_card`.

    The card of a timm model needs torch and timm, which take seconds to load, and absence shall be said at once. Of
    all others, and of those that can be had, `find_weights` has the word.
    """
    family, _, model = name.partition(":")
    if weights is not None or family != "timm" or (place := place_of_timm(model)) is None:
        return
    source, terms = WeightSource("hub", place), "see its page on the hub"
    card = EncoderCard(name=name, architecture=name, dim=1, source=source, trained_on="", licence=terms)
    if local_weights(card) is None and (why := silence()):
        raise _absent(card, why)


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
        described = f"weights given by the user: {weights.name}"
        if (known := card_beside(weights)) is not None:  # whom they have seen is known, whatever they are loaded as
            return FoundWeights(weights, replace(card, training=known.training), f"{described}, {known.trained_on}")
        return FoundWeights(weights, card, described)
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
        return cached(source.place, source.file)
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
        *([authors] if authors and authors.lower() not in GENERIC_NAMES else []),
    ]


def _given_folder() -> Path | None:
    """The folder that $CLEAR_WEIGHTS names. Raises InputError where there is none: a typo would go unseen."""
    named = os.environ.get(WEIGHTS_ENVIRONMENT)
    if not named:
        return None
    if not Path(named).is_dir():
        raise InputError(f"${WEIGHTS_ENVIRONMENT} is {named}: no such folder. Correct it, or unset it")
    return Path(named)


def _download(card: EncoderCard) -> Path:
    """The file of the hub; whatever stands in the way, the answer says how to get it by hand."""
    if card.source.kind != "hub":
        raise _absent(card)
    try:
        return fetch(card.source.place, card.source.file)
    except HubError as error:
        raise _absent(card, str(error)) from error


def _absent(card: EncoderCard, why: str = "") -> WeightsError:
    """What is missing, and what to do; why: what the hub, or the way to it, had to say."""
    source = card.source
    if source.kind in ("bundled", "file"):
        return WeightsError(f"encoder {card.name}: its weights {source.file} are missing at {source.place}")
    names = _names_in_folder(card)
    own_name = f" (or under its own name, {names[-1]})" if len(names) > 4 else ""
    put = f"put it as {names[0]}{own_name} into the folder that ${WEIGHTS_ENVIRONMENT} names"
    if source.kind == "none":
        return WeightsError(
            f"encoder {card.name}: its authors have published no weights that can be fetched. {source.place} "
            f"Pass a checkpoint with --weights FILE, or {put}"
        )
    size = f" ({source.size_mb:.0f} MB)" if source.size_mb else ""
    terms = f"Licence: {card.licence or 'see there'}"
    if source.kind == "elsewhere":
        return WeightsError(
            f"encoder {card.name}: its weights are not on this machine, and its authors publish them where clear "
            f"cannot fetch them. Open {source.place}, fetch {source.file or 'the file that it links'}{size} and pass "
            f"it with --weights, or {put}. {terms}"
        )
    page = f"https://huggingface.co/{source.place}"
    gate = f"Accept its licence at {page} first. " if source.gated else ""
    return WeightsError(
        f"encoder {card.name}: its weights are not on this machine and could not be fetched ({why}). {gate}"
        f"Fetch {source.file}{size} from {page} and pass it with --weights, or {put}. {terms}"
    )
