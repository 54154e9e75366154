"""DINOv2: DINO, and predicting masked patches (iBOT), and spreading the batch (KoLeo); vision transformers only.

Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, section 4
(facebookresearch/dinov2, `SSLMetaArch`). The loss is DINO's on the class token, plus iBOT's on the masked patches of
the student's global views, plus 0.1 times KoLeo's on each global view's class tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from pretrain.distributed import gather_with_gradient
from pretrain.momentum import twin
from pretrain.objectives.backbone import Tokens
from pretrain.objectives.centring import Centre, sinkhorn
from pretrain.objectives.dino import GLOBAL_VIEWS, Dino, DinoOptions, assignment_entropies, dino_loss
from pretrain.objectives.ibot import draw_masks, ibot_loss
from pretrain.objectives.koleo import koleo_loss
from pretrain.objectives.objective import Features
from pretrain.objectives.options import need
from pretrain.views import Views

if TYPE_CHECKING:
    from clear.card import EncoderCard


@dataclass(frozen=True)
class DinoV2Options(DinoOptions):
    """Settings of DINOv2, beside DINO's; defaults are those of `ssl_default_config.yaml`.

    centring: a running centre, or `sinkhorn`. mask_probability: how often a global view is masked; mask_share: smallest
    and largest share of its patches. separate_head: a head of its own for patches. koleo_over: nearest neighbours among
    the slices of all processes, so that the number of processes changes nothing, or of each as published.
    """

    momentum: float = 0.992
    global_crop: tuple[float, float] = (0.32, 1.0)
    local_crop: tuple[float, float] = (0.05, 0.32)
    centring: Literal["centre", "sinkhorn"] = "centre"
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    mask_probability: float = 0.5
    mask_share: tuple[float, float] = (0.1, 0.5)
    separate_head: bool = False
    koleo_over: Literal["all", "process"] = "all"
    objective: ClassVar[str] = "dinov2"

    def __post_init__(self) -> None:
        super().__post_init__()
        need(0 <= self.mask_probability <= 1, self.objective, "mask_probability must be 0 to 1")
        low, high = self.mask_share
        need(0 <= low <= high <= 1, self.objective, "mask_share must be two shares with 0 <= low <= high <= 1")
        need(min(self.ibot_weight, self.koleo_weight) >= 0, self.objective, "weights must be 0 or more")


class DinoV2(Dino):
    """Features are (class, patches, mask) of the student's global views, (class,) of local ones, (class, patches) of
    the teacher's."""

    name: ClassVar[str] = "dinov2"
    options_type: ClassVar[type[DinoOptions]] = DinoV2Options

    def __init__(self, card: EncoderCard, settings: Mapping[str, Any]) -> None:
        super().__init__(card, settings)
        self.mask_token = nn.Parameter(torch.zeros(self.tokens.width))
        if self._v2.separate_head:
            self.patch_head = self._head(self.tokens.width)
            self.teacher_patch_head = twin(self.patch_head)
        self.patch_centre = Centre(self.options.prototypes, self.options.centre_momentum)
        self.train()

    @property
    def _v2(self) -> DinoV2Options:
        return cast(DinoV2Options, self.options)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Backbone and heads; the mask token has no teacher, which sees no masks."""
        own = [(self.patch_head, self.teacher_patch_head)] if hasattr(self, "patch_head") else []
        return [*super().pairs(), *own]

    def _width(self, card: EncoderCard) -> int:
        self.tokens = Tokens(card, self.student)
        return self.tokens.width

    def temperature(self, progress: float) -> float:
        """The teacher's: linear in the steps of the warm-up, not by epochs as in DINO."""
        options = self.options
        warm = min(1.0, progress * options.epochs / max(1, options.warmup_temperature_epochs))
        return options.warmup_temperature + (options.teacher_temperature - options.warmup_temperature) * warm

    def encode_student(self, images: Tensor, view: int) -> Features:
        """Global views: class (N, d), patches (N, T, d), mask (N, T) bool; local views: class."""
        if view >= GLOBAL_VIEWS:
            return (self.tokens(self.student, images)[0],)
        probability = self._v2.mask_probability if self._v2.ibot_weight else 0.0
        mask = draw_masks(images, self.tokens.side, self._v2.mask_share, probability)
        return (*self.tokens(self.student, images, mask, self.mask_token), mask)

    @torch.no_grad()
    def encode_teacher(self, images: Tensor, view: int) -> Features:
        """Class (N, d) and patches (N, T, d), nothing masked."""
        return self.tokens(self.teacher, images)

    def loss(
        self, student: Sequence[Features], teacher: Sequence[Features], views: Views, progress: float
    ) -> dict[str, Tensor]:
        """DINO on class tokens, iBOT on masked patches, KoLeo on each global view's class tokens."""
        rows = len(student[0][0])
        self.check_batch(rows)
        whole = student[:GLOBAL_VIEWS]
        mask = torch.cat([features[2] for features in whole])
        classes = torch.cat([features[0] for features in student])
        patches = torch.cat([features[1] for features in whole])[mask]
        logits, patch_logits = self._logits(classes, patches, frozen=self.last_is_frozen(progress))
        targets, patch_targets = self._targets(teacher, mask, self.temperature(progress))
        global_part, local_part = dino_loss(logits.chunk(len(student)), targets.chunk(len(teacher)))
        ibot = ibot_loss(patch_logits, patch_targets, mask)
        koleo = sum((self._koleo(features[0]) for features in whole), classes.new_zeros(()))
        loss = global_part + local_part + self._v2.ibot_weight * ibot + self._v2.koleo_weight * koleo
        parts = {"dino_global": global_part, "dino_local": local_part, "ibot": ibot, "koleo": koleo}
        logged = {name: part.detach() for name, part in parts.items()}
        return {"loss": loss, **logged, **assignment_entropies(targets)}

    def _logits(self, classes: Tensor, patches: Tensor, *, frozen: bool) -> tuple[Tensor, Tensor]:
        """The student's logits of class tokens and of masked patches."""
        if self._v2.separate_head:
            return self.head(classes, freeze_last=frozen), self.patch_head(patches, freeze_last=frozen)
        both = self.head(torch.cat([classes, patches]), freeze_last=frozen)
        return both[: len(classes)], both[len(classes) :]

    @torch.no_grad()
    def _targets(self, teacher: Sequence[Features], mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities of class tokens and of the patches that the student has masked."""
        head = self.teacher_patch_head if self._v2.separate_head else self.teacher_head
        logits = self.teacher_head(torch.cat([features[0] for features in teacher]))
        patch_logits = head(torch.cat([features[1] for features in teacher])[mask])
        if self._v2.centring == "sinkhorn":
            return sinkhorn(logits, temperature), sinkhorn(patch_logits, temperature)
        targets = self.centre.probabilities(logits, temperature)
        patch_targets = self.patch_centre.probabilities(patch_logits, temperature)
        self.centre.observe(logits)
        self.patch_centre.observe(patch_logits)
        return targets, patch_targets

    def _koleo(self, classes: Tensor) -> Tensor:
        """Of one view's class tokens; per process it needs two slices in each."""
        if self._v2.koleo_over == "all":
            return koleo_loss(gather_with_gradient(classes))
        need(len(classes) > 1, self.name, "koleo_over 'process' needs 2 slices or more in every process")
        return koleo_loss(classes)

    def update_teacher(self, progress: float) -> float:
        """Teacher, heads and both centres follow."""
        self.patch_centre.follow()
        return super().update_teacher(progress)
