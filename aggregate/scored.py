"""Scored bags: the scores that several models gave to the bags of an endpoint, and the figures made of them.

A figure is one metric of one class, of one endpoint, or of a mean over several. It is estimated in one of three ways,
never mixed: `fold_mean`, the mean over models of the metric of what each scored; `pooled`, the metric of all
out-of-fold scores at once, each bag's averaged over repeats first; `ensemble`, the metric of the mean score of the
models that all scored a fixed test set. A row without a score, of a model that could learn nothing of the endpoint,
takes no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.intervals import leave_one_out, patient_draws
from aggregate.metrics import METRICS, OF_ALL_CLASSES, Metric, called, median_class, plain
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.task import metrics_for

Floats = NDArray[np.float64]
FOLD_MEAN, POOLED, ENSEMBLE = "fold_mean", "pooled", "ensemble"
NEVER_POOLED = frozenset({"c_index"})  # hazards of two fits have no common zero


@dataclass(frozen=True)
class Scored:
    """The bags of one endpoint whose label is known.

    scans: (n,) ids, ascending. patients: (n,) 0..P-1 over the whole cohort.
    truth: (n,) class codes, values; (n, 2) times and events for survival.
    of_model: (F, n, S) scores of each model, one column a class of `Endpoint.score_classes`; nan where it scored not.
    """

    endpoint: Endpoint
    scans: tuple[str, ...]
    patients: NDArray[np.int64]
    truth: Floats
    of_model: Floats

    def __len__(self) -> int:
        return len(self.scans)

    @cached_property
    def rows_of(self) -> list[NDArray[np.int64]]:
        """(F,) the rows that each model scored."""
        return [np.flatnonzero(np.isfinite(scores).all(axis=1)) for scores in self.of_model]

    @cached_property
    def models_share_no_patient(self) -> bool:
        """Whether the bags of every patient were scored by a single model."""
        of_each = [np.unique(self.patients[rows]) for rows in self.rows_of]
        return sum(map(len, of_each)) == len(np.unique(self.patients))

    @cached_property
    def several_rows(self) -> bool:
        """Whether some patient has several bags."""
        return len(np.unique(self.patients)) < len(self.patients)

    @cached_property
    def mean_scores(self) -> Floats:
        """(n, S) mean over the models that scored the bag."""
        return np.asarray(np.nanmean(self.of_model, axis=0)) if len(self) else self.of_model.sum(axis=0)


@dataclass(frozen=True)
class Member:
    """One metric of one endpoint's scores. view: what the metric sees of truth and scores (n, S)."""

    scored: Scored
    metric: Metric
    view: Callable[[Floats, Floats], tuple[NDArray[Any], Floats]]

    @cached_property
    def of_models(self) -> Floats:
        """(F,) the metric of each model on what it scored."""
        scored = self.scored
        pairs = zip(scored.of_model, scored.rows_of, strict=True)
        return np.array([plain(self.metric, *self.view(scored.truth[rows], scores[rows])) for scores, rows in pairs])

    def estimate(self, estimator: str) -> float:
        """The metric with every row once; nan when it is not defined."""
        return float(mean_defined(self.of_models)) if estimator == FOLD_MEAN else self.of_mean_scores

    @cached_property
    def of_mean_scores(self) -> float:
        """The metric of the mean scores; nan when it is not defined."""
        return plain(self.metric, *self.seen) if len(self.scored) else float("nan")

    def weighted(self, estimator: str, weights: Floats) -> Floats:
        """(R,) the estimate for each of (R, n) weightings."""
        if estimator != FOLD_MEAN:
            return self.metric(*self.seen, weights)
        scored, values = self.scored, []
        for scores, rows in zip(scored.of_model, scored.rows_of, strict=True):
            values.append(self.metric(*self.view(scored.truth[rows], scores[rows]), weights[:, rows]))
        return mean_defined(np.stack(values))

    @cached_property
    def seen(self) -> tuple[NDArray[Any], Floats]:
        """What the metric sees of the mean scores."""
        return self.view(self.scored.truth, self.scored.mean_scores)


@dataclass(frozen=True)
class Figure:
    """One line of a table of metrics: a metric of its members, or their mean."""

    endpoint: str
    name: str
    metric: str
    members: tuple[Member, ...]

    def estimate(self, estimator: str) -> float:
        """The mean over the members that are defined."""
        return float(mean_defined(np.array([member.estimate(estimator) for member in self.members])))

    def defined(self, estimator: str) -> Figure:
        """The same figure of those members alone that have a value."""
        kept = tuple(m for m in self.members if np.isfinite(m.estimate(estimator)))
        return Figure(self.endpoint, self.name, self.metric, kept)

    def of_models(self) -> Floats:
        """(F,) each model's own value."""
        return mean_defined(np.stack([member.of_models for member in self.members]))


class Resampled:
    """Figures over bootstrap draws of the patients and with patients left out: the same ones for every figure.

    What a member yields is kept, because the mean over endpoints needs it again.
    """

    def __init__(self, n_patients: int, seed: int) -> None:
        everyone = np.arange(n_patients)
        self._weightings = patient_draws(everyone, seed), leave_one_out(everyone)
        self._kept: dict[tuple[int, str], tuple[Member, Floats, Floats]] = {}

    def of(self, figure: Figure, estimator: str) -> tuple[Floats, Floats]:
        """((draws,), (groups,)) the figure in each draw, and with each group of patients left out."""
        pairs = [self._of_member(member, estimator) for member in figure.members]
        drawn, left_out = (mean_defined(np.stack(values)) for values in zip(*pairs, strict=True))
        return drawn, left_out

    def _of_member(self, member: Member, estimator: str) -> tuple[Floats, Floats]:
        key = id(member), estimator
        if key not in self._kept:
            patients = member.scored.patients
            drawn, left_out = (member.weighted(estimator, weights[:, patients]) for weights in self._weightings)
            self._kept[key] = member, drawn, left_out
        return self._kept[key][1:]


def read_scored(
    predictions: pl.DataFrame, endpoints: Sequence[Endpoint], patients: Mapping[str, int], split: str = "test"
) -> dict[str, Scored]:
    """Endpoint name -> its scored bags, from the rows of predictions.csv of this split.

    patients: number of each patient. Raises InputError when a model scored a bag twice, or two rows of a bag disagree.
    """
    rows = predictions.filter(pl.col("split") == split)
    models = {pair: i for i, pair in enumerate(rows.select("repeat", "fold").unique().sort("repeat", "fold").rows())}
    known = rows.drop_nulls("y_true").filter(pl.col("y_score").cast(pl.Float64).is_finite())
    return {
        endpoint.name: _scored(known.filter(pl.col("endpoint") == endpoint.name), endpoint, models, patients)
        for endpoint in endpoints
    }


def numbered_patients(*predictions: pl.DataFrame) -> dict[str, int]:
    """A number for each patient of these predictions, in the order of their ids."""
    names = sorted({str(name) for each in predictions for name in each["patient_id"].unique().to_list()})
    return {name: i for i, name in enumerate(names)}


def is_fixed_test(predictions: pl.DataFrame, split: str = "test") -> bool:
    """Whether every model scored the same bags, and there are several models or no folds to speak of."""
    rows = predictions.filter(pl.col("split") == split)
    models = rows.select("repeat", "fold").unique().height
    counts = rows.group_by("scan_id", "endpoint", "class").len()["len"]
    return bool(len(counts) > 0 and (counts == models).all())


def figures(
    scored: Mapping[str, Scored], endpoints: Sequence[Endpoint], metrics: Sequence[str], *, means: bool = True
) -> list[Figure]:
    """Every figure of these endpoints, in the order of the table.

    A binary endpoint has one of each metric. One with several classes has one a class (against the rest) and, under the
    class `macro`, their mean and what belongs to it as a whole (accuracy, kappa, ...). Several binary endpoints end
    with their means, endpoint `macro`.
    """
    out: list[Figure] = []
    binary: dict[str, list[Member]] = {}
    for endpoint in endpoints:
        here = scored[endpoint.name]
        names = metrics_for(endpoint.kind, metrics)
        whole = OF_ALL_CLASSES.get(endpoint.kind, {})
        of_class: dict[str, list[Member]] = {}
        for position, name in enumerate(endpoint.score_classes):
            for metric in names:
                if metric not in whole:
                    member = Member(here, METRICS[metric], _view(endpoint, position, metric))
                    out.append(Figure(endpoint.name, name, metric, (member,)))
                    of_class.setdefault(metric, []).append(member)
        if endpoint.kind == "binary":
            for metric, members in of_class.items():
                binary.setdefault(metric, []).extend(members)
        if whole:
            for metric in names:
                members = of_class.get(metric) or [Member(here, whole[metric], _whole_view(endpoint))]
                out.append(Figure(endpoint.name, "macro", metric, tuple(members)))
    if means and sum(endpoint.kind == "binary" for endpoint in endpoints) > 1:
        out += [Figure("macro", "macro", metric, tuple(members)) for metric, members in binary.items()]
    return out


def mean_defined(values: Floats) -> Floats:
    """Mean over the first axis of what is defined; nan where nothing is."""
    defined = np.isfinite(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _view(endpoint: Endpoint, position: int, metric: str) -> Callable[[Floats, Floats], tuple[NDArray[Any], Floats]]:
    """Of one class against the rest, or of the only score there is."""
    if not endpoint.is_classes:
        return lambda truth, scores: (truth, scores[:, 0])
    if endpoint.kind == "binary":
        return lambda truth, scores: (truth == 1, scores[:, 0])
    if metric == "f1":  # whether the class is the one that is called
        whole = _whole_view(endpoint)
        return lambda truth, scores: (truth == position, (called(whole(truth, scores)[1]) == position).astype(float))
    return lambda truth, scores: (truth == position, scores[:, position])


def _whole_view(endpoint: Endpoint) -> Callable[[Floats, Floats], tuple[NDArray[Any], Floats]]:
    if endpoint.kind == "ordinal":
        return lambda truth, scores: (truth, median_class(scores))
    return lambda truth, scores: (truth, scores)


def _scored(
    rows: pl.DataFrame, endpoint: Endpoint, models: Mapping[tuple[Any, ...], int], patients: Mapping[str, int]
) -> Scored:
    keys = ["scan_id", "class", "repeat", "fold"]
    if rows.select(keys).is_duplicated().any():
        twice = rows.filter(rows.select(keys).is_duplicated()).row(0, named=True)
        raise InputError(
            f"predictions: {endpoint.name}: scan {twice['scan_id']!r} has two rows of class {twice['class']!r} for one "
            "model; expected one"
        )
    bags = rows.select("scan_id", "patient_id").unique().sort("scan_id")
    place = {scan: i for i, scan in enumerate(bags["scan_id"])}
    if len(place) < bags.height:
        raise InputError(f"predictions: {endpoint.name}: a scan has rows of two patients; expected one")
    n, classes = len(place), endpoint.score_classes
    of_model = np.full((len(models), n, len(classes)), np.nan)
    truth = np.full((n, len(classes)), np.nan)
    event = np.full(n, np.nan)
    column = {name: i for i, name in enumerate(classes)}
    wanted = rows.select("scan_id", "class", "repeat", "fold", "y_true", "event", "y_score")
    for scan, name, repeat, fold, y_true, happened, score in wanted.iter_rows():
        if name not in column:
            raise InputError(f"predictions: {endpoint.name}: class {name!r} is none of {', '.join(classes)}")
        row, position = place[scan], column[name]
        if np.isfinite(truth[row, position]) and truth[row, position] != y_true:
            raise InputError(f"predictions: {endpoint.name}: scan {scan!r} has two different labels; expected one")
        of_model[models[repeat, fold], row, position] = score
        truth[row, position] = y_true
        event[row] = np.nan if happened is None else happened
    if endpoint.kind == "survival":
        label = np.stack([truth[:, 0], event], axis=1)
    else:
        label = truth.argmax(axis=1).astype(np.float64) if len(classes) > 1 else truth[:, 0]
    numbers = np.array([patients[name] for name in bags["patient_id"]], dtype=np.int64)
    return Scored(endpoint, tuple(bags["scan_id"]), numbers, label, of_model)
