"""A judgement: figures over scans with their intervals, as a table and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.explain.correctness import SLICE_MEASURES, VOXEL_MEASURES
from aggregate.intervals import bca_interval, leave_one_out, patient_draws

RANKS = {"rank_slices": "rank correlation of slices", "rank_saliency": "rank correlation of the maps"}
HEADS = {
    "slice_top1": "top slice",
    "slice_top3": "top 3 slices",
    "slice_energy": "attention",
    "pointing": "pointing game",
    "energy": "energy inside",
    "dice": "Dice",
    "rank_slices": "slices",
    "rank_saliency": "saliency",
}
KEYS = ("endpoint", "class", "method")


@dataclass(frozen=True)
class Evaluation:
    """How often a run's explanations point at what is marked.

    table: a row a figure: endpoint, class, method, measure, estimate, ci_low, ci_high (95 %, bootstrap over patients,
    conditional on the fitted models), n (scans), n_patients. scans: a row a scan and method with every measure.
    map_name: of the in-slice maps, "" where slices alone were judged. path: the folder it was written to.
    """

    table: pl.DataFrame
    scans: pl.DataFrame
    map_name: str
    remarks: tuple[str, ...]
    path: Path | None = None

    def text(self) -> str:
        """What a terminal shows: for each finding what slices and what places are worth; then what to know."""
        lines = []
        for endpoint, name in self.table.select("endpoint", "class").unique(maintain_order=True).iter_rows():
            rows = self.table.filter((pl.col("endpoint") == endpoint) & (pl.col("class") == name))
            of_scans = self.scans.filter((pl.col("endpoint") == endpoint) & (pl.col("class") == name))
            n = of_scans["scan_id"].n_unique()
            patients = of_scans["patient_id"].n_unique()
            lines += [f"{endpoint} = {name}: {n} scans of {patients} patients with it marked"]
            for measures in (SLICE_MEASURES, VOXEL_MEASURES, RANKS):
                lines += _block(rows, [each for each in measures if each in rows["measure"].unique().to_list()])
            lines.append("")
        lines += [
            "Shares of scans (attention, energy, Dice: means over scans); 95 % intervals by bootstrap over patients,",
            "conditional on the fitted models. random is what a map that ignores the scan is expected to score.",
        ]
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join([*lines, *([f"tables and pictures are in {self.path}/"] if self.path else [])])


def judged_table(scans: pl.DataFrame, measures: Sequence[str], seed: int = 0) -> pl.DataFrame:
    """The mean of every measure over the scans of each (endpoint, class, method), with its interval.

    scans: KEYS, patient_id and the measures; null where a measure is not defined, which then takes no part. All rows
    share the same draws of the patients.
    """
    names = {name: i for i, name in enumerate(sorted(scans["patient_id"].unique().to_list()))}
    everyone = np.arange(len(names))
    draws, left_out = patient_draws(everyone, seed), leave_one_out(everyone)
    rows = []
    for keys, group in scans.group_by(*KEYS, maintain_order=True):
        patients = np.array([names[name] for name in group["patient_id"]], dtype=np.int64)
        for measure in measures:
            values = group[measure].cast(pl.Float64).fill_null(float("nan")).to_numpy()
            known = np.isfinite(values)
            if not known.any():
                continue
            own, theirs = values[known], patients[known]
            estimate = float(own.mean())
            low, high = bca_interval(estimate, _weighted(own, draws[:, theirs]), _weighted(own, left_out[:, theirs]))
            rows.append((*keys, measure, estimate, low, high, len(own), len(np.unique(theirs))))
    schema = [*KEYS, "measure", "estimate", "ci_low", "ci_high", "n", "n_patients"]
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table.with_columns(pl.col("estimate", "ci_low", "ci_high").cast(pl.Float64).fill_nan(None))


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) the mean under each weighting (R, n); nan where nothing has weight."""
    total = weights.sum(axis=1)
    return np.asarray((weights @ values) / np.where(total > 0, total, np.nan))


def _block(rows: pl.DataFrame, measures: Sequence[str]) -> list[str]:
    """A line a method with a cell a measure; none for no measure."""
    if not measures:
        return []
    width = 22
    cells = {(row["method"], row["measure"]): _cell(row) for row in rows.iter_rows(named=True)}
    methods = [m for m in rows["method"].unique(maintain_order=True) if any((m, each) in cells for each in measures)]
    lines = ["  " + f"{'':<24}" + "".join(f"{HEADS[each]:<{width}}" for each in measures)]
    lines += [
        "  " + f"{method:<24}" + "".join(f"{cells.get((method, each), ''):<{width}}" for each in measures)
        for method in methods
    ]
    return [line.rstrip() for line in lines]


def _cell(row: dict[str, float | None]) -> str:
    interval = "" if row["ci_low"] is None else f" ({row['ci_low']:.2f}..{row['ci_high']:.2f})"
    return f"{row['estimate']:.2f}{interval}"
