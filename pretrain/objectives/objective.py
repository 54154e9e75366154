"""What the training loop asks of a pretraining objective.

An objective owns a student, a teacher that follows it, and whatever heads its loss puts behind them. The loop asks it
which views it wants, encodes them (whole, or in micro-batches), hands the features of the whole local batch to `loss`,
steps, and lets the teacher follow. Everything that must know of other processes (gathered keys, batch statistics,
centres) happens in here; what the loop does across processes is to average the gradients
(`pretrain.distributed.average_gradients`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clear.errors import InputError
from pretrain.distributed import world_size
from pretrain.momentum import follow
from pretrain.views import ViewKind, Views

# an encoder pass of one view: (embedding (N, d),), or of dinov2 (class (N, d), patches (N, T, d), mask (N, T) bool)
Features = tuple[Tensor, ...]


class Objective(nn.Module, ABC):
    """A student, a teacher and a loss between them.

    kinds: the views it asks for; student_views, teacher_views: which of them each network sees, as indices into kinds.
    student: takes (N, C, S, S), gives (N, d), as `clear.backbones.build` makes it; it or the teacher is exported.
    teacher: its moving average, without gradients, in eval mode (no dropout, no stochastic depth) but for BatchNorms,
    which use the statistics of their batch and keep running ones of their own, as in MoCo v3's and DINO's code.

    Everything that a resumed run needs (centres too) is in `state_dict`.
    """

    name: ClassVar[str]
    kinds: tuple[ViewKind, ...]
    student_views: tuple[int, ...]
    teacher_views: tuple[int, ...]
    student: nn.Module
    teacher: nn.Module

    def encode_student(self, images: Tensor, view: int) -> Features:
        """Backbone features of one view, (N, C, S, S) to a tuple of tensors with N rows each.

        view: index into `kinds`. The loop may call it in micro-batches, and twice with the same images: given the state
        of torch's generator the result is the same. Tensors that are not floating point (masks) carry no gradient.
        """
        return (self.student(images),)

    @torch.no_grad()
    def encode_teacher(self, images: Tensor, view: int) -> Features:
        """The teacher's features of one view, without gradient."""
        return (self.teacher(images),)

    @abstractmethod
    def loss(
        self, student: Sequence[Features], teacher: Sequence[Features], views: Views, progress: float
    ) -> dict[str, Tensor]:
        """The loss of this process's batch, under "loss", and parts of it worth logging, without gradient.

        student, teacher: features in the order of `student_views` and `teacher_views`, each of the whole local batch.
        views: only `lesion` is read (images may have been freed). progress: share of the training that was done before
        this step, in [0, 1]. Gradients averaged over processes are those of the loss of all slices of all processes,
        and that loss is the mean of theirs. Calling it moves no state but BatchNorms' running statistics.
        Raises InputError when all processes together have one slice only.
        """

    @abstractmethod
    def momentum(self, progress: float) -> float:
        """How much of the teacher stays in a step."""

    def update_teacher(self, progress: float) -> float:
        """Let the teacher follow the student after the optimiser's step; returns the momentum.

        progress: as given to `loss` for the step just taken.
        """
        momentum = self.momentum(progress)
        for student, teacher in self.pairs():
            follow(teacher, student, momentum)
        return momentum

    def restart_teacher(self) -> None:
        """Teacher and teacher heads become copies of the student's, as at the start: after loading other weights."""
        for student, teacher in self.pairs():
            teacher.load_state_dict(student.state_dict())

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """What follows what: backbones, and in subclasses heads."""
        return [(self.student, self.teacher)]

    def exported(self) -> nn.Module:
        """The network whose weights go into the encoder card."""
        return self.student

    def train(self, mode: bool = True) -> Self:
        """Training mode for the student's side and the teacher's BatchNorms, eval mode for the rest of the teacher."""
        super().train(mode)
        for _, teacher in self.pairs():
            for module in teacher.modules():
                module.training = mode and isinstance(module, _BatchNorm)
        return self

    def check_batch(self, rows: int) -> None:
        """Raises InputError unless all processes together have two slices or more."""
        if rows * world_size() < 2:
            raise InputError(
                f"objective {self.name}: a batch of {rows} over all processes has nothing to tell a slice apart from; "
                "give a batch of 2 slices or more"
            )
