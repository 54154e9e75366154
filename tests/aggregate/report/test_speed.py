"""A page over 500 scans: in time, in bounds, and small enough to be mailed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [True, False])
def test_a_page_of_500_scans_is_made_in_a_minute_and_weighs_less_than_8_mb(
    five_hundred: Path, tmp_path: Path, pictures: bool, measure: Callable[..., dict[str, float]]
) -> None:
    scans = five_hundred.parent / "scans" if pictures else None
    found = measure(five_hundred, scans, tmp_path / "page.html")
    assert found["cpu_s"] < 60  # of both cores together, so that a busy machine does not fail it
    assert found["page_mb"] < 8
    assert found["memory_mb"] - found["memory_before_mb"] < 400
