"""Networks whose weights are the same numbers on every machine and under every release of torch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clear.backbones import build
from clear.card import EncoderCard
from clear.frozen import Encoder

_TOKENS = ("cls_token", "reg_token", "pos_embed", "pos_embed_window", "latent", "embed")


def seeded_network(card: EncoderCard, seed: int = 0) -> nn.Module:
    """The card's network with weights that depend on nothing but a tensor's name and shape, and the seed.

    Scales keep activations of the size of their inputs, layer after layer: variance 1 / fan-in in products, 1 about
    in norms and layer scales, which some libraries start at 1e-5, so that every layer reaches the output. Queries and
    keys are half as large again: even attention averages slices away, and the embeddings of a scan would differ by a
    twentieth of their length; so they differ by a fifth, which is still less than trained ones do. What is fixed by
    its authors (sine positions, Mamba's decay rates) stays as constructed.
    """
    network = build(card)
    fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point() or name in fixed or name.endswith(("A_logs", "dt_projs_bias")):
                if name.endswith("dt_projs_bias"):  # constructed at random; softplus of it is the step, 0.001 to 0.1
                    steps = np.exp(_random(name, seed).uniform(np.log(1e-3), np.log(0.1), tensor.shape))
                    tensor.copy_(torch.from_numpy(np.log(np.expm1(steps))))
                continue
            values = _random(name, seed).standard_normal(tuple(tensor.shape), dtype=np.float32)
            last = name.rpartition(".")[2]
            if last in _TOKENS:
                values *= 0.5
            elif last == "running_var":
                values = np.exp(0.1 * values)
            elif last in ("bias", "running_mean", "beta") or last.endswith("_bias"):
                values *= 0.1
            elif tensor.ndim == 1:  # norms, layer scales, Mamba's skip
                values = 1 + 0.1 * values
            else:
                values /= max(1, values[0].size) ** 0.5
                if name.endswith("qkv.weight"):
                    values[: 2 * len(values) // 3] *= 1.5
            tensor.copy_(torch.from_numpy(np.asarray(values)))
    return network


def _random(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def seeded_encoder(card: EncoderCard, precision: str = "float32") -> Encoder:
    """The card's encoder on the CPU with the weights of `seeded_network`."""
    return Encoder(card, seeded_network(card), "seeded random weights", device="cpu", precision=precision)


@pytest.fixture
def seeded() -> Callable[..., Encoder]:
    """`seeded_encoder`."""
    return seeded_encoder


@pytest.fixture
def seeded_weights() -> Callable[..., Any]:
    """`seeded_network`."""
    return seeded_network


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: beside other test workers its threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
