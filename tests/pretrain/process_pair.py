"""What `test_distributed.py` has two processes do. As a script: python process_pair.py RANK WORLD STORE OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.distributed import (
    AllReducedBatchNorm,
    average_gradients,
    broadcast_state,
    gather,
    gather_with_gradient,
    mean_over_processes,
    rank,
    sum_over_processes,
    world_size,
)

NORMS = {
    "rows": ((8, 5), {}),
    "maps": ((8, 5, 3, 4), {}),
    "volumes": ((4, 5, 2, 3, 2), {}),
    "plain": ((8, 5), {"affine": False}),
    "momentum": ((8, 5), {"momentum": 0.37, "eps": 1e-3}),
    "cumulative": ((8, 5), {"momentum": None}),
    "untracked": ((8, 5), {"track_running_stats": False}),
    "uneven": ((7, 5, 3, 4), {}),
    "far from 0": ((8, 5), {}),
}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def part(whole: Tensor) -> Tensor:
    """This process's rows: half of them, the first process one more where they are odd."""
    rows = (len(whole) + 1) // 2
    return whole[:rows] if rank() == 0 and world_size() > 1 else whole[rows:] if world_size() > 1 else whole


def normed(name: str, kind: type[nn.Module] = AllReducedBatchNorm) -> dict[str, Tensor]:
    """Two batches through a norm; output, gradients of a loss that is a sum over rows, and buffers of the second."""
    shape, settings = NORMS[name]
    norm = kind(5, **settings).double()
    with torch.no_grad():
        for index, parameter in enumerate(norm.parameters()):
            parameter.copy_(drawn(5, seed=50 + index))
    found: dict[str, Tensor] = {}
    for step in range(2):
        x = part(drawn(*shape, seed=step) + (1e4 if name == "far from 0" else 0)).requires_grad_()
        output = norm(x)
        norm.zero_grad()
        (output * part(drawn(*shape, seed=10 + step))).sum().backward()
        found = {"output": output.detach(), "gradient": x.grad}
    found |= {f"gradient of {key}": p.grad for key, p in norm.named_parameters()}
    found |= {f"buffer {key}": buffer for key, buffer in norm.named_buffers()}
    norm.eval()
    return found | {"eval": norm(part(drawn(*shape, seed=3))).detach()}


def averaged(bucket_bytes: int) -> list[Tensor | None]:
    """Gradients that differ by process, averaged; one parameter has none, one is of another type."""
    shapes = [(3, 4), (5,), (2, 2, 2), (7,), ()]
    parameters = [nn.Parameter(drawn(*shape)) for shape in shapes]
    parameters.append(nn.Parameter(drawn(6, dtype=torch.float32)))
    for index, parameter in enumerate(parameters):
        if index != 3:
            parameter.grad = drawn(*parameter.shape, seed=100 * rank() + index, dtype=parameter.dtype)
    average_gradients(parameters, bucket_bytes)
    return [parameter.grad for parameter in parameters]


def everything() -> dict[str, Any]:
    """What every function gives in this process."""
    own = drawn(3, 2, seed=rank())
    leaf = own.clone().requires_grad_()
    (gather_with_gradient(leaf) * drawn(3 * world_size(), 2, seed=20 + rank())).sum().backward()
    summed = own.clone().requires_grad_()
    total = sum_over_processes(summed)
    (total * drawn(3, 2, seed=30 + rank())).sum().backward()
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(rank() + 1)
    broadcast_state(module)
    half = AllReducedBatchNorm(5)(part(drawn(8, 5)).bfloat16())
    return {
        "who": (rank(), world_size()),
        "gathered": gather(own),
        "gathered flags": gather(torch.tensor([True, rank() == 1])),
        "gathered numbers": gather(torch.tensor([7, rank()])),
        "gradient through gather": leaf.grad,
        "sum": total.detach(),
        "gradient through sum": summed.grad,
        "mean": mean_over_processes(own),
        "own after mean": own,
        "averaged": averaged(2**20),
        "averaged in small buckets": averaged(40),
        "broadcast": module.state_dict(),
        "norms": {name: normed(name) for name in NORMS},
        "half": half.detach(),
    }


if __name__ == "__main__":
    number, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    torch.save(everything(), f"{out}.{number}")
    dist.destroy_process_group()
