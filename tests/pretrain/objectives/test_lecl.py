from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.objectives.lecl import lecl_loss, released_loss
from pretrain.objectives.moco_v3 import contrast, moco_loss

EVERY = list(product(range(2), range(5)))  # temperature, lambda


def arrays(shared_data: Path, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, np.lib.npyio.NpzFile]:
    file = np.load(shared_data / "fixtures" / "lecl_loss.npz", allow_pickle=False)
    queries, keys = (torch.from_numpy(file[f"in/{name}"]).to(dtype) for name in ("q", "k"))
    return queries, keys, torch.from_numpy(file["in/lesion_mask"]).bool(), file


def of(file: np.lib.npyio.NpzFile, temperature: int, weight: int) -> tuple[float, float]:
    return float(file["param/temperatures"][temperature]), float(file["param/lambdas"][weight])


def batch(rows: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(rows, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    return queries, keys, torch.arange(rows) % 3 == 1


@pytest.mark.parametrize(("temperature", "weight"), EVERY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_each_query_has_the_value_of_equation_2(
    shared_data: Path, temperature: int, weight: int, dtype: torch.dtype, tolerance: float
) -> None:
    queries, keys, lesion, file = arrays(shared_data, dtype)
    tau, lambda_ = of(file, temperature, weight)
    found = lecl_loss(queries, keys, lesion, tau, lambda_)
    expected = file["f64/eq2_literal_per_query"][temperature, weight]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.mean(), file["f64/eq2_literal_mean"][temperature, weight], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("temperature", "weight"), EVERY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_own_key_can_be_left_out_of_the_lesion_sum(
    shared_data: Path, temperature: int, weight: int, dtype: torch.dtype, tolerance: float
) -> None:
    queries, keys, lesion, file = arrays(shared_data, dtype)
    tau, lambda_ = of(file, temperature, weight)
    found = lecl_loss(queries, keys, lesion, tau, lambda_, own_key=False)
    expected = file["f64/eq2_excluding_own_per_query"][temperature, weight]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        found.mean(), file["f64/eq2_excluding_own_mean"][temperature, weight], rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(("temperature", "weight"), EVERY)
def test_the_gradient_is_that_of_equation_2(shared_data: Path, temperature: int, weight: int) -> None:
    queries, keys, lesion, file = arrays(shared_data, torch.float32)
    tau, lambda_ = of(file, temperature, weight)
    lecl_loss(queries.requires_grad_(), keys, lesion, tau, lambda_).mean().backward()
    expected = file["out/grad_q_eq2_literal_mean"][temperature, weight]
    np.testing.assert_allclose(queries.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("temperature", "weight"), EVERY)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_released_variant_is_what_the_released_code_returns(
    shared_data: Path, temperature: int, weight: int, dtype: torch.dtype, tolerance: float
) -> None:
    queries, keys, lesion, file = arrays(shared_data, dtype)
    tau, lambda_ = of(file, temperature, weight)
    found = released_loss(queries, keys, lesion, tau, lambda_)
    np.testing.assert_allclose(found, file["f64/repository_value"][temperature, weight], rtol=0, atol=tolerance)
    none = released_loss(queries, keys, torch.zeros_like(lesion), tau, lambda_)
    expected = file["f64/repository_value_no_lesion_in_batch"][temperature]
    np.testing.assert_allclose(none, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("own_key", [True, False])
def test_gradients_are_the_finite_differences(lambda_: float, own_key: bool) -> None:
    queries, keys, lesion = batch()
    queries.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: lecl_loss(q, keys, lesion, 0.2, lambda_, own_key=own_key), (queries,))
    assert torch.autograd.gradcheck(lambda q: released_loss(q, keys, lesion, 0.2, lambda_), (queries,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_lambda_zero_is_moco_over_two_tau_to_the_last_bit(dtype: torch.dtype, tau: float) -> None:
    queries, keys, lesion = batch()
    queries, keys = queries.to(dtype).requires_grad_(), keys.to(dtype)
    for own_key in (True, False):
        found = lecl_loss(queries, keys, lesion, tau, 0.0, own_key=own_key)
        assert torch.equal(found, contrast(queries, keys, tau))
    torch.testing.assert_close(found.mean() * (2 * tau), moco_loss(queries, keys, tau), rtol=0, atol=0)
    (ours,) = torch.autograd.grad(found.mean(), queries)
    (theirs,) = torch.autograd.grad(moco_loss(queries, keys, tau), queries)
    torch.testing.assert_close(ours * (2 * tau), theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("lambda_", [0.5, 1.0, 5.0])
def test_a_batch_without_a_lesion_is_moco_to_the_last_bit(lambda_: float) -> None:
    queries, keys, lesion = batch()
    none = torch.zeros_like(lesion)
    assert torch.equal(lecl_loss(queries, keys, none, 0.2, lambda_), contrast(queries, keys, 0.2))
    torch.testing.assert_close(released_loss(queries, keys, none, 0.2, lambda_), moco_loss(queries, keys, 0.2))


def test_a_batch_of_lesions_only_adds_one_constant() -> None:
    queries, keys, lesion = batch()
    found = lecl_loss(queries, keys, torch.ones_like(lesion), 0.2, 3.0)
    torch.testing.assert_close(found, contrast(queries, keys, 0.2) + math.log(4.0))


def test_the_order_of_the_slices_does_not_matter() -> None:
    queries, keys, lesion = batch()
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(1))
    for own_key in (True, False):
        found = lecl_loss(queries[order], keys[order], lesion[order], 0.2, 3.0, own_key=own_key)
        torch.testing.assert_close(found, lecl_loss(queries, keys, lesion, 0.2, 3.0, own_key=own_key)[order])


def test_a_larger_lambda_punishes_nearness_to_a_lesion_more_and_to_others_less() -> None:
    queries, keys, lesion = batch()
    rises: dict[bool, list[float]] = {True: [], False: []}
    for annotated, key in ((True, 4), (False, 5)):
        assert bool(lesion[key]) is annotated
        nearer = keys.clone()
        nearer[key] += 0.3 * queries[0]
        for lambda_ in (0.0, 0.5, 1.0, 3.0, 5.0):
            before = lecl_loss(queries[:1], keys, lesion, 0.2, lambda_)
            rises[annotated].append(float(lecl_loss(queries[:1], nearer, lesion, 0.2, lambda_) - before))
    assert min(rises[True] + rises[False]) > 0
    assert rises[True] == sorted(rises[True])
    assert rises[False] == sorted(rises[False], reverse=True)


def test_a_lesion_key_pulls_a_query_with_one_plus_lambda_times_the_weight() -> None:
    keys = torch.nn.functional.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(2)), dim=1).double()
    keys[2] = keys[1]  # an annotated and an unannotated key in one place
    queries, lesion = keys[:1].clone(), torch.tensor([False, True, False, False])
    weighed = torch.cat([keys, keys[1:2].expand(3, -1)])  # the same key three times more
    expected = contrast(queries, weighed, 0.2)
    torch.testing.assert_close(lecl_loss(queries, keys, lesion, 0.2, 3.0), expected)


def test_two_processes_with_all_keys_have_the_mean_of_one() -> None:
    queries, keys, lesion = batch()
    for own_key in (True, False):
        whole = lecl_loss(queries, keys, lesion, 0.2, 3.0, own_key=own_key)
        halves = [
            lecl_loss(queries[4 * r : 4 * r + 4], keys, lesion, 0.2, 3.0, own_key=own_key, offset=4 * r)
            for r in range(2)
        ]
        torch.testing.assert_close(torch.cat(halves), whole)
    parts = [released_loss(queries[4 * r : 4 * r + 4], keys, lesion, 0.2, 3.0, offset=4 * r) for r in range(2)]
    torch.testing.assert_close(sum(parts) / 2, released_loss(queries, keys, lesion, 0.2, 3.0))


@pytest.mark.parametrize("lambda_", [0.0, 5.0, 1e6])
def test_tiny_temperatures_and_huge_lambdas_stay_finite(lambda_: float) -> None:
    queries, keys, lesion = batch()
    queries = queries.float().requires_grad_()
    for own_key in (True, False):
        loss = lecl_loss(queries, keys.float(), lesion, 1e-4, lambda_, own_key=own_key).mean()
        (gradient,) = torch.autograd.grad(loss, queries)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_under_bfloat16_autocast_the_loss_is_computed_in_float32() -> None:
    queries, keys, lesion = batch(64)
    with torch.autocast("cpu", torch.bfloat16):
        found = lecl_loss(queries.float(), keys.float(), lesion, 0.07, 3.0)
    expected = lecl_loss(queries.float(), keys.float(), lesion, 0.07, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
