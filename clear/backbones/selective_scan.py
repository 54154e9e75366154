"""The selective scan of Mamba: a linear recurrence whose coefficients depend on the input, one for every channel.

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752, section 3 (equation 2
with the discretisation of its implementation). For every channel d and state s, with t along the sequence:

    h[t, s] = exp(delta[t] A[s]) h[t-1, s] + delta[t] u[t] B[t, s],   h[-1] = 0
    y[t]    = sum over s of C[t, s] h[t, s]

Time comes first and channels last in every tensor here: a step is then one block of memory, and neighbouring channels
share an instruction. Nothing of size (L, N, K, S, D) is ever made: blocks of steps are prepared, run through, and
reused.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DIRECTIONS = 4
LOG2_E = math.log2(math.e)

# Numbers of one step, (N, K, S, D): below what torch splits over threads, whose meeting thousands of times would cost
# more than the step. Blocks of steps are split, and sized for the cache. Neither matters so on a GPU.
_STEP_ON_CPU, _BLOCK_ON_CPU = 1 << 15, 1 << 20
_STEP_ELSEWHERE, _BLOCK_ELSEWHERE = 1 << 24, 1 << 26
_PATHS_ON_CPU, _PATHS_ELSEWHERE = 5_000_000, 160_000_000  # numbers in one tensor of the four paths of some images


def selective_scan(u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """y of the recurrence above, (L, N, K, D), for N images and K independent groups of D channels with S states.

    u: input, (L, N, K, D); steps: delta before its softplus, (L, N, K, D); a: (K, S, D), negative;
    b, c: (L, N, K, S). Any strides. Half precision is widened and y is float32 then, in autocast too: a product of
    thousands of bfloat16 factors means nothing. Differentiable once, keeping about sqrt(L) of the L states.

    With `mamba-ssm` installed its kernel does the work on a GPU; everywhere else PyTorch does.
    """
    wide = torch.promote_types(u.dtype, torch.float32)
    u, steps, a, b, c = (x.to(wide) for x in (u, steps, a, b, c))
    with torch.autocast(u.device.type, enabled=False):
        if u.is_cuda and (kernel := _mamba_kernel()) is not None:
            return through_kernel(kernel, u, steps, a, b, c)
        return _in_parts(u, steps, a, b, c)


def scan_image(x: Tensor, projection: Tensor, to_steps: Tensor, step_bias: Tensor, a: Tensor, skip: Tensor) -> Tensor:
    """The sum of four selective scans of a map, each along a path with parameters of its own; (N, H, W, D) to the same.

    The K = 4 paths: row by row, column by column, and both backwards. projection: (4, R + 2 S, D) makes of every
    position R numbers for the step sizes, then B and C; to_steps (4, D, R) and step_bias (4, D) make the steps of those
    R; a: (4, S, D); skip: (4, D), by which each path adds its input. VMamba, section 4.2; MzeroMiko/VMamba, class SS2D.
    """
    x = x.to(a.dtype)
    images = len(x)
    if not torch.is_grad_enabled():  # what four paths of a whole batch weigh need not exist at once
        images = max(1, (_PATHS_ON_CPU if x.device.type == "cpu" else _PATHS_ELSEWHERE) // (DIRECTIONS * x[0].numel()))
    with torch.autocast(x.device.type, enabled=False):
        return _joined(
            [_scan_images(part, projection, to_steps, step_bias, a, skip) for part in torch.split(x, images)], 0
        )


def _scan_images(x: Tensor, projection: Tensor, to_steps: Tensor, step_bias: Tensor, a: Tensor, skip: Tensor) -> Tensor:
    n, height, width, channels = x.shape
    length = height * width
    rows = x.permute(1, 2, 0, 3).reshape(length, n, channels)
    columns = x.permute(2, 1, 0, 3).reshape(length, n, channels)
    u = torch.stack([rows, columns, rows.flip(0), columns.flip(0)], dim=2)

    # One product a path: (4, L N, D) with (4, D, R + 2 S).
    by_path = u.permute(2, 0, 1, 3).view(DIRECTIONS, length * n, channels)
    projected = torch.bmm(by_path, projection.transpose(1, 2))
    rank, states = to_steps.shape[2], a.shape[1]
    low_rank, b, c = torch.split(projected, [rank, states, states], dim=-1)
    steps = torch.baddbmm(step_bias.unsqueeze(1), low_rank, to_steps.transpose(1, 2))
    steps, b, c = (value.view(DIRECTIONS, length, n, -1).permute(1, 2, 0, 3) for value in (steps, b, c))

    y = selective_scan(u, steps, a, b, c)
    by_row = (y[:, :, 0] + y[:, :, 2].flip(0)).view(height, width, n, channels).permute(2, 0, 1, 3)
    by_column = (y[:, :, 1] + y[:, :, 3].flip(0)).view(width, height, n, channels).permute(2, 1, 0, 3)
    return by_row + by_column + x * skip.sum(0)  # all paths see the same input


def through_kernel(kernel: Callable[..., Tensor], u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same by a function with the interface of `mamba_ssm.ops.selective_scan_interface.selective_scan_fn`.

    It wants (N, K D, L) for u and delta, (K D, S) for A, (N, K, S, L) for B and C, time contiguous.
    """
    length, n, groups, channels = u.shape
    u, steps = (x.permute(1, 2, 3, 0).reshape(n, groups * channels, length).contiguous() for x in (u, steps))
    b, c = (x.permute(1, 2, 3, 0).contiguous() for x in (b, c))
    y = kernel(u, steps, a.transpose(1, 2).reshape(groups * channels, -1).contiguous(), b, c, delta_softplus=True)
    return y.view(n, groups, channels, length).permute(3, 0, 1, 2)


def _mamba_kernel() -> Callable[..., Tensor] | None:
    """The CUDA kernel of state-spaces/mamba, where it is installed."""
    try:
        module: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError:
        return None
    kernel: Callable[..., Tensor] = module.selective_scan_fn
    return kernel


def _in_parts(u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """y, so many images and groups at a time that a step stays as small as it should."""
    limit = _STEP_ON_CPU if u.device.type == "cpu" else _STEP_ELSEWHERE
    images, groups = max(1, limit // a.numel()), max(1, limit // a[0].numel())
    scan = _Scan.apply if torch.is_grad_enabled() else _scan
    parts = []
    for of_images in zip(*(torch.split(x, images, dim=1) for x in (u, steps, b, c)), strict=True):
        of_groups = zip(*(torch.split(x, groups, dim=2) for x in of_images), torch.split(a, groups), strict=True)
        parts.append(_joined([scan(u_, steps_, a_, b_, c_) for u_, steps_, b_, c_, a_ in of_groups], dim=2))
    return _joined(parts, dim=1)


class _Scan(torch.autograd.Function):
    """The scan, with a backward pass that makes the states again, block by block, from those kept between blocks."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        kept: list[Tensor] = []
        y = _scan(u, steps, a, b, c, kept)
        ctx.save_for_backward(u, steps, a, b, c, torch.stack(kept))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """From the last step to the first, g[t] = dL/dh[t] = C[t] dL/dy[t] + exp(delta[t+1] A) g[t+1]."""
        with torch.autocast(grad.device.type, enabled=False):
            return _gradients(grad, *ctx.saved_tensors)


def _gradients(
    grad: Tensor, u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor, kept: Tensor
) -> tuple[Tensor, ...]:
    grad_u, grad_steps, grad_b, grad_c = (torch.empty_like(x) for x in (u, steps, b, c))
    grad_a, a_log2 = torch.zeros_like(a), a * LOG2_E
    block = _block_of(len(u))
    from_later = torch.zeros_like(kept[0])
    for index in reversed(range(len(kept))):
        span = slice(index * block, (index + 1) * block)
        delta = _softplus(steps[span])
        driven = delta * u[span]
        decay = _decays(delta, a_log2)
        states = torch.cat([kept[index : index + 1], driven.unsqueeze(-2) * b[span].unsqueeze(-1)])
        _run(decay.unbind(), states[1:].unbind(), states[0])

        g = grad[span].unsqueeze(-2) * c[span].unsqueeze(-1)
        g[-1] += from_later
        _run(decay[1:].unbind()[::-1], g[:-1].unbind()[::-1], g[-1])
        from_later = decay[0] * g[0]

        grad_b[span] = (g @ driven.unsqueeze(-1)).squeeze(-1)
        grad_c[span] = (states[1:] @ grad[span].unsqueeze(-1)).squeeze(-1)
        grad_driven = (b[span].unsqueeze(-2) @ g).squeeze(-2)
        g.mul_(states[:-1]).mul_(decay)  # dL/d(delta A)
        grad_delta = grad_driven * u[span] + (g * a).sum(-2)
        grad_steps[span] = grad_delta * torch.sigmoid(steps[span])
        grad_u[span] = grad_driven * delta
        grad_a += (g * delta.unsqueeze(-2)).sum((0, 1))
    return grad_u, grad_steps, grad_a, grad_b, grad_c


def _scan(u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor, kept: list[Tensor] | None = None) -> Tensor:
    """y, block by block. With `kept`, blocks have sqrt(L) steps and the state before each is appended to it."""
    length, n, groups, channels = u.shape
    state = u.new_zeros(n, groups, a.shape[1], channels)
    block = _block_of(length)
    if kept is None:
        numbers = _BLOCK_ON_CPU if u.device.type == "cpu" else _BLOCK_ELSEWHERE
        block = min(length, max(1, numbers // state.numel()))
    y = u.new_empty(u.shape)
    a_log2, b, c = a * LOG2_E, b.contiguous(), c.contiguous()
    decays, blocks = (u.new_empty(block, *state.shape) for _ in range(2))
    for first in range(0, length, block):
        span = slice(first, first + block)
        if kept is not None:
            kept.append(state.clone())
        delta = _softplus(steps[span])
        decay, states = decays[: len(delta)], blocks[: len(delta)]
        _decays(delta, a_log2, decay)
        torch.mul((delta * u[span]).unsqueeze(-2), b[span].unsqueeze(-1), out=states)
        _run(decay.unbind(), states.unbind(), state)
        torch.matmul(c[span].unsqueeze(-2), states, out=y[span].unsqueeze(-2))
        state.copy_(states[-1])
    return y


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _block_of(length: int) -> int:
    """Steps between kept states: as many as there are blocks, so that neither is many."""
    return math.isqrt(length - 1) + 1


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) = max(x, 0) + log1p(y) with y = exp(-|x|), by log1p(y) = 2 atanh(y / (2 + y)).

    On a processor torch computes log1p, and with it its softplus, number by number; atanh it vectorises.
    """
    y = torch.exp2(x.abs() * -LOG2_E)
    return torch.atanh(y / (y + 2)).mul_(2).add_(x.clamp(min=0))


def _decays(delta: Tensor, a_log2: Tensor, out: Tensor | None = None) -> Tensor:
    """exp(delta a), (T, N, K, S, D). As a power of two: torch's exp2 is four times as fast as its exp, and as exact."""
    return torch.mul(delta.unsqueeze(-2), a_log2, out=out).exp2_()


def _run(decays: Sequence[Tensor], values: Sequence[Tensor], state: Tensor) -> None:
    """values[t] += decays[t] * values[t-1] in place, one after the other; `state` stands before the first."""
    for decay, value in zip(decays, values, strict=True):
        state = value.addcmul_(decay, state)
