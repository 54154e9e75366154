"""The table of metrics from predictions alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from aggregate.intervals import clustered_auroc, logit_interval
from aggregate.metrics import plain
from aggregate.scores import CONDITIONAL, metrics_table
from aggregate.survival import c_index
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tasks import METRICS

A = Endpoint("a", "binary", ("absent", "present"))
B = Endpoint("b", "binary", ("absent", "present"))
STAGE = Endpoint("stage", "multiclass", ("I", "II", "III"))
GRADE = Endpoint("grade", "ordinal", ("low", "middle", "high"))
AGE = Endpoint("age", "regression")
DEATH = Endpoint("os", "survival", event="dead")


COLUMNS = ["scan_id", "patient_id", "endpoint", "class", "repeat", "fold", "split", "y_true", "event", "y_score"]


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
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def probabilities(
    endpoint: Endpoint, n: int = 90, folds: int = 3, seed: int = 0
) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """(predictions, codes (n,), probabilities (n, C)) of an endpoint with several classes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n)
    scores = rng.dirichlet(np.ones(3), n) + 0.6 * np.eye(3)[codes]
    scores /= scores.sum(axis=1, keepdims=True)
    rows = [
        (f"s{i:03d}", f"p{i:03d}", endpoint.name, name, 0, i % folds, "test", float(codes[i] == c), None, scores[i, c])
        for i in range(n)
        for c, name in enumerate(endpoint.classes)
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row"), codes, scores


def numbers(endpoint: Endpoint, n: int = 80, folds: int = 4, seed: int = 0) -> pl.DataFrame:
    """Predictions of a quantity, or of a survival time with hazards on a scale of each fold's own."""
    rng = np.random.default_rng(seed)
    truth = rng.exponential(10, n)
    rows = []
    for i in range(n):
        event = int(rng.random() < 0.7) if endpoint.kind == "survival" else None
        score = (
            -np.log(truth[i]) + rng.normal() + 50 * (i % folds) if event is not None else truth[i] + rng.normal(0, 4)
        )
        rows.append((f"s{i:03d}", f"p{i:03d}", endpoint.name, "", 0, i % folds, "test", truth[i], event, score))
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def fixed_test(n: int = 60, models: int = 4, seed: int = 0) -> pl.DataFrame:
    """A binary endpoint of a fixed test set that every model scored."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    rows = [
        (
            f"s{i:03d}",
            f"p{i:03d}",
            "a",
            "present",
            0,
            fold,
            "test",
            float(truth[i]),
            None,
            float(rng.normal(truth[i], 2)),
        )
        for fold in range(models)
        for i in range(n)
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


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


def test_a_patient_in_several_folds_is_no_independent_case_in_each() -> None:
    """Every patient has the same score in three folds: their mean is as sure as one of them, not surer."""
    one = predictions(A, n=40, folds=1)
    three = pl.concat([one.with_columns(fold=pl.lit(f), scan_id=pl.col("scan_id") + f"-{f}") for f in range(3)])
    cell = row(metrics_table(three, [A], ["auroc"]), estimator="fold_mean")
    alone = row(metrics_table(one, [A], ["auroc"]), estimator="fold_mean")
    assert cell["estimate"] == pytest.approx(alone["estimate"])
    assert cell["interval"].startswith("bootstrap over patients")
    assert cell["ci_high"] - cell["ci_low"] == pytest.approx(alone["ci_high"] - alone["ci_low"], rel=0.15)


def test_scores_of_a_fold_that_learnt_nothing_are_left_out_and_counted() -> None:
    scored = predictions(A)
    empty = scored.with_columns(y_score=pl.when(pl.col("fold") == 0).then(None).otherwise("y_score"))
    table = metrics_table(empty, [A], ["auroc"])
    others = [roc_auc_score(t["y_true"], t["y_score"]) for (f,), t in scored.group_by("fold") if f != 0]
    mean = row(table, estimator="fold_mean")
    assert (mean["estimate"], mean["folds_defined"], mean["n"]) == (pytest.approx(np.mean(others)), 2, 40)
    left = scored.filter(pl.col("fold") != 0)
    assert row(table, estimator="pooled")["estimate"] == pytest.approx(roc_auc_score(left["y_true"], left["y_score"]))
    none = metrics_table(scored.with_columns(y_score=pl.lit(None, pl.Float64)), [A], METRICS)
    assert none["estimate"].is_null().all()


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


@pytest.mark.parametrize("endpoint", [STAGE, GRADE], ids=lambda e: e.kind)
def test_endpoints_of_several_classes_have_their_own_metrics_in_the_macro_row(endpoint: Endpoint) -> None:
    scored, codes, scores = probabilities(endpoint)
    called = (scores.cumsum(axis=1) >= 0.5).argmax(axis=1) if endpoint.kind == "ordinal" else scores.argmax(axis=1)
    table = metrics_table(scored, [endpoint], ["accuracy", "kappa", "f1", "brier"]).filter(estimator="pooled")
    weights = "quadratic" if endpoint.kind == "ordinal" else None
    expected = {
        "accuracy": accuracy_score(codes, called),
        "kappa": cohen_kappa_score(codes, called, weights=weights),
        "f1": f1_score(codes, called, average="macro"),
        "brier": ((scores - np.eye(3)[codes]) ** 2).mean(),
    }
    for metric, value in expected.items():
        assert row(table, metric=metric, **{"class": "macro"})["estimate"] == pytest.approx(value), metric
    per_class = f1_score(codes, called, average=None)
    found = table.filter(pl.col("class") != "macro", metric="f1")
    assert found["estimate"].to_list() == pytest.approx(per_class.tolist())
    assert found["n_positive"].to_list() == [int((codes == c).sum()) for c in range(3)]
    assert table.filter(pl.col("class") != "macro", metric="accuracy").height == 0


def test_a_quantity_has_its_errors_and_no_positives() -> None:
    scored = numbers(AGE)
    table = metrics_table(scored, [AGE], METRICS)  # classes' metrics are asked for: it has its own
    for metric, function in (("mae", mean_absolute_error), ("r2", r2_score)):
        pooled = row(table, metric=metric, estimator="pooled")
        assert pooled["estimate"] == pytest.approx(function(scored["y_true"], scored["y_score"]))
        assert pooled["ci_low"] < pooled["estimate"] < pooled["ci_high"]
        assert (pooled["n"], pooled["n_positive"], pooled["class"]) == (80, None, "")
        folds = [function(t["y_true"], t["y_score"]) for _, t in scored.group_by("fold")]
        assert row(table, metric=metric, estimator="fold_mean")["estimate"] == pytest.approx(np.mean(folds))


def test_concordance_is_measured_within_folds_only() -> None:
    scored = numbers(DEATH)
    table = metrics_table(scored, [DEATH], ["auroc", "c_index"])
    assert table["estimator"].to_list() == ["fold_mean"]
    cell = row(table, metric="c_index")
    values = [
        plain(c_index, t.select("y_true", "event").to_numpy().astype(float), t["y_score"].to_numpy())
        for _, t in scored.group_by("fold")
    ]
    assert cell["estimate"] == pytest.approx(np.mean(values))
    assert cell["n_positive"] == scored["event"].sum()
    assert cell["ci_low"] < cell["estimate"] < cell["ci_high"]
    moved = scored.with_columns(y_score=pl.col("y_score") - 1000 * pl.col("fold"))
    assert metrics_table(moved, [DEATH], ["c_index"])["estimate"][0] == pytest.approx(cell["estimate"])


def test_a_fixed_test_set_is_judged_by_the_mean_of_its_models() -> None:
    scored = fixed_test()
    table = metrics_table(scored, [A], METRICS)
    assert set(table["estimator"]) == {"fold_mean", "ensemble"}
    mean = scored.group_by("scan_id").agg(pl.col("y_score").mean(), pl.col("y_true").first()).sort("scan_id")
    ensemble = row(table, metric="auroc", estimator="ensemble")
    truth, scores = mean["y_true"].to_numpy() == 1, mean["y_score"].to_numpy()
    assert ensemble["estimate"] == pytest.approx(roc_auc_score(truth, scores))
    variance = clustered_auroc(truth, scores, np.arange(60))[1]
    assert (ensemble["ci_low"], ensemble["ci_high"]) == pytest.approx(logit_interval(ensemble["estimate"], variance))
    assert ensemble["n"] == 60
    single = row(table, metric="auroc", estimator="fold_mean")
    each = [roc_auc_score(t["y_true"], t["y_score"]) for _, t in scored.group_by("fold")]
    assert single["estimate"] == pytest.approx(np.mean(each))
    assert single["fold_sd"] == pytest.approx(np.std(each, ddof=1))
    assert ensemble["estimate"] > single["estimate"]  # independent noise is averaged away


def test_an_ensemble_on_a_fixed_test_set_is_not_conditional_and_everything_else_is() -> None:
    for metric in METRICS:
        table = metrics_table(fixed_test(), [A], [metric])
        assert CONDITIONAL not in row(table, estimator="ensemble")["interval"]
        assert CONDITIONAL in row(table, estimator="fold_mean")["interval"]
    assert metrics_table(predictions(A), [A], METRICS)["interval"].str.contains(CONDITIONAL).all()


def test_only_rows_of_the_scored_split_count() -> None:
    scored = predictions(A)
    others = predictions(A, seed=5).with_columns(split=pl.lit("inner"), fold=pl.lit(0, pl.Int64))
    assert metrics_table(pl.concat([others, scored]), [A], METRICS).equals(metrics_table(scored, [A], METRICS))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: pl.concat([t, t[:1]]), "scan 's000' has two rows of class 'present' for one model"),
        (
            lambda t: pl.concat([t, t[:1].with_columns(repeat=pl.lit(1, pl.Int64), y_true=1 - pl.col("y_true"))]),
            "two different labels",
        ),
        (
            lambda t: pl.concat([t, t[:1].with_columns(repeat=pl.lit(1, pl.Int64), patient_id=pl.lit("x"))]),
            "rows of two patients",
        ),
        (lambda t: t.with_columns(pl.lit("yes").alias("class")), "class 'yes' is none of present"),
    ],
)
def test_predictions_that_contradict_themselves_are_refused(spoil, says: str) -> None:
    scored = predictions(A).with_columns(pl.col("repeat", "fold", "y_true").cast(pl.Int64))
    with pytest.raises(InputError, match=says):
        metrics_table(spoil(scored).select(scored.columns).cast(dict(scored.schema)), [A], METRICS)
