"""Settings of an objective: a mapping as it comes from a command line or a YAML file, as a checked dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

from clear.errors import InputError

Options = TypeVar("Options")


def read_options(kind: type[Options], objective: str, settings: Mapping[str, Any]) -> Options:
    """The dataclass `kind` with these settings. A field that ends in `_` (`lambda_`) may be written without it.

    Raises InputError naming the setting that is unknown, or whose value is of another kind.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    types = get_type_hints(kind)
    values = {}
    for key, value in settings.items():
        name = key if key in known else f"{key}_"
        if name not in known:
            names = ", ".join(sorted(known))
            raise InputError(f"objective {objective}: unknown setting {key!r}; expected one of {names}")
        values[name] = _checked(f"objective {objective}: {key}", types[name], value)
    return kind(**values)


def need(fits: bool, objective: str, sentence: str) -> None:
    """Raises InputError with the sentence, the objective's name before it, unless `fits`."""
    if not fits:
        raise InputError(f"objective {objective}: {sentence}")


def _checked(what: str, expected: Any, value: Any) -> Any:
    """The value as the field's type. Raises InputError when it is none."""
    if expected is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if expected is int and type(value) is int:
        return value
    if expected is bool and type(value) is bool:
        return value
    choices = [choice for choice in get_args(expected) if isinstance(choice, str)]
    if choices and value in choices:
        return value
    if expected == tuple[float, float] and isinstance(value, list | tuple) and len(value) == 2:
        return _checked(what, float, value[0]), _checked(what, float, value[1])
    described = {float: "a number", int: "a whole number", bool: "true or false", tuple[float, float]: "two numbers"}
    raise InputError(f"{what} is {value!r}; expected {' or '.join(choices) or described[expected]}")
