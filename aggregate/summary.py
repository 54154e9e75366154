"""A run in a terminal: one line an endpoint, then what a reader must know before believing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from aggregate.run import Run


def run_table(run: Run) -> str:
    """AUROC over folds and pooled with its interval, average precision, counts; cohort and encoder below."""
    settings = run.settings
    repeats = f", {settings['repeats']} repeats" if settings["repeats"] > 1 else ""
    protocol = f"{settings['n_folds']}-fold cross-validation by patient{repeats}"
    lines = [f"{settings['task']['name']} · {settings['aggregator']} · {protocol}"]
    rows = [["endpoint", "AUROC, folds", "AUROC, pooled (95 % CI)", "AP, folds", "n", "positive"]]
    keys = run.metrics.select("endpoint", "class").unique(maintain_order=True).rows()
    for endpoint, name in keys:
        here = run.metrics.filter((pl.col("endpoint") == endpoint) & (pl.col("class") == name))
        cells = {(row["metric"], row["estimator"]): row for row in here.iter_rows(named=True)}
        folds, pooled = cells[("auroc", "fold_mean")], cells[("auroc", "pooled")]
        precision = cells.get(("average_precision", "fold_mean"))
        rows.append(
            [
                _name(run, endpoint, name),
                _with_sd(folds),
                _with_interval(pooled),
                _with_sd(precision) if precision else "",
                _count(pooled["n"]),
                _count(pooled["n_positive"]),
            ]
        )
    lines += _aligned(rows)
    lines.append("intervals: over patients, conditional on the fitted models")
    cohort = settings["cohort"]
    lines.append(
        f"cohort: {cohort['scans_in_file']} scans in {settings['bags']['path']}, {cohort['scans_used']} labelled and "
        f"used, {cohort['bags']} bags of {cohort['patients']} patients"
    )
    lines.append(f"encoder: {settings['bags']['encoder']}, {settings['bags']['trained_on']}")
    lines += [f"note: {remark}" for remark in settings["remarks"]]
    return "\n".join(lines)


def _name(run: Run, endpoint: str, name: str) -> str:
    kinds = {each.name: each.kind for each in run.endpoints}
    if kinds.get(endpoint) == "multiclass":
        return f"{endpoint}: {name}" if name != "macro" else f"{endpoint}: mean"
    return "mean" if endpoint == "macro" else endpoint


def _with_sd(row: dict[str, Any]) -> str:
    if row["estimate"] is None:
        return "not defined"
    return f"{row['estimate']:.3f}" + (f" ± {row['fold_sd']:.3f}" if row["fold_sd"] is not None else "")


def _with_interval(row: dict[str, Any]) -> str:
    if row["estimate"] is None:
        return "not defined"
    interval = f" ({row['ci_low']:.3f}-{row['ci_high']:.3f})" if row["ci_low"] is not None else ""
    return f"{row['estimate']:.3f}{interval}"


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    out = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        out.append("  ".join(cells).rstrip())
    return out
