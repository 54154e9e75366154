"""The tables of a matrix: ours as the papers print theirs, and theirs beside them.

Mean and standard deviation over folds in percent, a row an encoder and aggregator, a column an endpoint; the best of
our rows in bold. Models that saw no image stand below. Published rows that a protocol like ours gave stand in the same
table; those that hold only in part are marked and their difference is written under it; those that do not compare are
printed apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from aggregate.published import CITATIONS, MEAN, published
from aggregate.run import Run

OURS, BASELINE, PUBLISHED = "ours", "baseline", "published"
IN_PERCENT = frozenset(
    {
        "auroc",
        "average_precision",
        "f1",
        "balanced_accuracy",
        "sensitivity_at_specificity",
        "accuracy",
        "c_index",
        "kappa",
    }
)
LOWER_IS_BETTER = frozenset({"brier", "ece", "mae"})
SCHEMA = {
    "task": pl.String,
    "source": pl.String,
    "row": pl.String,
    "windows": pl.String,
    "endpoint": pl.String,
    "metric": pl.String,
    "mean": pl.Float64,
    "sd": pl.Float64,
    "folds": pl.Int64,
    "best": pl.Boolean,
    "comparable": pl.String,
    "difference": pl.String,
    "run": pl.String,
}


def matrix_table(runs: Mapping[tuple[str, str, str, str], Run]) -> pl.DataFrame:
    """One row a number. runs: (task, encoder, aggregator, windows) -> run. Percent for the metrics IN_PERCENT."""
    rows: list[dict[str, Any]] = []
    for task in dict.fromkeys(key[0] for key in runs):
        here = {key: run for key, run in runs.items() if key[0] == task}
        for (_, encoder, aggregator, windows), run in here.items():
            rows += _rows(task, OURS, f"{encoder}, {aggregator}", windows, run.metrics, str(run.path))
        first = next(iter(here.values()))
        if first.baselines.height:
            for name in first.baselines["baseline"].unique(maintain_order=True):
                metrics = first.baselines.filter(pl.col("baseline") == name)
                rows += _rows(task, BASELINE, f"{name}, no image", "", metrics, str(first.path))
        metrics_used = {row["metric"] for row in rows if row["task"] == task}
        theirs = published(task).filter(pl.col("metric").is_in(list(metrics_used)))
        for row in theirs.iter_rows(named=True):
            where = f"{row['model']} ({row['paper']}, table {row['table']})"
            percent = {"mean": row["mean_percent"], "sd": row["sd_percent"]}
            about = {"comparable": row["comparable"], "difference": row["difference"], "windows": "", "run": ""}
            same = {name: row[name] for name in ("endpoint", "metric")}
            rows.append({"task": task, "source": PUBLISHED, "row": where, **same, **percent, **about})
    table = pl.DataFrame(rows, schema={k: v for k, v in SCHEMA.items() if k != "best"})
    return _with_best(table).select(list(SCHEMA))


def _rows(task: str, source: str, name: str, windows: str, metrics: pl.DataFrame, run: str) -> list[dict[str, Any]]:
    """Mean over folds of each endpoint: of several classes their mean, of several endpoints also theirs."""
    out = []
    means = metrics.filter(pl.col("estimator") == "fold_mean")
    several = means.filter(pl.col("class") == MEAN).select("endpoint", "metric").unique().rows()
    for row in means.iter_rows(named=True):
        if (row["endpoint"], row["metric"]) in several and row["class"] != MEAN:
            continue
        factor = 100.0 if row["metric"] in IN_PERCENT else 1.0
        values = {"mean": row["estimate"], "sd": row["fold_sd"]}
        out.append(
            {
                "task": task,
                "source": source,
                "row": name,
                "windows": windows,
                "endpoint": row["endpoint"],
                "metric": row["metric"],
                **{key: None if value is None else value * factor for key, value in values.items()},
                "folds": row["folds_defined"],
                "comparable": "",
                "difference": "",
                "run": run,
            }
        )
    return out


def _with_best(table: pl.DataFrame) -> pl.DataFrame:
    """`best`: the best mean of our rows in each column."""
    signed = pl.when(pl.col("metric").is_in(list(LOWER_IS_BETTER))).then(-pl.col("mean")).otherwise(pl.col("mean"))
    ours = pl.when(pl.col("source") == OURS).then(signed)
    highest = ours.max().over("task", "endpoint", "metric")
    return table.with_columns(best=(ours.is_not_null() & (ours == highest)).fill_null(False))


def matrix_markdown(table: pl.DataFrame) -> str:
    """A Markdown table for each task and metric, its notes below."""
    parts = []
    for task, metric in table.select("task", "metric").unique(maintain_order=True).rows():
        here = table.filter((pl.col("task") == task) & (pl.col("metric") == metric))
        own = here.filter(pl.col("source") != PUBLISHED)
        if not own.height:
            continue
        endpoints = own["endpoint"].unique(maintain_order=True).to_list()
        unit = "percent" if metric in IN_PERCENT else "as it is"
        folds = own["folds"].drop_nulls().to_list()
        over = f"{max(folds, default=0)} folds"
        parts.append(
            f"## {task}: {metric}\n\nMean ± standard deviation over {over}, {unit}; best of our rows in bold.\n"
        )
        beside = here.filter((pl.col("source") != PUBLISHED) | (pl.col("comparable") != "no"))
        parts.append(_grid(beside, endpoints))
        partly = beside.filter(pl.col("comparable") == "partly")
        parts += [f"† {difference}\n" for difference in partly["difference"].unique(maintain_order=True)]
        apart = here.filter((pl.col("source") == PUBLISHED) & (pl.col("comparable") == "no"))
        if apart.height:
            parts.append("Published, not comparable:\n")
            listed = [*endpoints, *(e for e in apart["endpoint"].unique(maintain_order=True) if e not in endpoints)]
            parts.append(_grid(apart, [e for e in listed if e in apart["endpoint"].to_list()]))
            parts += [f"Difference: {text}\n" for text in apart["difference"].unique(maintain_order=True)]
        papers = {name for name in CITATIONS if here["row"].str.contains(f"({name}, ", literal=True).any()}
        parts += [f"{name}: {CITATIONS[name]}\n" for name in CITATIONS if name in papers]
    return "\n".join(parts)


def _grid(table: pl.DataFrame, endpoints: Sequence[str]) -> str:
    several = table["windows"].n_unique() > 1 and bool((table["windows"] != "").any())
    head = ["model", *(["windows"] if several else []), *("mean" if e == MEAN else e for e in endpoints)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, windows in table.select("row", "windows").unique(maintain_order=True).rows():
        rows = table.filter((pl.col("row") == name) & (pl.col("windows") == windows))
        cells = {row["endpoint"]: row for row in rows.iter_rows(named=True)}
        mark = " †" if (rows["comparable"] == "partly").any() else ""
        shown = [_cell(cells[e]) if e in cells else "" for e in endpoints]
        lines.append(f"| {' | '.join([f'{name}{mark}', *([windows] if several else []), *shown])} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "not defined"
    digits = 1 if row["metric"] in IN_PERCENT else 3
    text = f"{row['mean']:.{digits}f}" + ("" if row["sd"] is None else f" ± {row['sd']:.{digits}f}")
    return f"**{text}**" if row["best"] else text
