"""LeCL: MoCo v3 in which the keys of slices with a lesion weigh more.

Ligero, Lenz et al., Abnormality-Driven Representation Learning for Radiology Imaging, MICCAI 2025 (CLEAR), Eq. 2:

    loss_i = -log psi(q_i, k_i) / ( sum_j psi(q_i, k_j)  +  lambda sum_{j in xi} psi(q_i, k_j) ),
    psi(q, k) = exp(cos(q, k) / tau),   xi: the keys of annotated slices

An annotated slice gives a crop around a lesion and the whole slice as its views, any other slice two random crops; all
of them through both networks, in one symmetric loss, with the keys and lesions of all processes. The paper's equation
has no factor 2 tau, so lambda = 0 is MoCo v3's loss divided by 2 tau (under AdamW the factor moves nothing but what
gradient clipping and its epsilon see).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from pretrain.objectives.moco_v3 import MocoOptions, MocoV3, contrast, cosines, moco_loss
from pretrain.objectives.options import need
from pretrain.views import ViewKind


def lecl_loss(
    queries: Tensor, keys: Tensor, lesion: Tensor, tau: float, lambda_: float, *, own_key: bool = True, offset: int = 0
) -> Tensor:
    """Eq. 2 for each query, (N,). With lambda 0, or no lesion among the keys, it is InfoNCE to the last bit.

    queries: (N, d) of this process; keys: (M, d) and lesion: (M,) bool of all; offset: where this process's keys begin.
    own_key: whether an annotated query's own key is in xi as the equation has it, or left out as in the released code.
    A key of xi stands in both sums, so it weighs 1 + lambda: its logarithm is added to the logits.
    """
    log_weights = _log_weights(lesion, lambda_, queries)
    if not own_key:
        log_weights = log_weights.repeat(len(queries), 1)
        log_weights.diagonal(offset).zero_()
    return contrast(queries, keys, tau, log_weights, offset=offset)


def released_loss(
    queries: Tensor, keys: Tensor, lesion: Tensor, tau: float, lambda_: float, *, offset: int = 0
) -> Tensor:
    """What the released training code computes (KatherLab/CLEAR, `MoCo.contrastive_loss_lesion`), not the paper.

    Lambda multiplies the logits inside the exponent, the own key is left out of xi, the mean is multiplied by 2 tau,
    and lambda 0 is a switch to MoCo v3's loss.
    """
    if lambda_ == 0:
        return moco_loss(queries, keys, tau, offset=offset)
    logits = cosines(queries, keys) / tau
    left_out = ~lesion.bool().expand_as(logits)
    left_out = left_out | torch.ones_like(left_out).tril(offset).triu(offset)
    again = (lambda_ * logits).masked_fill(left_out, -math.inf)
    per_query = torch.cat([logits, again], dim=1).logsumexp(1) - logits.diagonal(offset)
    return per_query.mean() * (2 * tau)


def _log_weights(lesion: Tensor, lambda_: float, like: Tensor) -> Tensor:
    """(M,) log(1 + lambda) for annotated keys, exactly 0 for the others; float32 at least."""
    kind = like.dtype if like.dtype == torch.float64 else torch.float32
    return lesion.to(kind) * math.log1p(lambda_)


@dataclass(frozen=True)
class LeclOptions(MocoOptions):
    """Settings of LeCL, beside MoCo v3's.

    lambda_: how much more the keys of annotated slices weigh (the paper's; written `lambda` in a file). own_key: see
    `lecl_loss`. variant: `equation`, or `released` for what the authors' code computes.
    """

    lambda_: float = 1.0
    own_key: bool = True
    variant: Literal["equation", "released"] = "equation"
    objective: ClassVar[str] = "lecl"

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.lambda_ >= 0, "lecl", f"lambda is {self.lambda_:g}; expected 0 or more")


class Lecl(MocoV3):
    """A crop around a lesion and the whole slice where there is a lesion, else two crops; through both networks."""

    name: ClassVar[str] = "lecl"
    options_type: ClassVar[type[MocoOptions]] = LeclOptions

    def _kinds(self, size: int) -> tuple[ViewKind, ...]:
        crop = self.options.crop
        return ViewKind(size, crop, lesion=True), ViewKind(size, crop, full=True)

    def one_way(self, queries: Tensor, keys: Tensor, lesion: Tensor, offset: int) -> Tensor:
        """The mean of Eq. 2 over the queries, or the released code's value."""
        options = cast(LeclOptions, self.options)
        tau, lambda_ = options.tau, options.lambda_
        if options.variant == "released":
            return released_loss(queries, keys, lesion, tau, lambda_, offset=offset)
        return lecl_loss(queries, keys, lesion, tau, lambda_, own_key=options.own_key, offset=offset).mean()
