"""What the fields of a card may hold, so that no card of a user's own ends in a library's words or in no memory.

Cards come from anywhere. Texts are printed, so they are of one line and without the codes that move a terminal's
cursor; numbers are bounded where more would only mean a slip, long before it costs memory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_DIM = 1_000_000
MAX_INPUT_SIZE = 4096  # pixels; a slice of three channels is 200 MB then
MAX_FIELD_MM = 2000.0  # a whole body
MAX_VALUE = 1e6  # of mean and std, of values in [0, 1]
MIN_STD = 1e-6
MAX_SETTING = 100_000  # of one number; a network has no more of anything
MAX_NESTING = 3  # lists in a setting
MAX_TEXT = 2000
MAX_CARD_BYTES = 16_000_000  # of a card that names every patient it has seen; bag files hold no longer one


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a number of this range, both ends included; nan, true and false are none."""
    return type(value) in (int, float) and low <= value <= high


def is_plain(text: str) -> bool:
    """Whether a text is short and of one line, without control codes, which a terminal would obey."""
    return len(text) <= MAX_TEXT and all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text)


def shown(text: object) -> str:
    """A text for a message: what is not plain as escapes, the rest of it cut off."""
    words = "".join(c if is_plain(c) else c.encode("unicode_escape").decode() for c in str(text)[: MAX_TEXT + 1])
    return words if len(words) <= MAX_TEXT else words[: MAX_TEXT // 10] + " ..."


def wrong_setting(settings: Mapping[Any, Any]) -> str:
    """The first setting that no network can have, in words; "" when there is none."""
    for name, value in settings.items():
        if not isinstance(name, str) or not is_plain(name):
            return f"{shown(name)!r} is no name of a setting"
        if not _is_setting(value, MAX_NESTING):
            return f"{name} is {shown(repr(value))}; expected a text, true, false, null or numbers in 0..{MAX_SETTING}"
    return ""


def _is_setting(value: Any, nesting: int) -> bool:
    if isinstance(value, Mapping):
        return (
            nesting > 0
            and all(isinstance(name, str) for name in value)
            and _is_setting([*value, *value.values()], nesting)
        )
    if isinstance(value, list | tuple):
        return nesting > 0 and len(value) <= MAX_TEXT and all(_is_setting(item, nesting - 1) for item in value)
    if isinstance(value, str):
        return is_plain(value)
    return value is None or isinstance(value, bool) or is_number(value, 0, MAX_SETTING)
