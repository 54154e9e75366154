"""Models of one row a bag: where a fold's training patients teach nothing there is no score."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from aggregate.cohort import Cohort
from aggregate.folds import Folds, folds_table
from aggregate.tabular import CoxRidge, RowModel, row_predictions
from aggregate.targets import Targets
from clear.endpoints import Endpoint

MODEL = RowModel(StandardScaler, lambda n: LogisticRegression(), lambda n: Ridge(), CoxRidge)
# bags 0..3 teach in the only fold, bags 4 and 5 are scored
SPLITS = ["train", "train", "train", "inner", "test", "test"]


def scores(endpoint: Endpoint, codes: list[float], events: list[float] | None = None) -> pl.Series:
    """y_score of the two scored bags, from a row of one number that tells the bags apart."""
    names = [f"s{i}" for i in range(6)]
    seen = None if events is None else np.array(events)[:, None]
    targets = Targets((endpoint,), np.array(codes, dtype=float)[:, None], seen)
    cohort = Cohort(tuple((name,) for name in names), tuple(names), targets, (), (), ())
    folds = Folds(folds_table([(0, 0, split, name, name) for split, name in zip(SPLITS, names, strict=True)]))
    return row_predictions(cohort, folds, np.arange(6.0)[:, None], MODEL)["y_score"]


@pytest.mark.parametrize(
    ("endpoint", "codes", "events"),
    [
        (Endpoint("y", "binary", ("0", "1")), [1, 1, 1, 1, 0, 1], None),
        (Endpoint("y", "binary", ("0", "1")), [np.nan] * 4 + [0, 1], None),
        (Endpoint("y", "multiclass", ("a", "b", "c")), [2, 2, 2, 2, 0, 1], None),
        (Endpoint("y", "regression"), [3, 3, 3, 3, 4, 5], None),
        (Endpoint("y", "survival", event="e"), [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 1]),
    ],
)
def test_what_cannot_be_learnt_has_no_score_rather_than_a_constant(endpoint: Endpoint, codes, events) -> None:
    found = scores(endpoint, codes, events)
    assert len(found) == 2 * len(endpoint.score_classes)
    assert found.is_null().all()


def test_what_can_be_learnt_has_one() -> None:
    for endpoint, events in (
        (Endpoint("y", "binary", ("0", "1")), None),
        (Endpoint("y", "regression"), None),
        (Endpoint("y", "survival", event="e"), [1, 0, 1, 1, 1, 1]),
    ):
        found = scores(endpoint, [0, 0, 1, 1, 1, 1], events)
        assert found.is_finite().all()
        assert found[0] != found[1]
