from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from clear.backbones import selective_scan as module
from clear.backbones.selective_scan import scan_image, selective_scan, through_kernel

# As much as three steps of the inputs below, so that a few positions are several blocks: N 2, K 3, S 4, D 5.
STATE = 2 * 3 * 4 * 5
BLOCK = 3


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_ON_CPU", BLOCK * STATE)


def inputs(length: int, seed: int = 0, n: int = 2, groups: int = 3, states: int = 4, channels: int = 5) -> list[Tensor]:
    """u, steps, a, b, c in float64; delta from about 0.02 to 3."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    u, steps = normal(length, n, groups, channels), normal(length, n, groups, channels) * 1.5 - 1
    a = -torch.exp(normal(groups, states, channels))
    return [u, steps, a, normal(length, n, groups, states), normal(length, n, groups, states)]


def twin(u: Tensor, steps: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence of the paper, one position after the other, in float64."""
    u, steps, a, b, c = (x.double() for x in (u, steps, a, b, c))
    state = torch.zeros(*u.shape[1:3], a.shape[1], u.shape[3], dtype=torch.float64)
    y = []
    for t in range(len(u)):
        delta = functional.softplus(steps[t], threshold=700.0)
        state = torch.exp(delta[:, :, None] * a) * state + (delta * u[t])[:, :, None] * b[t][..., None]
        y.append((c[t][..., None] * state).sum(2))
    return torch.stack(y)


@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK, 50])
def test_blocks_of_any_number_of_steps_give_the_recurrence(length: int, blocks: None) -> None:
    drawn = inputs(length, seed=length)
    assert torch.allclose(selective_scan(*drawn), twin(*drawn), rtol=1e-12, atol=1e-12)


def test_thousands_of_steps_in_float32_stay_near_float64() -> None:
    drawn = inputs(3136, n=1, groups=4, states=16, channels=8)
    slow = [drawn[0], drawn[1] - 5, *drawn[2:]]  # delta near 0.005: what was at the start is still there at the end
    for each in (drawn, slow):
        narrow = [x.float() for x in each]
        exact = twin(*narrow)
        found = selective_scan(*narrow)
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max() / exact.abs().max()) < 2e-6


@pytest.mark.parametrize("limit", [1, 4 * 5, 2 * 4 * 5, 3 * 4 * 5, STATE])
def test_taking_images_and_groups_in_parts_changes_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = inputs(11, n=5)
    monkeypatch.setattr(module, "_STEP_ON_CPU", limit)
    assert torch.allclose(selective_scan(*drawn), twin(*drawn), rtol=1e-12, atol=1e-12)


def test_an_image_is_scanned_as_if_it_were_alone() -> None:
    u, steps, a, b, c = (x.float() for x in inputs(40, n=3))
    together = selective_scan(u, steps, a, b, c)
    for i in range(3):
        alone = selective_scan(u[:, i : i + 1], steps[:, i : i + 1], a, b[:, i : i + 1], c[:, i : i + 1])
        assert torch.allclose(together[:, i : i + 1], alone, rtol=1e-6, atol=1e-6)


def test_nothing_overflows_however_large_steps_and_decays_are() -> None:
    u, steps, a, b, c = (x.float() for x in inputs(30))
    for shift, scale in ((80.0, 1.0), (-80.0, 1.0), (5.0, 1e4), (0.0, 1e-6)):
        found = selective_scan(u, steps + shift, a * scale, b, c)
        exact = twin(u, steps + shift, a * scale, b, c)
        assert bool(torch.isfinite(found).all())
        assert float((found - exact).abs().max()) <= 2e-6 * float(exact.abs().max())


def test_softplus_is_right_to_the_last_digits_far_below_and_above_zero() -> None:
    x = torch.linspace(-12, 80, 20001)
    exact = torch.log1p(torch.exp(-x.double().abs())) + x.double().clamp(min=0)
    assert float((module._softplus(x) / exact - 1).abs().max()) < 1e-6


def test_half_precision_is_widened_before_the_recurrence_even_in_autocast() -> None:
    drawn = [x.bfloat16() for x in inputs(400)]
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(*drawn)
    assert found.dtype == torch.float32
    exact = twin(*drawn)
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-6


@pytest.mark.parametrize(("length", "limit"), [(1, STATE), (2, 1), (4, STATE), (7, STATE)])
def test_gradients_are_those_of_finite_differences(length: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP_ON_CPU", limit)
    drawn = [x.requires_grad_() for x in inputs(length, states=2, channels=1, groups=2)]
    assert torch.autograd.gradcheck(selective_scan, drawn)


def test_gradients_over_many_blocks_are_those_of_the_loop() -> None:
    drawn = [x.requires_grad_() for x in inputs(90)]
    weights = torch.randn(90, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    wanted = torch.autograd.grad((twin(*drawn) * weights).sum(), drawn)
    found = torch.autograd.grad((selective_scan(*drawn) * weights).sum(), drawn)
    for name, ours, theirs in zip(("u", "steps", "a", "b", "c"), found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9), name


def test_gradients_in_autocast_are_no_less_exact() -> None:
    drawn = [x.float().requires_grad_() for x in inputs(90)]
    wanted = torch.autograd.grad(twin(*drawn).square().sum(), drawn)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(selective_scan(*drawn).square().sum(), drawn)
    for name, ours, theirs in zip(("u", "steps", "a", "b", "c"), found, wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5, name


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_the_states_of_all_positions_never_exist_at_once_in_either_pass(blocks: None) -> None:
    drawn = inputs(900)
    with Largest() as without, torch.no_grad():
        selective_scan(*drawn)
    with Largest() as trained:
        selective_scan(*(x.requires_grad_() for x in drawn)).sum().backward()
    assert drawn[4].grad is not None
    assert without.numbers <= drawn[0].numel()  # the input itself, a quarter of all states
    assert trained.numbers <= drawn[0].numel()


def test_the_backward_pass_keeps_a_square_root_of_the_states() -> None:
    drawn = [x.requires_grad_() for x in inputs(900)]
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        selective_scan(*drawn)
    assert kept <= sum(x.numel() for x in drawn) + 30 * STATE


def mamba_reference(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *, delta_softplus: bool = False
) -> Tensor:
    """What mamba-ssm's function computes: u, delta (N, D, L); A (D, S); B, C (N, G, S, L), channels in G groups."""
    delta = functional.softplus(delta) if delta_softplus else delta
    channels = u.shape[1] // b.shape[1]
    y = torch.zeros_like(u)
    for d in range(u.shape[1]):
        state = torch.zeros(len(u), a.shape[1], dtype=u.dtype)
        for t in range(u.shape[2]):
            step = delta[:, d, t, None]
            state = torch.exp(step * a[d]) * state + step * b[:, d // channels, :, t] * u[:, d, t, None]
            y[:, d, t] = (state * c[:, d // channels, :, t]).sum(1)
    return y


def test_a_kernel_of_mamba_gets_its_own_layout_and_gives_the_same() -> None:
    drawn = inputs(6)
    found = through_kernel(mamba_reference, *drawn)
    assert torch.allclose(found, selective_scan(*drawn), rtol=1e-12, atol=1e-12)


def test_the_kernel_is_found_where_mamba_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mamba_ssm.ops.selective_scan_interface"
    monkeypatch.setitem(sys.modules, name, None)
    assert module._mamba_kernel() is None
    monkeypatch.setitem(sys.modules, "mamba_ssm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", SimpleNamespace())
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(selective_scan_fn=mamba_reference))
    assert module._mamba_kernel() is mamba_reference


def image_inputs(
    n: int = 2, height: int = 3, width: int = 5, channels: int = 4, states: int = 3, rank: int = 2
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return [
        normal(n, height, width, channels),
        normal(4, rank + 2 * states, channels) / 2,
        normal(4, channels, rank),
        normal(4, channels),
        -torch.exp(normal(4, states, channels)),
        normal(4, channels),
    ]


def test_a_map_is_scanned_by_rows_by_columns_and_both_backwards() -> None:
    x, projection, to_steps, bias, a, skip = image_inputs()
    n, height, width, channels = x.shape
    by_row = [(i, j) for i in range(height) for j in range(width)]
    by_column = [(i, j) for j in range(width) for i in range(height)]
    wanted = torch.zeros_like(x)
    for k, path in enumerate((by_row, by_column, by_row[::-1], by_column[::-1])):
        u = torch.stack([x[:, i, j] for i, j in path])
        low_rank, b, c = (u @ projection[k].T).split([2, 3, 3], dim=-1)
        steps = low_rank @ to_steps[k].T + bias[k]
        y = twin(u[:, :, None], steps[:, :, None], a[k : k + 1], b[:, :, None], c[:, :, None])[:, :, 0] + u * skip[k]
        for t, (i, j) in enumerate(path):
            wanted[:, i, j] += y[t]
    found = scan_image(x, projection, to_steps, bias, a, skip)
    assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-11)
    assert (n, channels) == (2, 4)


@pytest.mark.parametrize(
    ("turned", "order"),
    [
        (lambda x: x.transpose(1, 2), [1, 0, 3, 2]),
        (lambda x: x.flip(1, 2), [2, 3, 0, 1]),
    ],
    ids=["transposed", "turned round"],
)
def test_turning_the_map_exchanges_the_paths(turned, order: list[int]) -> None:
    x, *parameters = image_inputs()
    found = scan_image(turned(x), *(p[order] for p in parameters))
    assert torch.allclose(found, turned(scan_image(x, *parameters)), rtol=1e-11, atol=1e-11)
    other = scan_image(turned(x), *parameters)
    assert not torch.allclose(found, other, atol=1e-2)


def test_a_batch_is_scanned_in_pieces_only_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = image_inputs(n=5)
    whole = scan_image(*drawn)
    calls: list[int] = []

    def counted(u: Tensor, *rest: Tensor) -> Tensor:
        calls.append(u.shape[1])
        return selective_scan(u, *rest)

    monkeypatch.setattr(module, "selective_scan", counted)
    monkeypatch.setattr(module, "_PATHS_ON_CPU", 2 * 4 * drawn[0][0].numel())
    with torch.inference_mode():
        pieces = scan_image(*drawn)
    assert calls == [2, 2, 1]
    assert torch.allclose(pieces, whole, rtol=1e-12, atol=1e-12)
    assert math.isclose(float(scan_image(*drawn).sum()), float(whole.sum()), rel_tol=1e-12)
    assert calls == [2, 2, 1, 5]
