from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretrain.distributed import AllReducedBatchNorm
from pretrain.objectives.heads import DinoHead, NormedLinear, moco_mlp

VARIANTS = {
    "sd": ({"norm_last": False}, "logits"),
    "sd_bn": ({"batch_norm": True}, "logits_bn"),
    "sd_one": ({"layers": 1}, "logits_one"),
    "sd_two": ({"layers": 2}, "logits_two"),
}


def published_head(shared_data: Path, variant: str) -> tuple[DinoHead, np.lib.npyio.NpzFile, str]:
    file = np.load(shared_data / "fixtures" / "dino_head_tiny.npz", allow_pickle=False)
    settings, output = VARIANTS[variant]
    head = DinoHead(24, 40, hidden=32, bottleneck=12, **settings)
    prefix = f"{variant}/"
    tensors = {n.removeprefix(prefix): torch.from_numpy(file[n]) for n in file.files if n.startswith(prefix)}
    head.load_state_dict(tensors, strict=True)
    return head.eval(), file, output


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_head_loads_by_name_and_gives_its_logits(shared_data: Path, variant: str) -> None:
    head, file, output = published_head(shared_data, variant)
    found = head(torch.from_numpy(file["in/x"]))
    np.testing.assert_allclose(found.detach(), file[f"out/{output}"], rtol=1e-5, atol=2e-6)


def test_bottleneck_and_gradients_are_the_published_heads(shared_data: Path) -> None:
    head, file, _ = published_head(shared_data, "sd")
    x = torch.from_numpy(file["in/x"]).requires_grad_()
    before_norm = torch.from_numpy(file["out/bottleneck"])
    torch.testing.assert_close(head.mlp(x), before_norm, rtol=1e-5, atol=5e-6)
    expected = before_norm / before_norm.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head.bottleneck(x), expected, rtol=1e-5, atol=5e-6)
    head(x).backward(torch.from_numpy(file["in/grad_logits"]))
    last = head.last_layer
    for found, name in ((x, "x"), (last.weight_v, "weight_v"), (last.weight_g, "weight_g")):
        np.testing.assert_allclose(found.grad, file[f"out/grad_{name}"], rtol=1e-5, atol=5e-6)


def test_gradients_of_a_head_are_the_finite_differences() -> None:
    torch.manual_seed(0)
    head = DinoHead(5, 7, hidden=6, bottleneck=4, norm_last=False).double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def logits(x: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in head.named_parameters()]
        return torch.func.functional_call(head, dict(zip(names, weights, strict=True)), x)

    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert torch.autograd.gradcheck(logits, (x, *head.parameters()))


def test_rows_of_the_last_layer_are_of_unit_length_and_stay_so() -> None:
    head = DinoHead(5, 7, hidden=6, bottleneck=4)
    assert not head.last_layer.weight_g.requires_grad
    logits = head(torch.randn(3, 5))
    assert float(logits.detach().abs().max()) <= 1 + 1e-6
    logits.sum().backward()
    assert head.last_layer.weight_g.grad is None
    assert head.last_layer.weight_v.grad is not None


def test_a_frozen_last_layer_gets_no_gradient_and_passes_it_on() -> None:
    head = DinoHead(5, 7, hidden=6, bottleneck=4, norm_last=False)
    x = torch.randn(3, 5, requires_grad=True)
    frozen, free = head(x, freeze_last=True), head(x)
    assert torch.equal(frozen, free)
    (expected,) = torch.autograd.grad(free.square().sum(), x, retain_graph=True)
    frozen.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert head.last_layer.weight_v.grad is None
    assert head.last_layer.weight_g.grad is None
    assert all(parameter.grad is not None for parameter in head.mlp.parameters())


def test_the_length_of_weight_v_does_not_matter() -> None:
    layer = NormedLinear(4, 6)
    x = torch.randn(2, 4)
    before = layer(x)
    with torch.no_grad():
        layer.weight_v.mul_(17.0)
    torch.testing.assert_close(layer(x), before)


def test_a_head_can_be_copied_after_a_forward_pass() -> None:
    head = DinoHead(5, 7, hidden=6, bottleneck=4)
    head(torch.randn(2, 5))
    twin = copy.deepcopy(head)
    x = torch.randn(2, 5)
    assert torch.equal(twin(x), head(x))


def test_under_bfloat16_autocast_logits_are_products_of_float32() -> None:
    torch.manual_seed(0)
    head = DinoHead(5, 70, hidden=6, bottleneck=4)
    x = torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        logits, bottleneck = head(x), head.bottleneck(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head.last_layer(bottleneck), rtol=1e-6, atol=1e-7)


def test_projector_and_predictor_are_the_published_layers() -> None:
    projector, predictor = moco_mlp(3, 10, 24, 16), moco_mlp(2, 16, 24, 16)
    kinds = [nn.Linear, AllReducedBatchNorm, nn.ReLU] * 2 + [nn.Linear, AllReducedBatchNorm]
    assert [type(layer) for layer in projector] == kinds
    assert [type(layer) for layer in predictor] == kinds[3:]
    shapes = [tuple(layer.weight.shape) for layer in (*projector, *predictor) if isinstance(layer, nn.Linear)]
    assert shapes == [(24, 10), (24, 24), (16, 24), (24, 16), (16, 24)]
    assert all(layer.bias is None for layer in (*projector, *predictor) if isinstance(layer, nn.Linear))
    norms = [layer for layer in (*projector, *predictor) if isinstance(layer, AllReducedBatchNorm)]
    assert [norm.affine for norm in norms] == [True, True, False, True, False]


def test_outputs_of_a_projector_have_mean_0_and_deviation_1_over_the_batch() -> None:
    torch.manual_seed(0)
    found = moco_mlp(3, 10, 24, 16)(torch.randn(64, 10))
    torch.testing.assert_close(found.mean(0), torch.zeros(16), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.std(0, correction=0), torch.ones(16), rtol=1e-3, atol=0)
