"""Several runs side by side: paired tests of each pair on the scans that both scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl

from aggregate.compare import BOOTSTRAP, compare_runs, holm
from aggregate.figures import Spread, spread_figure, svg
from aggregate.report.material import Material
from aggregate.scored import FOLD_MEAN
from aggregate.scores import estimators_of
from aggregate.summary import METRIC_NAMES, endpoint_name
from clear.errors import InputError

PAIRS = 10  # of runs; beyond, each run is set against the first alone
SPREADS = 30
_SAME = ["repeat", "fold", "split", "scan_id"]


@dataclass(frozen=True)
class Pair:
    """Two runs compared. missing: why there are no rows.

    rows: of `aggregate.compare`, with `name` as the page says it, p_holm as `over_pairs` has it and with the `tests`
    and `pairs` that it is corrected over.
    """

    a: str
    b: str
    rows: tuple[dict[str, Any], ...]
    remarks: tuple[str, ...]
    figure: str = ""
    missing: str = ""


def compared(materials: list[Material], *, seed: int = 0) -> list[Pair]:
    """Every pair of the runs, or each against the first where there are many."""
    pairs = list(combinations(materials, 2))
    if len(pairs) > PAIRS:
        pairs = [(materials[0], other) for other in materials[1:]]
    return over_pairs([_pair(a, b, seed, f"c{number}") for number, (a, b) in enumerate(pairs)])


def over_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with p_holm corrected over all endpoints and pairs, within a metric, an estimator and a test (Holm).

    A mean over endpoints is a family of its own, of one test a pair; of a single pair it stays without a p_holm.
    """
    families: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for number, pair in enumerate(pairs):
        for place, row in enumerate(pair.rows):
            mean = row["endpoint"] == "macro"
            if row["p"] is not None and (row["p_holm"] is not None or (mean and len(pairs) > 1)):
                test = "DeLong" if "DeLong" in row["test"] else row["test"]
                families.setdefault((mean, row["metric"], row["estimator"], test), []).append((number, place))
    rows = [[dict(row) for row in pair.rows] for pair in pairs]
    for family in families.values():
        here = [rows[number][place] for number, place in family]
        counts = {"tests": len(family), "pairs": len({number for number, _ in family})}
        for row, p in zip(here, holm([row["p"] for row in here]), strict=True):
            row.update(counts, p_holm=p)
    return [replace(pair, rows=tuple(each)) for pair, each in zip(pairs, rows, strict=True)]


def verdict(pair: Pair) -> str:
    """What the first figure's test says of a pair, as a sentence."""
    tested = [each for each in pair.rows if each["p"] is not None]
    if not tested:
        same = [row for row in pair.rows if row["difference"] == 0]
        return f"{pair.a} and {pair.b} have the same figures." if same else "No figure is defined in both runs."
    row = min(tested, key=_speaks)
    metric = METRIC_NAMES.get(row["metric"], row["metric"])
    value, how = _corrected(row)
    p = "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
    interval = f", 95 % interval {row['ci_low']:+.2f} to {row['ci_high']:+.2f}" if row["ci_low"] is not None else ""
    judged = "differ" if value < 0.05 else "do not differ by more than chance explains"
    return (
        f"{pair.a} and {pair.b} {judged} in {metric} of {row['name']}: {_number(row['a'])} against "
        f"{_number(row['b'])}, difference {row['difference']:+.2f}{interval}, {p}{how} ({row['test']})."
    )


def _corrected(row: dict[str, Any]) -> tuple[float, str]:
    """(the p-value that judges a row, what it is corrected for)."""
    if row["p_holm"] is None:  # a mean over the endpoints of the only pair, or a class
        return row["p"], " of one test of their mean, not corrected" if row["class"] == "macro" else " not corrected"
    if row["tests"] == 1:
        return row["p_holm"], ""
    over = f"{row['tests']} endpoints" if row["pairs"] == 1 else f"{row['tests']} tests of {row['pairs']} pairs of runs"
    return row["p_holm"], f" corrected over {over} (Holm)"


def _pair(a: Material, b: Material, seed: int, mark: str) -> Pair:
    missing = _not_comparable(a, b)
    if missing:
        return Pair(a.name, b.name, (), (), missing=missing)
    remarks = []
    try:
        try:
            table = compare_runs(_Judged(a), _Judged(b), seed=seed)
        except InputError:
            table = compare_runs(_Judged(a), _Judged(b), common=True, seed=seed)
            remarks.append(
                "The runs did not score the same scans and endpoints under the same labels: only what both share is "
                "compared, and the figures may differ from those of each run."
            )
    except InputError:  # the sentence quotes no error: it may name patients
        missing = f"{a.name} and {b.name} share no scan with the same label, so they cannot be compared."
        return Pair(a.name, b.name, (), (), missing=missing)
    folds = [each.folds.select(_SAME).sort(_SAME) for each in (a, b) if each.folds is not None]
    if len(folds) == 2 and not folds[0].equals(folds[1]):
        remarks.append("The runs have other folds, so the split is part of the difference.")
    kinds = {endpoint.name: endpoint.kind for endpoint in a.endpoints}
    rows = tuple(
        {**row, "name": endpoint_name(kinds, row["endpoint"], row["class"])} for row in table.iter_rows(named=True)
    )
    return Pair(a.name, b.name, rows, tuple(remarks), _figure(a.name, b.name, rows, mark))


def _not_comparable(a: Material, b: Material) -> str:
    """Why two runs cannot be compared, as a sentence; "" where nothing speaks against it but their scans, perhaps."""
    for each in (a, b):
        if each.predictions is None:
            return f"{each.name} has no predictions to compare."
    of_b = {each.name: each for each in b.endpoints}
    shared = [(each, of_b[each.name]) for each in a.endpoints if each.name in of_b]
    both = f"{a.name} and {b.name}"
    if not shared:
        return f"{both} have no endpoint in common, so they cannot be compared."
    other = [one.name for one, two in shared if (one.kind, one.classes) != (two.kind, two.classes)]
    if other:
        return f"{other[0]} is another question in {a.name} than in {b.name}, so they cannot be compared."
    for each in (a, b):
        if not each.scored:
            return f"The scores of {each.name} contradict themselves, so they cannot be compared."
    if len({estimators_of(_Judged(each).predictions) for each in (a, b)}) > 1:
        return f"{both} cannot be compared: the models of one scored a fixed test set, those of the other their folds."
    return ""


class _Judged:
    """A run as `compare_runs` takes it, called by the page's name for it and not by its path."""

    def __init__(self, material: Material) -> None:
        self.path = Path(material.name)
        self.endpoints = material.endpoints
        self._judged = material.judged

    @property
    def predictions(self) -> pl.DataFrame:
        assert self._judged is not None
        return self._judged


def _figure(a: str, b: str, rows: tuple[dict[str, Any], ...], mark: str) -> str:
    """Differences of the first metric with their bootstrap intervals."""
    if not rows:
        return ""
    metric, estimator = rows[0]["metric"], rows[-1]["estimator"]
    chosen = [r for r in rows if (r["metric"], r["estimator"], r["test"]) == (metric, estimator, BOOTSTRAP)]
    chosen = chosen or [r for r in rows if (r["metric"], r["test"]) == (metric, BOOTSTRAP)]
    spreads = [
        Spread(r["name"], _nan(r["difference"]), _nan(r["ci_low"]), _nan(r["ci_high"])) for r in chosen[:SPREADS]
    ]
    if not spreads:
        return ""
    name = METRIC_NAMES.get(metric, metric)
    figure = spread_figure(spreads, title=f"{a} minus {b}", x=f"difference of {name} (bootstrap)", reference=0.0)
    return svg(figure, name=f"{mark}-difference")


def _speaks(row: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Which test speaks first: of all endpoints or classes together, of pooled scores, DeLong's."""
    return row["class"] != "macro", row["estimator"] == FOLD_MEAN, "DeLong" not in row["test"]


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
