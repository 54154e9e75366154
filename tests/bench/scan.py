"""The selective scan: the whole VMamba encoder with ours, and with the loop over positions that others fall back on."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones import selective_scan as module
from clear.backbones.vmamba import VSSM

ROUNDS = 3
SIDE = 224
BATCHES = (1, 2)
MEMORY_BATCH = 16


def reference_scan(u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Step by step as the published fallbacks go (state-spaces/mamba, selective_scan_ref): coefficients of all
    positions first, then one position after the other, in tensors (N, K D, L, S)."""
    length, n, groups, channels = u.shape
    u = u.permute(1, 2, 3, 0).reshape(n, groups * channels, length)
    delta = functional.softplus(steps.permute(1, 2, 3, 0).reshape(n, groups * channels, length))
    a = a.transpose(1, 2).reshape(groups * channels, -1)
    b, c = (x.permute(1, 2, 3, 0).repeat_interleave(channels, dim=1) for x in (b, c))
    decays = torch.exp(torch.einsum("ndl,ds->ndls", delta, a))
    inputs = torch.einsum("ndl,ndsl,ndl->ndls", delta, b, u)
    state = u.new_zeros(n, groups * channels, a.shape[1])
    y = []
    for t in range(length):
        state = decays[:, :, t] * state + inputs[:, :, t]
        y.append(torch.einsum("nds,nds->nd", state, c[..., t]))
    return torch.stack(y, dim=-1).view(n, groups, channels, length).permute(3, 0, 1, 2)


def plain_loop(u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Step by step in our own layout, everything for one position at a time: what blocks are worth."""
    state = u.new_zeros(*u.shape[1:3], a.shape[1], u.shape[3])
    y = []
    for u_, steps_, b_, c_ in zip(u, steps, b, c, strict=True):
        delta = functional.softplus(steps_)
        state = torch.exp(delta.unsqueeze(-2) * a) * state + (delta * u_).unsqueeze(-2) * b_.unsqueeze(-1)
        y.append((c_.unsqueeze(-1) * state).sum(-2))
    return torch.stack(y)


def no_scan(u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Leaves everything but the scan."""
    return u


def seconds(network: nn.Module, x: Tensor, scan: Callable[..., Tensor]) -> float:
    """Seconds an image for one forward pass with `scan` in place of ours."""
    ours = module.selective_scan
    module.selective_scan = scan
    try:
        started = time.perf_counter()
        with torch.inference_mode():
            network(x)
        return (time.perf_counter() - started) / len(x)
    finally:
        module.selective_scan = ours


MEMORY = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from scan import SIDE, VSSM
def number(key):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[key].split()[0]) / 1024
network = VSSM().eval()
x = torch.randn(int(sys.argv[2]), 3, SIDE, SIDE)
training = sys.argv[3] == "training"
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = number("VmRSS")
with torch.inference_mode(not training):
    y = network(x)
if training:
    y.square().sum().backward()
print(json.dumps({"extra": number("VmHWM") - before}))
"""


def extra_memory(batch: int, what: str) -> float:
    """MiB above the network and its input at the peak of one pass over `batch` images, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(batch), what],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout.strip().splitlines()[-1])["extra"])


def main() -> None:
    """Print the table of ratios."""
    print(f"\nscan: VMamba as CLEAR used it, {SIDE} px, float32, {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    network = VSSM().eval().to(memory_format=torch.channels_last)
    for batch in BATCHES:
        x = torch.randn(batch, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        seconds(network, x, module.selective_scan)
        ours, rest, against_reference, against_loop = [], [], [], []
        for _ in range(ROUNDS):
            ours.append(seconds(network, x, module.selective_scan))
            rest.append(seconds(network, x, no_scan))
            against_reference.append(seconds(network, x, reference_scan) / ours[-1])
            against_loop.append(seconds(network, x, plain_loop) / ours[-1])
        show(
            f"batch {batch}",
            f"{statistics.median(against_reference):.1f} times the step-by-step reference (bound 8), "
            f"{statistics.median(against_loop):.1f} times a loop in our layout",
        )
        show("", f"{statistics.median(ours):.3f} s an image, {statistics.median(rest):.3f} s of it outside the scan")
    show("peak memory", f"{extra_memory(MEMORY_BATCH, 'inference'):.0f} MiB extra, batch {MEMORY_BATCH} (bound 500)")
    show("", f"{extra_memory(2, 'training'):.0f} MiB extra with a backward pass, batch 2")


def show(what: str, figure: str) -> None:
    """One line of the table."""
    print(f"  {what:<28}{figure}", flush=True)


if __name__ == "__main__":
    main()
