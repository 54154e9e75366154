"""MoCo v3: contrast two views of a slice with those of all other slices, without a queue.

Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021, Algorithm 1 and Eq. 1
(facebookresearch/moco-v3). The student is followed by a projector and a predictor, the teacher by a projector; keys
are those of all processes and carry no gradient; the loss is symmetric in the two views and multiplied by 2 tau.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones import build
from pretrain.distributed import gather, rank, with_all_reduced_norms
from pretrain.momentum import twin
from pretrain.objectives.heads import moco_mlp, wide
from pretrain.objectives.idle_biases import keep_final_shift, keep_key_biases
from pretrain.objectives.objective import Features, Objective
from pretrain.objectives.options import need, read_options
from pretrain.schedules import cosine
from pretrain.views import ViewKind, Views

if TYPE_CHECKING:
    from clear.card import EncoderCard


def contrast(
    queries: Tensor, keys: Tensor, tau: float, log_weights: Tensor | None = None, *, offset: int = 0
) -> Tensor:
    """(N, d) queries against (M, d) keys, both of any length: (N,) cross-entropies of the query's own key.

        log( sum_j w_j exp(cos(q_i, k_j) / tau) ) - cos(q_i, k_own) / tau,    own = i + offset

    log_weights: log w, (M,) or (N, M); w = 1 without (InfoNCE). In float32 at least, also under autocast.
    """
    logits = cosines(queries, keys) / tau
    own = logits.diagonal(offset)
    return (logits if log_weights is None else logits + log_weights).logsumexp(1) - own


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(N, d) and (M, d) to (N, M) cosines, float32 at least."""
    with torch.autocast(queries.device.type, enabled=False):
        return functional.normalize(wide(queries), dim=1) @ functional.normalize(wide(keys), dim=1).T


def moco_loss(queries: Tensor, keys: Tensor, tau: float, *, offset: int = 0) -> Tensor:
    """MoCo v3's loss of one direction: 2 tau times the mean cross-entropy (`MoCo.contrastive_loss`).

    queries: (N, d) of this process; keys: (M, d) of all; offset: where this process's keys begin among them.
    """
    return contrast(queries, keys, tau, offset=offset).mean() * (2 * tau)


@dataclass(frozen=True)
class MocoOptions:
    """Settings of MoCo v3; defaults are those of its ViT recipe (CONFIG.md: tau 0.2, momentum 0.99 on a cosine to 1).

    epochs: the run's length. tau: temperature. momentum: at the start. hidden, dim: width of the MLPs and of what is
    compared. crop: smallest and largest share of the slice in a view.
    """

    epochs: int = 100
    tau: float = 0.2
    momentum: float = 0.99
    hidden: int = 4096
    dim: int = 256
    crop: tuple[float, float] = (0.08, 1.0)
    objective: ClassVar[str] = "moco-v3"

    def __post_init__(self) -> None:
        need(self.tau > 0, self.objective, f"tau is {self.tau:g}; expected a temperature above 0")
        need(0 <= self.momentum <= 1, self.objective, f"momentum is {self.momentum:g}; expected 0 to 1")
        need(min(self.epochs, self.hidden, self.dim) > 0, self.objective, "epochs, hidden and dim must be 1 or more")


class MocoV3(Objective):
    """Two random crops of each slice, through both networks."""

    name: ClassVar[str] = "moco-v3"
    options_type: ClassVar[type[MocoOptions]] = MocoOptions
    student_views = teacher_views = (0, 1)

    def __init__(self, card: EncoderCard, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = options = read_options(self.options_type, self.name, settings)
        self.kinds = self._kinds(card.input_size)
        network = build(card)
        keep_final_shift(network, card)
        keep_key_biases(network)
        self.student = with_all_reduced_norms(network)
        self.projector = moco_mlp(3, card.dim, options.hidden, options.dim)
        self.predictor = moco_mlp(2, options.dim, options.hidden, options.dim)
        self.teacher, self.teacher_projector = twin(self.student), twin(self.projector)
        self.train()

    def _kinds(self, size: int) -> tuple[ViewKind, ...]:
        return ViewKind(size, self.options.crop), ViewKind(size, self.options.crop)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Backbone and projector; the predictor has no teacher."""
        return [(self.student, self.teacher), (self.projector, self.teacher_projector)]

    def momentum(self, progress: float) -> float:
        """From the option's value to 1 along half a cosine.

        The published code lets the teacher follow at the start of the next step, with that step's momentum; here it
        follows at the end of this one, with this one's.
        """
        return cosine(progress, self.options.momentum, 1.0)

    def loss(
        self, student: Sequence[Features], teacher: Sequence[Features], views: Views, progress: float
    ) -> dict[str, Tensor]:
        """Each view's queries against the other view's keys, summed."""
        self.check_batch(len(student[0][0]))
        first, second = (self.predictor(self.projector(features[0])) for features in student)
        with torch.no_grad():
            first_keys, second_keys = (gather(self.teacher_projector(features[0])) for features in teacher)
        offset = rank() * len(first)
        lesion = gather(views.lesion.to(first.device))
        loss = self.one_way(first, second_keys, lesion, offset) + self.one_way(second, first_keys, lesion, offset)
        return {"loss": loss, **_similarities(first.detach(), second_keys, offset)}

    def one_way(self, queries: Tensor, keys: Tensor, lesion: Tensor, offset: int) -> Tensor:
        """The loss of one direction; lesion: (M,) bool, which keys are of annotated slices (not used by MoCo v3)."""
        return moco_loss(queries, keys, self.options.tau, offset=offset)


def _similarities(queries: Tensor, keys: Tensor, offset: int) -> dict[str, Tensor]:
    """Mean cosine of queries with their own and with all other keys: equal when the network tells nothing apart."""
    similar = cosines(queries, keys)
    own = similar.diagonal(offset)
    others = (similar.sum() - own.sum()) / max(1, similar.numel() - len(own))
    return {"cosine_own": own.mean(), "cosine_others": others}
