"""Label values: what the cells of a column say, as class codes, quantities, or times with their events.

A cell that says nothing (empty, NA, nan, unknown, ...) is masked, never a zero, and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import polars as pl

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tables import some

UNKNOWN = frozenset({"", "na", "n/a", "#n/a", "n.a.", "nan", "<na>", "null", "unknown", "missing", "?", "-", "."})
_TRUE = frozenset({"1", "1.0", "true", "yes", "y", "t", "positive", "pos", "present"})
_FALSE = frozenset({"0", "0.0", "false", "no", "n", "f", "negative", "neg", "absent"})
_EVENT = _TRUE | {"dead", "deceased", "died", "event", "1:deceased"}
_CENSORED = _FALSE | {"alive", "living", "censored", "0:living"}
MAX_CLASSES = 20


def parse_endpoint(endpoint: Endpoint, column: pl.Series, source: str) -> tuple[Endpoint, pl.Series, list[str]]:
    """(endpoint with kind and classes, class codes with null = masked, remarks) for a column of text.

    An endpoint of kind `auto` is settled by its values: 0/1, true/false, yes/no and the like are binary; two other
    values are binary with the later one (by number, else by alphabet) as the positive class; 3 to 20 values are
    multi-class; more numbers, or fractions, are a quantity (regression, Float64). Raises InputError for what is none of
    these, or does not fit the kind that is declared. An endpoint whose classes are declared may have no known value at
    all: every code is null.
    """
    words = _one_spelling([None if value is None else value.strip() for value in column])
    said_nothing = Counter(word for word in words if word is not None and is_unknown(word))
    known = sorted({word for word in words if word is not None and not is_unknown(word)}, key=_order)
    where = f"{source}: column {endpoint.source_column!r}"
    _no_two_cases(known, endpoint, where)
    if not known and endpoint.kind == "auto":
        raise InputError(f"{where} holds no known value ({len(words)} rows are empty or unknown)")
    folded = {word.lower() for word in known}
    remarks = []
    if said_nothing:
        listed = ", ".join(f"{word!r} ({count})" for word, count in said_nothing.most_common(4))
        remarks.append(f"{endpoint.name}: unknown and left out: {listed}")
    yes_or_no = folded <= _TRUE | _FALSE
    if endpoint.kind == "regression":
        return endpoint, pl.Series(endpoint.name, _numbers(words, where, "numbers"), dtype=pl.Float64), remarks
    if endpoint.kind == "ordinal" and not endpoint.classes:
        endpoint = _in_order(endpoint, known, where)
    if endpoint.kind != "auto":
        code_of = {word: code for word in known if (code := _code(word, endpoint)) is not None}
        strange = [word for word in known if word not in code_of]
        if strange:
            raise InputError(
                f"{where} holds {some(strange, 3)}; expected {some(endpoint.classes, 20)}"
                + (", 0/1, true/false or yes/no" if _takes_yes_and_no(endpoint) else "")
            )
    elif yes_or_no:
        negative = next((word for word in known if word.lower() in _FALSE), None)
        positive = next((word for word in known if word.lower() in _TRUE), None)
        if negative is None or positive is None:
            _one_class(where, known[0], len(words) - sum(word is None or is_unknown(word) for word in words))
        endpoint = replace(endpoint, kind="binary", classes=(negative, positive))
        code_of = {word: int(word.lower() in _TRUE) for word in known}
    elif _is_quantity(known):
        numbers = [number for word in known if (number := _number(word)) is not None]
        remarks.append(
            f"{endpoint.name}: {len(known)} different numbers from {min(numbers):g} to {max(numbers):g}: a quantity, "
            "so regression. If they are codes, write classes into a column of its own; ids are nothing to predict"
        )
        endpoint = replace(endpoint, kind="regression")
        return endpoint, pl.Series(endpoint.name, _numbers(words, where, "numbers"), dtype=pl.Float64), remarks
    else:
        endpoint, code_of = _infer(endpoint, known, where, words, remarks)
    codes = [None if word is None else code_of.get(word) for word in words]
    return endpoint, pl.Series(endpoint.name, codes, dtype=pl.Int64), remarks


def parse_survival(
    endpoint: Endpoint, times: pl.Series, events: pl.Series, source: str
) -> tuple[pl.Series, pl.Series, list[str]]:
    """(times Float64, events Int64 1 or 0, remarks) for two columns of text; both null where either is unknown.

    Raises InputError for a time that is no number or negative, and for an event that is not a yes or no.
    """
    where = f"{source}: column {endpoint.source_column!r}"
    words = [None if word is None else word.strip() for word in times]
    time = _numbers(words, where, "times")
    negative = [value for value in time if value is not None and value < 0]
    if negative:
        raise InputError(f"{where} holds {len(negative)} negative times, first {negative[0]:g}; expected 0 or later")
    event = _events(endpoint, events, source)
    both = [t is not None and e is not None for t, e in zip(time, event, strict=True)]
    half = sum((t is None) != (e is None) for t, e in zip(time, event, strict=True))
    remarks = [f"{endpoint.name}: {half} rows have a time or an event but not both, and are left out"] if half else []
    return (
        pl.Series(endpoint.name, [t if known else None for t, known in zip(time, both, strict=True)], dtype=pl.Float64),
        pl.Series("event", [e if known else None for e, known in zip(event, both, strict=True)], dtype=pl.Int64),
        remarks,
    )


def _events(endpoint: Endpoint, column: pl.Series, source: str) -> list[int | None]:
    words = [None if word is None else word.strip() for word in column]
    folded = [None if word is None or is_unknown(word) else word.lower() for word in words]
    strange = sorted({word for word in folded if word is not None and word not in _EVENT | _CENSORED})
    if strange:
        numbers = {_number(word) for word in folded if word is not None}
        hint = ". In R's coding 1 is censored and 2 is the event: recode it to 0 and 1" if numbers <= {1.0, 2.0} else ""
        raise InputError(
            f"{source}: column {endpoint.event!r} holds {some(strange, 3)}; expected 1 (event) or 0 (censored){hint}"
        )
    return [None if word is None else int(word in _EVENT) for word in folded]


def _is_quantity(known: Sequence[str]) -> bool:
    numbers = [_number(word) for word in known]
    if any(number is None for number in numbers):
        return False
    fractional = any(number is not None and number != int(number) for number in numbers)
    return len(known) > MAX_CLASSES or (fractional and len(known) > 2)


def _numbers(words: Sequence[str | None], where: str, what: str) -> list[float | None]:
    known = [None if word is None or is_unknown(word) else word for word in words]
    numbers = [None if word is None else _number(word) for word in known]
    strange = [word for word, number in zip(known, numbers, strict=True) if word is not None and number is None]
    if strange:
        comma = all(_number(word.replace(",", ".")) is not None for word in strange)
        hint = ". Write the decimals with a point" if comma else ". Empty the cells that say nothing, and drop units"
        raise InputError(f"{where} holds {some(sorted(set(strange)), 3)}; expected {what}{hint}")
    return numbers


def _in_order(endpoint: Endpoint, known: Sequence[str], where: str) -> Endpoint:
    """An ordinal endpoint without declared classes: numbers have an order of their own."""
    if any(_number(word) is None for word in known):
        raise InputError(
            f"{where} holds {some(known, 5)}, whose order is not known; name the classes of the ordinal endpoint "
            f"{endpoint.name!r} from the lowest to the highest"
        )
    if not 3 <= len(known) <= MAX_CLASSES:
        raise InputError(
            f"{where} holds {len(known)} different numbers; an ordinal endpoint has 3 to {MAX_CLASSES}. Two are "
            "binary, more are a quantity (regression)"
        )
    return replace(endpoint, classes=tuple(known))


def _infer(
    endpoint: Endpoint, known: list[str], where: str, words: Sequence[str | None], remarks: list[str]
) -> tuple[Endpoint, dict[str, int]]:
    numbers = [_number(word) for word in known]
    if len(known) == 1:
        _one_class(where, known[0], sum(word == known[0] for word in words))
    if len(known) > MAX_CLASSES:
        raise InputError(
            f"{where} holds {len(known)} different texts ({some(known, 3)}); expected at most {MAX_CLASSES} classes. "
            "Is it an id or a free text?"
        )
    if len(known) == 2:
        remarks.append(f"{endpoint.name}: the positive class is {known[1]!r}, the negative {known[0]!r}")
    else:
        counts = Counter(word for word in words if word in known)
        remarks.append(
            f"{endpoint.name}: {len(known)} classes, " + ", ".join(f"{word!r} ({counts[word]})" for word in known)
        )
        if (numbers[0] or 0) < 0:
            remarks.append(f"{endpoint.name}: {known[0]!r} counts as a class; empty the cells where it means unknown")
    settled = replace(endpoint, kind="binary" if len(known) == 2 else "multiclass", classes=tuple(known))
    return settled, {word: code for code, word in enumerate(known)}


def _one_spelling(words: Sequence[str | None]) -> list[str | None]:
    """Numbers that are written in several ways (`1` and `1.0`) in the shortest of them; the rest as it is."""
    shortest: dict[float, str] = {}
    for word in words:
        number = None if word is None else _number(word)
        if word is not None and number is not None and len(word) < len(shortest.get(number, word + " ")):
            shortest[number] = word
    numbers = {word: _number(word) for word in set(words) if word is not None}
    return [None if word is None else shortest.get(numbers[word], word) for word in words]  # type: ignore[arg-type]


def _no_two_cases(known: Sequence[str], endpoint: Endpoint, where: str) -> None:
    spellings: dict[str, str] = {}
    for word in known:
        other = spellings.setdefault(word.lower(), word)
        if other != word and word not in endpoint.classes and word.lower() not in _TRUE | _FALSE:
            raise InputError(f"{where} holds both {other!r} and {word!r}; write one class in one way")


def _code(word: str, endpoint: Endpoint) -> int | None:
    """The class that a cell of a declared endpoint names, numbers in any spelling; else what yes or no means there."""
    if word in endpoint.classes:
        return endpoint.classes.index(word)
    number = _number(word)
    if number is not None:
        for code, name in enumerate(endpoint.classes):
            if _number(name) == number:
                return code
    if _takes_yes_and_no(endpoint) and word.lower() in _TRUE | _FALSE:
        return int(word.lower() in _TRUE)
    return None


def _takes_yes_and_no(endpoint: Endpoint) -> bool:
    """Whether 1, yes and the like can mean the positive class: no class is called so, or each is called what it is.

    Of classes 1 and 2, or 1 and 0, a `1` is the negative one.
    """
    if endpoint.kind != "binary":
        return False
    negative, positive = (name.lower() for name in endpoint.classes)
    return not {negative, positive} & (_TRUE | _FALSE) or (negative in _FALSE and positive in _TRUE)


def _one_class(where: str, value: str, count: int) -> NoReturn:
    raise InputError(
        f"{where} holds one class only: {value!r} in all {count} known rows; nothing can be learnt from it"
    )


def is_unknown(word: str) -> bool:
    """Whether a cell says nothing; `none` in small letters is a grade like any other."""
    return word == "None" or word.lower() in UNKNOWN


def _number(word: str) -> float | None:
    try:
        return float(word) if math.isfinite(float(word)) else None
    except ValueError:
        return None


def _order(word: str) -> tuple[bool, float, str]:
    number = _number(word)
    return (number is None, number or 0.0, word)
