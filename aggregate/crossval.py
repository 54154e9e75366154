"""Running folds: each gets a model, an optimiser and a generator of its own, and fills the run folder.

A fold depends on the cohort, its rows of folds.csv, the settings and the seed, and on nothing that other folds do:
fitted alone it gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tqdm import tqdm

from aggregate.aggregators import Aggregator, build_aggregator, predict
from aggregate.cohort import Cohort
from aggregate.fit import Fitted, Plan, fit, training_precision
from aggregate.folds import Folds
from aggregate.packed import RowSource
from aggregate.predictions import prediction_rows
from aggregate.protocols import Candidate, Search, search
from aggregate.run import AttentionFile, fold_name, write_model, write_table
from aggregate.targets import predicted
from clear.bags import Bags
from clear.tasks import Preset


@dataclass(frozen=True)
class FoldResult:
    """One fold: the fitted model, the bags it scored, their (n, S) predictions and attention (K,) each.

    Predictions are nan for the endpoints that the training bags could not teach, and those are `not_learnt`.
    """

    fitted: Fitted
    scored: NDArray[np.int64]
    scores: NDArray[np.float64]
    attention: list[NDArray[np.float32]]
    not_learnt: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How every fold is fitted. options: of the aggregator; grid: of nested-cv, else empty."""

    aggregator: str
    preset: Preset
    options: Mapping[str, Any]
    seed: int
    device: str
    precision: str
    grid: tuple[Candidate, ...] = ()


def run_folds(
    folder: Path, bags: Bags, cohort: Cohort, folds: Folds, settings: Settings, progress: bool
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """(predictions of all folds, a record of each fit); writes models, attention, history.csv and, if any, grid.csv."""
    rows = cohort.rows(bags, settings.device)
    found = _search(cohort, rows, folds, settings, progress)
    if found is not None:
        write_table(folder / "grid.csv", found.table)
    attention = AttentionFile(folder / "attention.h5", len(bags.features), bags.digest)
    history: list[dict[str, Any]] = []
    predictions: list[pl.DataFrame] = []
    fits: list[dict[str, Any]] = []
    pairs = folds.pairs
    used = [_chosen(settings, found, pair) for pair in pairs]
    plans = [
        Plan.of(one.preset, len(cohort.bags_of(folds.split(*pair)["train"])))
        for pair, one in zip(pairs, used, strict=True)
    ]
    with tqdm(
        total=sum(plan.epochs for plan in plans), unit="epoch", disable=None if progress else True, leave=False
    ) as bar:
        reached = 0
        for number, ((repeat, fold), plan, one) in enumerate(zip(pairs, plans, used, strict=True), start=1):
            bar.set_description(f"{one.aggregator}, fold {number} of {len(plans)}")

            def on_epoch(row: dict[str, Any], where: tuple[int, int] = (repeat, fold)) -> None:
                history.append({"repeat": where[0], "fold": where[1], **row})
                bar.update()

            result = fit_fold(
                cohort,
                rows,
                folds,
                repeat,
                fold,
                aggregator=one.aggregator,
                preset=one.preset,
                options=settings.options,
                seed=settings.seed,
                device=settings.device,
                precision=settings.precision,
                on_epoch=on_epoch,
            )
            name = fold_name(repeat, fold)
            write_model(folder / name, result.fitted.model)
            if result.fitted.model.returns_attention:
                attention.add(name, [cohort.row_numbers(int(bag)) for bag in result.scored], result.attention)
            predictions.append(
                prediction_rows(
                    cohort.names,
                    cohort.patient_ids,
                    cohort.targets,
                    result.scored,
                    result.scores,
                    repeat=repeat,
                    fold=fold,
                )
            )
            fits.append(_fit_record(repeat, fold, one, result, searched=found is not None))
            reached += plan.epochs
            bar.update(reached - bar.n)
    write_table(folder / "history.csv", pl.DataFrame(history))
    return pl.concat(predictions), fits


def fit_fold(
    cohort: Cohort,
    rows: RowSource,
    folds: Folds,
    repeat: int,
    fold: int,
    *,
    aggregator: str,
    preset: Preset,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "auto",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> FoldResult:
    """One fold of a cross-validation on its own: the same numbers as within the whole run."""
    split = {name: cohort.bags_of(scans) for name, scans in folds.split(repeat, fold).items()}
    fitted = fit(
        rows,
        cohort.targets,
        split["train"],
        split["inner"],
        builder(aggregator, options),
        preset,
        (seed, repeat, fold),
        device=device,
        precision=training_precision(precision, device),
        on_epoch=on_epoch,
    )
    logits, attention = predict(fitted.model, rows, split["test"])
    scores = cohort.targets.where_learnt(predicted(logits, cohort.targets, fitted.scale), split["train"])
    return FoldResult(fitted, split["test"], scores, attention, cohort.targets.not_learnt(split["train"]))


def builder(aggregator: str, options: Mapping[str, Any] | None = None) -> Callable[[int, int, float], Aggregator]:
    """(d, n_out, dropout) -> a fresh aggregator with these options."""

    def build(dim: int, n_out: int, dropout: float) -> Aggregator:
        return build_aggregator(aggregator, dim, n_out, dropout, options)

    return build


def _search(cohort: Cohort, rows: RowSource, folds: Folds, settings: Settings, progress: bool) -> Search | None:
    """The hyper-parameters of every fold, where there is a grid."""
    if not settings.grid:
        return None

    def score(
        train: NDArray[np.int64],
        inner: NDArray[np.int64],
        scored: NDArray[np.int64],
        candidate: Candidate,
        seed: tuple[int, ...],
    ) -> NDArray[np.float64]:
        fitted = fit(
            rows,
            cohort.targets,
            train,
            inner,
            builder(candidate.aggregator, settings.options),
            candidate.preset,
            seed,
            device=settings.device,
            precision=settings.precision,
        )
        logits, _ = predict(fitted.model, rows, scored)
        return cohort.targets.where_learnt(predicted(logits, cohort.targets, fitted.scale), train)

    numbers = [sum(r == repeat for r, _ in folds.pairs) for repeat in {r for r, _ in folds.pairs}]
    total = sum(n * (n - 1) // 2 for n in numbers) * len(settings.grid)
    with tqdm(total=total, unit="fit", desc="inner folds", disable=None if progress else True, leave=False) as bar:
        return search(cohort, folds, settings.grid, score, seed=settings.seed, on_fit=bar.update)


def _chosen(settings: Settings, found: Search | None, pair: tuple[int, int]) -> Candidate:
    return Candidate(settings.aggregator, settings.preset, {}) if found is None else found.chosen[pair]


def _fit_record(repeat: int, fold: int, one: Candidate, result: FoldResult, searched: bool) -> dict[str, Any]:
    fitted = result.fitted
    record: dict[str, Any] = {
        "repeat": repeat,
        "fold": fold,
        "batch": fitted.plan.batch,
        "epochs_at_most": fitted.plan.epochs,
        "best_epoch": fitted.best_epoch,
        "steps": fitted.steps,
        "scale": fitted.scale.tolist(),
        "not_learnt": list(result.not_learnt),
    }
    if searched:
        record |= {"aggregator": one.aggregator, "dropout": one.preset.dropout, "chosen": dict(one.changes)}
    return record
