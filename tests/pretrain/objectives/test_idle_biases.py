from __future__ import annotations

import copy
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from clear.backbones import build
from pretrain.objectives.idle_biases import keep_final_shift, keep_key_biases


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("mambaout", "network.head.norm.bias"),
        ("vit", "network.norm.bias"),
        ("vit_conv", "norm.bias"),
        ("vmamba", "classifier.norm.bias"),
    ],
)
def test_the_last_shift_of_an_embedding_is_kept_and_nothing_else(
    tiny: ModuleType, architecture: str, name: str
) -> None:
    network = build(tiny.CARDS[architecture])
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    wanting = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    keep_final_shift(network, tiny.CARDS[architecture])
    still = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert wanting - still == {name}
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def test_a_norm_whose_bias_does_more_than_shift_is_trained(tiny: ModuleType) -> None:
    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.LayerNorm(32), nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(x.mean((1, 2))))

    network = Bent()
    keep_final_shift(network, tiny.CARDS["vit"])
    assert network.norm.bias.requires_grad


def test_a_kept_shift_changes_nothing_that_moco_can_feel(tiny: ModuleType) -> None:
    wanted = tiny.objective("moco-v3", "mambaout")
    views = tiny.batch(wanted)
    before = tiny.losses(wanted, views)["loss"]
    with torch.no_grad():
        wanted.student.network.head["norm"].bias.add_(torch.randn(24))
        wanted.teacher.network.head["norm"].bias.add_(torch.randn(24))
    torch.testing.assert_close(tiny.losses(wanted, views)["loss"], before, rtol=1e-4, atol=1e-4)


def test_key_biases_get_no_gradient_and_their_neighbours_keep_theirs(tiny: ModuleType) -> None:
    plain, held = build(tiny.CARDS["vit"]), build(tiny.CARDS["vit"])
    held.load_state_dict(plain.state_dict())
    keep_key_biases(held)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for network in (plain, held):
        network(images).square().sum().backward()
    for block, kept in zip(plain.network.blocks, held.network.blocks, strict=True):
        free, zeroed = block.attn.qkv.bias.grad, kept.attn.qkv.bias.grad
        assert bool((zeroed[24:48] == 0).all())
        assert float(free[24:48].abs().max()) < 1e-5 * float(free.abs().max())  # nothing but rounding
        assert torch.equal(zeroed[:24], free[:24])
        assert torch.equal(zeroed[48:], free[48:])


def test_key_biases_are_held_after_a_move_and_a_load_and_not_in_a_copy(tiny: ModuleType) -> None:
    network = build(tiny.CARDS["vit"])
    keep_key_biases(network)
    twin = copy.deepcopy(network)
    network.load_state_dict(network.state_dict())
    network.to(torch.float64).to(memory_format=torch.channels_last)
    images = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    for _ in range(2):  # gradients add up, as micro-batches' do
        network(images).square().sum().backward()
    assert bool((network.network.blocks[1].attn.qkv.bias.grad[24:48] == 0).all())
    assert not any(parameter._backward_hooks for parameter in twin.parameters())


def test_biases_of_normed_keys_are_trained(tiny: ModuleType) -> None:
    card = tiny.CARDS["vit"]
    network = build(replace(card, settings={**card.settings, "qk_norm": True}))
    keep_key_biases(network)
    network(torch.randn(3, 1, 32, 32)).square().sum().backward()
    assert float(network.network.blocks[0].attn.qkv.bias.grad[24:48].abs().max()) > 0
