from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm.scheduler
import torch
from numpy.testing import assert_allclose

from pretrain.schedules import (
    completed_epochs,
    cosine,
    dino_learning_rate,
    dino_temperature,
    moco_learning_rate,
)


def fixture(shared_data: Path, name: str) -> np.lib.npyio.NpzFile:
    return np.load(shared_data / "fixtures" / f"{name}.npz", allow_pickle=False)


def test_moco_momentum_and_learning_rate_are_the_repositorys(shared_data: Path) -> None:
    file = fixture(shared_data, "moco_v3_loss")
    epochs = file["param/schedule_epochs"]
    momentum = [cosine(epoch / 20, 0.99, 1.0) for epoch in epochs]
    rate = [moco_learning_rate(epoch, peak=1e-3, epochs=20, warmup_epochs=4) for epoch in epochs]
    assert_allclose(momentum, file["f64/schedule_momentum"], rtol=0, atol=1e-15)
    assert_allclose(rate, file["f64/schedule_lr"], rtol=0, atol=1e-18)


def test_dinos_schedules_are_the_repositorys_at_every_step(shared_data: Path) -> None:
    file = fixture(shared_data, "dino_loss")
    steps = range(30)
    rate = [dino_learning_rate(step, peak=5e-4, steps=30, warmup_steps=10, end=1e-6) for step in steps]
    decay = [cosine(step / 30, 0.04, 0.4) for step in steps]
    momentum = [cosine(step / 30, 0.996, 1.0) for step in steps]
    assert_allclose(rate, file["f64/schedule_lr"], rtol=0, atol=1e-18)
    assert_allclose(decay, file["f64/schedule_weight_decay"], rtol=0, atol=1e-15)
    assert_allclose(momentum, file["f64/schedule_momentum"], rtol=0, atol=1e-15)


def test_the_teachers_temperature_is_dinos_in_every_epoch(shared_data: Path) -> None:
    file = fixture(shared_data, "dino_loss")
    found = [dino_temperature(epoch, start=0.04, end=0.07, warmup_epochs=4) for epoch in range(10)]
    assert_allclose(found, file["param/teacher_temp_schedule"], rtol=0, atol=1e-16)


def test_timms_cosine_scheduler_agrees_with_moco_at_whole_epochs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1e-3)
    scheduler = timm.scheduler.CosineLRScheduler(optimiser, t_initial=16, warmup_t=4, warmup_prefix=True)
    for epoch in range(20):
        scheduler.step(epoch)
        expected = moco_learning_rate(epoch, peak=1e-3, epochs=20, warmup_epochs=4)
        assert math.isclose(optimiser.param_groups[0]["lr"], expected, rel_tol=1e-12, abs_tol=1e-15)


def test_a_schedule_stays_at_its_ends_outside() -> None:
    assert cosine(-0.5, 3.0, 1.0) == 3.0
    assert cosine(1.5, 3.0, 1.0) == 1.0


def test_no_warm_up_begins_at_the_peak_and_nothing_but_warm_up_ends_there() -> None:
    assert moco_learning_rate(0.0, peak=2.0, epochs=10) == 2.0
    assert moco_learning_rate(3.0, peak=2.0, epochs=3, warmup_epochs=3) == 2.0
    assert dino_learning_rate(0, peak=2.0, steps=10) == 2.0
    assert dino_temperature(0, start=0.04, end=0.07, warmup_epochs=0) == 0.07
    assert dino_temperature(0, start=0.04, end=0.07, warmup_epochs=1) == 0.04


@pytest.mark.parametrize("epochs", [1, 3, 7, 100, 300])
@pytest.mark.parametrize("steps_per_epoch", [1, 3, 11, 49])
def test_an_epoch_is_counted_when_its_last_step_is_done(epochs: int, steps_per_epoch: int) -> None:
    steps = epochs * steps_per_epoch
    run = SimpleNamespace(found=[completed_epochs(step / steps, epochs) for step in range(steps)])
    assert run.found == [step // steps_per_epoch for step in range(steps)]
