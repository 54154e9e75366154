"""The tables of a matrix: ours as the papers print theirs, and theirs beside them.

Mean and standard deviation over folds in percent, a row an encoder and aggregator, a column an endpoint; `n` is how
many scans were scored. The best of our rows is in bold; where rows were not scored on the same scans and labels, they
bear letters and only rows of one letter are compared. Models that saw no image stand below, once for each letter.

Published rows that a protocol like ours gave stand in the same table; those that hold only in part are marked and their
difference is written under it; those that do not compare are printed apart. A matrix that asks otherwise than the task
(another protocol, held-out groups, other windows) compares with none of them.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from aggregate.metrics import LOWER_IS_BETTER
from aggregate.published import CITATIONS, MEAN, published
from aggregate.run import Run
from clear.windows import Window

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
SCHEMA = {
    "task": pl.String,
    "source": pl.String,
    "row": pl.String,
    "windows": pl.String,
    "n": pl.Int64,
    "scans": pl.String,
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
    """One row a number. runs: (task, encoder, aggregator, windows) -> run. Percent for the metrics IN_PERCENT.

    n: scans that were scored. scans: a digest of which ones, with their labels: rows with the same one compare.
    comparable: of published rows, `yes`, `partly` or `no`. difference: what a published row did otherwise; of ours, how
    the run's question differs from its task's.
    """
    rows: list[dict[str, Any]] = []
    for task in dict.fromkeys(key[0] for key in runs):
        here = {key: run for key, run in runs.items() if key[0] == task}
        for (_, encoder, aggregator, windows), run in here.items():
            rows += _rows(task, OURS, f"{encoder}, {aggregator}", windows, run.metrics, run)
        cohorts: set[str] = set()
        for run in here.values():
            scans = scored_scans(run)[1]
            if scans in cohorts or not run.baselines.height:
                continue
            cohorts.add(scans)
            for name in run.baselines["baseline"].unique(maintain_order=True):
                metrics = run.baselines.filter(pl.col("baseline") == name)
                rows += _rows(task, BASELINE, f"{name}, no image", "", metrics, run)
        otherwise = [deviation(run.settings) for run in here.values()]
        ours = "; ".join(dict.fromkeys(otherwise)) if all(otherwise) else ""
        metrics_used = {row["metric"] for row in rows if row["task"] == task}
        asked = next(iter(here.values())).settings["task"]["name"]
        theirs = published(asked).filter(pl.col("metric").is_in(list(metrics_used)))
        for row in theirs.iter_rows(named=True):
            where = f"{row['model']} ({row['paper']}, table {row['table']})"
            percent = {"mean": row["mean_percent"], "sd": row["sd_percent"]}
            about = {"comparable": row["comparable"], "difference": row["difference"], "windows": "", "run": ""}
            if ours:
                about |= {"comparable": "no", "difference": f"{row['difference']}; ours: {ours}"}
            same = {name: row[name] for name in ("endpoint", "metric")}
            rows.append({"task": task, "source": PUBLISHED, "row": where, **same, **percent, **about})
    table = pl.DataFrame(rows, schema={k: v for k, v in SCHEMA.items() if k != "best"})
    return _with_best(table).select(list(SCHEMA))


def deviation(settings: Mapping[str, Any]) -> str:
    """How a run's question differs from that of its task, in words; "" where it does not. settings: of run.json."""
    task = settings["task"]
    found = []
    if settings["protocol"] != task["protocol"]:
        found.append(f"protocol {settings['protocol']} instead of {task['protocol']}")
    if settings["group"]:
        found.append(f"each {settings['group']} held out")
    used, wanted = ([Window.from_dict(each) for each in owner["windows"]] for owner in (settings, task))
    if wanted and set(used) != set(wanted) and any(window.kind != "encoder" for window in used):
        names = (", ".join(str(window.name) for window in windows) for windows in (used, wanted))
        found.append("windows {} instead of {}".format(*names))
    return ", ".join(found)


def scored_scans(run: Run) -> tuple[int, str]:
    """(how many labelled bags were scored, a digest of which and of their labels)."""
    columns = ["scan_id", "endpoint", "class", "y_true", "event"]
    known = (
        run.predictions.filter(pl.col("split") == "test").drop_nulls("y_true").select(columns).unique().sort(columns)
    )
    return known["scan_id"].n_unique(), hashlib.sha256(known.write_csv().encode()).hexdigest()[:12]


def _rows(task: str, source: str, name: str, windows: str, metrics: pl.DataFrame, run: Run) -> list[dict[str, Any]]:
    """Mean over folds of each endpoint: of several classes their mean, of several endpoints also theirs."""
    out = []
    n, scans = scored_scans(run)
    about = {"n": n, "scans": scans, "run": str(run.path), "difference": deviation(run.settings)}
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
                **about,
            }
        )
    return out


def _with_best(table: pl.DataFrame) -> pl.DataFrame:
    """`best`: the best mean of our rows in each column, among those of the same scans; a row with no equal has none."""
    signed = pl.when(pl.col("metric").is_in(list(LOWER_IS_BETTER))).then(-pl.col("mean")).otherwise(pl.col("mean"))
    ours = pl.when(pl.col("source") == OURS).then(signed)
    column = ["task", "endpoint", "metric"]
    highest = ours.max().over(*column, "scans")
    own = pl.col("scans").filter(pl.col("source") == OURS)
    compared = (own.len().over(*column, "scans") > 1) | (own.n_unique().over(column) == 1)
    return table.with_columns(best=(ours.is_not_null() & (ours == highest) & compared).fill_null(False))


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
        among = " among rows of the same scans (same letter)" if own["scans"].n_unique() > 1 else ""
        parts.append(
            f"## {task}: {metric}\n\nMean ± standard deviation over {over}, {unit}; best of our rows in bold{among}.\n"
        )
        beside = here.filter((pl.col("source") != PUBLISHED) | (pl.col("comparable") != "no"))
        parts.append(_grid(beside, endpoints))
        if beside.filter(pl.col("source") == PUBLISHED).height:
            otherwise = own.filter((pl.col("source") == OURS) & (pl.col("difference") != ""))
            for name, windows, text in (
                otherwise.select("row", "windows", "difference").unique(maintain_order=True).rows()
            ):
                parts.append(f"Not comparable with published rows: {name}{windows and f', {windows}'} ({text})\n")
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
    cohorts = table["scans"].drop_nulls().unique(maintain_order=True).to_list()
    counted = ["n"] if cohorts else []
    head = ["model", *(["windows"] if several else []), *counted, *("mean" if e == MEAN else e for e in endpoints)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, windows, n, scans in table.select("row", "windows", "n", "scans").unique(maintain_order=True).rows():
        same = pl.col("scans").eq_missing(pl.lit(scans))
        rows = table.filter((pl.col("row") == name) & (pl.col("windows") == windows) & same)
        cells = {row["endpoint"]: row for row in rows.iter_rows(named=True)}
        mark = " †" if (rows["comparable"] == "partly").any() else ""
        shown = [_cell(cells[e]) if e in cells else "" for e in endpoints]
        letter = f" ({_letter(cohorts.index(scans))})" if scans is not None and len(cohorts) > 1 else ""
        first = [
            f"{name}{mark}",
            *([windows] if several else []),
            *(["" if n is None else f"{n}{letter}"] * len(counted)),
        ]
        lines.append(f"| {' | '.join([*first, *shown])} |")
    return "\n".join(lines) + "\n"


def _letter(number: int) -> str:
    letters = string.ascii_lowercase
    return letters[number] if number < len(letters) else str(number + 1)


def _cell(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "not defined"
    digits = 1 if row["metric"] in IN_PERCENT else 3
    text = f"{row['mean']:.{digits}f}" + ("" if row["sd"] is None else f" ± {row['sd']:.{digits}f}")
    return f"**{text}**" if row["best"] else text
