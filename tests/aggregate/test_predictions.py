"""The rows of predictions.csv, for every kind of endpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aggregate.predictions import SCHEMA, average_scans, prediction_rows, read_predictions
from aggregate.targets import Targets
from clear.endpoints import Endpoint
from clear.errors import InputError

ENDPOINTS = (
    Endpoint("a", "binary", ("absent", "present")),
    Endpoint("stage", "multiclass", ("I", "II", "III")),
    Endpoint("age", "regression"),
    Endpoint("os", "survival", event="dead"),
)
CODES = np.array([[1, 2, 61.5, 10], [0, np.nan, np.nan, 20], [np.nan, 0, 40, np.nan]])
EVENTS = np.array([[np.nan, np.nan, np.nan, 1], [np.nan, np.nan, np.nan, 0], [np.nan] * 4])
SCORES = np.arange(18, dtype=float).reshape(3, 6) / 20


@pytest.fixture
def rows() -> pl.DataFrame:
    bags = np.array([2, 0, 1])
    return prediction_rows(
        ["s0", "s1", "s2"], ["p0", "p0", "p1"], Targets(ENDPOINTS, CODES, EVENTS), bags, SCORES, repeat=1, fold=3
    )


def row(table: pl.DataFrame, scan: str, endpoint: str, name: str) -> dict[str, object]:
    found = table.filter(pl.col("class") == name, scan_id=scan, endpoint=endpoint)
    assert found.height == 1
    return found.row(0, named=True)


def test_a_bag_has_a_row_for_each_score_of_each_endpoint(rows: pl.DataFrame) -> None:
    assert rows.height == 3 * (1 + 3 + 1 + 1)
    assert dict(rows.schema) == SCHEMA
    assert rows.select("repeat", "fold", "split").unique().rows() == [(1, 3, "test")]
    for position, name in enumerate(("I", "II", "III")):
        found = row(rows, "s0", "stage", name)
        assert found["y_true"] == (1.0 if name == "III" else 0.0)
        assert found["y_score"] == SCORES[1, 1 + position]  # s0 was scored second
    assert row(rows, "s0", "a", "present")["y_true"] == 1
    assert row(rows, "s0", "age", "")["y_true"] == 61.5
    assert row(rows, "s2", "os", "")["patient_id"] == "p1"


def test_what_is_unknown_is_null_and_events_belong_to_survival_alone(rows: pl.DataFrame) -> None:
    assert row(rows, "s2", "a", "present")["y_true"] is None
    assert row(rows, "s1", "stage", "I")["y_true"] is None
    assert [row(rows, scan, "os", "")["event"] for scan in ("s0", "s1", "s2")] == [1, 0, None]
    assert [row(rows, scan, "os", "")["y_true"] for scan in ("s0", "s1", "s2")] == [10, 20, None]
    assert rows.filter(pl.col("endpoint") != "os")["event"].null_count() == 15


def test_the_file_reads_back_as_it_was_written(rows: pl.DataFrame, tmp_path: Path) -> None:
    rows.write_csv(tmp_path / "predictions.csv")
    assert read_predictions(tmp_path / "predictions.csv").equals(rows)


def test_whole_numbers_of_earlier_files_are_read(rows: pl.DataFrame, tmp_path: Path) -> None:
    rows.with_columns(pl.col("y_true").cast(pl.Int64)).write_csv(tmp_path / "p.csv")
    assert read_predictions(tmp_path / "p.csv")["y_true"].dtype == pl.Float64


def test_a_file_that_is_no_predictions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("scan_id,y_true\na,1\n")
    with pytest.raises(InputError, match=r"p\.csv: no column 'patient_id'"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(InputError, match="missing or damaged"):
        read_predictions(tmp_path / "absent.csv")


def scans(labels: list[float | None]) -> pl.DataFrame:
    n = len(labels)
    return pl.DataFrame(
        {
            "scan_id": [f"s{i}" for i in range(n)],
            "patient_id": ["p0"] * (n - 1) + ["p1"],
            "endpoint": "a",
            "class": "present",
            "repeat": 0,
            "fold": 0,
            "split": "test",
            "y_true": labels,
            "event": None,
            "y_score": [i / 10 for i in range(n)],
        },
        schema=SCHEMA,
    )


def test_scans_of_a_patient_become_one_row_with_their_mean_score() -> None:
    averaged = average_scans(scans([1, 1, None, 0]))
    assert averaged.select("scan_id", "patient_id", "y_true", "y_score").rows() == [
        ("s0;s1", "p0", 1.0, pytest.approx(0.05)),
        ("s3", "p1", 0.0, pytest.approx(0.3)),
    ]
    assert dict(averaged.schema) == SCHEMA


def test_scans_with_different_labels_are_not_averaged() -> None:
    with pytest.raises(InputError, match="a: 1 patients have scans with different labels, first 'p0'"):
        average_scans(scans([1, 0, 1, 0]))
