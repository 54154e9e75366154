"""One step's gradients, in as many micro-batches as memory asks for, and the batch stays what it was.

A contrastive loss compares every slice of a batch with every other, so that adding up the gradients of small batches
optimises another loss: one with fewer negatives. GradCache (Gao et al., Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup, RepL4NLP 2021, section 3.2) takes the same gradient in two passes:

1. encode all micro-batches without a graph, compute the loss of the whole batch on these features (projector, predictor
   and their BatchNorms see the whole batch), and differentiate it down to the features;
2. encode each micro-batch once more, under the same state of the generators, and push its share of that gradient
   through the encoder.

It costs a second forward pass. For networks without BatchNorm and dropout the gradient is that of the whole batch to
rounding (the law that its test holds); a BatchNorm in the encoder itself (ViT-conv's stem, ResNets) sees micro-batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.objectives.objective import Features, Objective
from pretrain.views import Views

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Computed:
    """What one step gives. losses: "loss" and its parts, scalars; embeddings: (B, d) of the student's first view."""

    losses: dict[str, Tensor]
    embeddings: Tensor


def backward(
    objective: Objective,
    views: Views,
    progress: float,
    *,
    micro_batch: int | None = None,
    autocast: Autocast = contextlib.nullcontext,
) -> Computed:
    """Add the gradient of the loss of these views to the parameters' `.grad`.

    micro_batch: slices encoded at a time; None, or what the batch does not exceed, is one ordinary pass.
    autocast: the precision of encoders and heads.
    """
    size = len(views.rows)
    if micro_batch is None or micro_batch >= size:
        with autocast():
            teacher = [objective.encode_teacher(views.images[view], view) for view in objective.teacher_views]
            student = [objective.encode_student(views.images[view], view) for view in objective.student_views]
            losses = objective.loss(student, teacher, views, progress)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        return Computed(losses, student[0][0].detach())
    return _in_micro_batches(objective, views, progress, micro_batch, autocast)


def _in_micro_batches(
    objective: Objective, views: Views, progress: float, micro_batch: int, autocast: Autocast
) -> Computed:
    parts = [slice(first, first + micro_batch) for first in range(0, len(views.rows), micro_batch)]
    states: list[list[_GeneratorState]] = []
    student: list[Features] = []
    with torch.no_grad(), autocast():
        teacher = [
            _joined([objective.encode_teacher(views.images[view][part], view) for part in parts])
            for view in objective.teacher_views
        ]
        with running_statistics_kept(objective.student):
            for view in objective.student_views:
                before, encoded = [], []
                for part in parts:
                    before.append(_GeneratorState.now(views.images[view]))
                    encoded.append(objective.encode_student(views.images[view][part], view))
                states.append(before)
                student.append(_joined(encoded))
        leaves = [tuple(_leaf(tensor) for tensor in features) for features in student]
    with autocast():
        losses = objective.loss(leaves, teacher, views, progress)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    after = _GeneratorState.now(views.images[0])
    for view, features, before in zip(objective.student_views, leaves, states, strict=True):
        for part, state in zip(parts, before, strict=True):
            state.restore()
            with autocast():
                encoded_again = objective.encode_student(views.images[view][part], view)
            pairs = [
                (again, leaf.grad[part])
                for again, leaf in zip(encoded_again, features, strict=True)
                if leaf.grad is not None and again.requires_grad
            ]
            torch.autograd.backward([again for again, _ in pairs], [grad.to(again.dtype) for again, grad in pairs])
    after.restore()
    return Computed(losses, student[0][0])


def _joined(parts: Sequence[Features]) -> Features:
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def _leaf(tensor: Tensor) -> Tensor:
    """The same values as the start of a graph; masks and the like, which carry no gradient, as they are."""
    return tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class _GeneratorState:
    """torch's generators of the processor and of one GPU, of which dropout and masks are drawn."""

    cpu: Tensor
    gpu: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, images: Tensor) -> _GeneratorState:
        device = images.device
        gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), gpu, device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)


@contextlib.contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Buffers (BatchNorm's running statistics) are afterwards as before: the first pass leaves no trace."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    yield
    for name, buffer in network.named_buffers():
        buffer.copy_(before[name])
