"""Probes: how far an embedding goes without training an aggregator.

The mean embedding of each bag (or of each patient's scans, where the task pools them), standardised with the training
patients' statistics and cut to unit length, goes to k nearest neighbours (k = 1, 5, 20; on unit vectors the nearest is
the one with the highest cosine) and to a logistic regression (ridge for quantities, a ridge Cox model for survival).
Folds, seeds and metrics are those of `aggregate.train`, so the rows can stand beside a run's. Several bag files of the
same scans, such as one encoder at several input sizes, are compared in the same folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from aggregate.cohort import Cohort
from aggregate.predictions import average_scans
from aggregate.question import Question, ask
from aggregate.record import trained_on
from aggregate.run import write_table
from aggregate.scored import FOLD_MEAN
from aggregate.scores import metrics_table
from aggregate.summary import METRIC_NAMES, endpoint_name
from aggregate.tabular import CoxRidge, RowModel, row_predictions
from aggregate.text import aligned
from clear.bags import Bags
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tables import some

NEIGHBOURS = (1, 5, 20)
_STRENGTH = 10.0  # inverse of the penalty on unit vectors: 10 / d on standardised features


@dataclass(frozen=True)
class Probe:
    """metrics: `bags`, `encoder`, `input_size`, `probe`, then the columns of metrics.csv; predictions: `bags`, `probe`,
    then those of predictions.csv. endpoints: kinds settled."""

    metrics: pl.DataFrame
    predictions: pl.DataFrame
    remarks: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]

    def table(self) -> str:
        """What a terminal shows: a line an endpoint and bag file with the mean over folds of the first metric."""
        kinds = {endpoint.name: endpoint.kind for endpoint in self.endpoints}
        first = self.metrics.filter(pl.col("estimator") == FOLD_MEAN)
        first = first.filter(pl.col("metric") == pl.col("metric").first().over("endpoint"))
        first = first.filter((pl.col("class") == "macro") | (pl.col("class") != "macro").all().over("endpoint"))
        rows = [["endpoint", "bag file", "mean over folds", *PROBES]]
        for (endpoint, name, metric, bags), found in first.group_by(
            "endpoint", "class", "metric", "bags", maintain_order=True
        ):
            of_probe = {row["probe"]: _with_sd(row) for row in found.iter_rows(named=True)}
            named = endpoint_name(kinds, str(endpoint), str(name))
            rows.append([named, str(bags), METRIC_NAMES[str(metric)], *(of_probe.get(probe, "") for probe in PROBES)])
        return "\n".join([*aligned(rows), *(f"note: {remark}" for remark in self.remarks)])


def _with_sd(row: Mapping[str, Any]) -> str:
    if row["estimate"] is None:
        return "not defined"
    return f"{row['estimate']:.3f}" + ("" if row["fold_sd"] is None else f" ± {row['fold_sd']:.3f}")


def _prepare() -> Any:
    return make_pipeline(StandardScaler(), Normalizer())


def _neighbours(k: int) -> RowModel:
    return RowModel(_prepare, lambda n: KNeighborsClassifier(min(k, n)), lambda n: KNeighborsRegressor(min(k, n)))


PROBES: Mapping[str, RowModel] = MappingProxyType(
    {
        **{f"knn-{k}": _neighbours(k) for k in NEIGHBOURS},
        "linear": RowModel(
            _prepare, lambda n: LogisticRegression(C=_STRENGTH, max_iter=2000), lambda n: Ridge(1 / _STRENGTH), CoxRidge
        ),
    }
)


def probe(
    bags: Path | str | Bags | Sequence[Path | str | Bags],
    *,
    output: Path | str | None = None,
    report: Callable[[str], None] | None = None,
    **question: Any,
) -> Probe:
    """Every probe on every bag file.

    question: task, labels, target, folds, seed, ... as in `aggregate.train`. output: a CSV file for the metrics.
    report: told each finished bag file. Raises InputError when the files do not hold the same labelled scans.
    """
    several = [bags] if isinstance(bags, Path | str | Bags) else list(bags)
    metrics, predictions, remarks = [], [], []
    first: Question | None = None
    for each in several:
        with ExitStack() as stack:
            opened = each if isinstance(each, Bags) else stack.enter_context(Bags(each))
            asked = ask(opened, **question)
            if first is not None:
                _same_scans(first.cohort, asked.cohort, str(opened.path))
            else:
                first = asked
                remarks += list(asked.remarks)
            rows = pooled_rows(asked.cohort, opened)
            for name, model in PROBES.items():
                found = row_predictions(asked.cohort, first.folds, rows, model)
                if not found.height:
                    continue
                judged = average_scans(found) if asked.several == "average" else found
                answered = [e for e in asked.cohort.targets.endpoints if model.answers(e.kind)]
                table = metrics_table(judged, answered, asked.task.metrics, seed=int(question.get("seed", 0)))
                size = opened.encoder_card.get("input_size")
                key = {"bags": str(opened.path), "encoder": opened.encoder, "input_size": size, "probe": name}
                metrics.append(table.select(*(pl.lit(v).alias(k) for k, v in key.items()), pl.all()))
                predictions.append(
                    found.select(pl.lit(str(opened.path)).alias("bags"), pl.lit(name).alias("probe"), pl.all())
                )
            remarks.append(f"{opened.path}: {opened.encoder}, {trained_on(opened)}")
            if report is not None:
                report(f"{opened.path}: probed")
    if first is None:
        raise InputError("expected a bag file, or several")
    fewest = min(
        len(parts["train"] + parts["inner"]) for parts in (first.folds.split(*pair) for pair in first.folds.pairs)
    )
    mute = [f"knn-{k}" for k in NEIGHBOURS if k >= fewest]
    if mute:
        remarks.append(
            f"{', '.join(mute)}: a fold has {fewest} bags to learn from, all of them neighbours of every bag"
        )
    endpoints = first.cohort.targets.endpoints
    result = Probe(pl.concat(metrics, how="vertical_relaxed"), pl.concat(predictions), tuple(remarks), endpoints)
    if output is not None:
        write_table(Path(output), result.metrics)
    return result


def pooled_rows(cohort: Cohort, bags: Bags) -> NDArray[np.float64]:
    """(B, d) the mean embedding of each bag, over the question's windows."""
    means = cohort.rows(bags).bag_means()
    return means.take(range(len(cohort)))[0].double().numpy()


def _same_scans(first: Cohort, other: Cohort, source: str) -> None:
    lacking = sorted({s for ids in first.scan_ids for s in ids} - {s for ids in other.scan_ids for s in ids})
    surplus = sorted({s for ids in other.scan_ids for s in ids} - {s for ids in first.scan_ids for s in ids})
    if lacking or surplus:
        what = (
            f"lacks {len(lacking)} of them, first {some(lacking, 2)}" if lacking else f"has others: {some(surplus, 2)}"
        )
        raise InputError(
            f"{source}: expected the labelled scans of the first bag file; it {what}. Extract the same scans into each"
        )
