"""Tiny encoders, their views, and short trainings of them: by a test in its own process, or by two as a script.

    python tiny_runs.py RANK WORLD STORE OUT

connects WORLD processes through the file STORE, runs every entry of RUNS and writes what came out to OUT.RANK.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clear.backbones.vit_conv import ConvStem
from clear.card import EncoderCard, WeightSource
from pretrain.distributed import average_gradients, mean_over_processes, rank, world_size
from pretrain.objectives import build_objective
from pretrain.objectives.objective import Objective
from pretrain.views import Views


def card(name: str, architecture: str, dim: int, *, size: int = 32, channels: int = 3, **fields: Any) -> EncoderCard:
    """A card of a small untrained network."""
    grey = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    source = WeightSource("file", "weights.safetensors", "weights.safetensors")
    return EncoderCard(
        name, architecture, dim, source, "untrained", input_size=size, channels=channels, **{**grey, **fields}
    )


CARDS = {
    "mambaout": card(
        "mambaout",
        "timm:mambaout_femto",
        24,
        settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
        pooling="mean_norm",
    ),
    "vit": card(
        "vit",
        "timm:vit_tiny_patch16_224",
        24,
        settings={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
        channels=1,
    ),
    "vit_conv": card("vit_conv", "vit_conv:small", 48, size=64, settings={"embed_dim": 48, "depth": 1, "num_heads": 3}),
    "vmamba": card(
        "vmamba",
        "vmamba:vssm",
        16,
        settings={"depths": (1, 1), "dims": (8, 16), "drop_path_rate": 0.0},
        pooling="native",
    ),
    "resnet": card("resnet", "timm:test_resnet", 96, pooling="native"),
}
MOCO = {"hidden": 24, "dim": 12}
DINO = {"hidden": 24, "bottleneck": 8, "prototypes": 40, "local_views": 2, "epochs": 4, "warmup_temperature_epochs": 2}


def objective(name: str, architecture: str, settings: Mapping[str, Any] | None = None, seed: int = 0) -> Objective:
    """An objective around a tiny encoder, the same for the same seed."""
    small = MOCO if name in ("moco-v3", "lecl") else DINO
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_objective(name, CARDS[architecture], {**small, **(settings or {})})


def batch(wanted: Objective, rows: int = 8, seed: int = 0, channels: int = 3) -> Views:
    """Random views of `rows` slices, about a third of them annotated; the same for the same seed."""
    draw = torch.Generator().manual_seed(seed)
    images = [torch.randn(rows, channels, kind.size, kind.size, generator=draw) for kind in wanted.kinds]
    return Views(images, torch.arange(seed, seed + rows) % 3 == 1, torch.arange(rows))


def share(views: Views) -> Views:
    """This process's part of the batch."""
    rows = len(views.rows) // world_size()
    part = slice(rank() * rows, (rank() + 1) * rows)
    return Views([image[part] for image in views.images], views.lesion[part], views.rows[part])


def losses(wanted: Objective, views: Views, progress: float = 0.0) -> dict[str, Tensor]:
    """One forward pass of everything."""
    student = [wanted.encode_student(views.images[view], view) for view in wanted.student_views]
    teacher = [wanted.encode_teacher(views.images[view], view) for view in wanted.teacher_views]
    return wanted.loss(student, teacher, views, progress)


@dataclass(frozen=True)
class Run:
    """A short training. dtype: of everything; steps over 4 epochs."""

    objective: str
    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    steps: int = 10


def let_stem_be_double(wanted: Objective) -> None:
    """A ViT-conv's stem begins in float32 whatever the rest is in; here it is as the rest."""
    for module in wanted.modules():
        if isinstance(module, ConvStem):
            module.forward = lambda x, stem=module: stem.proj(x).flatten(2).transpose(1, 2)  # type: ignore[method-assign]


def trained(run: Run) -> dict[str, Any]:
    """The loss of every step, the first step's gradients and the last state of a training by AdamW."""
    wanted = objective(run.objective, run.architecture, run.settings).to(run.dtype)
    if run.dtype == torch.float64:
        let_stem_be_double(wanted)
    optimiser = torch.optim.AdamW(wanted.parameters(), lr=1e-3, weight_decay=0.1)
    curve: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    for step in range(run.steps):
        views = share(batch(wanted, seed=step, channels=CARDS[run.architecture].channels))
        views = Views([image.to(run.dtype) for image in views.images], views.lesion, views.rows)
        optimiser.zero_grad()
        loss = losses(wanted, views, step / run.steps)["loss"]
        loss.backward()
        average_gradients(wanted.parameters())
        if step == 0:
            named = wanted.named_parameters()
            gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        optimiser.step()
        wanted.update_teacher(step / run.steps)
        curve.append(mean_over_processes(loss))
    return {"losses": torch.stack(curve), "gradients": gradients, "state": wanted.state_dict()}


V2 = {"mask_probability": 0.8, "freeze_last_epochs": 1}
RUNS = {
    "moco-v3 ViT": Run("moco-v3", "vit", dtype=torch.float64),
    "lecl ViT": Run("lecl", "vit", {"lambda": 3.0}, torch.float64),
    "lecl without own keys": Run("lecl", "vit", {"lambda": 3.0, "own_key": False}, torch.float64),
    "lecl released": Run("lecl", "vit", {"lambda": 3.0, "variant": "released"}, torch.float64),
    "lecl ResNet": Run("lecl", "resnet", {"lambda": 3.0}, torch.float64),
    "lecl ViT-conv": Run("lecl", "vit_conv", {"lambda": 3.0}, torch.float64),
    "dino ViT": Run("dino", "vit", dtype=torch.float64),
    "dino ResNet": Run("dino", "resnet", {"batch_norm": True}, torch.float64),
    "dinov2 centred": Run("dinov2", "vit", V2, torch.float64),
    "dinov2 Sinkhorn": Run("dinov2", "vit", {**V2, "centring": "sinkhorn", "separate_head": True}, torch.float64),
    "moco-v3 MambaOut": Run("moco-v3", "mambaout"),
    "lecl MambaOut": Run("lecl", "mambaout", {"lambda": 3.0}),
    "dino MambaOut": Run("dino", "mambaout"),
    "lecl VMamba": Run("lecl", "vmamba"),
    "dinov2 float32": Run("dinov2", "vit", V2),
}

if __name__ == "__main__":
    number, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    torch.save({name: trained(run) for name, run in RUNS.items()}, f"{out}.{number}")
    dist.destroy_process_group()
