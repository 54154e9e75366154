"""A run as a card in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import polars as pl

from aggregate.scored import ENSEMBLE, FOLD_MEAN, POOLED
from aggregate.summary import METRIC_NAMES, endpoint_name
from clear.errors import ClearError, InputError
from clear.notebook import card

if TYPE_CHECKING:
    from aggregate.run import Run

_ROWS = 12  # figures of a run
_PARTS = ("task", "endpoints", "cohort", "aggregator", "fits", "bags", "windows", "remarks")  # of run.json


def run_card(run: Run) -> str:
    """HTML of what was asked, of whom, with which models, and the first figures with their intervals.

    Of a damaged record what is there.
    """
    settings = run.settings
    texts: dict[str, Callable[[], str]] = {
        "task": lambda: settings["task"]["name"],
        "endpoints": lambda: ", ".join(f"{endpoint.name} ({endpoint.kind})" for endpoint in run.endpoints),
        "cohort": lambda: "{bags} bags of {patients} patients, from {scans_used} scans".format(**settings["cohort"]),
        "models": lambda: f"{settings['aggregator']}, {len(run.pairs)} fits, protocol {settings.get('protocol', 'cv')}",
        "encoder": lambda: "{encoder} ({trained_on})".format(**settings["bags"]),
        "windows": lambda: ", ".join(window.name for window in run.windows),
    }
    known = {name: _known(text) for name, text in texts.items()}
    facts = list(known.items())
    remarks, lacking = settings.get("remarks"), [name for name in _PARTS if settings.get(name) is None]
    notes = [f"run.json lacks {', '.join(lacking)}"] if lacking else []
    notes += [str(remark) for remark in remarks] if isinstance(remarks, list) else []
    kinds = {endpoint.name: endpoint.kind for endpoint in run.endpoints} if known["endpoints"] else {}
    try:
        metrics = _chosen(run.metrics)
    except InputError as error:
        return card(f"Run {run.path}", facts, notes=[str(error), *notes])
    rows = [
        (
            endpoint_name(kinds, row["endpoint"], row["class"] or ""),
            METRIC_NAMES.get(row["metric"], row["metric"]),
            _value(row["estimate"]),
            _interval(row["ci_low"], row["ci_high"]),
            row["n"],
        )
        for row in metrics.head(_ROWS).iter_rows(named=True)
    ]
    if metrics.height > _ROWS:
        notes.insert(0, f"and {metrics.height - _ROWS} more rows in .metrics")
    return card(
        f"Run {run.path}", facts, header=("endpoint", "metric", "value", "95 % CI", "n"), rows=rows, notes=notes
    )


def _known(text: Callable[[], str]) -> str:
    """The text, or "" where the record does not have what it is made of."""
    try:
        return str(text())
    except (KeyError, TypeError, ValueError, AttributeError, ClearError):
        return ""


def _chosen(metrics: pl.DataFrame) -> pl.DataFrame:
    """A row a figure: of all scores at once, else the mean over folds."""
    order = {POOLED: 0, ENSEMBLE: 0, FOLD_MEAN: 1}
    keys = ["endpoint", "class", "metric"]
    ranked = metrics.with_columns(pl.col("estimator").replace_strict(order, default=2).alias("rank"))
    return ranked.with_row_index().sort("rank", "index").unique(keys, keep="first", maintain_order=True).sort("index")


def _value(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
