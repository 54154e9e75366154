"""Augmentations as data: how far two views of one slice may differ beside where they look.

Presets, by name:

`ct` (default): windows jittered around abdomen, lung and bone, noise in HU, blur; no flip, no squeezing of anatomy.
`paper`: MoCo v3's published augmentation (Chen, Xie, He, ICCV 2021, arXiv:2104.02057, `main_moco.py`), as far as it
exists for grey slices. CLEAR's released training code (KatherLab/CLEAR, `src/LECL/main_moco.py`) takes it over word for
word. What is known of it: crops of 0.08..1 of the area and aspects of 3/4..4/3; colour jitter (brightness and contrast
0.4; saturation and hue, like the random grey, do nothing to a grey image) with probability 0.8; blur of sigma 0.1..2
pixels of 224, always in one view and with probability 0.1 in the other, which is solarised with probability 0.2 (in
CLEAR's code that is the lesion's crop); left-right flips. What is not known: the windows in which CLEAR wrote its PNG
slices (here the two it extracts with, one a slice, unjittered), and whether its results came from this code. Its lesion
crops are not repeated: centred on the box's lower left corner, 145 to 512 pixels along each axis independently, then
squeezed into a square. Here the side is drawn as an ordinary crop's, which covers the same sizes.
`none`: crops alone, in extraction's own windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from clear.errors import InputError
from clear.windows import ABDOMEN, LUNG, Window, check_windows, parse_window

Flips = Literal["none", "left_right", "both"]

BONE = Window("bone", -450, 1050)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a view.

    windows: one is drawn for each slice, or for each view where `share_window` is false. Views that share it need not
    agree on what only another window shows, so the windows of one scan stay different instances. Idle for cards with
    windows of their own.
    level_jitter: the level moves by up to this share of the width; width_jitter: the width changes by at most this
    factor, up or down.
    noise_hu: largest standard deviation of white noise on the slice's own pixels, before windowing; noise_chance.
    blur_sigma: range, in pixels of a view of 224; scaled with the view's size.
    blur_chance, solarise_chance: one a view in the order of the objective's kinds; the last one for all further views.
    brightness, contrast: largest relative change of values in [0, 1], together with probability `tone_chance`.
    flips: none; left_right mirrors columns, the patient's left and right in axial and coronal slices, which no patient
    is; both mirrors rows as well. Each with probability 0.5.
    aspect: range of a random crop's width over its height, in mm.
    min_body: least share of a random crop that is no air; redrawn ten times, then the fullest.
    lesion_side_mm: range of a lesion crop's side before it grows to the box and its margin; None draws it from the
    view's scale. lesion_margin_mm: kept around the box on each side. lesion_jitter: 0 keeps the box's centre in the
    middle; 1 puts it anywhere where box and margin stay inside.
    """

    windows: tuple[Window, ...] = (ABDOMEN, LUNG, BONE)
    share_window: bool = True
    level_jitter: float = 0.1
    width_jitter: float = 1.3
    noise_hu: float = 25.0
    noise_chance: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_chance: tuple[float, ...] = (0.5,)
    brightness: float = 0.0
    contrast: float = 0.0
    tone_chance: float = 0.0
    solarise_chance: tuple[float, ...] = (0.0,)
    flips: Flips = "none"
    aspect: tuple[float, float] = (1.0, 1.0)
    min_body: float = 0.1
    lesion_side_mm: tuple[float, float] | None = (64.0, 160.0)
    lesion_margin_mm: float = 10.0
    lesion_jitter: float = 0.0

    def __post_init__(self) -> None:
        check_windows(self.windows)
        if loose := [window.name for window in self.windows if window.kind != "range"]:
            raise InputError(f"augmentation: window {', '.join(loose)} is no range in HU; expected NAME=LOW..HIGH")
        if self.flips not in Flips.__args__:  # type: ignore[attr-defined]  # typing.Literal has it
            raise InputError(f"augmentation: flips is {self.flips!r}; expected none, left_right or both")
        if not isinstance(self.share_window, bool):
            raise InputError(f"augmentation: share_window is {self.share_window!r}; expected true or false")
        self._between("level_jitter", 0, 1)
        self._between("width_jitter", 1, 10)
        self._between("noise_hu", 0, 1000)
        self._between("blur_sigma", 0, 50, pair=True)
        self._between("aspect", 0.1, 10, pair=True)
        self._between("lesion_margin_mm", 0, 500)
        if self.lesion_side_mm is not None:
            self._between("lesion_side_mm", 1, 2000, pair=True)
        for name in ("noise_chance", "tone_chance", "brightness", "contrast", "min_body", "lesion_jitter"):
            self._between(name, 0, 1)
        for name in ("blur_chance", "solarise_chance"):
            self._between(name, 0, 1)

    def _between(self, name: str, low: float, high: float, pair: bool = False) -> None:
        """Raises InputError naming the field that is no number, or no range, of low..high."""
        value = getattr(self, name)
        values = value if isinstance(value, tuple) else (value,)
        numbers = values and all(type(v) in (int, float) and low <= v <= high for v in values)
        if not numbers or (pair and not (len(values) == 2 and values[0] <= values[1])):
            expected = f"two numbers, low and high, of {low}..{high}" if pair else f"{low}..{high}"
            raise InputError(f"augmentation: {name} is {value}; expected {expected}")

    @property
    def needs_unit_range(self) -> bool:
        """Whether something in it is defined for values in [0, 1] only."""
        return max(self.solarise_chance) > 0 or (self.tone_chance > 0 and max(self.brightness, self.contrast) > 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "windows": [window.as_dict() for window in self.windows]}


CT = Augmentation()
PAPER = Augmentation(
    windows=(ABDOMEN, LUNG),
    level_jitter=0.0,
    width_jitter=1.0,
    noise_chance=0.0,
    blur_chance=(0.1, 1.0, 0.5),  # 0.5: the local crops of DINO, whose global crops are augmented the same way
    brightness=0.4,
    contrast=0.4,
    tone_chance=0.8,
    solarise_chance=(0.2, 0.0),
    flips="left_right",
    aspect=(3 / 4, 4 / 3),
    min_body=0.0,
    lesion_side_mm=None,
)
NONE = Augmentation(
    windows=(ABDOMEN, LUNG), level_jitter=0.0, width_jitter=1.0, noise_chance=0.0, blur_chance=(0.0,), min_body=0.0
)
AUGMENTATIONS = {"ct": CT, "paper": PAPER, "none": NONE}


def augmentation(value: str | Mapping[str, Any] | Augmentation) -> Augmentation:
    """A preset by its name, or plain data: a preset's name under `preset` (default ct) and the fields that differ.

    Windows may be names, or texts as `--window` takes them.

    >>> augmentation({"preset": "ct", "flips": "left_right"}).flips
    'left_right'

    Raises InputError naming the preset or field that is unknown or wrong.
    """
    if isinstance(value, Augmentation):
        return value
    given: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"preset": value}
    preset = given.pop("preset", "ct")
    if not isinstance(preset, str) or preset not in AUGMENTATIONS:
        raise InputError(f"augmentation {preset!r} is unknown; expected one of {', '.join(AUGMENTATIONS)}")
    known = {field.name for field in fields(Augmentation)}
    if surplus := sorted(set(given) - known):
        raise InputError(f"augmentation: unknown {', '.join(surplus)}; expected some of {', '.join(sorted(known))}")
    for name, entry in given.items():
        if name == "windows":
            given[name] = tuple(map(_window, [entry] if isinstance(entry, str | Mapping | Window) else entry))
        elif isinstance(entry, list):
            given[name] = tuple(entry)
    for name in ("blur_chance", "solarise_chance"):
        if isinstance(given.get(name), int | float):
            given[name] = (given[name],)
    return replace(AUGMENTATIONS[preset], **given)


def _window(value: str | Mapping[str, Any] | Window) -> Window:
    if isinstance(value, Window):
        return value
    if isinstance(value, str):
        return BONE if value == BONE.name else parse_window(value)
    return Window.from_dict(value)
