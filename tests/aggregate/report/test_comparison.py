"""Several runs: what is said of a pair is judged by p-values corrected over all that the page compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aggregate.compare import holm
from aggregate.report.comparison import Pair, compared, over_pairs, verdict
from aggregate.report.material import open_material
from aggregate.run import Run, write_table

DELONG: dict[str, Any] = {
    "endpoint": "x", "class": "", "name": "x", "metric": "auroc", "estimator": "pooled", "test": "paired DeLong",
    "a": 0.9, "b": 0.8, "difference": 0.1, "ci_low": 0.01, "ci_high": 0.19, "p": 0.03, "p_holm": 0.06,
}  # fmt: skip
MEAN = {**DELONG, "endpoint": "macro", "class": "macro", "name": "mean", "test": "bootstrap", "p_holm": None}


def said(*pairs: tuple[dict[str, Any], ...]) -> list[str]:
    return [verdict(pair) for pair in over_pairs([Pair("A", "B", rows, ()) for rows in pairs])]


def test_the_verdict_of_one_pair_is_corrected_over_its_endpoints() -> None:
    rows = (DELONG, {**DELONG, "endpoint": "y", "name": "y"})
    (text,) = said(rows)
    assert "A and B do not differ by more than chance explains" in text
    assert "p = 0.060 corrected over 2 endpoints (Holm) (paired DeLong)" in text
    assert "p = 0.030 of one test of their mean, not corrected" in said((MEAN, *rows))[0]


def test_the_verdicts_of_several_pairs_are_corrected_over_all_of_them() -> None:
    one = {**DELONG, "p_holm": 0.03}
    clustered = {**one, "test": "paired clustered DeLong", "p": 0.001, "p_holm": 0.001}
    first, second, third = said((one,), (one,), (clustered,))
    assert first == second
    assert "A and B do not differ by more than chance explains" in first
    assert "p = 0.060 corrected over 3 tests of 3 pairs of runs (Holm)" in first
    assert "A and B differ in AUROC of x" in third
    assert "p = 0.003 corrected over 3 tests" in third


def test_a_mean_over_endpoints_is_corrected_over_the_pairs_alone() -> None:
    rows = (MEAN, DELONG, {**DELONG, "endpoint": "y"})
    assert "p = 0.060 corrected over 2 tests of 2 pairs of runs (Holm) (bootstrap)" in said(rows, rows)[0]


def test_the_pairs_of_three_runs_share_their_families(runs: dict[str, Path], copied: Callable[[str], Path]) -> None:
    run = copied("several") / "run"
    table = Run(run).predictions
    write_table(run / "predictions.csv", table.with_columns(y_score=(pl.col("y_score") * 7919) % 1))
    places = {"first": runs["several"] / "run", "noise": run, "again": runs["several"] / "run"}
    pairs = compared([open_material(place, None, name) for name, place in places.items()])
    rows = [row for pair in pairs for row in pair.rows if row["p_holm"] is not None and row["endpoint"] != "macro"]
    rows = [row for row in rows if (row["metric"], row["estimator"]) == ("auroc", "pooled") and "DeLong" in row["test"]]
    assert len(rows) == 4  # runs that are the same have no p-value
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    assert {(row["tests"], row["pairs"]) for row in rows} == {(4, 2)}


def test_runs_that_ask_other_questions_or_are_scored_otherwise_say_so(copied: Callable[[str], Path]) -> None:
    run = copied("mean") / "run"
    materials = [open_material(run, None, name) for name in ("a", "b")]
    materials[1].run.settings["endpoints"] = [{"name": "sick", "kind": "regression", "column": "sick"}]
    assert compared(materials)[0].missing == "sick is another question in a than in b, so they cannot be compared."
    table = Run(run).predictions
    once = pl.concat([table.filter(pl.col("fold") == 0).with_columns(fold=pl.lit(fold)) for fold in (0, 1)])
    write_table(run / "predictions.csv", once)
    fixed, folds = open_material(run, None, "a"), open_material(run, None, "b")
    folds.__dict__["judged"] = table
    said = compared([fixed, folds])[0].missing
    assert said.endswith("the models of one scored a fixed test set, those of the other their folds.")
    folds = open_material(run, None, "b")
    folds.__dict__["judged"] = once.with_columns(scan_id=pl.col("scan_id") + "x")
    said = compared([fixed, folds])[0].missing
    assert said == "a and b share no scan with the same label, so they cannot be compared."
