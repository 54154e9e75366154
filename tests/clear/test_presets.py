"""Presets: whatever is put in place of a value is judged once, here, whoever asks."""

from __future__ import annotations

import pytest

from clear.errors import InputError
from clear.presets import GRID_NAMES, PRESETS, Preset


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": "abc"}, r"preset adaptive\+changed: lr is 'abc'; expected a number above 0"),
        ({"lr": True}, "lr is True; expected a number above 0"),
        ({"lr": float("nan")}, "lr is nan; expected a number above 0"),
        ({"lr": float("inf")}, "lr is inf; expected a number above 0"),
        ({"lr": 0}, "lr is 0; expected a number above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected a number, 0 or more"),
        ({"batch": "8"}, "batch is '8'; expected a whole number above 0"),
        ({"epochs": 2.5}, "epochs is 2.5; expected a whole number above 0"),
        ({"patience": 0}, "patience is 0; expected a whole number above 0"),
        ({"min_steps": -1}, "min_steps is -1; expected a whole number, 0 or more"),
        ({"dropout": 1}, "dropout is 1; expected a number from 0 to below 1"),
        ({"inner_fraction": 1.0}, "inner_fraction is 1.0; expected a number between 0 and 1"),
        ({"class_weights": "ballanced"}, "class_weights is 'ballanced'; expected none or balanced"),
        ({"sampling": ["none"]}, r"sampling is \['none'\]; expected none or balanced"),
        ({"standardise": "false"}, "standardise is 'false'; expected true or false"),
        ({"only_if_short": 1}, "only_if_short is 1; expected true or false"),
    ],
)
def test_a_value_that_cannot_be_is_named(changes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        PRESETS["adaptive"].with_changes(**changes)


def test_whole_numbers_serve_where_numbers_are_expected() -> None:
    assert Preset("p", weight_decay=0, dropout=0, lr=1).weight_decay == 0


def test_a_grid_may_try_every_value_but_those_that_it_could_not_honour() -> None:
    """The inner share decides the outer folds too, which are dealt before anything is tried."""
    assert set(GRID_NAMES) == {"aggregator", *PRESETS["paper"].as_dict()} - {"name", "inner_fraction"}
