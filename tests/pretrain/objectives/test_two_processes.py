"""The law of DESIGN for training: how many processes share a batch changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
NAMES = (
    "moco-v3 ViT",
    "lecl ViT",
    "lecl without own keys",
    "lecl released",
    "lecl ResNet",
    "lecl ViT-conv",
    "dino ViT",
    "dino ResNet",
    "dinov2 centred",
    "dinov2 Sinkhorn",
    "moco-v3 MambaOut",
    "lecl MambaOut",
    "dino MambaOut",
    "lecl VMamba",
    "dinov2 float32",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What every run gave in each of two gloo processes."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("tiny_runs.py"))
    started = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", str(folder / "store"), str(folder / "out")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tiny: ModuleType, two: list[dict[str, dict[str, Any]]]) -> tuple[Any, ...]:
    """A run's name, what one process gave, what two gave, and how far they may differ."""
    name = request.param
    run = tiny.RUNS[name]
    return name, tiny.trained(run), [results[name] for results in two], run.dtype


def test_every_run_is_looked_at(tiny: ModuleType) -> None:
    assert tuple(tiny.RUNS) == NAMES


def test_one_process_and_two_have_the_same_losses(case: tuple[Any, ...]) -> None:
    _, one, both, dtype = case
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert len(one["losses"]) == 10
    for found in both:
        torch.testing.assert_close(found["losses"], one["losses"], rtol=tolerance, atol=tolerance)


def test_one_process_and_two_have_the_same_gradients(case: tuple[Any, ...]) -> None:
    _, one, both, dtype = case
    for found in both:
        assert set(found["gradients"]) == set(one["gradients"])
        for name, gradient in one["gradients"].items():
            scale = float(gradient.abs().max())
            difference = float((found["gradients"][name] - gradient).abs().max())
            assert difference <= (1e-10 if dtype == torch.float64 else 1e-4) * scale + 1e-7, name


def test_one_process_and_two_have_the_same_weights_after_ten_steps(case: tuple[Any, ...]) -> None:
    _, one, both, _ = case
    for found in both:
        assert set(found["state"]) == set(one["state"])
        worst = {name: _difference(tensor, found["state"][name]) for name, tensor in one["state"].items()}
        assert {name: value for name, value in worst.items() if value > 1e-5} == {}


def test_the_two_processes_have_the_same_weights_to_the_last_bit(case: tuple[Any, ...]) -> None:
    _, _, (first, second), _ = case
    assert all(torch.equal(tensor, second["state"][name]) for name, tensor in first["state"].items())


def test_ten_steps_moved_the_weights(case: tuple[Any, ...], tiny: ModuleType) -> None:
    name, one, _, dtype = case
    run = tiny.RUNS[name]
    start = tiny.objective(run.objective, run.architecture, run.settings).to(dtype).state_dict()
    moved = [_difference(tensor, one["state"][key]) for key, tensor in start.items() if key.startswith("student.")]
    assert max(moved) > 1e-3


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
