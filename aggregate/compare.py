"""Comparing two runs: the same patients, the same labels, two sets of scores.

The difference of every metric with an interval and a p-value: by the paired bootstrap, in which both runs see the same
draws of patients, and for one AUROC of scores that can be pooled also by the paired test of DeLong (with several scans
a patient its clustered form, Obuchowski 1997). What it says is conditional on the fitted models of both runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.intervals import bca_interval, bca_p_value, clustered_delong, paired_test, wald_interval
from aggregate.predictions import average_scans
from aggregate.scored import FOLD_MEAN, Figure, Resampled, Scored, figures, numbered_patients, read_scored
from aggregate.scores import estimators_of, has_estimate
from aggregate.text import aligned
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tables import some

Floats = NDArray[np.float64]
METRICS = ("auroc", "average_precision", "balanced_accuracy", "brier", "kappa", "c_index", "mae", "r2")
BOOTSTRAP = "paired bootstrap over patients, BCa"
SCHEMA = {
    "endpoint": pl.String,
    "class": pl.String,
    "metric": pl.String,
    "estimator": pl.String,
    "test": pl.String,
    "a": pl.Float64,
    "b": pl.Float64,
    "difference": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "n": pl.Int64,
    "n_patients": pl.Int64,
}


class Judged(Protocol):
    """What comparing needs of a run."""

    @property
    def path(self) -> Path: ...
    @property
    def predictions(self) -> pl.DataFrame: ...
    @property
    def endpoints(self) -> tuple[Endpoint, ...]: ...


def compare_runs(
    run_a: Judged, run_b: Judged, *, metrics: Sequence[str] = METRICS, common: bool = False, seed: int = 0
) -> pl.DataFrame:
    """A row for each figure of the endpoints that both runs have: a, b, and a - b with its interval and p-values.

    metrics: each endpoint has those that its kind allows. common: compare on the scans that both scored under the same
    label; otherwise raises InputError, saying how many differ, when the runs did not score the same scans.

    p_holm: corrected over the endpoints (Holm, Scandinavian Journal of Statistics 1979, 6, 65-70), within each metric,
    estimator and test. The family has one figure an endpoint; means over endpoints and single classes of several are
    not part of it, their cell is null.
    """
    return compare(
        judged_rows(run_a),
        judged_rows(run_b),
        run_a.endpoints,
        run_b.endpoints,
        metrics=metrics,
        names=(str(run_a.path), str(run_b.path)),
        common=common,
        seed=seed,
    )


def judged_rows(run: Judged) -> pl.DataFrame:
    """The predictions that a run was judged by: of each scan, or averaged by patient where its task says so."""
    settings = getattr(run, "settings", {})
    return average_scans(run.predictions) if settings.get("several") == "average" else run.predictions


def compare(
    predictions_a: pl.DataFrame,
    predictions_b: pl.DataFrame,
    endpoints_a: Sequence[Endpoint],
    endpoints_b: Sequence[Endpoint],
    *,
    metrics: Sequence[str] = METRICS,
    names: tuple[str, str] = ("A", "B"),
    common: bool = False,
    seed: int = 0,
) -> pl.DataFrame:
    """`compare_runs` of the rows of two predictions.csv."""
    rows_a, rows_b = (each.filter(pl.col("split") == "test") for each in (predictions_a, predictions_b))
    endpoints = _shared_endpoints(endpoints_a, endpoints_b, names, common)
    estimators = estimators_of(rows_a)
    if estimators != estimators_of(rows_b):
        raise InputError(
            f"{names[0]} and {names[1]}: the models of one scored a fixed test set, those of the other different "
            "folds. Run both with the same folds or the same split"
        )
    kept_a, kept_b = _same_scans(rows_a, rows_b, endpoints, names, common)
    patients = numbered_patients(kept_a, kept_b)
    scored_a, scored_b = (read_scored(kept, endpoints, patients) for kept in (kept_a, kept_b))
    pairs = zip(figures(scored_a, endpoints, metrics), figures(scored_b, endpoints, metrics), strict=True)
    resampled = Resampled(len(patients), seed)
    rows = [
        row
        for a, b in pairs
        for estimator in estimators
        if has_estimate(a.metric, estimator)
        for row in _rows(a, b, estimator, resampled)
    ]
    return _with_holm(pl.DataFrame(rows, schema=SCHEMA), endpoints)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their own order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    steps = [min(1.0, (len(order) - rank) * p_values[i]) for rank, i in enumerate(order)]
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(steps) if steps else []
    return [float(value) for value in corrected]


def comparison_text(table: pl.DataFrame, names: tuple[str, str] = ("A", "B")) -> str:
    """What a terminal shows: a line a row of the table, named as in the table of a run."""
    lines = [f"A: {names[0]}", f"B: {names[1]}"]
    header = ["endpoint", "metric", "A", "B", "A - B (95 % CI)", "p", "p, Holm", "test"]
    rows = [header]
    several = {row["endpoint"] for row in table.iter_rows(named=True) if row["class"] == "macro"} - {"macro"}
    for row in table.iter_rows(named=True):
        interval = f" ({row['ci_low']:+.3f} to {row['ci_high']:+.3f})" if row["ci_low"] is not None else ""
        rows.append(
            [
                _name(row["endpoint"], row["class"], row["endpoint"] in several),
                f"{row['metric']}, {row['estimator']}",
                _number(row["a"]),
                _number(row["b"]),
                "not defined" if row["difference"] is None else f"{row['difference']:+.3f}{interval}",
                _p(row["p"]),
                _p(row["p_holm"]),
                row["test"],
            ]
        )
    lines += aligned(rows)
    lines.append("p, Holm: corrected over the endpoints, within a metric, an estimator and a test")
    lines.append("intervals and p-values: over patients, conditional on the fitted models of both runs")
    return "\n".join(lines)


def _shared_endpoints(
    endpoints_a: Sequence[Endpoint], endpoints_b: Sequence[Endpoint], names: tuple[str, str], common: bool
) -> list[Endpoint]:
    of_a, of_b = ({endpoint.name: endpoint for endpoint in each} for each in (endpoints_a, endpoints_b))
    shared = [endpoint for endpoint in endpoints_a if endpoint.name in of_b]
    if not shared:
        raise InputError(
            f"{names[0]} and {names[1]} have no endpoint in common: {some(of_a)} and {some(of_b)}; nothing to compare"
        )
    apart = sorted(set(of_a) ^ set(of_b))
    if apart and not common:
        raise InputError(
            f"{names[0]} and {names[1]} share {len(shared)} endpoints, {len(apart)} are in one only "
            f"({some(apart, 3)}). Compare the common ones with --common"
        )
    for endpoint in shared:
        other = of_b[endpoint.name]
        if (endpoint.kind, endpoint.classes) != (other.kind, other.classes):
            raise InputError(
                f"{endpoint.name} is {endpoint.kind} {list(endpoint.classes)} in {names[0]} and {other.kind} "
                f"{list(other.classes)} in {names[1]}; expected the same question in both"
            )
    return shared


def _same_scans(
    rows_a: pl.DataFrame, rows_b: pl.DataFrame, endpoints: Sequence[Endpoint], names: tuple[str, str], common: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of both on scans with the same known label and patient; raises InputError where that is not all."""
    wanted = pl.col("endpoint").is_in([endpoint.name for endpoint in endpoints]) & pl.col("y_true").is_not_null()
    kept = [rows.filter(wanted) for rows in (rows_a, rows_b)]
    labels_a, labels_b = (_labels(rows) for rows in kept)
    shared = {key for key, label in labels_a.items() if labels_b.get(key) == label}
    if (len(shared) < len(labels_a) or len(shared) < len(labels_b)) and not common:
        scans_a, scans_b = ({scan for scan, _ in labels} for labels in (labels_a, labels_b))
        differ = {scan for scan, _ in {*labels_a, *labels_b} - shared} & scans_a & scans_b
        raise InputError(
            f"{names[0]} and {names[1]} did not judge the same: {len(scans_a - scans_b)} scans are in the first only, "
            f"{len(scans_b - scans_a)} in the second only, and {len(differ)} have different labels or patients. "
            f"Compare the {len({scan for scan, _ in shared})} scans that they share with --common"
        )
    if not shared:
        raise InputError(f"{names[0]} and {names[1]} share no scan with the same label; nothing to compare")
    keys = pl.DataFrame(sorted(shared), schema={"scan_id": pl.String, "endpoint": pl.String}, orient="row")
    first, second = (rows.join(keys, on=keys.columns, how="semi") for rows in kept)
    return first, second


def _labels(rows: pl.DataFrame) -> dict[tuple[str, str], tuple[object, ...]]:
    """(scan, endpoint) -> its patient and what is known of each class, value or time."""
    label = pl.concat_str("class", "y_true", pl.col("event").fill_null(-1), separator="\x1f")
    table = rows.group_by("scan_id", "endpoint").agg(
        pl.col("patient_id").first(), label.unique().sort().str.join("\x1e")
    )
    return {(scan, endpoint): tuple(rest) for scan, endpoint, *rest in table.iter_rows()}


def _rows(a: Figure, b: Figure, estimator: str, resampled: Resampled) -> list[dict[str, object]]:
    """DeLong for one AUROC of mean scores; the bootstrap for every figure, of what is defined in both runs."""
    a, b = _defined_in_both(a, b, estimator)
    values = a.estimate(estimator), b.estimate(estimator)
    difference = values[0] - values[1]
    scored = {id(member.scored): member.scored for member in a.members}
    only = next(iter(scored.values())) if len(scored) == 1 else None
    row = {
        "endpoint": a.endpoint,
        "class": a.name,
        "metric": a.metric,
        "estimator": estimator,
        "a": _or_null(values[0]),
        "b": _or_null(values[1]),
        "difference": _or_null(difference),
        "n": None if only is None else len(only),
        "n_patients": len(np.unique(np.concatenate([each.patients for each in scored.values()]))),
    }
    out = []
    if only is not None and a.metric == "auroc" and len(a.members) == 1 and estimator != FOLD_MEAN:
        out.append({**row, **_delong(a, b, only)})
    low = high = p = math.nan
    if math.isfinite(difference):
        of_a, of_b = resampled.of(a, estimator), resampled.of(b, estimator)
        drawn, left_out = of_a[0] - of_b[0], of_a[1] - of_b[1]
        low, high = bca_interval(difference, drawn, left_out)
        p = bca_p_value(difference, drawn, left_out)
    out.append({**row, "test": BOOTSTRAP, "ci_low": _or_null(low), "ci_high": _or_null(high), "p": _or_null(p)})
    return out


def _defined_in_both(a: Figure, b: Figure, estimator: str) -> tuple[Figure, Figure]:
    """Without the members of a mean that only one run defines; as they are when none is left."""
    pairs = list(zip(a.members, b.members, strict=True))
    kept = [pair for pair in pairs if all(math.isfinite(member.estimate(estimator)) for member in pair)] or pairs
    first, second = (tuple(members) for members in zip(*kept, strict=True))
    return replace(a, members=first), replace(b, members=second)


def _delong(a: Figure, b: Figure, scored: Scored) -> dict[str, object]:
    truth, scores = a.members[0].seen
    auc, covariance = clustered_delong(truth, np.stack([scores, b.members[0].seen[1]]), scored.patients)
    _, p, variance = paired_test(auc, covariance, 0, 1)
    low, high = wald_interval(float(auc[0] - auc[1]), variance)
    name = "paired clustered DeLong" if scored.several_rows else "paired DeLong"
    return {"test": name, "ci_low": _or_null(low), "ci_high": _or_null(high), "p": _or_null(p)}


def _with_holm(table: pl.DataFrame, endpoints: Sequence[Endpoint]) -> pl.DataFrame:
    kinds = {endpoint.name: endpoint.kind for endpoint in endpoints}
    corrected: list[float | None] = [None] * table.height
    families: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(table.iter_rows(named=True)):
        kind = kinds.get(row["endpoint"])  # none: the mean over endpoints
        speaks_for_all = row["class"] == "macro" or kind not in ("multiclass", "ordinal")
        if kind is not None and speaks_for_all and row["p"] is not None:
            test = "DeLong" if "DeLong" in row["test"] else row["test"]
            families.setdefault((row["metric"], row["estimator"], test), []).append(i)
    for members in families.values():
        for i, p in zip(members, holm([table["p"][i] for i in members]), strict=True):
            corrected[i] = p
    return table.with_columns(p_holm=pl.Series(corrected, dtype=pl.Float64))


def _name(endpoint: str, name: str, of_several_classes: bool) -> str:
    if of_several_classes:
        return f"{endpoint}: {'mean' if name == 'macro' else name}"
    return "mean" if endpoint == "macro" else endpoint


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
