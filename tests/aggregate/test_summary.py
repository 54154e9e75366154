"""What a terminal shows of the metrics, for every kind of endpoint."""

from __future__ import annotations

import numpy as np
import polars as pl

from aggregate.predictions import SCHEMA
from aggregate.scores import metrics_table
from aggregate.summary import metrics_text
from clear.endpoints import Endpoint

A = Endpoint("nodule", "binary", ("absent", "present"))
AGE = Endpoint("age", "regression")
DEATH = Endpoint("death", "survival", event="dead")


def predictions(models: int = 1, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    truth, ages, times, events = (
        rng.random(60) < 0.4,
        rng.normal(60, 9, 60),
        rng.exponential(9, 60),
        rng.random(60) < 0.7,
    )
    rows = []
    for i in range(60):
        for fold in range(models) if models > 1 else [i % 3]:
            key = (f"s{i:02d}", f"p{i:02d}")
            where = (0, fold, "test")
            rows += [
                (*key, "nodule", "present", *where, float(truth[i]), None, float(rng.normal(truth[i]))),
                (*key, "age", "", *where, ages[i], None, ages[i] + rng.normal(0, 3)),
                (*key, "death", "", *where, times[i], int(events[i]), -times[i] + rng.normal(0, 5)),
            ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_each_kind_has_a_table_of_its_own_with_its_own_metrics() -> None:
    table = metrics_table(predictions(), [A, AGE, DEATH], ["auroc", "average_precision"])
    lines = metrics_text(table, [A, AGE, DEATH])
    heads = [cells(line) for line in lines if line.startswith("endpoint")]
    assert heads == [
        ["endpoint", "AUROC, folds", "AUROC, pooled (95 % CI)", "AP, folds", "n", "positive"],
        ["endpoint", "MAE, folds", "MAE, pooled (95 % CI)", "R², folds", "n"],
        ["endpoint", "C-index, folds (95 % CI)", "n", "events"],
    ]
    auroc = table.filter(metric="auroc", estimator="pooled").row(0, named=True)
    shown = cells(next(line for line in lines if line.startswith("nodule")))
    assert shown[2] == f"{auroc['estimate']:.3f} ({auroc['ci_low']:.3f}-{auroc['ci_high']:.3f})"
    concordance = table.filter(metric="c_index").row(0, named=True)
    shown = cells(next(line for line in lines if line.startswith("death")))
    assert shown[1] == (
        f"{concordance['estimate']:.3f} ± {concordance['fold_sd']:.3f} "
        f"({concordance['ci_low']:.3f}-{concordance['ci_high']:.3f})"
    )
    assert shown[2:] == ["60", str(concordance["n_positive"])]
    assert "intervals: over patients, conditional on the fitted models" in lines


def test_a_fixed_test_set_shows_its_ensemble() -> None:
    lines = metrics_text(metrics_table(predictions(models=3), [A], ["auroc"]), [A])
    assert cells(lines[0]) == ["endpoint", "AUROC, single models", "AUROC, ensemble (95 % CI)", "n", "positive"]
    assert lines[-1].startswith("intervals: over the patients of the test set")


def test_a_baseline_stands_under_its_endpoint() -> None:
    table = metrics_table(predictions(), [A, AGE], ["auroc"])
    other = metrics_table(predictions(seed=1), [A, AGE], ["auroc"]).select(
        pl.lit("acquisition").alias("baseline"), pl.all()
    )
    lines = metrics_text(table, [A, AGE], other)
    for endpoint in ("nodule", "age"):
        place = next(i for i, line in enumerate(lines) if line.startswith(endpoint))
        assert lines[place + 1].startswith("  baseline acquisition")
    value = other.filter(metric="auroc", estimator="pooled")["estimate"][0]
    assert f"{value:.3f} (" in lines[2]


def test_what_is_not_defined_says_so() -> None:
    scored = predictions().with_columns(y_true=pl.lit(0.0))
    lines = metrics_text(metrics_table(scored, [A], ["auroc"]), [A])
    assert cells(lines[1])[:3] == ["nodule", "not defined", "not defined"]


def test_more_metrics_than_are_shown_are_named() -> None:
    lines = metrics_text(metrics_table(predictions(), [A], ["auroc", "f1", "brier"]), [A])
    assert cells(lines[0])[3] == "F1, folds"
    assert lines[-1] == "metrics.csv has AUROC, F1, Brier"
