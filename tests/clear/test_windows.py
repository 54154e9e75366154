from __future__ import annotations

import numpy as np
import pytest

from clear.errors import InputError
from clear.windows import ABDOMEN, LUNG, PERCENTILE, Window, check_windows, default_windows, parse_window


def test_the_defaults_are_the_papers_for_ct_and_percentiles_elsewhere() -> None:
    assert default_windows("CT") == (ABDOMEN, LUNG)
    assert (ABDOMEN.low, ABDOMEN.high, LUNG.low, LUNG.high) == (-175, 275, -1500, 500)
    assert default_windows("MR") == (PERCENTILE,)


def test_a_window_survives_json() -> None:
    for window in (ABDOMEN, PERCENTILE, Window("bone", -450.5, 1050)):
        assert Window.from_dict(window.as_dict()) == window


def test_percentile_limits_come_from_the_scan_and_never_collapse() -> None:
    voxels = np.arange(1001, dtype=np.float32)
    assert PERCENTILE.limits(voxels) == pytest.approx((5, 995))
    assert PERCENTILE.limits(np.full(10, 7, np.float32)) == (7, 8)
    assert ABDOMEN.limits(voxels) == (-175, 275)


def test_windows_are_read_from_the_command_line() -> None:
    assert parse_window("lung") is LUNG
    assert parse_window("bone=-450..1050") == Window("bone", -450, 1050)
    assert parse_window("t1=1..99%") == Window("t1", 1, 99, "percentile")


@pytest.mark.parametrize("text", ["bone", "bone=5", "=1..2", "bone=a..b", ""])
def test_a_window_that_cannot_be_read_is_explained(text: str) -> None:
    with pytest.raises(InputError, match="expected one of abdomen, lung, percentile, or NAME=LOW"):
        parse_window(text)


def test_impossible_windows_are_refused() -> None:
    with pytest.raises(InputError, match="low < high"):
        Window("x", 5, 5)
    with pytest.raises(InputError, match=r"0\.\.100"):
        Window("x", -1, 50, "percentile")
    with pytest.raises(InputError, match="a name of its own"):
        check_windows([ABDOMEN, Window("abdomen", 0, 1)])
    with pytest.raises(InputError, match="needs name, low and high"):
        Window.from_dict({"name": "x", "low": 1})
