"""Targets: what is known about bags, and what a model is asked to do about it.

A model has its outputs side by side, endpoint after endpoint: a logit for a binary one, a logit a class for a
multi-class one, C - 1 cumulative logits for an ordinal one, a standardised value for a quantity, a log hazard for a
survival time. Unknown labels (nan) are masked: they add nothing to the loss and take no part in its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from aggregate.survival import cox_loss
from clear.endpoints import Endpoint

_QUANTILES = (0.25, 0.5, 0.75)  # at which a quantity is cut so that folds resemble each other
_NARROWEST = 1e-6  # gap between two cumulative logits, so that no class has probability 0


@dataclass(frozen=True)
class Targets:
    """endpoints: kinds settled.

    codes: (B, E) class code, ordinal rank, value, or survival time; nan = unknown.
    events: (B, E) for survival 1 = the event was seen, 0 = censored, nan where the time is unknown; nan elsewhere.
    None when no endpoint is survival.
    """

    endpoints: tuple[Endpoint, ...]
    codes: NDArray[np.float64]
    events: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.endpoints):
            raise ValueError(f"codes {self.codes.shape} for {len(self.endpoints)} endpoints")
        if self.events is None:
            if any(endpoint.kind == "survival" for endpoint in self.endpoints):
                raise ValueError("a survival endpoint needs events beside its times")
        elif self.events.shape != self.codes.shape:
            raise ValueError(f"events {self.events.shape} for codes {self.codes.shape}")

    @property
    def n_out(self) -> int:
        return sum(endpoint.n_out for endpoint in self.endpoints)

    @property
    def columns(self) -> list[slice]:
        """The outputs of each endpoint."""
        return _columns([endpoint.n_out for endpoint in self.endpoints])

    @property
    def score_columns(self) -> list[slice]:
        """The columns of `predicted` of each endpoint."""
        return _columns([len(endpoint.score_classes) for endpoint in self.endpoints])

    @property
    def additive(self) -> bool:
        """Whether the loss of a batch is the sum of its bags' losses. A Cox loss is not: the batch is the risk set."""
        return all(endpoint.kind != "survival" for endpoint in self.endpoints)

    def known(self, bags: Sequence[int] | NDArray[np.int64]) -> int:
        """How many terms the loss of these bags has: their known labels; of survival times those with an event."""
        rows = np.asarray(bags, dtype=np.int64)
        counts = np.isfinite(self.codes[rows])
        for e, endpoint in enumerate(self.endpoints):
            if endpoint.kind == "survival" and self.events is not None:
                counts[:, e] &= self.events[rows, e] == 1
        return int(counts.sum())

    def indicators(self, bags: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """(n, C) what folds of these bags (of all) are stratified by; an unknown label is in none of the columns.

        One column a class; four quarters of a quantity, cut where these bags and no others are; event and censored of a
        survival time.
        """
        rows = np.arange(len(self.codes)) if bags is None else np.asarray(bags, dtype=np.int64)
        once = np.unique(rows)
        columns = []
        for e, endpoint in enumerate(self.endpoints):
            codes = self.codes[rows, e]
            known = np.isfinite(codes)
            if endpoint.is_classes:
                columns += [codes == code for code in range(len(endpoint.classes))]
            elif endpoint.kind == "survival" and self.events is not None:
                columns += [known & (self.events[rows, e] == 1), known & (self.events[rows, e] == 0)]
            else:
                values = self.codes[once, e]
                cuts = (
                    np.quantile(values[np.isfinite(values)], _QUANTILES) if known.any() else np.zeros(len(_QUANTILES))
                )
                quarter = np.searchsorted(cuts, codes, side="left")
                columns += [known & (quarter == q) for q in range(len(_QUANTILES) + 1)]
        return np.stack(columns, axis=1)

    def nothing_to_learn(self, bags: NDArray[np.int64]) -> list[str]:
        """For each endpoint why these bags cannot teach it, "" where they can; see the function of this name."""
        events = [None if self.events is None else self.events[bags, e] for e in range(len(self.endpoints))]
        return [nothing_to_learn(endpoint, self.codes[bags, e], events[e]) for e, endpoint in enumerate(self.endpoints)]

    def not_learnt(self, bags: NDArray[np.int64]) -> tuple[str, ...]:
        """Names of the endpoints that these bags cannot teach."""
        return tuple(e.name for e, why in zip(self.endpoints, self.nothing_to_learn(bags), strict=True) if why)

    def where_learnt(self, scores: NDArray[np.float64], bags: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, S) scores of a model that these bags taught, nan for the endpoints that they could not teach."""
        return self.without(scores, self.not_learnt(bags))

    def without(self, scores: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
        """(n, S) scores, nan for the endpoints of these names."""
        out = np.array(scores, dtype=np.float64)
        for endpoint, columns in zip(self.endpoints, self.score_columns, strict=True):
            if endpoint.name in names:
                out[:, columns] = np.nan
        return out

    def class_weights(self, bags: NDArray[np.int64]) -> list[Tensor]:
        """Balanced weights from these bags: binary (1,) negatives over positives; else n / (classes x n_c).

        (1,) of 1 for quantities and survival times, which have no classes.
        """
        weights = []
        for e, endpoint in enumerate(self.endpoints):
            codes = self.codes[bags, e]
            counts = np.array([(codes == code).sum() for code in range(len(endpoint.classes))], dtype=np.float64)
            if not endpoint.is_classes:
                weights.append(torch.ones(1))
            elif endpoint.kind == "binary":
                ratio = counts[0] / counts[1] if counts.all() else 1.0
                weights.append(torch.tensor([ratio], dtype=torch.float32))
            else:
                present = np.where(counts > 0, counts, np.inf)
                weights.append(torch.as_tensor(counts.sum() / (len(counts) * present), dtype=torch.float32))
        return weights

    def balanced_chances(self, bags: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) the chance of each of these bags in a balanced draw, summing to 1.

        The draw takes an endpoint, then a class of it, then a bag of that class, each with equal chance; a quantity or
        a survival time counts as one class. With one endpoint every class has the same expected share; with several, a
        bag's chance is the mean of its chances under each. What has no known label among these bags is passed over.
        """
        chances = []
        for e, endpoint in enumerate(self.endpoints):
            codes = self.codes[bags, e]
            known = np.isfinite(codes)
            _, group, counts = np.unique(
                codes[known] if endpoint.is_classes else 0 * codes[known], return_inverse=True, return_counts=True
            )
            if len(counts):
                chances.append(np.zeros(len(codes)))
                chances[-1][known] = 1 / (len(counts) * counts[group])
        return np.mean(chances, axis=0) if chances else np.full(len(bags), 1 / len(bags))

    def scale(self, bags: NDArray[np.int64]) -> NDArray[np.float64]:
        """(E, 2) mean and standard deviation of each quantity over the known labels of these bags; else (0, 1)."""
        out = np.tile([0.0, 1.0], (len(self.endpoints), 1))
        for e, endpoint in enumerate(self.endpoints):
            values = self.codes[bags, e]
            values = values[np.isfinite(values)]
            if endpoint.kind == "regression" and len(values):
                spread = float(values.std())
                out[e] = float(values.mean()), spread if spread > 0 else 1.0
        return out

    def scaled(self, scale: NDArray[np.float64]) -> Targets:
        """The same targets with quantities as (value - mean) / standard deviation, which is what a model learns."""
        return replace(self, codes=(self.codes - scale[:, 0]) / scale[:, 1])


def nothing_to_learn(endpoint: Endpoint, codes: NDArray[np.float64], events: NDArray[np.float64] | None = None) -> str:
    """Why labels (n,), nan = unknown, teach nothing: one class or value, no event, or none known. Else ""."""
    known = np.isfinite(codes)
    count = int(known.sum())
    if not count:
        return "one class only: no label is known"
    if endpoint.kind == "survival" and events is not None:
        return "" if (events[known] == 1).any() else f"none of {count} survival times ends in an event"
    values = np.unique(codes[known])
    if len(values) > 1:
        return ""
    if endpoint.is_classes:
        return f"one class only: all {count} known labels are {endpoint.classes[int(values[0])]!r}"
    return f"one value only: all {count} known labels are {values[0]:g}"


def loss_sum(
    logits: Tensor,
    codes: Tensor,
    targets: Targets,
    weights: Sequence[Tensor] | None = None,
    events: Tensor | None = None,
) -> Tensor:
    """Sum over known labels of each endpoint's loss.

    Binary cross-entropy; cross-entropy (multi-class); minus the log-likelihood of the cumulative model (ordinal); half
    the squared error (quantities, standardised); minus the Cox partial log-likelihood with these bags as the risk set,
    so a batch with a survival endpoint must come whole.

    logits: (b, n_out); codes: (b, E), nan = unknown, quantities as `Targets.scaled` gives them; weights: as
    `Targets.class_weights` gives them; events: (b, E), needed for survival.
    """
    total = logits.sum() * 0
    for e, (endpoint, columns) in enumerate(zip(targets.endpoints, targets.columns, strict=True)):
        known = torch.isfinite(codes[:, e])
        wanted = codes[known, e]
        weight = None if weights is None else weights[e].to(logits.device)
        output = logits[known, columns]
        if endpoint.kind == "binary":
            loss = F.binary_cross_entropy_with_logits(output[:, 0], wanted, pos_weight=weight, reduction="sum")
        elif endpoint.kind == "multiclass":
            loss = F.cross_entropy(output, wanted.long(), weight=weight, reduction="sum")
        elif endpoint.kind == "ordinal":
            loss = F.nll_loss(ordinal_log_probabilities(output), wanted.long(), weight=weight, reduction="sum")
        elif endpoint.kind == "regression":
            loss = F.mse_loss(output[:, 0], wanted, reduction="sum") / 2
        else:
            if events is None:
                raise ValueError(f"{endpoint.name}: a survival loss needs events")
            loss = cox_loss(output[:, 0], wanted, events[known, e])
        total = total + loss
    return total


def predicted(logits: Tensor, targets: Targets, scale: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """(b, S) scores in float64, one column a row of predictions.csv (`Endpoint.score_classes`).

    Probability of the positive class (binary), of each class (multi-class, ordinal), value in the label's own unit
    (quantities), log hazard (survival). scale: as `Targets.scale` gave it for the bags that trained the model.
    """
    logits = logits.detach().double().cpu()
    parts = []
    for e, (endpoint, columns) in enumerate(zip(targets.endpoints, targets.columns, strict=True)):
        output = logits[:, columns]
        if endpoint.kind == "binary":
            output = torch.sigmoid(output)
        elif endpoint.kind == "multiclass":
            output = torch.softmax(output, dim=1)
        elif endpoint.kind == "ordinal":
            output = ordinal_log_probabilities(output).exp()
        elif endpoint.kind == "regression" and scale is not None:
            output = output * float(scale[e, 1]) + float(scale[e, 0])
        parts.append(output)
    return np.asarray(torch.cat(parts, dim=1).numpy())


def ordinal_log_probabilities(outputs: Tensor) -> Tensor:
    """(b, C) log-probability of each class from (b, C - 1) outputs of a cumulative logit model.

    logit P(y > k) = g_k with g_0 = outputs_0 and g_k = g_{k-1} - softplus(outputs_k), so the order of the thresholds
    holds by construction and no class has a negative probability (McCullagh, JRSS B 1980, 42, 109-142, with thresholds
    that may depend on the bag). P(y = k) = σ(g_{k-1}) - σ(g_k) = σ(g_{k-1}) σ(-g_k) (1 - exp(g_k - g_{k-1})).
    """
    gaps = F.softplus(outputs[:, 1:]) + _NARROWEST
    cumulative = torch.cat([outputs[:, :1], outputs[:, :1] - gaps.cumsum(dim=1)], dim=1)
    lowest = F.logsigmoid(-cumulative[:, :1])
    middle = F.logsigmoid(cumulative[:, :-1]) + F.logsigmoid(-cumulative[:, 1:]) + torch.log(-torch.expm1(-gaps))
    return torch.cat([lowest, middle, F.logsigmoid(cumulative[:, -1:])], dim=1)


def _columns(widths: Sequence[int]) -> list[slice]:
    stops = np.cumsum(widths).tolist()
    return [slice(stop - width, stop) for stop, width in zip(stops, widths, strict=True)]
