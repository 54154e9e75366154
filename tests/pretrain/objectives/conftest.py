"""Tiny encoders of each kind, and batches of views for them."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny_runs.py` beside this file, which two processes run and tests call."""
    path = Path(__file__).with_name("tiny_runs.py")
    spec = spec_from_file_location("tiny_runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["tiny_runs"] = module
    spec.loader.exec_module(module)
    return module
