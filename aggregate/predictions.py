"""Predictions: the rows of predictions.csv, written and read.

One row a bag for each score of an endpoint (`Endpoint.score_classes`): the positive class of a binary one, each class
of a multi-class or ordinal one, `class` empty for a quantity or a survival time. y_true is 1 or 0 for a class (the bag
is of it, or not), the value, or the time; event is 1 or 0 for survival and null elsewhere; both are null when unknown.
y_score is a probability, a value in the label's unit, or a log hazard (higher = earlier event); null where no model
that could learn the endpoint scored the bag.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.targets import Targets
from clear.errors import InputError

SCHEMA = {
    "scan_id": pl.String,
    "patient_id": pl.String,
    "endpoint": pl.String,
    "class": pl.String,
    "repeat": pl.Int64,
    "fold": pl.Int64,
    "split": pl.String,
    "y_true": pl.Float64,
    "event": pl.Int64,
    "y_score": pl.Float64,
}


def scans_of(name: str, known: Container[str]) -> list[str]:
    """The scans of the bag that predictions call `name`: itself, or several joined by `;`.

    known: scan ids, since one may hold a `;` of its own.
    """
    return [name] if name in known else name.split(";")


def prediction_rows(
    names: Sequence[str],
    patient_ids: Sequence[str],
    targets: Targets,
    bags: NDArray[np.int64],
    scores: NDArray[np.float64],
    *,
    repeat: int,
    fold: int,
    split: str = "test",
) -> pl.DataFrame:
    """The rows of one model.

    names, patient_ids: (B,) of all bags, as `targets` has them; bags: (n,) those that were scored; scores: (n, S) as
    `aggregate.targets.predicted` gives them, in the order of `bags`.
    """
    scan_id = pl.Series("scan_id", [names[bag] for bag in bags], dtype=pl.String)
    patient_id = pl.Series("patient_id", [patient_ids[bag] for bag in bags], dtype=pl.String)
    frames = []
    for e, (endpoint, columns) in enumerate(zip(targets.endpoints, targets.score_columns, strict=True)):
        codes = targets.codes[bags, e]
        event = np.full(len(bags), np.nan)
        if endpoint.kind == "survival" and targets.events is not None:
            event = targets.events[bags, e]
        for position, name in enumerate(endpoint.score_classes):
            truth = codes
            if endpoint.is_classes:
                code = endpoint.classes.index(name)
                truth = np.where(np.isfinite(codes), codes == code, np.nan)
            frames.append(
                pl.DataFrame([scan_id, patient_id]).with_columns(
                    pl.lit(endpoint.name).alias("endpoint"),
                    pl.lit(name).alias("class"),
                    pl.lit(repeat, pl.Int64).alias("repeat"),
                    pl.lit(fold, pl.Int64).alias("fold"),
                    pl.lit(split).alias("split"),
                    pl.Series("y_true", truth, dtype=pl.Float64).fill_nan(None),
                    pl.Series("event", event).fill_nan(None).cast(pl.Int64),
                    pl.Series("y_score", scores[:, columns.start + position], dtype=pl.Float64).fill_nan(None),
                )
            )
    return pl.concat(frames).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def read_predictions(path: Path | str) -> pl.DataFrame:
    """The rows of a predictions.csv; raises InputError when it is absent or not one."""
    try:
        table = pl.read_csv(path, schema_overrides=SCHEMA, infer_schema_length=0)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: missing or damaged; expected the predictions.csv of a run") from error
    lacking = [name for name in SCHEMA if name not in table.columns]
    if lacking:
        raise InputError(f"{path}: no column {lacking[0]!r}; expected {', '.join(SCHEMA)}")
    return table.select(*SCHEMA).with_columns(pl.col("class").fill_null(""))


def average_scans(predictions: pl.DataFrame) -> pl.DataFrame:
    """One row a patient in place of one a scan: the mean of the scans' scores, scan_id their ids joined by `;`.

    Scans with an unknown label take no part. Raises InputError where scans of a patient have different labels: their
    mean would belong to neither.
    """
    known = predictions.drop_nulls("y_true")
    keys = ["patient_id", "endpoint", "class", "repeat", "fold", "split"]
    grouped = known.sort("scan_id").group_by(keys, maintain_order=True)
    labels = grouped.agg(pl.struct("y_true", "event").n_unique().alias("labels")).filter(pl.col("labels") > 1)
    if labels.height:
        first = labels.row(0, named=True)
        raise InputError(
            f"{first['endpoint']}: {labels['patient_id'].n_unique()} patients have scans with different labels, first "
            f"{first['patient_id']!r}; scan predictions can be averaged only where a patient has one label"
        )
    joined = grouped.agg(
        pl.col("scan_id").str.join(";"), pl.col("y_true").first(), pl.col("event").first(), pl.col("y_score").mean()
    )
    return joined.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
