from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from pretrain.objectives.centring import sinkhorn
from pretrain.objectives.dino import dino_loss
from pretrain.objectives.ibot import ibot_loss
from pretrain.objectives.koleo import koleo_loss
from pretrain.objectives.objective import Objective
from pretrain.views import Views

ALWAYS = {"mask_probability": 1.0, "mask_share": (0.3, 0.6), "freeze_last_epochs": 0}


def encoded(wanted: Objective, views: Views) -> tuple[list[Any], list[Any]]:
    student = [wanted.encode_student(views.images[view], view) for view in wanted.student_views]
    return student, [wanted.encode_teacher(views.images[view], view) for view in wanted.teacher_views]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_the_loss_is_the_sum_of_its_published_parts(tiny: ModuleType, separate: bool, centring: str) -> None:
    wanted = tiny.objective("dinov2", "vit", {**ALWAYS, "separate_head": separate, "centring": centring})
    views = tiny.batch(wanted, channels=1)
    student, teacher = encoded(wanted, views)
    found = wanted.loss(student, teacher, views, 0.0)
    mask = torch.cat([student[0][2], student[1][2]])
    patch_head = wanted.patch_head if separate else wanted.head
    teacher_patch_head = wanted.teacher_patch_head if separate else wanted.teacher_head

    def target(logits: torch.Tensor) -> torch.Tensor:
        return sinkhorn(logits, 0.04) if centring == "sinkhorn" else (logits / 0.04).softmax(1)

    classes = target(torch.cat([wanted.teacher_head(features[0]) for features in teacher]))
    patches = target(teacher_patch_head(torch.cat([features[1] for features in teacher])[mask]))
    parts = dino_loss([wanted.head(features[0]) for features in student], classes.chunk(2))
    ibot = ibot_loss(patch_head(torch.cat([student[0][1], student[1][1]])[mask]), patches, mask)
    koleo = koleo_loss(student[0][0]) + koleo_loss(student[1][0])
    torch.testing.assert_close(found["loss"], sum(parts) + ibot + 0.1 * koleo, rtol=1e-5, atol=1e-5)
    for name, expected in (("dino_global", parts[0]), ("dino_local", parts[1]), ("ibot", ibot), ("koleo", koleo)):
        torch.testing.assert_close(found[name], expected.detach(), rtol=1e-5, atol=1e-5)


def test_without_masks_and_koleo_it_is_dino(tiny: ModuleType) -> None:
    settings = {"momentum": 0.996, "global_crop": (0.4, 1.0), "local_crop": (0.05, 0.4), "freeze_last_epochs": 0}
    wanted = tiny.objective("dinov2", "vit", {**settings, "ibot_weight": 0, "koleo_weight": 0})
    dino = tiny.objective("dino", "vit", settings)
    dino.load_state_dict({name: wanted.state_dict()[name] for name in dino.state_dict()})
    views = tiny.batch(wanted, channels=1)
    torch.testing.assert_close(tiny.losses(wanted, views)["loss"], tiny.losses(dino, views)["loss"])


def test_only_global_views_of_the_student_are_masked(tiny: ModuleType) -> None:
    wanted = tiny.objective("dinov2", "vit", ALWAYS)
    views = tiny.batch(wanted, channels=1)
    student, teacher = encoded(wanted, views)
    assert [len(features) for features in student] == [3, 3, 1, 1]
    assert [len(features) for features in teacher] == [2, 2]
    assert student[0][1].shape == teacher[0][1].shape == (8, 16, 24)
    shares = student[0][2].float().mean(1)
    assert float(shares.min()) > 0
    torch.testing.assert_close(wanted.student.eval()(views.images[0]), teacher[0][0])  # unmasked, equal weights


def test_every_view_has_a_mask_of_its_own(tiny: ModuleType) -> None:
    wanted = tiny.objective("dinov2", "vit", ALWAYS)
    views = tiny.batch(wanted, channels=1)
    first, second = (wanted.encode_student(views.images[view], view)[2] for view in (0, 1))
    assert not torch.equal(first, second)


def test_the_mask_token_learns_and_is_not_exported(tiny: ModuleType) -> None:
    wanted = tiny.objective("dinov2", "vit", ALWAYS)
    tiny.losses(wanted, tiny.batch(wanted, channels=1))["loss"].backward()
    assert float(wanted.mask_token.grad.abs().max()) > 0
    assert not any("mask_token" in name for name in wanted.exported().state_dict())


@pytest.mark.parametrize("separate", [False, True])
def test_a_batch_without_a_masked_patch_still_gives_every_gradient(tiny: ModuleType, separate: bool) -> None:
    wanted = tiny.objective("dinov2", "vit", {**ALWAYS, "mask_probability": 0.0, "separate_head": separate})
    found = tiny.losses(wanted, tiny.batch(wanted, channels=1))
    found["loss"].backward()
    assert found["ibot"] == 0
    assert all(p.grad is not None for p in wanted.parameters() if p.requires_grad)


def test_both_centres_move_after_the_step_and_not_before(tiny: ModuleType) -> None:
    wanted = tiny.objective("dinov2", "vit", ALWAYS)
    tiny.losses(wanted, tiny.batch(wanted, channels=1))
    for centre in (wanted.centre, wanted.patch_centre):
        assert float(centre.value.abs().max()) == 0
    wanted.update_teacher(0.0)
    for centre in (wanted.centre, wanted.patch_centre):
        assert float(centre.value.abs().max()) > 0


def test_the_last_layer_is_frozen_in_the_first_epoch_only(tiny: ModuleType) -> None:
    for name in ("dino", "dinov2"):
        wanted = tiny.objective(name, "vit", {"epochs": 4, "freeze_last_epochs": 1})
        views = tiny.batch(wanted, channels=1)
        for progress, frozen in ((0.0, True), (0.2499, True), (0.25, False), (0.9, False)):
            wanted.zero_grad()
            tiny.losses(wanted, views, progress)["loss"].backward()
            assert (wanted.head.last_layer.weight_v.grad is None) is frozen


def test_temperatures_warm_up_by_epochs_in_dino_and_by_steps_in_dinov2(tiny: ModuleType) -> None:
    settings = {"epochs": 10, "warmup_temperature_epochs": 4}
    dino, second = tiny.objective("dino", "vit", settings), tiny.objective("dinov2", "vit", settings)
    found = [dino.temperature(progress) for progress in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 1.0)]
    assert [round(value, 9) for value in found] == [0.04, 0.04, 0.05, 0.06, 0.07, 0.07, 0.07]
    found = [second.temperature(progress) for progress in (0.0, 0.05, 0.1, 0.4, 1.0)]
    assert [round(value, 9) for value in found] == [0.04, 0.04375, 0.0475, 0.07, 0.07]


def test_koleo_per_process_needs_two_slices_in_each(tiny: ModuleType) -> None:
    wanted = tiny.objective("dinov2", "vit", {**ALWAYS, "koleo_over": "process"})
    views = tiny.batch(wanted, channels=1)
    other = tiny.objective("dinov2", "vit", ALWAYS)
    assert math.isclose(float(tiny.losses(wanted, views)["koleo"]), float(tiny.losses(other, views)["koleo"]))
