"""DINO: a student's small views must say what its teacher says of the large ones.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, Eq. 2 to 4 (facebookresearch/dino),
as Radio DINO (Zedda et al. 2025) used it on radiology images. The teacher's logits are centred and sharpened; the
teacher is what is exported, as its authors evaluate it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from clear.backbones import build
from pretrain.distributed import with_all_reduced_norms
from pretrain.momentum import twin
from pretrain.objectives.backbone import build_for_local_views
from pretrain.objectives.centring import Centre
from pretrain.objectives.heads import DinoHead, wide
from pretrain.objectives.idle_biases import keep_key_biases
from pretrain.objectives.objective import Features, Objective
from pretrain.objectives.options import need, read_options
from pretrain.schedules import completed_epochs, cosine, dino_temperature
from pretrain.views import ViewKind, Views

if TYPE_CHECKING:
    from clear.card import EncoderCard

STUDENT_TEMPERATURE = 0.1
GLOBAL_VIEWS = 2


def dino_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float = STUDENT_TEMPERATURE
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of student views under teacher views, the global and the local part; their sum is DINO's loss.

    student: (B, K) logits a view, the teacher's views first; teacher: (B, K) probabilities a view. The sum is the mean
    over slices and over all pairs of different views (Eq. 3), which the parts share by which view the student saw.
    """
    pairs = len(teacher) * (len(student) - 1)
    logs = [(wide(logits) / temperature).log_softmax(dim=-1) for logits in student]
    parts = [torch.zeros_like(logs[0][:, 0].mean()) for _ in range(2)]
    for view, log in enumerate(logs):
        for other, probabilities in enumerate(teacher):
            if view != other:
                part = int(view >= len(teacher))
                parts[part] = parts[part] - (probabilities * log).sum(-1).mean() / pairs
    return parts[0], parts[1]


@dataclass(frozen=True)
class DinoOptions:
    """Settings of DINO; defaults are those of `main_dino.py`, its temperatures those of the ViT recipes.

    epochs: the run's length. momentum: of the teacher at the start (0.9995 suits a batch of 256). teacher_temperature:
    reached from warmup_temperature in warmup_temperature_epochs. freeze_last_epochs: the head's last layer stays as it
    was. centre_momentum: lower it when the loss stays at log(prototypes). local_views, local_size: small views a slice
    and their side in pixels (0: 96 of 224). global_crop, local_crop: shares of the slice in a view.
    """

    epochs: int = 100
    momentum: float = 0.996
    teacher_temperature: float = 0.07
    warmup_temperature: float = 0.04
    warmup_temperature_epochs: int = 30
    freeze_last_epochs: int = 1
    centre_momentum: float = 0.9
    prototypes: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    batch_norm: bool = False
    norm_last: bool = True
    local_views: int = 8
    local_size: int = 0
    global_crop: tuple[float, float] = (0.4, 1.0)
    local_crop: tuple[float, float] = (0.05, 0.4)
    objective: ClassVar[str] = "dino"

    def __post_init__(self) -> None:
        for name in ("momentum", "centre_momentum"):
            value = getattr(self, name)
            need(0 <= value <= 1, self.objective, f"{name} is {value:g}; expected 0 to 1")
        for name in ("teacher_temperature", "warmup_temperature"):
            value = getattr(self, name)
            need(value > 0, self.objective, f"{name} is {value:g}; expected a temperature above 0")
        for name in ("epochs", "prototypes", "hidden", "bottleneck"):
            need(getattr(self, name) >= 1, self.objective, f"{name} must be 1 or more")
        for name in ("warmup_temperature_epochs", "freeze_last_epochs", "local_views", "local_size"):
            need(getattr(self, name) >= 0, self.objective, f"{name} must be 0 or more")


class Dino(Objective):
    """Two global and several local views; the student sees all, the teacher the global ones."""

    name: ClassVar[str] = "dino"
    options_type: ClassVar[type[DinoOptions]] = DinoOptions
    teacher_views = (0, 1)

    def __init__(self, card: EncoderCard, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = options = read_options(self.options_type, self.name, settings)
        if options.local_views:
            self.student, size = build_for_local_views(card, options.local_size)
        else:
            self.student, size = build(card), card.input_size
        keep_key_biases(self.student)
        self.student = with_all_reduced_norms(self.student)
        whole, local = ViewKind(card.input_size, options.global_crop), ViewKind(size, options.local_crop)
        self.kinds = (whole,) * GLOBAL_VIEWS + (local,) * options.local_views
        self.student_views = tuple(range(len(self.kinds)))
        self.head = self._head(self._width(card))
        self.teacher, self.teacher_head = twin(self.student), twin(self.head)
        self.centre = Centre(options.prototypes, options.centre_momentum)
        self.train()

    def _width(self, card: EncoderCard) -> int:
        """d of what the head takes."""
        return card.dim

    def _head(self, inputs: int) -> DinoHead:
        options = self.options
        return DinoHead(
            inputs,
            options.prototypes,
            hidden=options.hidden,
            bottleneck=options.bottleneck,
            batch_norm=options.batch_norm,
            norm_last=options.norm_last,
        )

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Backbone and head."""
        return [(self.student, self.teacher), (self.head, self.teacher_head)]

    def momentum(self, progress: float) -> float:
        """From the option's value to 1 along half a cosine."""
        return cosine(progress, self.options.momentum, 1.0)

    def temperature(self, progress: float) -> float:
        """The teacher's, of the current epoch."""
        options = self.options
        return dino_temperature(
            completed_epochs(progress, options.epochs),
            start=options.warmup_temperature,
            end=options.teacher_temperature,
            warmup_epochs=options.warmup_temperature_epochs,
        )

    def last_is_frozen(self, progress: float) -> bool:
        """Whether the head's last layer gets no gradient in the current epoch."""
        return completed_epochs(progress, self.options.epochs) < self.options.freeze_last_epochs

    def loss(
        self, student: Sequence[Features], teacher: Sequence[Features], views: Views, progress: float
    ) -> dict[str, Tensor]:
        """The mean over all pairs of a teacher's view and another view of the student."""
        self.check_batch(len(student[0][0]))
        logits = self.head(torch.cat([f[0] for f in student]), freeze_last=self.last_is_frozen(progress))
        with torch.no_grad():
            teacher_logits = self.teacher_head(torch.cat([f[0] for f in teacher]))
            probabilities = self.centre.probabilities(teacher_logits, self.temperature(progress))
            self.centre.observe(teacher_logits)
        global_part, local_part = dino_loss(logits.chunk(len(student)), probabilities.chunk(len(teacher)))
        parts = {"dino_global": global_part.detach(), "dino_local": local_part.detach()}
        return {"loss": global_part + local_part, **parts, **assignment_entropies(probabilities)}

    def update_teacher(self, progress: float) -> float:
        """Teacher, head and centre follow."""
        self.centre.follow()
        return super().update_teacher(progress)

    def exported(self) -> nn.Module:
        """The teacher, which DINO's authors evaluate and publish."""
        return self.teacher


@torch.no_grad()
def assignment_entropies(probabilities: Tensor) -> dict[str, Tensor]:
    """Of (N, K) teacher probabilities, in nats: the rows' mean entropy, and that of their mean.

    Both at log K: everything is spread alike (the collapse that sharpening prevents). Both at 0: one prototype takes
    everything (the collapse that centring prevents).
    """
    mean = probabilities.mean(0)
    rows = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1).mean()
    return {"entropy_rows": rows, "entropy_mean": -(mean * mean.clamp(min=1e-12).log()).sum()}
