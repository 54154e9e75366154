"""The papers' tables, as data: `published_results.csv` beside this module, a row a printed number.

Columns: paper, table, task, model, endpoint, metric, mean_percent, sd_percent (as the paper gives it, else empty),
comparable (`yes`, `partly`, `no`: with what our protocol of the task gives), difference (what makes it so). The
figures were typed from the papers' tables (`CITATIONS`); they are theirs, and nothing here was computed by us.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

import polars as pl

FILE = "published_results.csv"
CITATIONS: Mapping[str, str] = MappingProxyType(
    {
        "CLEAR (MICCAI 2025)": "Ligero, Lenz et al., CLEAR, MICCAI 2025",
        "MST": "Müller-Franzes et al., Medical slice transformer for improved diagnosis and explainability on 3D "
        "medical images with DINOv2, Scientific Reports 2025, doi:10.1038/s41598-025-09041-8",
        "Radio DINO": "Zedda, Loddo, Di Ruberto, Radio DINO: A foundation model for advanced radiomics and AI-driven "
        "medical imaging analysis, Computers in Biology and Medicine 2025, doi:10.1016/j.compbiomed.2025.110583",
    }
)
# the papers' name of a task -> ours, and what their only endpoint is called there ("" where the names agree)
_TASKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "nsclc-radiomics stage": ("nsclc-radiomics", "stage"),
        "lidc-malignancy": ("lidc-malignancy", "malignancy"),
        "mrnet meniscus": ("mrnet", "meniscus"),
        "duke-breast": ("duke-breast", "cancer"),
    }
)
_METRICS: Mapping[str, str] = MappingProxyType({"AUROC": "auroc", "AP": "average_precision", "F1": "f1"})
MEAN = "macro"  # what the papers call the average over endpoints
SCHEMA = {
    "paper": pl.String,
    "table": pl.String,
    "task": pl.String,
    "model": pl.String,
    "endpoint": pl.String,
    "metric": pl.String,
    "mean_percent": pl.Float64,
    "sd_percent": pl.Float64,
    "comparable": pl.String,
    "difference": pl.String,
}


def published(task: str, metric: str | None = None) -> pl.DataFrame:
    """The published rows of one of our tasks, in the papers' order; none where the papers have nothing.

    task, endpoint and metric are under our names; of a metric we do not have the paper's own stays.

    >>> published("mrnet", "auroc").height
    12
    """
    rows = results().filter(pl.col("task") == task)
    return rows if metric is None else rows.filter(pl.col("metric") == metric)


@cache
def results() -> pl.DataFrame:
    """Every row, under our names."""
    file = resources.files("aggregate") / FILE
    table = pl.read_csv(file.read_bytes(), schema_overrides=SCHEMA)
    renamed = {theirs: ours for theirs, (ours, _) in _TASKS.items()}
    only = {theirs: endpoint for theirs, (_, endpoint) in _TASKS.items()}
    plain = pl.col("endpoint").str.to_lowercase().str.replace_all("[ -]", "_").replace({"average": MEAN})
    return table.with_columns(
        endpoint=pl.when(pl.col("task").is_in(list(only))).then(pl.col("task").replace(only)).otherwise(plain),
        metric=pl.col("metric").replace(dict(_METRICS)),
    ).with_columns(task=pl.col("task").replace(renamed))
