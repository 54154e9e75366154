"""Baselines: a model that never sees an image, in the folds of the image model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aggregate import train
from aggregate.baselines import baseline_columns
from aggregate.columns import table_of_scans
from aggregate.leaks import tells
from aggregate.question import ask
from aggregate.tabular import CoxRidge
from clear.bags import Bags, write_bags
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tasks import TASKS, Task

QUICK = {"epochs": 1, "batch": 8, "folds": 3, "progress": False}


@pytest.fixture
def data(make_bags, tmp_path: Path) -> tuple[Path, Path]:
    """(bags of noise whose scanner betrays the label, a table with labels, age and notes) of 36 patients."""
    rng = np.random.default_rng(0)
    names = [f"scan{i:02d}" for i in range(36)]
    truth = np.arange(36) % 2
    plain = make_bags({name: rng.standard_normal((6, 4)).astype(np.float32) for name in names}, name="plain.h5")
    path = tmp_path / "feats.h5"
    with Bags(plain) as bags:
        rows = [
            replace(
                bags.row(name),
                manufacturer="ACME" if t else "Other",
                kernel=None if i < 12 else "B30f",
                spacing_mm=(1.0 + i % 3, 0.7, 0.7),
            )
            for i, (name, t) in enumerate(zip(names, truth, strict=True))
        ]
        write_bags(path, bags.header, rows, lambda row: bags[row.scan_id])
    table = tmp_path / "labels.csv"
    pl.DataFrame(
        {
            "patient_id": names,
            "y": truth,
            "age": [None if i % 7 == 0 else 50 + 10 * t + int(rng.integers(0, 9)) for i, t in enumerate(truth)],
            "sex": ["F", "M", None] * 12,
            "note": [f"free text {i}" for i in range(36)],
        }
    ).write_csv(table)
    return path, table


def value(run, name: str) -> float:
    return run.baselines.filter(baseline=name, metric="auroc", estimator="fold_mean")["estimate"][0]


def test_a_label_that_the_scanner_betrays_is_seen_to_be_betrayed(data, tmp_path: Path) -> None:
    run = train(data[0], labels=data[1], target="y", output=tmp_path / "r", **QUICK)
    assert value(run, "acquisition") == 1
    remark = next(each for each in run.settings["remarks"] if each.startswith("baseline acquisition"))
    assert "manufacturer" in remark
    assert "n_slices" not in remark  # it does not vary


def test_a_table_of_ones_own_stands_beside_it_and_gives_away_no_label(data, tmp_path: Path) -> None:
    baselines = ("acquisition", data[1])
    run = train(data[0], labels=data[1], target="y", baselines=baselines, output=tmp_path / "r", **QUICK)
    assert 0.7 < value(run, "labels") < 1.0
    remark = next(each for each in run.settings["remarks"] if each.startswith(f"baseline {data[1]}: from"))
    assert remark.endswith("from age, sex")
    assert any("note: more than 20 different texts" in each for each in run.settings["remarks"])


@pytest.mark.parametrize("column", ["scan_id", "patient_id"])
def test_a_table_is_joined_on_whichever_id_it_has_and_not_on_its_order(data, tmp_path: Path, column: str) -> None:
    table = pl.read_csv(data[1]).rename({"patient_id": column}).select(column, "age").reverse()
    table.write_csv(tmp_path / "clinical.csv")
    with Bags(data[0]) as bags:
        found = table_of_scans(tmp_path / "clinical.csv", bags.scans)
    assert found["scan_id"].to_list() == [f"scan{i:02d}" for i in range(36)]
    expected = [None if age is None else str(age) for age in pl.read_csv(data[1])["age"]]
    assert found["age"].to_list() == expected


def test_the_rows_are_printed_beside_the_model(data, tmp_path: Path) -> None:
    run = train(data[0], labels=data[1], target="y", output=tmp_path / "r", **QUICK)
    assert "acquisition" in run.table()


def test_without_baselines_there_is_no_such_file(data, tmp_path: Path) -> None:
    run = train(data[0], labels=data[1], target="y", baselines=(), output=tmp_path / "r", **QUICK)
    assert not (run.path / "baselines.csv").exists()
    assert run.baselines.height == 0


def test_a_table_that_does_not_fit_is_refused_before_training(data, tmp_path: Path) -> None:
    pl.DataFrame({"patient_id": ["x", "y"], "age": [1, 2]}).write_csv(tmp_path / "alien.csv")
    pl.DataFrame({"patient_id": [f"scan{i:02d}" for i in range(36)], "c": [1] * 36}).write_csv(tmp_path / "flat.csv")
    pl.DataFrame({"patient_id": ["scan00", "scan00"], "c": [1, 2]}).write_csv(tmp_path / "twice.csv")
    for file, says in (
        ("alien", "is it the table of another cohort"),
        ("flat", "none of its columns varies"),
        ("twice", "'scan00' has 2 rows that differ"),
    ):
        with pytest.raises(InputError, match=says):
            train(
                data[0],
                labels=data[1],
                target="y",
                baselines=[tmp_path / f"{file}.csv"],
                output=tmp_path / "r",
                **QUICK,
            )
    assert not (tmp_path / "r").exists()


def test_a_linear_hazard_finds_the_direction_and_shrinks_with_its_penalty() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3))
    hazard = x @ np.array([1.0, -0.5, 0.0])
    times = rng.exponential(np.exp(-hazard))
    events = (rng.random(400) < 0.8).astype(float)
    weights = CoxRidge(1e-4).fit(x, times, events).weights_
    np.testing.assert_allclose(weights, [1.0, -0.5, 0.0], atol=0.2)
    strong = CoxRidge(10.0).fit(x, times, events).weights_
    assert np.linalg.norm(strong) < 0.1 * np.linalg.norm(weights)


@pytest.mark.parametrize(
    "name", ["PatientID", "Patient ID", "Subject ID", "StudyInstanceUID", "Split", "fold", "Lesion"]
)
def test_ids_under_any_name_splits_and_labels_are_no_inputs(data, tmp_path: Path, name: str) -> None:
    table = pl.read_csv(data[1]).with_columns(pl.col("y").alias("seen"), (pl.col("y") + 1).alias(name))
    table.rename({"patient_id": "scan_id", "seen": "age_group"}).write_csv(tmp_path / "clinical.csv")
    task = Task("own", "", (Endpoint("lesion", column="y"),))
    with Bags(data[0]) as bags:
        question = ask(bags, task=task, labels=data[1], folds=2)
        columns, _ = baseline_columns(tmp_path / "clinical.csv", bags, question)
    assert list(columns) == ["age", "sex", "age_group"]


def test_columns_that_a_data_set_makes_its_labels_of_are_no_inputs(data, tmp_path: Path) -> None:
    stage = ["I" if i % 2 else "IIIa" for i in range(36)]
    table = pl.DataFrame(
        {
            "PatientID": [f"scan{i:02d}" for i in range(36)],
            "age": [str(50 + i % 9) for i in range(36)],
            "Overall.Stage": stage,
            "clinical.T.Stage": [str(1 + i % 4) for i in range(36)],
            "Clinical.N.Stage": [str(i % 3) for i in range(36)],
            "Survival.time": [str(300 + i) for i in range(36)],
        }
    )
    file = tmp_path / "NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv"
    table.write_csv(file)
    with Bags(data[0]) as bags:
        question = ask(bags, task=TASKS["nsclc-radiomics"], labels=file, folds=3)
        columns, remarks = baseline_columns(file, bags, question)
    assert list(columns) == ["age", "Survival.time"]
    assert "Overall.Stage, clinical.T.Stage, Clinical.N.Stage: the labels are made of them, left out" in remarks


def test_a_column_that_gives_the_label_away_is_pointed_out(data, tmp_path: Path) -> None:
    table = pl.read_csv(data[1])
    table.with_columns(grade=pl.Series(["low" if y else "high" for y in table["y"]])).write_csv(tmp_path / "t.csv")
    with Bags(data[0]) as bags:
        question = ask(bags, target="y", labels=data[1], folds=2)
        _, remarks = baseline_columns(tmp_path / "t.csv", bags, question)
        _, scanner = baseline_columns("acquisition", bags, question)
    assert "grade alone tells y of every labelled bag: is it made of the label?" in remarks[-1]
    assert "sex" not in remarks[-1]
    assert scanner[-1].startswith("manufacturer alone tells y")


RNG = np.random.default_rng(4)
BINARY, AGE, OS = Endpoint("a", "binary", ("x", "y")), Endpoint("b", "regression"), Endpoint("c", "survival", event="e")
HALF = np.repeat([0.0, 1.0], 15)


@pytest.mark.parametrize(
    ("endpoint", "codes", "values", "told"),
    [
        (BINARY, HALF, ["l" if code else "r" for code in HALF], True),
        (BINARY, HALF, ["l", *("l" if code else "r" for code in HALF[1:])], False),
        (BINARY, HALF, [None, *("l" if code else "r" for code in HALF[1:])], True),
        (BINARY, HALF, list(HALF * 3 + RNG.random(30)), True),  # a threshold tells
        (BINARY, HALF, list(RNG.random(30)), False),  # though every value is of one bag
        (BINARY, HALF, [f"t{i // 2}" for i in range(30)], False),  # pairs of a class: 2^15 ways in which they can be
        (BINARY, HALF[10:20], ["l" if code else "r" for code in HALF[10:20]], False),  # ten bags: chance could
        (AGE, np.arange(30.0), list(2 - 3 * np.arange(30.0)), True),
        (AGE, np.arange(30.0), list(RNG.random(30)), False),
        (OS, np.arange(30.0), list(np.arange(30.0) / 365), True),
    ],
)
def test_a_column_tells_a_label_where_chance_would_not(endpoint, codes, values, told: bool) -> None:
    assert tells(values, endpoint, codes) is told
