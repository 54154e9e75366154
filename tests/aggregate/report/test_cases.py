"""Cases: called as the metrics call them, and the worst errors first."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from aggregate.predictions import SCHEMA
from aggregate.report.cases import cases, misranked
from aggregate.scored import Scored, numbered_patients, read_scored
from aggregate.survival import c_index
from clear.endpoints import Endpoint


def predictions(rows: list[tuple[str, str, str, int, float | None, int | None, float]]) -> pl.DataFrame:
    """Of (scan, endpoint, class, fold, truth, event, score); each scan a patient."""
    full = [(s, f"p-{s}", e, c, 0, f, "test", t, v, y) for s, e, c, f, t, v, y in rows]
    return pl.DataFrame(full, schema=SCHEMA, orient="row")


def found(table: pl.DataFrame, *endpoints: Endpoint) -> list:
    return cases(read_scored(table, endpoints, numbered_patients(table)), table)


SICK = Endpoint("sick", "binary", ("no", "yes"))


def test_errors_come_first_and_the_worst_before_the_rest() -> None:
    table = predictions(
        [("a", "sick", "yes", 0, 1.0, None, 0.9), ("b", "sick", "yes", 0, 1.0, None, 0.1),
         ("c", "sick", "yes", 1, 0.0, None, 0.6), ("d", "sick", "yes", 1, 0.0, None, 0.45)]
    )  # fmt: skip
    listed = found(table, SICK)
    assert [(case.scan, case.wrong) for case in listed] == [("b", True), ("c", True), ("d", False), ("a", False)]
    assert [round(case.error, 6) for case in listed] == [0.9, 0.6, 0.45, 0.1]
    assert (listed[0].truth, listed[0].predicted, listed[0].patient) == ("yes", "no", "p-b")
    assert listed[0].models == ((0, 0),)


def test_a_binary_score_of_one_half_is_called_positive_as_in_the_metrics() -> None:
    case = found(predictions([("a", "sick", "yes", 0, 0.0, None, 0.5)]), SICK)[0]
    assert (case.predicted, case.wrong) == ("yes", True)


def test_several_models_of_a_scan_speak_with_their_mean() -> None:
    table = predictions([("a", "sick", "yes", 0, 1.0, None, 0.2), ("a", "sick", "yes", 1, 1.0, None, 0.6)])
    case = found(table, SICK)[0]
    assert case.score == pytest.approx(0.4)
    assert case.models == ((0, 0), (0, 1))


@pytest.mark.parametrize(("kind", "called"), [("multiclass", "low"), ("ordinal", "mid")])
def test_several_classes_are_called_by_the_most_probable_or_the_median(kind: str, called: str) -> None:
    scores = {"low": 0.4, "mid": 0.25, "high": 0.35}
    table = predictions([("a", "grade", name, 0, float(name == "high"), None, score) for name, score in scores.items()])
    case = found(table, Endpoint("grade", kind, ("low", "mid", "high")))[0]  # type: ignore[arg-type]
    assert (case.truth, case.predicted, case.wrong) == ("high", called, True)
    assert case.error == pytest.approx(1 - 0.35)
    assert case.score == pytest.approx(scores[called])


def test_a_quantity_is_never_wrong_only_far() -> None:
    table = predictions([("a", "size", "", 0, 10.0, None, 12.0), ("b", "size", "", 0, 4.0, None, -1.0)])
    listed = found(table, Endpoint("size", "regression"))
    assert [(case.scan, case.error, case.wrong) for case in listed] == [("b", 5.0, None), ("a", 2.0, None)]


def test_endpoints_take_turns_and_errors_of_all_come_before_what_is_right() -> None:
    rows = [(s, "sick", "yes", 0, 1.0, None, y) for s, y in (("a", 0.1), ("b", 0.2), ("c", 0.9))]
    rows += [(s, "rare", "yes", 0, 1.0, None, y) for s, y in (("a", 0.8), ("b", 0.3), ("c", 0.7))]
    listed = found(predictions(rows), SICK, Endpoint("rare", "binary", ("no", "yes")))
    assert [(case.endpoint, case.scan) for case in listed[:3]] == [("sick", "a"), ("rare", "b"), ("sick", "b")]
    assert [case.wrong for case in listed] == [True, True, True, False, False, False]


def test_misranked_pairs_are_those_that_the_c_index_counts() -> None:
    rng = np.random.default_rng(0)
    n = 30
    truth = np.stack([rng.integers(1, 12, n), rng.integers(0, 2, n)], 1).astype(float)
    risk = rng.integers(0, 6, n).astype(float)
    scored = Scored(
        Endpoint("t", "survival", event="e"), tuple(map(str, range(n))), np.arange(n), truth, risk[None, :, None]
    )
    wrong, pairs = 0.0, 0
    per_bag = np.zeros((n, 2))
    for i in range(n):
        for j in range(n):
            first = truth[i, 0] < truth[j, 0] or (truth[i, 0] == truth[j, 0] and truth[j, 1] == 0)
            if truth[i, 1] == 1 and i != j and first:
                lost = 1.0 if risk[j] > risk[i] else 0.5 if risk[j] == risk[i] else 0.0
                wrong, pairs = wrong + lost, pairs + 1
                per_bag[i] += (lost, 1)
                per_bag[j] += (lost, 1)
    expected = np.divide(per_bag[:, 0], per_bag[:, 1], out=np.zeros(n), where=per_bag[:, 1] > 0)
    np.testing.assert_allclose(misranked(scored), expected)
    assert 1 - wrong / pairs == pytest.approx(float(c_index(truth, risk, np.ones((1, n)))[0]))
