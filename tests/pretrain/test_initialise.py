from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clear.frozen import Encoder
from clear.phantoms import draw_patient
from pretrain.initialise import UNTRAINED, centre_embeddings, filter_bank_network, random_network

CARD = UNTRAINED
SMALL = replace(CARD, dim=24, settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}, input_size=64)


@pytest.mark.parametrize("start", [random_network, filter_bank_network])
def test_a_start_depends_on_its_seed_alone(start) -> None:
    torch.manual_seed(5)
    first = start(SMALL, seed=3).state_dict()
    torch.manual_seed(6)
    again = start(SMALL, seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = start(SMALL, seed=4).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_start_leaves_torchs_own_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    filter_bank_network(SMALL)
    assert torch.equal(torch.rand(3), expected)


def test_the_first_stage_answers_to_blobs_and_not_to_flat_regions() -> None:
    network = filter_bank_network(SMALL)
    filters = [m.weight for m in network.network.stages[0].blocks.modules() if isinstance(m, torch.nn.Conv2d)]
    assert filters
    for weights in filters:
        sums = weights.sum((1, 2, 3))
        assert torch.allclose(sums[0::3], torch.ones_like(sums[0::3]), atol=1e-5)  # a mean keeps brightness
        assert torch.allclose(sums[1::3], torch.zeros_like(sums[1::3]), atol=1e-5)  # bright blobs: no answer to flat
        assert torch.allclose(sums[2::3], torch.zeros_like(sums[2::3]), atol=1e-5)
        assert bool((weights[1::3, 0, 3, 3] > 0).all())
        assert bool((weights[2::3, 0, 3, 3] < 0).all())


def test_centred_embeddings_have_mean_zero_and_deviation_one() -> None:
    volume = draw_patient(seed=1, index=0, matrix=64, slices=8).series[0].volume
    network = filter_bank_network(SMALL)
    centre_embeddings(network, SMALL, [volume])
    embeddings = Encoder(SMALL, network, "", device="cpu", precision="float32").encode(volume)
    assert np.abs(embeddings.mean(0)).max() < 1e-3
    assert np.abs(embeddings.std(0, ddof=1) - 1).max() < 1e-2
