from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.objectives.centring import Centre, sinkhorn
from pretrain.objectives.dino import assignment_entropies, dino_loss
from pretrain.schedules import dino_temperature

STEPS, EPOCHS, CROPS = range(3), (0, 2, 7), 6


class Fixture:
    """Three steps in a row, as the repository's class computes them."""

    def __init__(self, shared_data: Path, dtype: torch.dtype) -> None:
        self.file = np.load(shared_data / "fixtures" / "dino_loss.npz", allow_pickle=False)
        self.dtype = dtype

    def given(self, name: str, step: int) -> Tensor:
        return torch.from_numpy(self.file[f"in/{name}_{step}"]).to(self.dtype)

    def temperature(self, step: int) -> float:
        return dino_temperature(EPOCHS[step], start=0.04, end=0.07, warmup_epochs=4)


def losses(fixture: Fixture, step: int, student: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return dino_loss(student.chunk(CROPS), targets.chunk(2))


def test_float32_losses_centres_and_gradients_are_the_repositorys(shared_data: Path) -> None:
    fixture, centre = Fixture(shared_data, torch.float32), Centre(24)
    for step in STEPS:
        student = fixture.given("student", step).requires_grad_()
        targets = centre.probabilities(fixture.given("teacher", step), fixture.temperature(step))
        global_part, local_part = losses(fixture, step, student, targets)
        (global_part + local_part).backward()
        found: dict[str, Any] = {"loss": (global_part + local_part).detach()}
        np.testing.assert_allclose(found["loss"], fixture.file["out/loss"][step], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(student.grad, fixture.file[f"out/grad_student_{step}"], rtol=1e-5, atol=2e-6)
        parts = [float(global_part.detach()), float(local_part.detach())]
        expected = fixture.file["out/dinov2_centering_global_local"][step]
        np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-5)
        centre.observe(fixture.given("teacher", step))
        centre.follow()
        np.testing.assert_allclose(centre.value, fixture.file["out/center"][step], rtol=1e-5, atol=1e-6)


def test_float64_losses_and_centres_follow_the_definition(shared_data: Path) -> None:
    fixture, centre = Fixture(shared_data, torch.float64), Centre(24).double()
    for step in STEPS:
        teacher = fixture.given("teacher", step)
        targets = centre.probabilities(teacher, fixture.temperature(step))
        loss = sum(losses(fixture, step, fixture.given("student", step), targets))
        np.testing.assert_allclose(loss, fixture.file["f64/loss"][step], rtol=0, atol=1e-10)
        centre.observe(teacher)
        centre.follow()
        np.testing.assert_allclose(centre.value, fixture.file["f64/center"][step], rtol=0, atol=1e-10)


def test_with_sinkhorn_the_losses_are_dinov2s(shared_data: Path) -> None:
    fixture = Fixture(shared_data, torch.float32)
    for step in STEPS:
        targets = sinkhorn(fixture.given("teacher", step), fixture.temperature(step))
        np.testing.assert_allclose(targets, fixture.file[f"out/sinkhorn_teacher_{step}"], rtol=1e-5, atol=1e-5)
        parts = [float(part) for part in losses(fixture, step, fixture.given("student", step), targets)]
        expected = fixture.file["out/dinov2_sinkhorn_global_local"][step]
        np.testing.assert_allclose(parts, expected, rtol=1e-5, atol=1e-5)


def views(count: int, rows: int = 3, width: int = 4, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=draw, dtype=torch.float64) for _ in range(count)]


def test_gradients_are_the_finite_differences() -> None:
    targets = [view.softmax(1) for view in views(2, seed=1)]
    student = [view.requires_grad_() for view in views(4)]
    assert torch.autograd.gradcheck(lambda *s: dino_loss(s, targets), tuple(student))


def test_the_loss_is_the_mean_over_pairs_of_different_views() -> None:
    student, targets = views(5), [view.softmax(1) for view in views(2, seed=1)]
    pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
    terms = [-(targets[t] * (student[s] / 0.1).log_softmax(1)).sum(1).mean() for t, s in pairs]
    torch.testing.assert_close(sum(dino_loss(student, targets)), torch.stack(terms).mean())


def test_without_local_views_the_local_part_is_zero() -> None:
    global_part, local_part = dino_loss(views(2), [view.softmax(1) for view in views(2, seed=1)])
    assert local_part == 0
    assert global_part > 0


def test_a_student_that_agrees_has_the_entropy_of_its_teacher_and_any_other_more() -> None:
    logits = views(1)[0]
    targets = (logits / 0.1).softmax(1)
    agreeing = sum(dino_loss([logits, logits], [targets, targets]))
    entropy = -(targets * targets.log()).sum(1).mean()
    torch.testing.assert_close(agreeing, entropy)
    assert sum(dino_loss([logits.flip(1)] * 2, [targets, targets])) > entropy


def test_entropies_tell_the_two_collapses_apart() -> None:
    even = assignment_entropies(torch.full((8, 4), 0.25))
    one = assignment_entropies(torch.eye(4)[torch.zeros(8, dtype=torch.long)])
    healthy = assignment_entropies(torch.eye(4)[torch.arange(8) % 4])
    log4 = float(torch.tensor(4.0).log())
    assert [round(float(e[k]), 5) for e in (even, one, healthy) for k in ("entropy_rows", "entropy_mean")] == [
        *(round(log4, 5), round(log4, 5)),
        *(0.0, 0.0),
        *(0.0, round(log4, 5)),
    ]


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_half_precision_logits_are_widened_and_large_ones_stay_finite(scale: float) -> None:
    student, targets = views(3), [view.softmax(1).float() for view in views(2, seed=1)]
    loss = sum(dino_loss([scale * view.bfloat16() for view in student], targets))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
