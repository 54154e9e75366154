"""The main result in a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aggregate.report.material import open_material
from aggregate.report.results import Estimate, ResultRow, beside_chance, headline

ROW = ResultRow("sick", "1", "auroc", "", None, Estimate(0.8, 0.7, 0.9), "pooled", 24, 12, 24, 3)


def row(endpoint: str, name: str, value: float | None) -> ResultRow:
    return dataclasses.replace(ROW, endpoint=endpoint, name=name, joint=Estimate(value))


def test_a_mean_says_over_how_many_endpoints_or_classes_it_is(runs: dict[str, Path]) -> None:
    material = open_material(runs["several"] / "run", None)
    mean = dataclasses.replace(ROW, endpoint="macro", name="macro", n=None, n_positive=None)
    grades = [row("grade", name, 0.7) for name in ("low", "mid", "high")]
    both = [mean, row("sick", "1", 0.8), row("rare", "1", 0.8), *grades]
    assert "reaches a mean AUROC of 0.80 (95 % interval 0.70 to 0.90) over 24 patients." in headline(material, both)
    one = [mean, row("sick", "1", 0.8), row("rare", "1", None), *grades]
    assert "reaches a mean AUROC of 0.80 over 1 of 2 endpoints (95 % interval" in headline(material, one)
    of_classes = [row("grade", "macro", 0.7), *grades[:2], row("grade", "high", None)]
    assert "reaches a mean AUROC of 0.70 over 2 of 3 classes " in headline(material, of_classes)


@pytest.mark.parametrize(
    ("low", "high", "lies"),
    [(0.4, 0.6, "at"), (0.5, 0.6, "at"), (0.51, 0.6, "above"), (0.3, 0.49, "below"), (None, None, None)],
)
def test_an_interval_lies_above_chance_at_it_or_below(low: float | None, high: float | None, lies: str | None) -> None:
    assert beside_chance(dataclasses.replace(ROW, joint=Estimate(0.5, low, high))) == lies
    assert beside_chance(dataclasses.replace(ROW, metric="mae", joint=Estimate(0.5, low, high))) is None
