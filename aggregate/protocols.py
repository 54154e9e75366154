"""Protocols: what the folds are for.

    cv          every scan is scored once a repeat, by a model that saw nothing of its patient
    cv-test     the patients of the official train and val rows are dealt into folds, one of which ends each fit early;
                the model of every fold scores the official test set, and the ensemble is the mean of their scores
    nested-cv   as cv, but each fold first chooses its hyper-parameters by cross-validation among the other folds

With `--group COLUMN` the folds of cv and nested-cv are the column's values: whole sites are held out.

The inner folds of nested-cv are the outer ones that are not being scored. A candidate fitted without folds a and b
scores b for the choice of fold a and a for the choice of fold b, so each pair is fitted once. What a fold does not
learn from enters its choice neither as teacher nor as judge: the patients it scores, wherever their other scans are
scored, and scans that are `unused` in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.aggregators import check_aggregator
from aggregate.cohort import Cohort
from aggregate.fit import check_teaching
from aggregate.folds import Folds, by_patient, make_folds, make_group_folds, make_test_folds
from aggregate.folds_file import read_folds
from aggregate.metrics import auroc, plain
from aggregate.stratify import draw_inner
from aggregate.survival import c_index
from clear.errors import InputError
from clear.presets import GRID_NAMES
from clear.tables import some
from clear.task import PROTOCOLS
from clear.tasks import Preset

__all__ = ["PROTOCOLS", "Candidate", "Search", "candidates", "plan_folds", "search", "skill"]

DEFAULT_GRID: Mapping[str, tuple[Any, ...]] = {"lr": (1e-4, 3e-4, 1e-3)}
# (training bags, bags that end the training, bags to score, candidate, seed) -> (n, S) predictions of the bags to score
Score = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], "Candidate", tuple[int, ...]], Any]


@dataclass(frozen=True)
class Candidate:
    """One cell of a grid. changes: what of the grid it is, in the grid's order."""

    aggregator: str
    preset: Preset
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Search:
    """chosen: (repeat, fold) -> candidate. table: the rows of grid.csv, an inner score for each candidate and fold."""

    chosen: Mapping[tuple[int, int], Candidate]
    table: pl.DataFrame


def plan_folds(
    cohort: Cohort,
    protocol: str,
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    inner_fraction: float = 0.2,
    file: Path | str | None = None,
    groups: Sequence[str | None] | None = None,
    group: str = "",
    splits: Sequence[str | None] | None = None,
) -> tuple[Folds, list[str]]:
    """(folds, remarks) of a protocol for the scans of a cohort.

    file: read them instead; groups, splits: of `cohort.by_scan()`, see `make_group_folds`, `make_test_folds`.
    Raises InputError when patients, groups or the split cannot fill them.
    """
    scans, patients, _ = cohort.by_scan()
    indicators = cohort.strata
    drawn: dict[str, Any] = {"seed": seed, "inner_fraction": inner_fraction}
    if file is not None:
        made, remarks = read_folds(file, scans, patients, indicators, **drawn)
    elif groups is not None:
        unknown = [scan for scan, name in zip(scans, groups, strict=True) if name is None]
        if unknown:
            raise InputError(
                f"--group {group}: {len(unknown)} of {len(scans)} labelled scans have no {group}, first "
                f"{some(unknown, 3)}; fill them in, or leave their labels out"
            )
        named = [str(name) for name in groups]
        made = make_group_folds(scans, patients, indicators, named, repeats=repeats, **drawn)
        listed = ", ".join(f"{number} = {name}" for number, name in enumerate(sorted(set(named))))
        remarks = [f"--group {group}: folds {listed}", *_split_patients(named, patients)]
    elif protocol == "cv-test":
        if splits is None:
            raise InputError("--protocol cv-test: no split is known; name its column with --split")
        left_out = sum(split is None for split in splits)
        made = make_test_folds(scans, patients, indicators, splits, folds=folds, repeats=repeats, seed=seed)
        remarks = [f"{left_out} labelled scans are in no part of the split and take no part"] if left_out else []
    else:
        made = make_folds(scans, patients, indicators, folds=folds, repeats=repeats, **drawn)
        remarks = []
    _fits(made, protocol, file)
    return made, [*remarks, *_teaching(cohort, made)]


def _split_patients(groups: Sequence[str], patients: Sequence[str]) -> list[str]:
    pairs = set(zip(patients, groups, strict=True))
    several = len(pairs) - len(set(patients))
    return [f"{several} patients have scans in several groups; these never cross"] if several else []


def _fits(folds: Folds, protocol: str, file: Path | str | None) -> None:
    """Raises InputError when folds of a file cannot serve the protocol."""
    source = f"{file}: " if file is not None else ""
    if folds.fixed_test and protocol == "nested-cv":
        raise InputError(
            f"{source}its folds score the same scans; --protocol nested-cv needs those of a cross-validation"
        )
    if protocol == "nested-cv" and folds.table["fold"].n_unique() < 3:
        raise InputError(f"{source}--protocol nested-cv needs 3 folds or more: two to choose with, one to score")
    if protocol == "cv-test" and not folds.fixed_test:
        raise InputError(f"{source}its folds score different scans; --protocol cv-test needs a fixed test set")


def _teaching(cohort: Cohort, folds: Folds) -> list[str]:
    """Remarks on endpoints that some fold's training bags cannot teach; raises InputError when they teach nothing."""
    found: dict[str, list[str]] = {}
    for repeat, fold in folds.pairs:
        split = folds.split(repeat, fold)
        train, inner = cohort.bags_of(split["train"]), cohort.bags_of(split["inner"])
        where = f"fold {fold}" + (f" of repeat {repeat}" if repeat else "")
        check_teaching(cohort.targets, train, inner, f"{where}: ")
        for endpoint, why in zip(cohort.targets.endpoints, cohort.targets.nothing_to_learn(train), strict=True):
            if why:
                found.setdefault(endpoint.name, []).append(f"{where}: {endpoint.name}: {why} among the bags that teach")
    more = {name: f" and of {len(texts) - 1} more folds" if len(texts) > 1 else "" for name, texts in found.items()}
    return [f"{texts[0]}; its scores of this fold{more[name]} are not defined" for name, texts in found.items()]


def candidates(grid: Mapping[str, Sequence[Any]], aggregator: str, preset: Preset) -> list[Candidate]:
    """Every cell of the grid, in order; raises InputError for a name or a value that cannot be.

    grid: fields of `Preset`, or `aggregator`, each with its values; empty is DEFAULT_GRID.
    """
    chosen = dict(grid) or dict(DEFAULT_GRID)
    for name, values in chosen.items():
        if name not in GRID_NAMES:
            raise InputError(f"--grid {name}: expected aggregator or one of {', '.join(GRID_NAMES[1:])}")
        if isinstance(values, str) or not len(values) or any(value is None for value in values):
            raise InputError(f"--grid {name}: expected one value or more, as in lr=1e-4,1e-3")
    out = []
    for values in itertools.product(*chosen.values()):
        changes = dict(zip(chosen, values, strict=True))
        name = str(changes.get("aggregator", aggregator))
        check_aggregator(name)
        settings = {key: value for key, value in changes.items() if key != "aggregator"}
        if "epochs" in settings or "batch" in settings:
            settings.setdefault("min_steps", 0)
        out.append(Candidate(name, preset.with_changes(**settings), changes))
    return out


def search(
    cohort: Cohort,
    folds: Folds,
    grid: Sequence[Candidate],
    score: Score,
    *,
    seed: int = 0,
    on_fit: Callable[[], None] | None = None,
) -> Search:
    """For each fold the candidate with the best mean inner score; ties go to the earlier one.

    The inner score is `skill` within one inner fold. score: fits a candidate and predicts.
    """
    rows: list[dict[str, Any]] = []
    for repeat in sorted({repeat for repeat, _ in folds.pairs}):
        parts = {f: folds.split(repeat, f) for r, f in folds.pairs if r == repeat}
        scored = {f: cohort.bags_of(split["test"]) for f, split in parts.items()}
        learns = {f: cohort.bags_of([*split["train"], *split["inner"]]) for f, split in parts.items()}
        for a, b in itertools.combinations(sorted(parts), 2):
            left = np.intersect1d(learns[a], learns[b])
            judges = {a: np.intersect1d(scored[b], learns[a]), b: np.intersect1d(scored[a], learns[b])}
            together = np.concatenate([judges[b], judges[a]])
            for number, candidate in enumerate(grid):
                train, inner = _teachers(cohort, left, (seed, repeat, a, b), candidate.preset.inner_fraction)
                predictions = np.empty((0, cohort.targets.score_columns[-1].stop))
                if len(together):
                    predictions = np.asarray(score(train, inner, together, candidate, (seed, repeat, a, b)))
                halves = predictions[len(judges[b]) :], predictions[: len(judges[b])]
                for fold, other, part in ((a, b, halves[0]), (b, a, halves[1])):
                    rows.append(
                        {
                            "repeat": repeat,
                            "fold": fold,
                            "inner_fold": other,
                            "candidate": number,
                            **{key: _cell(value) for key, value in candidate.changes.items()},
                            "score": skill(cohort, judges[fold], part),
                        }
                    )
                if on_fit is not None:
                    on_fit()
    table = pl.DataFrame(rows).with_columns(pl.col("score").fill_nan(None))
    table = table.sort("repeat", "fold", "candidate", "inner_fold")
    means = table.group_by("repeat", "fold", "candidate").agg(pl.col("score").mean().fill_null(-math.inf))
    best = means.sort(["repeat", "fold", "score", "candidate"], descending=[False, False, True, False])
    first = best.unique(["repeat", "fold"], keep="first").select("repeat", "fold", "candidate")
    chosen = {(r, f): n for r, f, n in first.iter_rows()}
    marked = [chosen[r, f] == n for r, f, n in table.select("repeat", "fold", "candidate").iter_rows()]
    return Search({pair: grid[n] for pair, n in chosen.items()}, table.with_columns(pl.Series("chosen", marked)))


def skill(cohort: Cohort, bags: NDArray[np.int64], predictions: NDArray[np.float64]) -> float:
    """One number, higher is better, for predictions (n, S) of these bags; nan where nothing is defined.

    A bag without a label or a prediction (nan) takes no part. The mean over what is defined of: AUROC of each class
    against the rest (of binary endpoints, the positive class), 1 - mean absolute error over mean absolute deviation
    (regression), and the C-index (survival).
    """
    targets = cohort.targets
    values: list[float] = []
    start = 0
    for e, endpoint in enumerate(targets.endpoints):
        truth = targets.codes[bags, e]
        known = np.isfinite(truth) & np.isfinite(predictions[:, start])
        if endpoint.kind == "regression":
            column = predictions[known, start]
            spread = np.abs(truth[known] - np.median(truth[known])).mean() if known.any() else 0.0
            values.append(float(1 - np.abs(column - truth[known]).mean() / spread) if spread > 0 else math.nan)
            start += 1
        elif endpoint.kind == "survival" and (events := targets.events) is not None:
            label = np.stack([truth[known], events[bags, e][known]], axis=1)
            values.append(plain(c_index, label, predictions[known, start]))
            start += 1
        else:
            codes = [1] if endpoint.kind == "binary" else range(len(endpoint.classes))
            for code in codes:
                values.append(plain(auroc, truth[known] == code, predictions[known, start]))
                start += 1
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else math.nan


def _teachers(
    cohort: Cohort, bags: NDArray[np.int64], seed: tuple[int, ...], fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(bags that teach, bags that end the training) of these; fraction: of their patients, that end it."""
    of_bag = [cohort.patient_ids[int(bag)] for bag in bags]
    patients = sorted(set(of_bag))
    if len(patients) < 2:
        raise InputError(
            f"--protocol nested-cv: without two of the folds {len(patients)} patients are left for training; expected "
            "2 or more. Give more folds, or label more patients"
        )
    of_patient = by_patient(patients, of_bag, cohort.targets.indicators(bags))
    drawn = draw_inner(of_patient, fraction, np.random.default_rng(seed))
    inner = {patient for patient, here in zip(patients, drawn, strict=True) if here}
    ends = np.array([patient in inner for patient in of_bag])
    return bags[~ends], bags[ends]


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)
