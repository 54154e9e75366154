"""Two runs against each other: equal ones do not differ, paired tests are sharper, and unlike runs are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from aggregate.compare import BOOTSTRAP, compare, compare_runs, comparison_text, holm
from aggregate.intervals import clustered_delong, delong, paired_test, wald_interval
from aggregate.predictions import SCHEMA
from clear.endpoints import Endpoint
from clear.errors import InputError

A = Endpoint("a", "binary", ("absent", "present"))
B = Endpoint("b", "binary", ("absent", "present"))
GRADE = Endpoint("grade", "ordinal", ("low", "middle", "high"))
DEATH = Endpoint("os", "survival", event="dead")


def predictions(
    endpoint: Endpoint = A, strength: float = 1.0, *, n: int = 90, scans: int = 1, model: int = 0, folds: int = 3
) -> pl.DataFrame:
    """Scores of one model on a cohort that is the same whatever the model."""
    cohort, rng = np.random.default_rng(0), np.random.default_rng([1, model])
    codes, times, events = cohort.integers(0, 3, n), cohort.exponential(10, n), cohort.integers(0, 2, n)
    quality = cohort.standard_normal(n // scans + 1)
    rows = []
    for i in range(n):
        names = endpoint.score_classes
        for position, name in enumerate(names):
            truth = times[i] if endpoint.kind == "survival" else float(codes[i] == (position if len(names) > 1 else 1))
            signal = -np.log(truth) if endpoint.kind == "survival" else truth
            score = strength * signal + quality[i // scans] + 0.5 * rng.standard_normal()
            key = (f"s{i:03d}", f"p{i // scans:03d}", endpoint.name, name, 0, (i // scans) % folds, "test")
            event = int(events[i]) if endpoint.kind == "survival" else None
            rows.append((*key, float(truth), event, 1 / (1 + np.exp(-score)) / len(names)))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def row(table: pl.DataFrame, **where: str) -> dict[str, object]:
    found = table.filter(**where)
    assert found.height == 1
    return found.row(0, named=True)


def test_a_run_does_not_differ_from_itself() -> None:
    table = compare(predictions(), predictions(), [A], [A])
    assert table["difference"].to_list() == [0] * table.height
    assert table["p"].is_null().all()  # a difference without variance has no p


def test_a_pooled_auroc_is_compared_by_paired_delong_and_by_the_paired_bootstrap() -> None:
    first, second = predictions(strength=2), predictions(strength=0.7, model=1)
    table = compare(first, second, [A], [A], metrics=["auroc"])
    cell = row(table, estimator="pooled", test="paired DeLong")
    truth = first["y_true"].to_numpy() == 1
    scores = np.stack([first["y_score"].to_numpy(), second["y_score"].to_numpy()])
    _, p, variance = paired_test(*delong(truth, scores), 0, 1)
    difference = roc_auc_score(truth, scores[0]) - roc_auc_score(truth, scores[1])
    assert cell["difference"] == pytest.approx(difference)
    assert cell["p"] == pytest.approx(p)
    assert (cell["ci_low"], cell["ci_high"]) == pytest.approx(wald_interval(difference, variance))
    drawn = row(table, estimator="pooled", test=BOOTSTRAP)
    assert drawn["difference"] == cell["difference"]
    assert (drawn["ci_low"], drawn["ci_high"]) == pytest.approx((cell["ci_low"], cell["ci_high"]), abs=0.03)
    assert (drawn["p"] < 0.05) == (cell["p"] < 0.05)
    assert table.filter(estimator="fold_mean")["test"].to_list() == [BOOTSTRAP]


def test_several_scans_of_a_patient_are_compared_by_the_clustered_form() -> None:
    first, second = predictions(scans=3), predictions(scans=3, model=1)
    cell = row(compare(first, second, [A], [A], metrics=["auroc"]), test="paired clustered DeLong")
    patients = np.arange(90) // 3
    scores = np.stack([first["y_score"].to_numpy(), second["y_score"].to_numpy()])
    p = paired_test(*clustered_delong(first["y_true"].to_numpy() == 1, scores, patients), 0, 1)[1]
    assert cell["p"] == pytest.approx(p)
    assert cell["n_patients"] == 30


@pytest.mark.parametrize("metric", ["auroc", "average_precision", "brier"])
def test_pairing_uses_that_both_runs_saw_the_same_patients(metric: str) -> None:
    """What the patients share cancels: the paired interval is far narrower than two separate ones would allow."""
    from aggregate.scores import metrics_table

    first, second = predictions(), predictions(model=1)
    paired = row(compare(first, second, [A], [A], metrics=[metric]), estimator="pooled", test=BOOTSTRAP)
    single = [
        metrics_table(each, [A], [metric]).filter(estimator="pooled").row(0, named=True) for each in (first, second)
    ]
    apart = np.hypot(*(each["ci_high"] - each["ci_low"] for each in single))
    assert paired["ci_high"] - paired["ci_low"] < 0.75 * apart


def test_swapping_the_runs_turns_the_sign() -> None:
    first, second = predictions(strength=1.5), predictions(model=1)
    table, other = compare(first, second, [A], [A]), compare(second, first, [A], [A])
    assert other["difference"].to_list() == pytest.approx([-d for d in table["difference"]])
    delong, back = (each.filter(test="paired DeLong").row(0, named=True) for each in (table, other))
    assert (back["ci_low"], back["ci_high"]) == pytest.approx((-delong["ci_high"], -delong["ci_low"]))


def test_every_kind_is_compared_and_hazards_within_folds_only() -> None:
    first = pl.concat([predictions(GRADE, 2), predictions(DEATH, 2)])
    second = pl.concat([predictions(GRADE, model=1), predictions(DEATH, model=1)])
    table = compare(first, second, [GRADE, DEATH], [GRADE, DEATH], metrics=["kappa", "auroc", "c_index"])
    assert table.filter(metric="c_index")["estimator"].to_list() == ["fold_mean"]
    assert set(table.filter(metric="kappa")["class"]) == {"macro"}
    assert table.filter(pl.col("p_holm").is_not_null() & (pl.col("endpoint") == "grade"))[
        "class"
    ].unique().to_list() == ["macro"]


def test_p_values_are_corrected_over_the_endpoints_and_not_over_their_mean() -> None:
    first = pl.concat([predictions(A, 2), predictions(B, 1.2)])
    second = pl.concat([predictions(A, model=1), predictions(B, model=1)])
    table = compare(first, second, [A, B], [A, B], metrics=["auroc"]).filter(test="paired DeLong")
    p = dict(table.select("endpoint", "p").iter_rows())
    corrected = dict(table.select("endpoint", "p_holm").iter_rows())
    small, large = sorted(p, key=lambda name: p[name])
    assert corrected[small] == pytest.approx(min(1, 2 * p[small]))
    assert corrected[large] == pytest.approx(max(corrected[small], p[large]))
    means = compare(first, second, [A, B], [A, B], metrics=["auroc"]).filter(endpoint="macro")
    assert means.height == 2
    assert means["p"].is_not_null().all()
    assert means["p_holm"].is_null().all()


def test_holm_is_monotone_and_never_above_one() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_a_single_endpoint_needs_no_correction() -> None:
    table = compare(predictions(strength=2), predictions(model=1), [A], [A])
    assert table["p_holm"].to_list() == table["p"].to_list()


def test_other_scans_or_labels_are_refused_with_their_numbers() -> None:
    first = predictions()
    second = predictions(model=1).filter(pl.col("scan_id") >= "s005")
    flipped = pl.when(pl.col("scan_id") >= "s087").then(1 - pl.col("y_true")).otherwise(pl.col("y_true"))
    second = second.with_columns(y_true=flipped)
    says = r"A and B did not judge the same: 5 scans are in the first only, 0 in the second only, and 3 have different"
    with pytest.raises(InputError, match=says + r".* the 82 scans that they share with --common"):
        compare(first, second, [A], [A])
    table = compare(first, second, [A], [A], common=True)
    assert set(table["n"]) == {82}
    shared = (pl.col("scan_id") >= "s005") & (pl.col("scan_id") < "s087")
    kept = [each.filter(shared) for each in (first, second)]
    assert table.equals(compare(*kept, [A], [A]))


def test_a_patient_under_another_name_is_another_patient() -> None:
    renamed = predictions(model=1).with_columns(patient_id=pl.col("patient_id") + "x")
    with pytest.raises(InputError, match="90 have different labels or patients"):
        compare(predictions(), renamed, [A], [A])
    with pytest.raises(InputError, match="share no scan"):
        compare(predictions(), renamed, [A], [A], common=True)


def test_a_label_that_one_run_does_not_know_is_a_difference() -> None:
    hidden = predictions(model=1).with_columns(y_true=pl.when(pl.col("scan_id") > "s000").then(pl.col("y_true")))
    with pytest.raises(InputError, match="1 scans are in the first only"):
        compare(predictions(), hidden, [A], [A])


def test_other_questions_are_refused() -> None:
    both = pl.concat([predictions(A), predictions(B)])
    with pytest.raises(InputError, match=r"no endpoint in common: a and b"):
        compare(predictions(A), predictions(B), [A], [B])
    with pytest.raises(InputError, match=r"share 1 endpoints, 1 are in one only \(b\)"):
        compare(predictions(A), both, [A], [A, B])
    assert set(compare(predictions(A), both, [A], [A, B], common=True)["endpoint"]) == {"a"}
    turned = Endpoint("a", "binary", ("present", "absent"))
    with pytest.raises(InputError, match="expected the same question in both"):
        compare(predictions(A), predictions(A), [A], [turned])
    fixed = pl.concat([predictions(A).with_columns(fold=pl.lit(f, pl.Int64)) for f in range(2)])
    with pytest.raises(InputError, match="one scored a fixed test set"):
        compare(fixed, predictions(A), [A], [A])


def test_models_of_a_fixed_test_set_are_compared_as_ensembles() -> None:
    def fixed(model: int) -> pl.DataFrame:
        return pl.concat([predictions(A, model=model * 2 + f).with_columns(fold=pl.lit(f, pl.Int64)) for f in range(2)])

    table = compare(fixed(0), fixed(1), [A], [A], metrics=["auroc"])
    assert set(table["estimator"]) == {"fold_mean", "ensemble"}
    assert row(table, test="paired DeLong")["estimator"] == "ensemble"


@dataclass
class FakeRun:
    path: Path
    predictions: pl.DataFrame
    endpoints: tuple[Endpoint, ...]
    settings: dict[str, str]


def test_runs_whose_task_averages_scans_are_compared_by_patient() -> None:
    def run(model: int, several: str) -> FakeRun:
        table = predictions(A, scans=3, model=model).with_columns(
            y_true=pl.col("y_true").first().over("patient_id"), fold=pl.lit(0, pl.Int64)
        )
        return FakeRun(Path(f"runs/{model}"), table, (A,), {"several": several})

    averaged = compare_runs(run(0, "average"), run(1, "average"), metrics=["auroc"])
    assert set(averaged["n"]) == {30}
    assert "paired DeLong" in averaged["test"].to_list()
    single = compare_runs(run(0, ""), run(1, ""), metrics=["auroc"])
    assert set(single["n"]) == {90}
    text = comparison_text(averaged, ("runs/0", "runs/1"))
    lines = text.splitlines()
    assert lines[:2] == ["A: runs/0", "B: runs/1"]
    assert "A - B (95 % CI)" in lines[2]
    assert len(lines) == 3 + averaged.height + 2
    assert "conditional on the fitted models" in lines[-1]


def test_the_text_names_each_figure_as_the_table_of_a_run_does() -> None:
    first = pl.concat([predictions(GRADE, 2), predictions(A, 2), predictions(B)])
    second = pl.concat([predictions(GRADE, model=1), predictions(A, model=1), predictions(B, model=1)])
    table = compare(first, second, [GRADE, A, B], [GRADE, A, B], metrics=["auroc"])
    names = [line.split("  ")[0] for line in comparison_text(table).splitlines()[3:-2]]
    assert list(dict.fromkeys(names)) == ["grade: low", "grade: middle", "grade: high", "grade: mean", "a", "b", "mean"]
