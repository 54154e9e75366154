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

from clear.card_limits import (
    MAX_CARD_BYTES,
    MAX_DIM,
    MAX_FIELD_MM,
    MAX_INPUT_SIZE,
    MAX_VALUE,
    MIN_STD,
    is_number,
    is_plain,
    shown,
    wrong_setting,
)
from clear.errors import InputError
from clear.training_record import TrainingRecord
from clear.volume import AIR_HU
from clear.volume_input import VolumeInput
from clear.windows import Window, check_windows

CARD_FORMAT = "clear-encoder-card"
CARD_VERSION = 1
CARD_FILE = "card.json"
WEIGHTS_FILE = "weights.safetensors"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

MAX_HU = 3071  # of a 12-bit CT
# arguments by which a library would fetch or unpickle weights of its own, past the strict load
LOADING_SETTINGS = ("checkpoint", "pretrained", "cache", "features_only", "scriptable", "exportable", "no_jit")

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Pooling = Literal["native", "mean_norm", "class_token", "mean", "patch_mean", "class_patch_mean"]
Intensity = Literal["window", "slice_zscore"]
Positions = Literal["native", "dinov2", "dinov2_registers", "exact"]
Resize = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class WeightSource:
    """Where an encoder's weights are found.

    kind `bundled`: `place` is a folder in this package; `hub`: a Hugging Face repository id, with `file` inside it (a
    data set's is written `datasets/OWNER/NAME`); `elsewhere`: a page to open, whose `file` must be fetched by hand (""
    where its name is not known); `file`: a path; `none`: its authors published none, and `place` says what to do.
    size_mb is what a download weighs; gated: the licence must be
    accepted on the repository's page first; verified says whether we have seen the file itself; sha256, output: what
    `clear models verify` must find, the digest of its tensors and the first values on its fixed input; empty when not
    known.
    """

    kind: Literal["bundled", "hub", "elsewhere", "file", "none"]
    place: str
    file: str = "model.safetensors"
    size_mb: float | None = None
    gated: bool = False
    verified: bool = False
    sha256: str = ""
    output: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("bundled", "hub", "elsewhere", "file", "none"):
            raise InputError(f"weights' source: kind is {self.kind!r}; expected bundled, hub, elsewhere, file or none")
        for name, fits, expected in (
            ("place", isinstance(self.place, str), "text"),
            ("file", isinstance(self.file, str), "text"),
            ("size_mb", self.size_mb is None or is_number(self.size_mb, 0, MAX_DIM), "megabytes"),
            ("gated", isinstance(self.gated, bool), "true or false"),
            ("verified", isinstance(self.verified, bool), "true or false"),
            ("sha256", isinstance(self.sha256, str), "text"),
            ("output", all(is_number(value, -MAX_VALUE, MAX_VALUE) for value in self.output), "numbers"),
        ):
            if not fits:
                raise InputError(f"weights' source: {name} is {shown(repr(getattr(self, name)))}; expected {expected}")


@dataclass(frozen=True)
class EncoderCard:
    """One frozen encoder.

    architecture: `family:model`, built with `settings`.
    dim: d, length of an embedding; input_size: side of the square input in pixels; channels: 1 grey, or 3.
    mean, std: per channel, of values in [0, 1]; resize: filter of the antialiased resize.
    stem_mean, stem_std: for a card of one channel, what the three channels of its weights were trained with; their stem
    is folded into one channel then (`clear.backbones.stem`).
    intensity: `window`, or `slice_zscore`: no window, the resized slice minus its mean over its standard deviation.
    field_of_view_mm: side of the square cut from the slice's centre; None for the whole slice.
    channel_windows: windows stacked into the channels of one instance, such as lung, soft tissue and bone; without
    them every window is an instance of its own, in equal channels.
    volume: for an encoder of whole scans, what it takes; a bag is one instance then, and the fields on slices are idle.
    pooling: `native` (what the network gives: a neck, a projection, a pooling of its own), `mean_norm` (final norm of
    the spatial mean), `mean` (of the last map), and of a vision transformer after its final norm: `class_token`,
    `patch_mean`, `class_patch_mean` (both, one after the other).
    positions: how position embeddings reach another input size (`clear.backbones.positions`), `native` where they need
    not.
    bfloat16: whether embeddings in bfloat16 stay within 5 % of float32 once a scan's mean is gone; else it is refused.
    any_size: weights given by the user may be of any member of the family; its sizes are read off their shapes, and
    what the card states otherwise stays (`clear.backbones.fitted_card`).
    ignored: prefixes of checkpoint tensors that are no part of the encoder (its classifier).
    windows, modalities, planes: what it was trained for; empty for anything.
    trained_on: one line that every output repeats. unverified: what of this card could not be checked, "" for nothing.
    training: the record that `clear pretrain` leaves (`clear.training_record`): data, settings, who was seen; empty for
    an encoder of others. It describes the weights and is no part of what features are compared by.
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
    stem_mean: tuple[float, ...] = ()
    stem_std: tuple[float, ...] = ()
    intensity: Intensity = "window"
    resize: Resize = "bicubic"
    field_of_view_mm: float | None = None
    channel_windows: tuple[Window, ...] = ()
    volume: VolumeInput | None = None
    pooling: Pooling = "class_token"
    positions: Positions = "native"
    bfloat16: bool = True
    any_size: bool = False
    ignored: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    planes: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""
    unverified: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.channels not in (1, 3) or not len(self.mean) == len(self.std) == self.channels:
            raise InputError(
                f"encoder {self.name}: expected 1 or 3 channels with a mean and a std each; "
                f"found {self.channels} channels, mean {self.mean}, std {self.std}"
            )
        if self.dim < 1 or self.input_size < 1 or min(self.std) <= 0:
            raise InputError(f"encoder {self.name}: dim, input_size and std must be positive")
        self._check_limits()
        for name, value, allowed in (
            ("pooling", self.pooling, Pooling),
            ("resize", self.resize, Resize),
            ("positions", self.positions, Positions),
            ("intensity", self.intensity, Intensity),
        ):
            if value not in allowed.__args__:  # type: ignore[attr-defined]  # typing.Literal has it
                raise InputError(
                    f"encoder {self.name}: {name} is {shown(repr(value))}; "
                    f"expected one of {', '.join(allowed.__args__)}"  # type: ignore[attr-defined]
                )
        if self.channel_windows and len(check_windows(self.channel_windows)) != self.channels:
            raise InputError(
                f"encoder {self.name}: {len(self.channel_windows)} channel windows for {self.channels} channels; "
                "expected one a channel"
            )
        if bool(self.channel_windows) + (self.volume is not None) + (self.intensity != "window") > 1:
            raise InputError(f"encoder {self.name}: channel_windows, volume and slice_zscore exclude each other")
        if self.stem_mean and not (self.channels == 1 and len(self.stem_mean) == len(self.stem_std) == 3):
            raise InputError(
                f"encoder {self.name}: stem_mean and stem_std are three numbers each, of a card with 1 channel"
            )

    def _check_kinds(self) -> None:
        """Cards come from anywhere: raises InputError naming the field that holds another kind of value."""

        if not isinstance(self.name, str) or not is_plain(self.name):
            raise InputError(f"an encoder's name is {shown(repr(self.name))}; expected plain text of one line")

        def need(fits: bool, name: str, expected: str) -> None:
            if not fits:
                value = shown(repr(getattr(self, name)))
                raise InputError(f"encoder {self.name}: {name} is {value}; expected {expected}")

        for name in ("architecture", "trained_on", "licence", "citation", "unverified"):
            text = getattr(self, name)
            need(isinstance(text, str) and is_plain(text), name, "plain text of one line")
        for name in ("dim", "input_size", "channels"):
            need(type(getattr(self, name)) is int, name, "a whole number")
        for name in ("bfloat16", "any_size"):
            need(isinstance(getattr(self, name), bool), name, "true or false")
        for name in ("mean", "std", "stem_mean", "stem_std"):
            values = getattr(self, name)
            numbers = isinstance(values, tuple) and all(is_number(v, -MAX_VALUE, MAX_VALUE) for v in values)
            need(numbers, name, f"a list of numbers within {MAX_VALUE:g}")
            object.__setattr__(self, name, tuple(map(float, values)))  # one digest for 0 and 0.0
        for name in ("ignored", "windows", "modalities", "planes"):
            values = getattr(self, name)
            words = isinstance(values, tuple) and all(isinstance(v, str) and v and is_plain(v) for v in values)
            need(words, name, "a list of plain texts, none of them empty")
        if (field_mm := self.field_of_view_mm) is not None:
            need(is_number(field_mm, 1, MAX_FIELD_MM), "field_of_view_mm", f"millimetres, 1 to {MAX_FIELD_MM:g}")
            object.__setattr__(self, "field_of_view_mm", float(field_mm))
        need(isinstance(self.settings, Mapping), "settings", "a table of names and values")
        loose = [key for key in self.settings if isinstance(key, str) and key.startswith(LOADING_SETTINGS)]
        need(not loose, "settings", f"no {', '.join(map(shown, loose))}: weights are loaded by clear alone")
        if wrong := wrong_setting(self.settings):
            raise InputError(f"encoder {self.name}: settings: {wrong}")
        need(isinstance(self.volume, VolumeInput | None), "volume", "what a volume encoder takes, or null")
        self._check_training()

    def _check_training(self) -> None:
        """Raises InputError unless the training record is plain data, and names whom it saw in its own way."""
        if not isinstance(self.training, Mapping) or not all(isinstance(key, str) for key in self.training):
            kind = type(self.training).__name__  # the value itself may be a list of thousands
            raise InputError(f"encoder {self.name}: training is a {kind}; expected a table of names and values")
        try:
            json.dumps(self.training, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"encoder {self.name}: training holds what JSON cannot ({error})") from None
        if "seen" in self.training:
            TrainingRecord.from_dict(self.training["seen"], f"encoder {self.name}")

    def _check_limits(self) -> None:
        """Raises InputError for numbers with which a slice could not be prepared, or not without values lost."""
        for name, value, most in (("dim", self.dim, MAX_DIM), ("input_size", self.input_size, MAX_INPUT_SIZE)):
            if value > most:
                raise InputError(f"encoder {self.name}: {name} is {shown(value)}; expected at most {most}")
        for name in ("std", "stem_std"):
            if min(getattr(self, name), default=1.0) < MIN_STD:
                raise InputError(
                    f"encoder {self.name}: {name} is {getattr(self, name)}; expected at least {MIN_STD:g} each"
                )
        for window in self.channel_windows:
            ends = is_number(window.low, -MAX_VALUE, MAX_VALUE) and is_number(window.high, -MAX_VALUE, MAX_VALUE)
            if not (is_plain(window.name) and ends and window.high - window.low >= MIN_STD):
                raise InputError(
                    f"encoder {self.name}: channel window {shown(window.name)} from {window.low:g} to {window.high:g}; "
                    f"expected a plain name and limits within {MAX_VALUE:g} that lie apart"
                )

    @property
    def own_windows(self) -> tuple[Window, ...]:
        """The one window of an encoder that brings its own range of values, else nothing: the windows are the user's.

        Its name and limits only describe; what is done is in `channel_windows` or `volume`.
        """
        if self.volume is not None:
            return (Window("volume", *self.volume.hu, kind="encoder"),)
        if self.channel_windows:
            name = "+".join(window.name for window in self.channel_windows)
            low, high = min(w.low for w in self.channel_windows), max(w.high for w in self.channel_windows)
            return (Window(name, low, high, kind="encoder"),)
        if self.intensity == "slice_zscore":
            return (Window("zscore", AIR_HU, MAX_HU, kind="encoder"),)
        return ()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens to a slice or volume before the network, beside the windows."""
        if self.volume is not None:
            return {"volume": self.volume.as_dict()}
        own: dict[str, Any] = {}
        if self.channel_windows:
            own["channel_windows"] = [window.as_dict() for window in self.channel_windows]
        if self.intensity != "window":
            own["intensity"] = self.intensity
        return {
            **own,
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
            **({"stem": [self.stem_mean, self.stem_std]} if self.stem_mean else {}),
            "pooling": self.pooling,
            "positions": self.positions,
            **self.preprocessing,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the format's name and version; `training` only where there is a record."""
        values = asdict(self)
        if not self.training:
            del values["training"]
        values["channel_windows"] = [window.as_dict() for window in self.channel_windows]
        values["volume"] = None if self.volume is None else self.volume.as_dict()
        return {"format": CARD_FORMAT, "version": CARD_VERSION, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: str = "card") -> EncoderCard:
        """The inverse of `as_dict`. Raises InputError naming `origin` and the field that is wrong."""
        if data.get("format") != CARD_FORMAT:
            found = shown(repr(data.get("format")))
            raise InputError(f'{origin}: expected an encoder card ("format": "{CARD_FORMAT}"); found {found}')
        if data.get("version") != CARD_VERSION:
            version = shown(data.get("version"))
            raise InputError(f"{origin}: card version {version}; this clear reads version {CARD_VERSION}")
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in data.items() if key not in ("format", "version")}
        if surplus := sorted(set(values) - known):
            unknown = ", ".join(map(shown, surplus))
            raise InputError(f"{origin}: unknown field(s) {unknown}; expected {', '.join(sorted(known))}")
        try:
            source = dict(values["source"])
            values["source"] = WeightSource(**{**source, "output": tuple(source.get("output", ()))})
            for name in ("mean", "std", "stem_mean", "stem_std", "ignored", "windows", "modalities", "planes"):
                if isinstance(values.get(name), list):
                    values[name] = tuple(values[name])
            values["channel_windows"] = tuple(Window.from_dict(w) for w in values.get("channel_windows", ()))
            if values.get("volume") is not None:
                values["volume"] = VolumeInput.from_dict(values["volume"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise InputError(f"{origin}: a field is missing or of the wrong kind ({shown(error)})") from error


def card_beside(weights: Path) -> EncoderCard | None:
    """The card that stands beside its file of weights, None without one. Raises InputError for a damaged one."""
    there = weights.name == WEIGHTS_FILE and (weights.parent / CARD_FILE).is_file()
    return read_card(weights.parent) if there else None


def read_card(path: Path) -> EncoderCard:
    """The card at `path` (a card.json, or a folder that holds one); its weights are the file beside it.

    Raises InputError when there is none or it does not parse.
    """
    file = path / CARD_FILE if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_CARD_BYTES:
            raise InputError(
                f"{file}: {file.stat().st_size} bytes are no encoder card; expected JSON of a few thousand"
            )
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no encoder card here; expected a {CARD_FILE} beside {WEIGHTS_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:  # no text, no JSON, too many digits, too many brackets
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
