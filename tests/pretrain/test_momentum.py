from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.momentum import follow, twin


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def moved(module: nn.Module, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            tensor.add_(torch.rand(tensor.shape, generator=draw))
    return module


def test_a_twin_has_the_same_weights_and_buffers_and_wants_no_gradient() -> None:
    student = moved(network(), 2)
    teacher = twin(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(teacher.state_dict()[name], tensor) for name, tensor in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_parameter_is_the_published_average(dtype: torch.dtype) -> None:
    student = network().to(dtype)
    teacher = twin(student)
    moved(student, 3)
    expected = [t * 0.97 + s * (1.0 - 0.97) for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    follow(teacher, student, 0.97)
    for found, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value.detach(), rtol=0, atol=torch.finfo(dtype).eps)


def test_the_average_of_many_steps_is_the_sum_of_their_shares() -> None:
    student = network().double()
    teacher = twin(student)
    start = [parameter.clone() for parameter in teacher.parameters()]
    expected = [0.9**5 * parameter for parameter in start]
    for step in range(5):
        moved(student, step)
        for total, parameter in zip(expected, student.parameters(), strict=True):
            total.add_(parameter.detach() * 0.1 * 0.9 ** (4 - step))
        follow(teacher, student, 0.9)
    for found, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=0)


def test_buffers_are_the_teachers_own() -> None:
    student = network()
    teacher = twin(student)
    before = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    moved(student, 4)
    follow(teacher, student, 0.5)
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in teacher.named_buffers())


def test_a_momentum_of_one_keeps_the_teacher_and_of_zero_makes_it_the_student() -> None:
    student = network()
    teacher = twin(student)
    before = [parameter.clone() for parameter in teacher.parameters()]
    moved(student, 5)
    follow(teacher, student, 1.0)
    assert all(torch.equal(*pair) for pair in zip(teacher.parameters(), before, strict=True))
    follow(teacher, student, 0.0)
    assert all(torch.equal(*pair) for pair in zip(teacher.parameters(), student.parameters(), strict=True))


def test_the_students_graph_does_not_reach_the_teacher() -> None:
    student = network()
    teacher = twin(student)
    follow(teacher, student, 0.5)
    assert all(parameter.grad_fn is None and not parameter.requires_grad for parameter in teacher.parameters())
