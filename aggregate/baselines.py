"""Baselines: what can be predicted without looking at the images.

`acquisition` reads the scan table alone: slice spacing and pixel size, thickness, kernel, manufacturer, number of
slices. A table of one's own (age, sex, ...) is read column by column. Both are logistic regressions (ridge for
quantities, a ridge Cox model for survival) in the folds of the image model, so that their rows can stand beside its
own: a model that does no better than the scanner's settings has perhaps read only them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from aggregate.cohort import Cohort
from aggregate.columns import table_of_scans
from aggregate.leaks import tells
from aggregate.predictions import average_scans
from aggregate.question import Question
from aggregate.scores import metrics_table
from aggregate.tabular import CoxRidge, RowModel, row_predictions
from clear.bags import Bags
from clear.errors import InputError
from clear.label_readers import is_source
from clear.label_values import UNKNOWN
from clear.labels import id_of
from clear.tables import some
from clear.tasks import Task

ACQUISITION = "acquisition"
MAX_CATEGORIES = 20


def baselines_table(
    names: Sequence[Path | str], bags: Bags, question: Question, *, seed: int = 0
) -> tuple[pl.DataFrame, list[str]]:
    """(the rows of baselines.csv, remarks): `baseline`, then the columns of metrics.csv.

    names: `acquisition`, or tables. Raises InputError for a table that does not fit the bag file.
    """
    tables, remarks = [], []
    for name in names:
        columns, noted = baseline_columns(name, bags, question)
        remarks += [f"baseline {name}: {remark}" for remark in noted]
        if not columns:
            continue
        predictions = baseline_predictions(question, columns)
        judged = average_scans(predictions) if question.several == "average" else predictions
        metrics = metrics_table(judged, question.cohort.targets.endpoints, question.task.metrics, seed=seed)
        label = name if name == ACQUISITION else Path(name).stem
        tables.append(metrics.select(pl.lit(label).alias("baseline"), pl.all()))
    return (pl.concat(tables) if tables else pl.DataFrame()), remarks


def baseline_predictions(question: Question, columns: dict[str, list[Any]]) -> pl.DataFrame:
    """Predictions from columns of one value a bag (a float, a text, None = unknown), in the question's folds."""
    numbers = [name for name, values in columns.items() if any(isinstance(value, float) for value in values)]
    texts = [name for name in columns if name not in numbers]
    rows = np.empty((len(question.cohort), len(columns)), dtype=object)
    for i, name in enumerate([*numbers, *texts]):
        missing = np.nan if name in numbers else "unknown"
        rows[:, i] = [missing if value is None else value for value in columns[name]]

    def prepare() -> Any:
        numeric = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
        return ColumnTransformer(
            [
                ("numbers", make_pipeline(_Floats(), numeric), list(range(len(numbers)))),
                ("texts", OneHotEncoder(handle_unknown="ignore"), list(range(len(numbers), len(columns)))),
            ],
            sparse_threshold=0,
        )

    model = RowModel(prepare, lambda n: LogisticRegression(max_iter=2000), lambda n: Ridge(), CoxRidge)
    return row_predictions(question.cohort, question.folds, rows, model)


def baseline_columns(
    name: Path | str, bags: Bags, question: Question
) -> tuple[dict[str, list[float | str | None]], list[str]]:
    """(column -> one value a bag, remarks): those that vary; of a pooled bag the mean number, or the first text.

    Of a table, ids, the split and what the labels are made of do not count. What tells a label by itself is remarked.
    """
    remarks = []
    if name == ACQUISITION:
        scans = _acquisition(bags.scans)
    else:
        scans = table_of_scans(name, bags.scans)
        own = _label_columns(question.task)
        scans = scans.drop([c for c in scans.columns if c != "scan_id" and (c.lower() in own or id_of(c) is not None)])
        made_of = [c for c in scans.columns if is_source(question.task, c)]
        scans = scans.drop(made_of)
        if made_of:
            remarks.append(f"{', '.join(made_of)}: the labels are made of them, left out")
    of_scan = {row["scan_id"]: row for row in scans.iter_rows(named=True)}
    chosen: dict[str, list[float | str | None]] = {}
    dropped = []
    for column in [c for c in scans.columns if c != "scan_id"]:
        values = _by_bag(question.cohort, {scan: row[column] for scan, row in of_scan.items()})
        distinct = {value for value in values if value is not None}
        if len(distinct) < 2:
            continue
        if any(isinstance(value, str) for value in distinct) and len(distinct) > MAX_CATEGORIES:
            dropped.append(column)
            continue
        chosen[column] = values
    if dropped:
        remarks.append(f"{', '.join(dropped)}: more than {MAX_CATEGORIES} different texts, left out")
    if not chosen:
        if name != ACQUISITION:
            raise InputError(
                f"--baseline {name}: none of its columns varies over the labelled scans ({some(scans.columns)})"
            )
        return {}, ["nothing in the scan table of the bag file varies, so there is no such model"]
    return chosen, [f"from {', '.join(chosen)}", *remarks, *_given_away(chosen, question.cohort)]


def _label_columns(task: Task) -> set[str]:
    """Names, in small letters, of columns that are the labels themselves, or say which patients a model learnt from."""
    columns = {"split", "fold"}
    for endpoint in task.endpoints:
        columns |= {endpoint.source_column, endpoint.event, *endpoint.label_columns}
    return {column.lower() for column in columns}


def _given_away(chosen: dict[str, list[float | str | None]], cohort: Cohort) -> list[str]:
    """A remark on each endpoint that columns tell by themselves."""
    remarks = []
    for e, endpoint in enumerate(cohort.targets.endpoints):
        codes = cohort.targets.codes[:, e]
        told = [column for column, values in chosen.items() if tells(values, endpoint, codes)]
        if told:
            remarks.append(
                f"{', '.join(told)} alone tells {endpoint.name} of every labelled bag: is it made of the label? "
                "Then leave it out of the table"
            )
    return remarks


def _acquisition(scans: pl.DataFrame) -> pl.DataFrame:
    spacing = scans["spacing_mm"].to_list()
    axes = {f"spacing_{axis}_mm": [s[i] for s in spacing] for i, axis in enumerate("zyx")}
    return scans.select("scan_id", "thickness_mm", "kernel", "manufacturer", "n_slices").with_columns(
        pl.col("n_slices").cast(pl.Float64),
        *(pl.Series(name, values, dtype=pl.Float64) for name, values in axes.items()),
    )


def _by_bag(cohort: Cohort, of_scan: dict[str, Any]) -> list[float | str | None]:
    """One value a bag; a column whose known values are all numbers is one of numbers."""
    known = {scan: value for scan, value in of_scan.items() if value is not None and str(value).lower() not in UNKNOWN}
    numbers = {scan: _number(value) for scan, value in known.items()}
    numeric = all(number is not None for number in numbers.values())
    out: list[float | str | None] = []
    for ids in cohort.scan_ids:
        here = [numbers[scan] if numeric else str(known[scan]) for scan in ids if scan in known]
        if not here:
            out.append(None)
        else:
            out.append(float(np.mean(here)) if numeric else here[0])  # type: ignore[arg-type]  # all are numbers
    return out


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


class _Floats:
    """A step that makes floats of objects."""

    def fit(self, x: NDArray[Any], y: Any = None) -> _Floats:
        return self

    def transform(self, x: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(x, dtype=np.float64)

    def fit_transform(self, x: NDArray[Any], y: Any = None) -> NDArray[np.float64]:
        return self.transform(x)
