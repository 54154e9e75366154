from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.objectives.centring import Centre, sinkhorn
from pretrain.objectives.ibot import draw_masks, ibot_loss

STEPS = range(2)


class Fixture:
    def __init__(self, shared_data: Path, dtype: torch.dtype) -> None:
        self.file = np.load(shared_data / "fixtures" / "ibot_patch_loss.npz", allow_pickle=False)
        self.mask = torch.from_numpy(self.file["in/masks"])
        self.temperature = float(self.file["param/teacher_temp"])
        self.dtype = dtype

    def masked(self, name: str, step: int) -> Tensor:
        return torch.from_numpy(self.file[f"in/{name}_{step}"]).to(self.dtype)[self.mask]


@pytest.fixture
def single(shared_data: Path) -> Fixture:
    return Fixture(shared_data, torch.float32)


@pytest.fixture
def double(shared_data: Path) -> Fixture:
    return Fixture(shared_data, torch.float64)


def test_masked_patches_are_taken_in_row_order(single: Fixture) -> None:
    np.testing.assert_array_equal(single.mask.flatten().nonzero()[:, 0], single.file["out/mask_indices"])


def test_centred_losses_and_centres_are_dinov2s_in_two_steps(single: Fixture) -> None:
    centre = Centre(20)
    for step in STEPS:
        student = single.masked("student", step).requires_grad_()
        targets = centre.probabilities(single.masked("teacher", step), single.temperature)
        np.testing.assert_allclose(targets, single.file[f"out/teacher_centering_{step}"], rtol=1e-5, atol=1e-5)
        loss = ibot_loss(student, targets, single.mask)
        loss.backward()
        np.testing.assert_allclose(loss.detach(), single.file["out/loss_centering"][step], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(loss.detach(), single.file["out/loss_dense_centering"][step], rtol=1e-5, atol=1e-5)
        expected = single.file[f"out/grad_student_masked_{step}"]
        np.testing.assert_allclose(student.grad, expected, rtol=1e-5, atol=1e-6)
        centre.observe(single.masked("teacher", step))
        centre.follow()
        np.testing.assert_allclose(centre.value, single.file["out/center"][step], rtol=1e-5, atol=1e-6)


def test_sinkhorn_losses_are_dinov2s(single: Fixture) -> None:
    for step in STEPS:
        targets = sinkhorn(single.masked("teacher", step), single.temperature)
        np.testing.assert_allclose(targets, single.file[f"out/teacher_sinkhorn_{step}"], rtol=1e-5, atol=1e-5)
        loss = ibot_loss(single.masked("student", step), targets, single.mask)
        np.testing.assert_allclose(loss, single.file["out/loss_sinkhorn"][step], rtol=1e-5, atol=1e-5)


def test_float64_values_follow_the_definition(double: Fixture) -> None:
    centre = Centre(20).double()
    for step in STEPS:
        student, teacher = double.masked("student", step), double.masked("teacher", step)
        centred = ibot_loss(student, centre.probabilities(teacher, double.temperature), double.mask)
        shared = ibot_loss(student, sinkhorn(teacher, double.temperature), double.mask)
        np.testing.assert_allclose(centred, double.file["f64/loss_centering"][step], rtol=0, atol=1e-10)
        np.testing.assert_allclose(shared, double.file["f64/loss_sinkhorn"][step], rtol=0, atol=1e-10)
        centre.observe(teacher)
        centre.follow()
        np.testing.assert_allclose(centre.value, double.file["f64/center"][step], rtol=0, atol=1e-10)


def test_gradients_are_the_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    student = torch.randn(5, 4, dtype=torch.float64, generator=draw, requires_grad=True)
    targets = torch.randn(5, 4, dtype=torch.float64, generator=draw).softmax(1)
    assert torch.autograd.gradcheck(lambda s: ibot_loss(s, targets, mask), (student,))


def test_without_any_masked_patch_the_loss_is_zero_and_still_of_the_graph() -> None:
    student = torch.zeros(0, 4, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert student.grad is not None


def slices(count: int = 64, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_half_of_the_images_are_masked_by_a_share_of_their_patches() -> None:
    masks = draw_masks(slices(400, 32), 16, (0.1, 0.5), 0.5)
    shares = masks.float().mean(1)
    masked = shares > 0
    assert abs(float(masked.float().mean()) - 0.5) < 0.1
    assert float(shares.max()) <= 0.5
    assert 0.25 < float(shares[masked].mean()) < 0.33  # uniform over 0.1 to 0.5 has mean 0.3, less what did not fit


def test_masks_are_made_of_blocks() -> None:
    masks = draw_masks(slices(), 16, (0.3, 0.3), 1.0).view(-1, 16, 16)
    beside = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks.sum()
    assert float(beside) > 0.6  # 0.3 if patches were masked one by one


def test_a_mask_depends_on_its_image_alone() -> None:
    images = slices(12)
    whole = draw_masks(images, 4, (0.1, 0.5), 0.5)
    torch.manual_seed(123)
    parts = torch.cat([draw_masks(part, 4, (0.1, 0.5), 0.5) for part in images.split(5)])
    assert torch.equal(parts, whole)
    in_memory_order = images.to(memory_format=torch.channels_last)
    assert torch.equal(draw_masks(in_memory_order, 4, (0.1, 0.5), 0.5), whole)
    assert not torch.equal(draw_masks(images + 1e-3, 4, (0.1, 0.5), 0.5), whole)


@pytest.mark.parametrize(("probability", "share"), [(0.0, (0.1, 0.5)), (1.0, (0.0, 0.0))])
def test_no_probability_or_no_share_masks_nothing(probability: float, share: tuple[float, float]) -> None:
    assert not bool(draw_masks(slices(), 8, share, probability).any())


@pytest.mark.parametrize("side", [1, 2, 4, 7])
def test_a_small_grid_is_masked_as_far_as_blocks_fit(side: int) -> None:
    masks = draw_masks(slices(), side, (1.0, 1.0), 1.0)
    assert masks.shape == (64, side * side)
    assert side < 4 or float(masks.any(1).float().mean()) > 0.95
