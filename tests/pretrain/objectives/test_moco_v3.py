from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.objectives.moco_v3 import contrast, cosines, moco_loss

TEMPERATURES = range(4)


def arrays(shared_data: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], np.lib.npyio.NpzFile]:
    file = np.load(shared_data / "fixtures" / "moco_v3_loss.npz", allow_pickle=False)
    return {name: torch.from_numpy(file[f"in/{name}"]).to(dtype) for name in ("q1", "q2", "k1", "k2")}, file


def random_pair(rows: int = 7, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, width, generator=draw, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("index", TEMPERATURES)
def test_float64_values_are_the_repositorys(shared_data: Path, index: int) -> None:
    given, file = arrays(shared_data, torch.float64)
    tau = float(file["param/temperatures"][index])
    one = moco_loss(given["q1"], given["k2"], tau)
    other = moco_loss(given["q2"], given["k1"], tau)
    np.testing.assert_allclose(one, file["f64/loss_q1k2"][index], rtol=0, atol=1e-10)
    np.testing.assert_allclose(other, file["f64/loss_q2k1"][index], rtol=0, atol=1e-10)
    np.testing.assert_allclose(one + other, file["f64/loss_symmetric"][index], rtol=0, atol=1e-10)


@pytest.mark.parametrize("index", TEMPERATURES)
def test_float32_values_and_gradient_are_the_repositorys(shared_data: Path, index: int) -> None:
    given, file = arrays(shared_data, torch.float32)
    tau = float(file["param/temperatures"][index])
    given["q1"].requires_grad_()
    one = moco_loss(given["q1"], given["k2"], tau)
    other = moco_loss(given["q2"], given["k1"], tau)
    (one + other).backward()
    np.testing.assert_allclose(one.detach(), file["out/loss_q1k2"][index], rtol=1e-5)
    np.testing.assert_allclose(other, file["out/loss_q2k1"][index], rtol=1e-5)
    np.testing.assert_allclose((one + other).detach(), file["out/loss_symmetric"][index], rtol=1e-5)
    np.testing.assert_allclose(given["q1"].grad, file["out/grad_q1_symmetric"][index], rtol=0, atol=1e-7)


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_gradients_are_the_finite_differences(tau: float) -> None:
    queries, keys = random_pair()
    queries.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: moco_loss(q, keys, tau), (queries,))


def test_the_loss_is_that_of_a_loop_over_equation_1() -> None:
    queries, keys = random_pair()
    similar = torch.nn.functional.cosine_similarity(queries[:, None], keys[None], dim=2)
    terms = [
        -torch.log(torch.exp(similar[i, i] / 0.2) / sum(torch.exp(similar[i, j] / 0.2) for j in range(7)))
        for i in range(7)
    ]
    torch.testing.assert_close(moco_loss(queries, keys, 0.2), 0.4 * torch.stack(terms).mean())


def test_queries_of_one_process_find_their_keys_among_those_of_all() -> None:
    queries, keys = random_pair()
    whole = moco_loss(queries, keys, 0.2)
    parts = [moco_loss(queries[3 * r : 3 * r + 3], keys[:6], 0.2, offset=3 * r) for r in range(2)]
    torch.testing.assert_close(sum(parts) / 2, moco_loss(queries[:6], keys[:6], 0.2))
    assert not torch.isclose(sum(parts) / 2, whole)


def test_lengths_do_not_matter_and_the_order_of_slices_neither() -> None:
    queries, keys = random_pair()
    expected = moco_loss(queries, keys, 0.2)
    torch.testing.assert_close(moco_loss(queries * 30, keys / 7, 0.2), expected)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(moco_loss(queries[order], keys[order], 0.2), expected)


@pytest.mark.parametrize("tau", [1e-3, 1e-5])
def test_a_tiny_temperature_neither_overflows_nor_underflows(tau: float) -> None:
    queries, keys = random_pair()
    queries = queries.float().requires_grad_()
    per_query = contrast(queries, keys.float(), tau)
    per_query.mean().backward()
    similar = cosines(queries.detach().double(), keys)
    expected = ((similar.amax(1) - similar.diagonal()) / tau).float()
    torch.testing.assert_close(per_query.detach(), expected, rtol=1e-3, atol=1e-6 / tau)
    assert torch.isfinite(queries.grad).all()


def test_under_bfloat16_autocast_the_contrast_is_computed_in_float32() -> None:
    queries, keys = random_pair(64, 32)
    queries, keys = queries.float(), keys.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast(queries, keys, 0.07)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrast(queries, keys, 0.07), rtol=1e-6, atol=0)


def test_half_precision_embeddings_are_widened() -> None:
    queries, keys = random_pair()
    found = contrast(queries.bfloat16(), keys.bfloat16(), 0.2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrast(queries.bfloat16().float(), keys.bfloat16().float(), 0.2))
