"""Windows: which range of values an encoder gets to see.

CT windows are fixed ranges in HU; MR has no unit, so its window is a pair of percentiles of the scan. The default
ranges are those of the CLEAR paper (Ligero, Lenz et al., MICCAI 2025): abdomen -175..275 HU, lung -1500..500 HU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from clear.errors import InputError
from clear.volume import AIR_HU

Values = TypeVar("Values", bound=Any)  # an array or a tensor of floats


@dataclass(frozen=True)
class Window:
    """One range of values, mapped linearly to [0, 1] and clipped.

    kind `range`: low and high are values (HU in CT). kind `percentile`: low and high are percentiles (0..100) of
    the scan's own voxels, for modalities without a unit. kind `encoder`: the encoder's card says how values are
    prepared (several windows in the channels, or a whole volume); low and high only describe it.
    """

    name: str
    low: float
    high: float
    kind: Literal["range", "percentile", "encoder"] = "range"

    def __post_init__(self) -> None:
        if self.kind not in ("range", "percentile", "encoder"):
            raise InputError(f"window {self.name}: kind is {self.kind!r}; expected 'range', 'percentile' or 'encoder'")
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low >= self.high:
            raise InputError(f"window {self.name}: expected low < high, both finite; found {self.low} and {self.high}")
        if self.kind == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise InputError(f"window {self.name}: percentiles lie in 0..100; found {self.low} and {self.high}")

    def limits(self, voxels: np.ndarray) -> tuple[float, float]:
        """The range in voxel values for one scan, low < high.

        A percentile window of a constant scan has no width; it becomes one unit wide, so that the scan maps to 0.
        """
        if self.kind != "percentile":
            return self.low, self.high
        low, high = (float(v) for v in np.percentile(voxels, [self.low, self.high]))
        return low, high if high > low else low + 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: name, kind, low, high."""
        return {"name": self.name, "kind": self.kind, "low": float(self.low), "high": float(self.high)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Window:
        """The inverse of `as_dict`; raises InputError on a missing or wrong field."""
        try:
            return cls(str(data["name"]), float(data["low"]), float(data["high"]), data.get("kind", "range"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a window needs name, low and high; found {dict(data)!r}") from error


ABDOMEN = Window("abdomen", -175, 275)
LUNG = Window("lung", -1500, 500)
PERCENTILE = Window("percentile", 0.5, 99.5, "percentile")
PRESETS = {window.name: window for window in (ABDOMEN, LUNG, PERCENTILE)}
CT_DEFAULT = (ABDOMEN, LUNG)
OTHER_DEFAULT = (PERCENTILE,)


def in_window(values: Values, low: float, high: float) -> Values:
    """Float values, an array or a tensor, mapped so that low is 0 and high is 1, and clipped there.

    Encoder inputs (`clear.slices`) and pictures (`clear.pictures`) both come from here, so they show the same.
    """
    windowed = values - low
    windowed *= 1.0 / (high - low)
    clipped: Values = windowed.clip(0.0, 1.0)
    return clipped


def outside_value(is_ct: bool) -> float:
    """What stored padding, pixels outside the image, is painted with: air in CT, 0 elsewhere."""
    return float(AIR_HU) if is_ct else 0.0


def default_windows(modality: str) -> tuple[Window, ...]:
    """The windows used when neither a task nor the user names any: abdomen and lung for CT, percentile otherwise."""
    return CT_DEFAULT if modality == "CT" else OTHER_DEFAULT


def parse_window(text: str) -> Window:
    """A window from the command line: a preset's name, `name=low..high` in HU, or `name=low..high%`.

    >>> parse_window("bone=-450..1050")
    Window(name='bone', low=-450.0, high=1050.0, kind='range')
    """
    if text in PRESETS:
        return PRESETS[text]
    name, equals, limits = text.partition("=")
    low, dots, high = limits.rstrip("%").partition("..")
    try:
        if not (equals and dots and name):
            raise ValueError
        return Window(name, float(low), float(high), "percentile" if limits.endswith("%") else "range")
    except ValueError:
        raise InputError(
            f"--window {text}: expected one of {', '.join(PRESETS)}, or NAME=LOW..HIGH in HU such as bone=-450..1050"
        ) from None


def check_windows(windows: Sequence[Window]) -> tuple[Window, ...]:
    """The same windows as a tuple; raises InputError when there are none or a name is used twice."""
    names = [window.name for window in windows]
    if not names or len(set(names)) != len(names):
        raise InputError(f"expected at least one window, each with a name of its own; found {names}")
    return tuple(windows)
