"""The figures of a run as rows for a page, those of the baselines under them, and the main one in a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.report.material import Material
from aggregate.scored import ENSEMBLE, FOLD_MEAN, POOLED, figures
from aggregate.summary import METRIC_NAMES, endpoint_name

CHANCE = {"auroc": 0.5, "c_index": 0.5, "kappa": 0.0, "r2": 0.0}
LESS_IS_BETTER = frozenset({"mae", "brier", "ece"})
_FIRST = {"regression": ("r2", "mae"), "survival": ("c_index",), "ordinal": ("kappa", "auroc")}
_LONG = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "c_index": "C-index",
    "kappa": "quadratically weighted kappa",
    "r2": "R²",
    "mae": "mean absolute error",
}
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Estimate:
    """One cell: a value, its interval and how that was made. value None: not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    how: str = ""


@dataclass(frozen=True)
class ResultRow:
    """One metric of one endpoint or class; folds and joint are None where there is no such estimate.

    joint: pooled out-of-fold scores, or the ensemble on a fixed test set. source: "" for the model, else a baseline.
    """

    endpoint: str
    name: str
    metric: str
    source: str
    folds: Estimate | None
    joint: Estimate | None
    joint_name: str
    n: int | None
    n_positive: int | None
    n_patients: int | None
    folds_defined: int | None

    @property
    def best(self) -> Estimate | None:
        """The estimate that speaks for the row: the joint one where there is one."""
        return self.joint or self.folds


def result_rows(material: Material) -> list[ResultRow]:
    """A row a metric, endpoint and class, each followed by the baselines' rows of the same."""
    if material.metrics is None:
        return []
    own = _rows(material.metrics, "")
    others: list[ResultRow] = []
    if material.baselines is not None:
        for label in material.baselines["baseline"].unique(maintain_order=True):
            others += _rows(material.baselines.filter(pl.col("baseline") == label), str(label))
    return [
        each
        for row in own
        for each in (
            row,
            *(o for o in others if (o.endpoint, o.name, o.metric) == (row.endpoint, row.name, row.metric)),
        )
    ]


def row_name(material: Material, row: ResultRow) -> str:
    """The endpoint, with its class where it has several."""
    return endpoint_name({each.name: each.kind for each in material.endpoints}, row.endpoint, row.name)


def main_rows(material: Material, rows: list[ResultRow]) -> list[ResultRow]:
    """Of each endpoint the one row of the model that speaks for it, in the order of the endpoints.

    Its first metric (R², C-index and kappa for quantities, times and ordered classes), of all classes together where
    there are several. With several binary endpoints their mean comes first.
    """
    kinds = {each.name: each.kind for each in material.endpoints}
    own = [row for row in rows if not row.source]
    chosen = []
    for endpoint in dict.fromkeys(row.endpoint for row in own):
        here = [row for row in own if row.endpoint == endpoint]
        here = [row for row in here if row.name == "macro"] or here
        order = (*_FIRST.get(str(kinds.get(endpoint)), ()), *METRIC_NAMES)
        here.sort(key=lambda row: order.index(row.metric) if row.metric in order else len(order))
        chosen.append(here[0])
    return sorted(chosen, key=lambda row: row.endpoint != "macro")


def headline(material: Material, rows: list[ResultRow]) -> str:
    """The main result in a sentence; what is missing where there is none."""
    main = main_rows(material, rows)
    if not main:
        return "This run has no metrics to show."
    row = main[0]
    best, model = row.best, str(material.settings.get("aggregator", "the model"))
    subject = "the endpoints together" if row.endpoint == "macro" else row.endpoint
    encoder = material.part("bags").get("encoder")
    lead = f"For {subject}, {model}" + (f" on {encoder} embeddings" if encoder else "")
    what = _LONG.get(row.metric, METRIC_NAMES.get(row.metric, row.metric))
    if best is None or best.value is None:
        return f"{lead}: {what} is not defined, {_why_not(row, material.unit)}."
    mean = "mean " if row.name == "macro" and row.metric != "kappa" else ""
    text = f"{lead} reaches {_article(mean + what)} of {best.value:.2f}{_defined(material, row, rows)}"
    if best.low is not None and best.high is not None:
        text += f" (95 % interval {best.low:.2f} to {best.high:.2f})"
    return f"{text} {_counted(row, material.unit)}."


def beside(rows: list[ResultRow], main: ResultRow) -> str:
    """What the baselines reach beside the main figure, as a sentence; "" without baselines."""
    same = [row for row in rows if (row.endpoint, row.name, row.metric) == (main.endpoint, main.name, main.metric)]
    said = {"acquisition": "the scan table (acquisition)"}
    reached = [
        f"{said.get(row.source, row.source)} gives {_number(row.best.value)}" for row in same if row.source and row.best
    ]
    return f"Without any image, {' and '.join(reached)}." if reached else ""


def beside_chance(row: ResultRow) -> Literal["below", "at", "above"] | None:
    """Where the whole interval lies beside what guessing would give, `at` where it includes that; None: not known."""
    best = row.best
    if row.metric not in CHANCE or best is None or best.low is None or best.high is None:
        return None
    if best.high < CHANCE[row.metric]:
        return "below"
    return "above" if best.low > CHANCE[row.metric] else "at"


def fold_values(material: Material, row: ResultRow) -> NDArray[np.float64]:
    """(F,) the row's figure in each fold; none without the scores."""
    scored = material.scored.get(row.endpoint)
    if scored is None:
        return np.zeros(0)
    for figure in figures(material.scored, [scored.endpoint], [row.metric], means=False):
        if (figure.endpoint, figure.name, figure.metric) == (row.endpoint, row.name, row.metric):
            return figure.of_models()
    return np.zeros(0)


def _rows(table: pl.DataFrame, source: str) -> list[ResultRow]:
    cells: dict[Key, dict[str, Any]] = {
        (r["endpoint"], r["class"] or "", r["metric"], r["estimator"]): r for r in table.iter_rows(named=True)
    }
    joint = next((name for name in (POOLED, ENSEMBLE) if any(key[3] == name for key in cells)), POOLED)
    rows = []
    for endpoint, name, metric in dict.fromkeys(key[:3] for key in cells):
        of_folds, of_all = cells.get((endpoint, name, metric, FOLD_MEAN)), cells.get((endpoint, name, metric, joint))
        some = of_all or of_folds or {}
        rows.append(
            ResultRow(
                endpoint,
                name,
                metric,
                source,
                _estimate(of_folds),
                _estimate(of_all),
                joint,
                some.get("n"),
                some.get("n_positive"),
                some.get("n_patients"),
                (of_folds or some).get("folds_defined"),
            )
        )
    return rows


def _estimate(row: dict[str, Any] | None) -> Estimate | None:
    if row is None:
        return None
    value, low, high, sd = (_finite(row.get(name)) for name in ("estimate", "ci_low", "ci_high", "fold_sd"))
    if low is None or high is None:
        low = high = None
    return Estimate(value, low, high, sd, row.get("interval") or "")


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _defined(material: Material, row: ResultRow, rows: list[ResultRow]) -> str:
    """Of a mean to which not all of its endpoints or classes contribute, how many do."""
    if row.name != "macro":
        return ""
    if row.endpoint == "macro":
        binary = {each.name for each in material.endpoints if each.kind == "binary"}
        what, members = "endpoints", [each for each in rows if each.endpoint in binary]
    else:
        what, members = "classes", [each for each in rows if each.endpoint == row.endpoint and each.name != "macro"]
    cells = [
        each.joint if row.joint else each.folds for each in members if each.metric == row.metric and not each.source
    ]
    defined = sum(cell is not None and cell.value is not None for cell in cells)
    return f" over {defined} of {len(cells)} {what}" if defined < len(cells) else ""


def _why_not(row: ResultRow, unit: str) -> str:
    if row.n_positive is not None and row.n is not None and row.n_positive in (0, row.n):
        return f"because all scored {unit} are of one class"
    return "because no fold defines it"


def _counted(row: ResultRow, unit: str) -> str:
    if row.n is None:
        return f"over {row.n_patients} patients"
    where = {POOLED: "out of fold", ENSEMBLE: "on the fixed test set"}.get(row.joint_name if row.joint else "", "")
    what = "with the event" if row.metric == "c_index" else "positive"
    positive = "" if row.n_positive is None else f" ({row.n_positive} {what})"
    of = "" if unit == "patients" else f" of {row.n_patients} patients"
    return f"{where + ', ' if where else ''}over {row.n} {unit}{positive}{of}"


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' or noun.startswith('R²') else 'a'} {noun}"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
