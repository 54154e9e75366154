"""What every test can ask for: the shared real data, when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds `data/` (real scans) and `fixtures/` (reference numbers), named by CLEAR_TEST_DATA."""
    place = os.environ.get("CLEAR_TEST_DATA")
    if not place:
        pytest.skip("CLEAR_TEST_DATA does not name the folder of real test data")
    folder = Path(place)
    if not (folder / "data").is_dir():
        pytest.fail(f"CLEAR_TEST_DATA is {folder}, which has no data/ folder")
    return folder
