"""Baselines: a model that never sees an image, in the folds of the image model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aggregate import train
from aggregate.columns import table_of_scans
from aggregate.tabular import CoxRidge
from clear.bags import Bags, write_bags
from clear.errors import InputError

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
