"""NAME=VALUE arguments of the command line as Python values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clear.errors import InputError


def named_values(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """NAME=VALUE texts as a dict; a value is JSON where it parses as it, else text.

    Raises InputError naming the flag for a text without a name or an equals sign.

    >>> named_values(["input_size=256", "pooling=patch_mean", "mean=[0.5, 0.5, 0.5]"], "--set")
    {'input_size': 256, 'pooling': 'patch_mean', 'mean': [0.5, 0.5, 0.5]}
    """
    return {name: _value(value) for name, value in (_split(text, flag) for text in texts)}


def named_lists(texts: Sequence[str], flag: str) -> dict[str, tuple[Any, ...]]:
    """NAME=VALUE,VALUE texts as a dict of tuples.

    >>> named_lists(["lr=1e-4,1e-3", "aggregator=abmil,mean"], "--grid")
    {'lr': (0.0001, 0.001), 'aggregator': ('abmil', 'mean')}
    """
    return {name: tuple(map(_value, value.split(","))) for name, value in (_split(text, flag) for text in texts)}


def _split(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise InputError(f"{flag} {text}: expected NAME=VALUE")
    return name, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
