from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from pretrain.distributed import (
    AllReducedBatchNorm,
    AllReducedBatchNormAct,
    average_gradients,
    gather,
    gather_with_gradient,
    mean_over_processes,
    rank,
    sum_over_processes,
    with_all_reduced_norms,
    world_size,
)

ROOT, SCRIPT = Path(__file__).parents[2], Path(__file__).with_name("process_pair.py")
NORMS = ("rows", "maps", "volumes", "plain", "momentum", "cumulative", "untracked", "uneven", "far from 0")


@pytest.fixture(scope="module")
def here() -> ModuleType:
    """The script of the two processes, for what one process gives."""
    spec = spec_from_file_location("process_pair", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(number), "2", str(folder / "store"), str(folder / "out")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    return [torch.load(folder / f"out.{number}", weights_only=True) for number in range(2)]


def both(two: list[dict[str, Any]], name: str) -> list[Any]:
    return [results[name] for results in two]


def test_processes_know_their_number(two: list[dict[str, Any]]) -> None:
    assert both(two, "who") == [(0, 2), (1, 2)]


def test_gathered_rows_stand_in_the_order_of_ranks(two: list[dict[str, Any]], here: ModuleType) -> None:
    expected = torch.cat([here.drawn(3, 2, seed=number) for number in range(2)])
    for found in both(two, "gathered"):
        assert torch.equal(found, expected)
    for found in both(two, "gathered flags"):
        assert found.tolist() == [True, False, True, True]
        assert found.dtype == torch.bool
    for found in both(two, "gathered numbers"):
        assert found.tolist() == [7, 0, 7, 1]


def test_a_gathered_rows_gradient_is_the_sum_of_what_all_processes_have_for_it(
    two: list[dict[str, Any]], here: ModuleType
) -> None:
    total = sum(here.drawn(6, 2, seed=20 + number) for number in range(2))
    found = torch.cat(both(two, "gradient through gather"))
    torch.testing.assert_close(found, total)


def test_a_sum_and_its_gradient_are_over_all_processes(two: list[dict[str, Any]], here: ModuleType) -> None:
    expected = sum(here.drawn(3, 2, seed=number) for number in range(2))
    gradient = sum(here.drawn(3, 2, seed=30 + number) for number in range(2))
    for results in two:
        torch.testing.assert_close(results["sum"], expected)
        torch.testing.assert_close(results["gradient through sum"], gradient)
        torch.testing.assert_close(results["mean"], expected / 2)
    for number, found in enumerate(both(two, "own after mean")):
        assert torch.equal(found, here.drawn(3, 2, seed=number))


@pytest.mark.parametrize("name", ["averaged", "averaged in small buckets"])
def test_gradients_become_their_mean_whatever_the_buckets(
    two: list[dict[str, Any]], here: ModuleType, name: str
) -> None:
    for found in both(two, name):
        assert found[3] is None
        for index in (0, 1, 2, 4, 5):
            shape, dtype = found[index].shape, torch.float32 if index == 5 else torch.float64
            expected = sum(here.drawn(*shape, seed=100 * number + index, dtype=dtype) for number in range(2)) / 2
            torch.testing.assert_close(found[index], expected)


def test_every_process_starts_with_the_first_ones_state(two: list[dict[str, Any]]) -> None:
    for state in both(two, "broadcast"):
        assert {float(tensor.double().mean()) for tensor in state.values()} == {1.0}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_over_two_processes_is_torchs_over_the_whole_batch(
    two: list[dict[str, Any]], here: ModuleType, name: str
) -> None:
    assert set(NORMS) == set(here.NORMS)
    kind = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(here.NORMS[name][0])]
    expected, found = here.normed(name, kind), [results["norms"][name] for results in two]
    tolerance = 1e-7 if name == "far from 0" else 1e-10
    if name == "untracked":  # its eval mode has the batch's statistics, of each process alone as in SyncBatchNorm
        expected.pop("eval")
    for key, value in expected.items():
        if key in ("output", "gradient", "eval"):  # of each process's rows
            torch.testing.assert_close(torch.cat([part[key] for part in found]), value, rtol=0, atol=tolerance)
        elif key.startswith("gradient of"):  # each process has its rows' share of the sum
            torch.testing.assert_close(sum(part[key] for part in found), value, rtol=0, atol=tolerance)
        else:
            for part in found:
                torch.testing.assert_close(part[key], value, rtol=1e-10, atol=tolerance)


def test_half_precision_goes_in_and_comes_out_and_statistics_are_float32(
    two: list[dict[str, Any]], here: ModuleType
) -> None:
    found = torch.cat(both(two, "half"))
    assert found.dtype == torch.bfloat16
    expected = nn.BatchNorm1d(5)(here.drawn(8, 5).bfloat16().float())
    torch.testing.assert_close(found.float(), expected.detach(), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_in_one_process_is_torchs_to_the_last_bit(here: ModuleType, name: str) -> None:
    kind = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(here.NORMS[name][0])]
    expected, found = here.normed(name, kind), here.normed(name)
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_without_processes_everything_gives_back_what_it_got() -> None:
    assert (rank(), world_size()) == (0, 1)
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(x) is x
    assert sum_over_processes(x) is x
    for found in (gather(x), mean_over_processes(x)):
        assert torch.equal(found, x)
        assert not found.requires_grad
    x.grad = torch.ones(3, 2)
    average_gradients([nn.Parameter(x)])
    assert torch.equal(x.grad, torch.ones(3, 2))


def test_a_networks_norms_are_replaced_with_their_weights_names_and_results() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    images = torch.randn(2, 3, 64, 64)
    before, state = network.eval()(images), {name: t.clone() for name, t in network.state_dict().items()}
    parameters = dict(network.named_parameters())
    replaced = with_all_reduced_norms(network)
    assert not any(type(module) in (nn.BatchNorm2d, BatchNormAct2d) for module in replaced.modules())
    assert any(isinstance(module, AllReducedBatchNorm) for module in replaced.modules())
    assert list(replaced.state_dict()) == list(state)
    assert all(parameter is parameters[name] for name, parameter in replaced.named_parameters())
    assert torch.equal(replaced(images), before)


def test_a_norm_with_an_activation_keeps_it() -> None:
    norm = BatchNormAct2d(4, act_layer=nn.SiLU)
    x = torch.randn(3, 4, 5, 5)
    expected = BatchNormAct2d(4, act_layer=nn.SiLU)(x)
    replaced = with_all_reduced_norms(nn.Sequential(norm))[0]
    assert isinstance(replaced, AllReducedBatchNormAct)
    assert torch.equal(replaced(x), expected)


def test_a_norm_that_is_the_network_itself_is_replaced_and_other_norms_are_not() -> None:
    assert isinstance(with_all_reduced_norms(nn.BatchNorm1d(3)), AllReducedBatchNorm)
    for norm in (nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3)):
        assert with_all_reduced_norms(norm) is norm


def test_on_a_gpu_it_is_torchs_sync_batch_norm() -> None:
    assert issubclass(AllReducedBatchNorm, nn.SyncBatchNorm)


def test_one_value_a_channel_cannot_be_normed() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        AllReducedBatchNorm(3)(torch.randn(1, 3))
