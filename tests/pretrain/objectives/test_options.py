from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from clear.errors import InputError
from pretrain.objectives.options import read_options


@dataclass(frozen=True)
class Options:
    width: int = 3
    tau: float = 0.2
    lambda_: float = 1.0
    flag: bool = True
    kind: Literal["one", "two"] = "one"
    span: tuple[float, float] = (0.0, 1.0)


def test_nothing_given_is_the_defaults() -> None:
    assert read_options(Options, "x", {}) == Options()


def test_values_as_yaml_has_them_become_the_fields_types() -> None:
    found = read_options(Options, "x", {"tau": 1, "lambda": 3, "span": [0, 0.5], "kind": "two", "flag": False})
    assert found == Options(tau=1.0, lambda_=3.0, span=(0.0, 0.5), kind="two", flag=False)
    assert isinstance(found.tau, float)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teu": 1}, r"objective x: unknown setting 'teu'; expected one of flag, kind, lambda_, span, tau, width"),
        ({"width": True}, "objective x: width is True; expected a whole number"),
        ({"width": 1.0}, "width is 1.0; expected a whole number"),
        ({"tau": "0.2"}, "tau is '0.2'; expected a number"),
        ({"tau": float("nan")}, "tau is nan; expected a number"),
        ({"flag": 0}, "flag is 0; expected true or false"),
        ({"kind": "three"}, "kind is 'three'; expected one or two"),
        ({"span": [1]}, r"span is \[1\]; expected two numbers"),
        ({"span": [1, "2"]}, "span is '2'; expected a number"),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_options(Options, "x", settings)
