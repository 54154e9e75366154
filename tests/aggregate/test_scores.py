"""The table of metrics from predictions alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from aggregate.intervals import clustered_auroc, logit_interval
from aggregate.scores import CONDITIONAL, metrics_table
from clear.endpoints import Endpoint
from clear.tasks import METRICS

A = Endpoint("a", "binary", ("absent", "present"))
B = Endpoint("b", "binary", ("absent", "present"))
STAGE = Endpoint("stage", "multiclass", ("I", "II", "III"))


def predictions(endpoint: Endpoint, n: int = 60, folds: int = 3, repeats: int = 1, scans: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    rows = []
    code = rng.integers(0, len(endpoint.classes), n)
    names = endpoint.classes[1:] if endpoint.kind == "binary" else endpoint.classes
    for repeat in range(repeats):
        for i in range(n):
            for name in names:
                truth = int(endpoint.classes.index(name) == code[i])
                key = (f"s{i:03d}", f"p{i // scans:03d}", endpoint.name, name, repeat, (i // scans) % folds, "test")
                rows.append((*key, truth, None, float(rng.normal(truth, 1))))
    columns = ["scan_id", "patient_id", "endpoint", "class", "repeat", "fold", "split", "y_true", "event", "y_score"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def row(table: pl.DataFrame, **where: str) -> dict[str, object]:
    found = table.filter(**where)
    assert found.height == 1
    return found.row(0, named=True)


def test_fold_means_and_pooled_values_are_scikit_learns() -> None:
    scored = predictions(A)
    table = metrics_table(scored, [A], METRICS)
    for metric, function in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        per_fold = [function(t["y_true"], t["y_score"]) for _, t in scored.group_by("fold")]
        mean = row(table, metric=metric, estimator="fold_mean")
        assert mean["estimate"] == pytest.approx(np.mean(per_fold), abs=1e-12)
        assert mean["fold_sd"] == pytest.approx(np.std(per_fold, ddof=1), abs=1e-12)
        pooled = row(table, metric=metric, estimator="pooled")
        assert pooled["estimate"] == pytest.approx(function(scored["y_true"], scored["y_score"]), abs=1e-12)
        for each in (mean, pooled):
            assert each["ci_low"] < each["estimate"] < each["ci_high"]
            assert (each["n"], each["n_patients"]) == (60, 60)
            assert each["n_positive"] == scored["y_true"].sum()
            assert CONDITIONAL in each["interval"]
    assert table.columns[:1] + table.columns[2:8] == [
        "endpoint",
        "metric",
        "estimator",
        "estimate",
        "fold_sd",
        "ci_low",
        "ci_high",
    ]


def test_a_pooled_auroc_has_the_delong_interval_and_several_scans_a_patient_the_clustered_one() -> None:
    for scans, name in ((1, "DeLong"), (3, "clustered DeLong")):
        scored = predictions(A, scans=scans)
        cell = row(metrics_table(scored, [A], ["auroc"]), metric="auroc", estimator="pooled")
        number = np.unique(scored["patient_id"], return_inverse=True)[1]
        auc, variance = clustered_auroc(scored["y_true"].to_numpy() == 1, scored["y_score"].to_numpy(), number)
        assert (cell["ci_low"], cell["ci_high"]) == pytest.approx(logit_interval(auc, variance))
        assert cell["interval"].startswith(name)
        assert cell["n_patients"] == 60 // scans


def test_a_fold_of_one_class_is_not_defined_and_never_a_half() -> None:
    scored = predictions(A).with_columns(y_true=pl.when(pl.col("fold") == 0).then(0).otherwise("y_true").cast(pl.Int64))
    cell = row(metrics_table(scored, [A], ["auroc"]), estimator="fold_mean")
    others = [roc_auc_score(t["y_true"], t["y_score"]) for (f,), t in scored.group_by("fold") if f != 0]
    assert cell["estimate"] == pytest.approx(np.mean(others))
    assert cell["folds_defined"] == 2
    nothing = metrics_table(scored.with_columns(y_true=pl.lit(0)), [A], METRICS)
    assert nothing["estimate"].is_null().all()
    assert set(nothing["interval"]) == {"not defined"}


def test_unknown_labels_are_left_out() -> None:
    scored = predictions(A)
    hidden = scored.with_columns(y_true=pl.when(pl.col("scan_id") < "s020").then(None).otherwise("y_true"))
    kept = scored.filter(pl.col("scan_id") >= "s020")
    assert metrics_table(hidden, [A], ["auroc"])["estimate"].to_list() == pytest.approx(
        metrics_table(kept, [A], ["auroc"])["estimate"].to_list()
    )


def test_several_endpoints_end_with_their_mean() -> None:
    scored = pl.concat([predictions(A), predictions(B, seed=1)])
    table = metrics_table(scored, [A, B], METRICS)
    for metric in METRICS:
        for estimator in ("fold_mean", "pooled"):
            parts = [row(table, endpoint=e, metric=metric, estimator=estimator)["estimate"] for e in ("a", "b")]
            mean = row(table, endpoint="macro", metric=metric, estimator=estimator)
            assert mean["estimate"] == pytest.approx(np.mean(parts))
            assert mean["ci_low"] < mean["estimate"] < mean["ci_high"]
            assert mean["n"] is None


def test_a_multiclass_endpoint_has_a_row_a_class_and_their_mean() -> None:
    table = metrics_table(predictions(STAGE), [STAGE], ["auroc"])
    of_class = table.filter(pl.col("class") != "macro", estimator="pooled")["estimate"]
    assert row(table, **{"class": "macro", "estimator": "pooled"})["estimate"] == pytest.approx(of_class.mean())
    assert table.filter(estimator="pooled")["class"].to_list() == ["I", "II", "III", "macro"]


def test_repeats_average_scores_when_pooled_and_values_when_not() -> None:
    scored = predictions(A, repeats=2)
    table = metrics_table(scored, [A], ["auroc"])
    mean = scored.group_by("scan_id").agg(pl.col("y_score").mean(), pl.col("y_true").first())
    assert row(table, estimator="pooled")["estimate"] == pytest.approx(roc_auc_score(mean["y_true"], mean["y_score"]))
    values = [roc_auc_score(t["y_true"], t["y_score"]) for _, t in scored.group_by("repeat", "fold")]
    assert row(table, estimator="fold_mean")["estimate"] == pytest.approx(np.mean(values))
    assert row(table, estimator="fold_mean")["folds_defined"] == 6


def test_the_order_of_the_predictions_does_not_matter() -> None:
    scored = predictions(A)
    assert metrics_table(scored.sample(fraction=1, shuffle=True, seed=0), [A], METRICS).equals(
        metrics_table(scored, [A], METRICS)
    )
