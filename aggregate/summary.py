"""A run in a terminal: one line an endpoint, then what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import polars as pl

from aggregate.scored import ENSEMBLE, FOLD_MEAN, POOLED
from aggregate.text import aligned
from clear.endpoints import Endpoint

if TYPE_CHECKING:
    from aggregate.run import Run

METRIC_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "auroc": "AUROC",
        "average_precision": "AP",
        "f1": "F1",
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "kappa": "kappa",
        "sensitivity_at_specificity": "sensitivity at 0.9",
        "brier": "Brier",
        "ece": "ECE",
        "c_index": "C-index",
        "mae": "MAE",
        "r2": "R²",
    }
)
_COUNTED = {"regression": "", "survival": "events"}
Row = dict[str, Any]


def run_table(run: Run) -> str:
    """The first metrics of each endpoint with their intervals and baselines; cohort and encoder below."""
    settings = run.settings
    repeats = f", {settings['repeats']} repeats" if settings["repeats"] > 1 else ""
    tried = settings.get("grid", {}).get("aggregator") or [settings["aggregator"]]
    lines = [f"{settings['task']['name']} · {' or '.join(tried)} · {_protocol(settings)}{repeats}"]
    baselines = getattr(run, "baselines", None)
    lines += metrics_text(run.metrics, run.endpoints, baselines)
    cohort = settings["cohort"]
    lines.append(
        f"cohort: {cohort['scans_in_file']} scans in {settings['bags']['path']}, {cohort['scans_used']} labelled and "
        f"used, {cohort['bags']} bags of {cohort['patients']} patients"
    )
    lines.append(f"encoder: {settings['bags']['encoder']}, {settings['bags']['trained_on']}")
    lines += [f"note: {remark}" for remark in [*_chosen(settings["fits"]), *settings["remarks"]]]
    return "\n".join(lines)


def metrics_text(
    metrics: pl.DataFrame, endpoints: Sequence[Endpoint], baselines: pl.DataFrame | None = None
) -> list[str]:
    """The rows of metrics.csv as lines: one table for endpoints with classes, one each for quantities and survival.

    Two metrics of a kind are shown, the first two that the table has in the order of METRIC_NAMES (ordinal: kappa
    first); the others are in the file. baselines: rows of baselines.csv, set under the endpoint that they belong to.
    """
    kinds = {endpoint.name: endpoint.kind for endpoint in endpoints}
    of_kind = {"binary": "classes", "multiclass": "classes"}
    tables: dict[str, list[tuple[str, str]]] = {}
    metrics = metrics.with_columns(pl.col("class").fill_null(""))
    for endpoint, name in metrics.select("endpoint", "class").unique(maintain_order=True).rows():
        kind = str(kinds.get(endpoint, "binary"))
        tables.setdefault(of_kind.get(kind, kind), []).append((endpoint, name))
    lines = []
    for kind, keys in tables.items():
        lines += _table(kind, keys, metrics, kinds, baselines)
    estimators = set(metrics["estimator"].to_list())
    if POOLED in estimators:
        lines.append("intervals: over patients, conditional on the fitted models")
    elif ENSEMBLE in estimators:
        lines.append("intervals: over the patients of the test set; of fold means, conditional on the fitted models")
    more = [METRIC_NAMES.get(name, name) for name in metrics["metric"].unique(maintain_order=True)]
    if len(more) > 2:
        lines.append(f"metrics.csv has {', '.join(more)}")
    return lines


def _table(
    kind: str,
    keys: Sequence[tuple[str, str]],
    metrics: pl.DataFrame,
    kinds: Mapping[str, str],
    baselines: pl.DataFrame | None,
) -> list[str]:
    here = _cells(metrics)
    present = {metric for endpoint, name, metric, _ in here if (endpoint, name) in keys}
    order = sorted(METRIC_NAMES, key=lambda name: kind == "ordinal" and name != "kappa")
    shown = [name for name in order if name in present][:2]
    first, *second = shown
    other = next((e for e in (POOLED, ENSEMBLE) if any(m == first and e == s for _, _, m, s in here)), "")
    folds = "folds" if other != ENSEMBLE else "single models"
    header = [f"{METRIC_NAMES[first]}, {folds}" + ("" if other else " (95 % CI)")]
    header += [f"{METRIC_NAMES[first]}, {other} (95 % CI)"] if other else []
    header += [f"{METRIC_NAMES[name]}, {folds}" for name in second]
    rows = [["endpoint", *header, "n", _COUNTED.get(kind, "positive")]]
    sources = [("", here)]
    for label in [] if baselines is None or not baselines.height else baselines["baseline"].unique(maintain_order=True):
        chosen = baselines.filter(pl.col("baseline") == label)  # type: ignore[union-attr]
        sources.append((str(label), _cells(chosen.with_columns(pl.col("class").fill_null("")))))
    for endpoint, name in keys:
        for label, cells in sources:
            row = [f"  baseline {label}" if label else endpoint_name(kinds, endpoint, name)]
            folded, pooled = cells.get((endpoint, name, first, FOLD_MEAN)), cells.get((endpoint, name, first, other))
            row.append(_with_sd(folded) + ("" if other or folded is None else _interval(folded)))
            row += [_with_interval(pooled)] if other else []
            row += [_with_sd(cells.get((endpoint, name, metric, FOLD_MEAN))) for metric in second]
            counted = pooled or folded or next((c for k, c in cells.items() if k[:2] == (endpoint, name)), {})
            rows.append([*row, *(_count(counted.get(key)) if not label else "" for key in ("n", "n_positive"))])
    return aligned(rows)


def _cells(table: pl.DataFrame) -> dict[tuple[str, str, str, str], Row]:
    return {(r["endpoint"], r["class"], r["metric"], r["estimator"]): r for r in table.iter_rows(named=True)}


def _protocol(settings: Mapping[str, Any]) -> str:
    folds, protocol = settings["n_folds"], settings.get("protocol", "cv")
    if settings.get("group"):
        return f"cross-validation with each {settings['group']} held out, {folds} folds"
    if protocol == "cv-test":
        return f"{folds} models on folds by patient, scored on the fixed test set"
    if protocol == "nested-cv":
        return f"nested {folds}-fold cross-validation by patient"
    return f"{folds}-fold cross-validation by patient"


def _chosen(fits: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a nested cross-validation chose, and for how many of its folds; nothing of another run."""
    texts = [", ".join(f"{key} {value}" for key, value in fit["chosen"].items()) for fit in fits if "chosen" in fit]
    counted = [f"{text} ({texts.count(text)})" for text in sorted(set(texts), key=texts.count, reverse=True)]
    return [f"chosen on inner folds: {'; '.join(counted)} of {len(texts)} folds"] if counted else []


def endpoint_name(kinds: Mapping[str, str], endpoint: str, name: str) -> str:
    """How a row of metrics.csv is called: the endpoint, its class where it has several, `mean` of several.

    >>> endpoint_name({"stage": "ordinal"}, "stage", "macro")
    'stage: mean'
    """
    if kinds.get(endpoint) in ("multiclass", "ordinal"):
        return f"{endpoint}: {name}" if name != "macro" else f"{endpoint}: mean"
    return "mean" if endpoint == "macro" else endpoint


def _with_sd(row: Row | None) -> str:
    if row is None:
        return ""
    if row["estimate"] is None:
        return "not defined"
    return f"{row['estimate']:.3f}" + (f" ± {row['fold_sd']:.3f}" if row["fold_sd"] is not None else "")


def _with_interval(row: Row | None) -> str:
    if row is None:
        return ""
    return "not defined" if row["estimate"] is None else f"{row['estimate']:.3f}{_interval(row)}"


def _interval(row: Row) -> str:
    return f" ({row['ci_low']:.3f}-{row['ci_high']:.3f})" if row["ci_low"] is not None else ""


def _count(value: int | None) -> str:
    return "" if value is None else str(value)
