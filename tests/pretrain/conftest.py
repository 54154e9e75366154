"""A small slice store, a small encoder and small settings for the training loop."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """The module `small_runs.py` beside this file, which processes run and tests call."""
    path = Path(__file__).with_name("small_runs.py")
    spec = spec_from_file_location("small_runs", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["small_runs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def store(small: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of four slices with boxes, in a store."""
    return small.write_store(tmp_path_factory.mktemp("store") / "slices.zarr")


@pytest.fixture(scope="session")
def model(small: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a MambaOut of eight thousand weights, without weights."""
    return small.write_model(tmp_path_factory.mktemp("model"))
