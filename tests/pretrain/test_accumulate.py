"""Gradients in micro-batches are those of the whole batch."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from pretrain.accumulate import Computed, backward
from pretrain.objectives import build_objective
from pretrain.objectives.objective import Objective
from pretrain.views import Views

HEADS = {
    "moco-v3": {"hidden": 16, "dim": 8},
    "lecl": {"hidden": 16, "dim": 8, "lambda": 3.0},
    "dino": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "local_views": 2, "local_size": 32},
    "dinov2": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "local_views": 1, "local_size": 32},
}


def objective(small: ModuleType, name: str, card: str = "CARD") -> Objective:
    torch.manual_seed(0)
    return build_objective(name, getattr(small, "VIT" if name == "dinov2" else card), {"epochs": 4, **HEADS[name]})


def views(made: Objective, size: int = 8, dtype: torch.dtype = torch.float32) -> Views:
    draw = torch.Generator().manual_seed(3)
    images = [torch.randn(size, 3, kind.size, kind.size, generator=draw).to(dtype) for kind in made.kinds]
    return Views(images, torch.arange(size) % 3 == 0, torch.arange(size))


def gradients(made: Objective, batch: Views, micro_batch: int | None) -> tuple[dict[str, torch.Tensor], Computed]:
    made.zero_grad()
    torch.manual_seed(11)
    computed = backward(made, batch, 0.25, micro_batch=micro_batch)
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}, computed


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    largest = max(float(grad.abs().max()) for grad in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


@pytest.mark.parametrize("name", ["moco-v3", "lecl", "dino"])
@pytest.mark.parametrize("micro_batch", [2, 3, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(small: ModuleType, name: str, micro_batch: int) -> None:
    made = objective(small, name)
    whole, at_once = gradients(made, views(made), None)
    parted, in_parts = gradients(made, views(made), micro_batch)
    assert largest_difference(whole, parted) < 1e-5  # convolutions sum in another order; in double it is 1e-13 below
    assert in_parts.losses["loss"].item() == pytest.approx(at_once.losses["loss"].item(), rel=1e-5)
    assert torch.allclose(in_parts.embeddings, at_once.embeddings, atol=1e-5)


@pytest.mark.parametrize("name", ["moco-v3", "lecl", "dino"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_in_double_precision_they_differ_by_rounding_alone(small: ModuleType, name: str, micro_batch: int) -> None:
    made = objective(small, name, "VIT").double()
    batch = views(made, dtype=torch.float64)
    assert largest_difference(gradients(made, batch, None)[0], gradients(made, batch, micro_batch)[0]) < 1e-13


def test_adding_up_small_batches_would_be_another_gradient(small: ModuleType) -> None:
    """What the two passes are for: the plain sum contrasts each slice with fewer others."""
    made = objective(small, "moco-v3", "VIT").double()
    batch = views(made, dtype=torch.float64)
    whole, _ = gradients(made, batch, None)
    made.zero_grad()
    for part in (slice(0, 4), slice(4, 8)):
        few = Views([image[part] for image in batch.images], batch.lesion[part], batch.rows[part])
        backward(made, few, 0.25)
    summed = {name: p.grad / 2 for name, p in made.named_parameters() if p.grad is not None}
    assert largest_difference(whole, summed) > 1e-2


def test_a_micro_batch_as_large_as_the_batch_is_one_pass(small: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made = objective(small, "lecl")
    calls: list[int] = []
    encode = type(made).encode_student
    monkeypatch.setattr(
        type(made), "encode_student", lambda self, x, view: calls.append(len(x)) or encode(self, x, view)
    )
    gradients(made, views(made), 8)
    assert calls == [8, 8]
    calls.clear()
    gradients(made, views(made), 3)
    assert calls == [3, 3, 2] * 4  # two views, two passes


def test_the_second_pass_drops_what_the_first_dropped(small: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(small.CARD, settings={**small.CARD.settings, "drop_path_rate": 0.5})
    torch.manual_seed(0)
    made = build_objective("lecl", card, {"epochs": 4, **HEADS["lecl"]})
    assert any(isinstance(module, DropPath) and module.drop_prob for module in made.student.modules())
    seen: list[torch.Tensor] = []
    encode = type(made).encode_student

    def watched(self: Objective, x: torch.Tensor, view: int) -> tuple[torch.Tensor, ...]:
        found = encode(self, x, view)
        seen.append(found[0].detach())
        return found

    monkeypatch.setattr(type(made), "encode_student", watched)
    gradients(made, views(made), 2)
    first, second = seen[:8], seen[8:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.allclose(seen[0], seen[4])


def test_masks_of_dinov2_are_the_same_in_both_passes(small: ModuleType) -> None:
    made = objective(small, "dinov2")
    found, computed = gradients(made, views(made), 3)
    assert torch.isfinite(computed.losses["loss"])
    assert all(torch.isfinite(grad).all() for grad in found.values())
    again, _ = gradients(made, views(made), 3)
    assert largest_difference(found, again) == 0.0


def test_running_statistics_move_once(small: ModuleType) -> None:
    made = objective(small, "lecl")
    norm = nn.BatchNorm2d(3)
    made.student = nn.Sequential(norm, made.student)
    gradients(made, views(made, 6), 3)
    assert int(norm.num_batches_tracked) == 4  # two views in two micro-batches, not eight


def test_generators_end_where_an_ordinary_pass_leaves_them(small: ModuleType) -> None:
    made = objective(small, "lecl")
    gradients(made, views(made), 3)
    after_two_passes = torch.rand(3)
    gradients(made, views(made), None)
    assert torch.equal(after_two_passes, torch.rand(3))  # nothing is drawn by this network
