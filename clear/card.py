"""Encoder cards: everything that decides what an encoder's embeddings are, as plain data.

A card names the architecture, how a slice is prepared for it, how its output becomes one embedding, where its weights
come from and on what terms. The built-in ones are in `clear.encoders`; a folder with `card.json` and
`weights.safetensors` is one of a user's own, as `clear pretrain` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from clear.errors import InputError

CARD_FORMAT = "clear-encoder-card"
CARD_VERSION = 1
CARD_FILE = "card.json"
WEIGHTS_FILE = "weights.safetensors"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

Pooling = Literal["mean_norm", "class_token", "mean"]
Resize = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class WeightSource:
    """Where an encoder's weights are found.

    kind `bundled`: `place` is a folder in this package; `hub`: a Hugging Face repository id, with `file` inside it;
    `file`: a path. size_mb is what a download weighs; verified says whether we have seen the file itself.
    """

    kind: Literal["bundled", "hub", "file"]
    place: str
    file: str = "model.safetensors"
    size_mb: float | None = None
    verified: bool = False


@dataclass(frozen=True)
class EncoderCard:
    """One frozen slice encoder.

    architecture: `library:model`, built with `settings`.
    dim: d, length of an embedding; input_size: side of the square input in pixels; channels: 1 grey, or 3 equal ones.
    mean, std: per channel, of values in [0, 1]; resize: filter of the antialiased resize.
    field_of_view_mm: side of the square cut from the slice's centre; None for the whole slice.
    pooling: `mean_norm` (final norm of the spatial mean), `class_token` (after the final norm), `mean`.
    positions: how position embeddings reach another input size, `native` where they need not.
    bfloat16: whether embeddings in bfloat16 stay within 5 % of float32 once a scan's mean is gone; else it is refused.
    ignored: prefixes of checkpoint tensors that are no part of the encoder (its classifier).
    windows, modalities, planes: what it was trained for; empty for anything.
    trained_on: one line that every output repeats.
    """

    name: str
    architecture: str
    dim: int
    source: WeightSource
    trained_on: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    input_size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: Resize = "bicubic"
    field_of_view_mm: float | None = None
    pooling: Pooling = "class_token"
    positions: Literal["native", "dinov2"] = "native"
    bfloat16: bool = True
    ignored: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    planes: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or not len(self.mean) == len(self.std) == self.channels:
            raise InputError(
                f"encoder {self.name}: expected 1 or 3 channels with a mean and a std each; "
                f"found {self.channels} channels, mean {self.mean}, std {self.std}"
            )
        if self.dim < 1 or self.input_size < 1 or min(self.std) <= 0:
            raise InputError(f"encoder {self.name}: dim, input_size and std must be positive")
        for name, value, allowed in (
            ("pooling", self.pooling, Pooling),
            ("resize", self.resize, Resize),
            ("positions", self.positions, Literal["native", "dinov2"]),
        ):
            if value not in allowed.__args__:  # type: ignore[attr-defined]  # typing.Literal has it
                raise InputError(
                    f"encoder {self.name}: {name} is {value!r}; expected one of {', '.join(allowed.__args__)}"  # type: ignore[attr-defined]
                )

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens to a slice before and after the network, beside the windows."""
        return {
            "input_size": self.input_size,
            "resize": self.resize,
            "antialias": True,
            "field_of_view_mm": self.field_of_view_mm,
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def digest(self, weights_digest: str) -> str:
        """sha256 of what makes features comparable: weights, pooling, positions and preprocessing."""
        identity = {
            "weights": weights_digest,
            "architecture": self.architecture,
            "settings": dict(self.settings),
            "pooling": self.pooling,
            "positions": self.positions,
            **self.preprocessing,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the format's name and version."""
        return {"format": CARD_FORMAT, "version": CARD_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: str = "card") -> EncoderCard:
        """The inverse of `as_dict`. Raises InputError naming `origin` and the field that is wrong."""
        if data.get("format") != CARD_FORMAT:
            raise InputError(
                f'{origin}: expected an encoder card ("format": "{CARD_FORMAT}"); found {data.get("format")!r}'
            )
        if data.get("version") != CARD_VERSION:
            raise InputError(f"{origin}: card version {data.get('version')}; this clear reads version {CARD_VERSION}")
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in data.items() if key not in ("format", "version")}
        if surplus := sorted(set(values) - known):
            raise InputError(f"{origin}: unknown field(s) {', '.join(surplus)}; expected {', '.join(sorted(known))}")
        try:
            values["source"] = WeightSource(**values["source"])
            for name in ("mean", "std", "ignored", "windows", "modalities", "planes"):
                if name in values:
                    values[name] = tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InputError(f"{origin}: a field is missing or of the wrong kind ({error})") from error


def read_card(path: Path) -> EncoderCard:
    """The card at `path` (a card.json, or a folder that holds one); its weights are the file beside it.

    Raises InputError when there is none or it does not parse.
    """
    file = path / CARD_FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no encoder card here; expected a {CARD_FILE} beside {WEIGHTS_FILE}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: not a readable encoder card ({type(error).__name__}); expected JSON") from error
    if not isinstance(data, dict):
        raise InputError(f"{file}: expected a JSON object; found {type(data).__name__}")
    card = EncoderCard.from_dict(data, str(file))
    return replace(card, source=WeightSource("file", str(file.parent / WEIGHTS_FILE), WEIGHTS_FILE))


def write_card(card: EncoderCard, folder: Path) -> Path:
    """`folder/card.json`, whose weights are expected beside it; written aside, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    portable = replace(card, source=WeightSource("file", WEIGHTS_FILE, WEIGHTS_FILE))
    target = folder / CARD_FILE
    aside = folder / f".{CARD_FILE}.tmp"
    aside.write_text(json.dumps(portable.as_dict(), indent=2) + "\n", encoding="utf-8")
    aside.replace(target)
    return target
