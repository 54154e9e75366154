"""The optimiser: what decays, how the rates go, and what is held still."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch

from clear.encoders import ENCODERS
from clear.errors import InputError
from pretrain.objectives import build_objective
from pretrain.objectives.objective import Objective
from pretrain.optimiser import (
    build_optimiser,
    checkpoint_activations,
    clip_gradients,
    hold_patch_embedding,
    set_rates,
)
from pretrain.settings import PretrainSettings

HEADS = {"hidden": 16, "dim": 8}


def settings(**changes: Any) -> PretrainSettings:
    return PretrainSettings(
        **{"objective": "moco-v3", "model": "small", "epochs": 10, "batch": 64, **changes}
    ).settled()


def build(small: ModuleType, card: str = "CARD", name: str = "moco-v3") -> Objective:
    options = HEADS if name == "moco-v3" else {"hidden": 16, "bottleneck": 8, "prototypes": 12, "local_views": 0}
    return build_objective(name, getattr(small, card), {"epochs": 10, **options})


def decaying(made: Objective, optimiser: torch.optim.Optimizer) -> set[str]:
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    return {names[id(p)] for group in optimiser.param_groups if group["weight_decay"] > 0 for p in group["params"]}


@pytest.mark.parametrize("card", ["CARD", "VIT"])
def test_weights_decay_and_biases_norms_and_positions_do_not(small: ModuleType, card: str) -> None:
    made, asked = build(small, card), settings()
    optimiser = build_optimiser(made, asked)
    set_rates(optimiser, asked, 5, 10)
    found = decaying(made, optimiser)
    shapes = {name: parameter.ndim for name, parameter in made.named_parameters()}
    assert all(shapes[name] > 1 for name in found)
    assert not any(name.endswith(("bias", "pos_embed", "cls_token")) for name in found)
    assert {"projector.0.weight", "predictor.0.weight"} <= found
    trained = sum(len(group["params"]) for group in optimiser.param_groups)
    assert trained == sum(parameter.requires_grad for parameter in made.parameters())  # nothing of the teacher


def test_the_rate_rises_to_a_peak_scaled_by_the_batch_and_falls_to_nothing(small: ModuleType) -> None:
    asked = settings(lr=1e-3, warmup_epochs=2, batch=512)
    optimiser = build_optimiser(build(small), asked)
    rates = [set_rates(optimiser, asked, step, 10) for step in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.0, 1e-3, 2e-3, 1e-3, 0.0], abs=1e-12)
    assert {group["lr"] for group in optimiser.param_groups} == {rates[-1]}


def test_weight_decay_goes_along_a_cosine_to_its_end(small: ModuleType) -> None:
    made, asked = build(small, name="dino"), settings(objective="dino")
    optimiser = build_optimiser(made, asked)
    decays = []
    for step in (0, 5, 10):
        set_rates(optimiser, asked, step, 10)
        decays.append(max(group["weight_decay"] for group in optimiser.param_groups))
    assert decays == pytest.approx([0.04, 0.22, 0.4])
    assert min(group["weight_decay"] for group in optimiser.param_groups) == 0.0


def test_dinos_rates_are_its_repositorys_at_every_step(small: ModuleType, shared_data: Path) -> None:
    expected = np.load(shared_data / "fixtures" / "dino_loss.npz")
    asked = settings(objective="dino", epochs=6, warmup_epochs=2, batch=256)  # of 5 steps an epoch
    optimiser = build_optimiser(build(small, name="dino"), asked)
    rates, decays = [], []
    for step in range(30):
        rates.append(set_rates(optimiser, asked, step, 30))
        decays.append(max(group["weight_decay"] for group in optimiser.param_groups))
    assert rates == pytest.approx(expected["f64/schedule_lr"].tolist(), abs=1e-18)
    assert decays == pytest.approx(expected["f64/schedule_weight_decay"].tolist(), abs=1e-15)


def test_dino_clips_each_tensor_and_the_others_the_whole_gradient() -> None:
    def clipped(objective: str) -> tuple[list[float], float]:
        parameters = [torch.nn.Parameter(torch.zeros(4)) for _ in range(2)]
        for parameter, length in zip(parameters, (3.0, 4.0), strict=True):
            parameter.grad = torch.full((4,), length / 2)
        norm = clip_gradients(parameters, settings(objective=objective, clip=2.5))
        return [float(parameter.grad.norm()) for parameter in parameters if parameter.grad is not None], float(norm)

    for objective, lengths in (("dino", [2.5, 2.5]), ("dinov2", [1.5, 2.0]), ("lecl", [1.5, 2.0])):
        found, norm = clipped(objective)
        assert found == pytest.approx(lengths, rel=1e-5)
        assert norm == pytest.approx(5.0)


def test_vmambas_rates_and_skips_do_not_decay() -> None:
    card = replace(ENCODERS["vmamba-tiny"], settings={**ENCODERS["vmamba-tiny"].settings, "depths": (1, 1, 1, 1)})
    made = build_objective("moco-v3", card, HEADS)
    optimiser = build_optimiser(made, settings())
    set_rates(optimiser, settings(), 0, 10)
    found = decaying(made, optimiser)
    assert any(name.endswith("in_proj.weight") for name in found)
    assert not any(name.endswith(("A_logs", "Ds")) for name in found)


def test_lars_adapts_the_rate_of_weights_and_not_of_biases(small: ModuleType) -> None:
    made, asked = build(small), settings(optimizer="lars", lr=0.5, warmup_epochs=0, weight_decay=0.0)
    optimiser = build_optimiser(made, asked)
    assert isinstance(optimiser, timm.optim.Lars)
    rate = set_rates(optimiser, asked, 0, 10)
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    for parameter in made.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimiser.step()
    after = dict(made.named_parameters())
    bias = next(name for name in before if name.startswith("student") and name.endswith("bias"))
    assert torch.allclose(before[bias] - after[bias], torch.full_like(before[bias], rate))
    name = "predictor.0.weight"  # You, Gitman and Ginsburg 2017: 0.001 |w| / |g|
    trust = 0.001 * float(before[name].norm()) / math.sqrt(before[name].numel())
    assert torch.allclose(before[name] - after[name], torch.full_like(before[name], rate * trust), atol=5e-8)


@pytest.mark.parametrize(
    ("card", "changes", "held"),
    [
        ("VIT", {}, True),
        ("VIT", {"freeze_patch_embed": False}, False),
        ("VIT", {"objective": "dino"}, False),
        ("VIT", {"objective": "dino", "freeze_patch_embed": True}, True),
        ("CARD", {}, False),
    ],
)
def test_the_patch_embedding_of_a_vit_is_held_where_its_authors_hold_it(
    small: ModuleType, card: str, changes: dict[str, Any], held: bool
) -> None:
    asked = settings(**changes)
    made = build(small, card, asked.objective)
    assert bool(hold_patch_embedding(made, asked)) is held
    frozen = [name for name, parameter in made.student.named_parameters() if not parameter.requires_grad]
    assert [name for name in frozen if "patch_embed" in name] == (
        ["network.patch_embed.proj.weight", "network.patch_embed.proj.bias"] if held else []
    )


def test_a_patch_embedding_that_is_not_there_cannot_be_held(small: ModuleType) -> None:
    with pytest.raises(InputError, match="--freeze-patch-embed: the network has no patch embedding"):
        hold_patch_embedding(build(small), settings(freeze_patch_embed=True))


def test_a_convolutional_stem_is_always_trained(small: ModuleType) -> None:
    card = replace(ENCODERS["vit-conv-moco"], input_size=32, architecture="vit_conv:small", dim=384)
    made = build_objective("moco-v3", card, {"epochs": 10, **HEADS})
    assert hold_patch_embedding(made, settings()) == ""


def test_activations_computed_anew_give_the_same_gradient(small: ModuleType) -> None:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for card in ("CARD", "VIT"):
        made = build(small, card)
        made.student(x).square().sum().backward()
        kept = {name: p.grad.clone() for name, p in made.student.named_parameters() if p.grad is not None}
        made.zero_grad()
        checkpoint_activations(made)
        made.student(x).square().sum().backward()
        for name, parameter in made.student.named_parameters():
            if name in kept:
                assert torch.allclose(kept[name], parameter.grad, atol=1e-6), name


def test_a_network_that_keeps_all_its_activations_says_so(small: ModuleType) -> None:
    made = build(small)
    made.student = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="--checkpoint-grads: Linear cannot compute its activations anew"):
        checkpoint_activations(made)
