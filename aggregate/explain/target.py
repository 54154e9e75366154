"""Target: which of a run's answers an explanation is of, and which output of the models it is.

A binary endpoint is explained by what speaks for its positive class, a multi-class one by what speaks for one class
(the predicted one unless another is named), an ordinal one by what speaks for its highest class, and so for higher
classes altogether (one output moves all of its cumulative logits, and nothing of it speaks for another class), a
quantity by what makes it larger, a survival time by what makes the event come earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregate.aggregators import Aggregator, predict
from aggregate.packed import PackedRows
from aggregate.run import Run
from aggregate.targets import Targets, predicted
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tables import some

SPEAKS_FOR = {
    "ordinal": "maps and contributions show what speaks for higher classes, whichever is predicted",
    "regression": "maps that follow a gradient show what makes the value larger",
    "survival": "the score is a log hazard; maps that follow a gradient show what makes the event come earlier",
}


@dataclass(frozen=True)
class Target:
    """One answer of a run. class_name: "" for a quantity or a time; output: its column among the models' logits."""

    endpoint: Endpoint
    class_name: str
    output: int

    @property
    def has_maps(self) -> bool:
        """Whether its output speaks for it: of the classes of an ordinal endpoint for the highest alone."""
        return self.endpoint.kind != "ordinal" or self.class_name == self.endpoint.classes[-1]

    @property
    def finding(self) -> str:
        """For people: the endpoint's name, with the class where the endpoint has more than two."""
        name = self.endpoint.name
        return f"{name} {self.class_name}" if self.endpoint.kind in ("multiclass", "ordinal") else name


def targets_of(endpoints: Sequence[Endpoint]) -> list[Target]:
    """Every answer of a run: a row of predictions.csv each, in that order. Some have no maps of their own."""
    found, start = [], 0
    for endpoint in endpoints:
        for position, name in enumerate(endpoint.score_classes):
            found.append(Target(endpoint, name, start + (position if endpoint.kind == "multiclass" else 0)))
        start += endpoint.n_out
    return found


def choose_target(
    endpoints: Sequence[Endpoint],
    scores: NDArray[np.float64],
    endpoint: str | None = None,
    class_name: str | None = None,
) -> tuple[Target, float, list[str]]:
    """(what to explain, its score, remarks).

    scores: (S,) of the scan, as `aggregate.targets.predicted` orders them. endpoint: by name; without it, of several
    the binary one of the highest score, else the first. class_name: of several classes, the one of the highest score
    without it, of ordered ones the highest class. Raises InputError for a name that is not there, for the negative
    class of a binary endpoint and for a lower class of an ordinal one.
    """
    names = [each.name for each in endpoints]
    remarks = []
    if endpoint is not None and endpoint not in names:
        raise InputError(f"--endpoint {endpoint}: the run has no such endpoint; it has {some(names, 20)}")
    targets = targets_of(endpoints)
    if endpoint is None:
        binary = [i for i, t in enumerate(targets) if t.endpoint.kind == "binary" and np.isfinite(scores[i])]
        endpoint = targets[max(binary, key=lambda i: scores[i])].endpoint.name if binary else names[0]
        if len(names) > 1:
            why = "its score is the highest" if binary else "it is the first"
            remarks.append(f"of {len(names)} endpoints {endpoint} is explained: {why}. --endpoint names another")
    own = [i for i, target in enumerate(targets) if target.endpoint.name == endpoint and target.has_maps]
    classes = [targets[i].class_name for i in own]
    if class_name is None:
        chosen = own[int(np.argmax(scores[own]))] if np.isfinite(scores[own]).all() else own[0]
    elif class_name in classes:
        chosen = own[classes.index(class_name)]
    else:
        kind = targets[own[0]].endpoint.kind
        listed = some([name for name in classes if name], 20)
        raise InputError(
            f"--class {class_name}: "
            + (f"maps of {endpoint} ({kind}) speak for {listed}" if listed else f"{endpoint} ({kind}) has no classes")
        )
    target = targets[chosen]
    remarks += [SPEAKS_FOR[target.endpoint.kind]] if target.endpoint.kind in SPEAKS_FOR else []
    return target, float(scores[chosen]), remarks


def scores_of_bag(
    run: Run, models: Sequence[Aggregator], pairs: Sequence[tuple[int, int]], embeddings: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(S,) the mean score that models of a run, by (repeat, fold), give a bag (K, d); nan where none learnt it."""
    rows, endpoints = PackedRows.of([embeddings]), run.endpoints
    unknown = np.full((1, len(endpoints)), np.nan)
    targets = Targets(endpoints, unknown, unknown)
    by_model = []
    for model, pair in zip(models, pairs, strict=True):
        logits, _ = predict(model, rows, [0])
        by_model.append(targets.without(predicted(logits, targets, run.scale(*pair)), run.not_learnt(*pair))[0])
    stacked = np.stack(by_model)
    learnt = np.isfinite(stacked).sum(axis=0)
    return np.asarray(np.nansum(stacked, axis=0) / np.where(learnt, learnt, np.nan))
