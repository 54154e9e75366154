"""Who explains whom: never a model that was fitted on the scan's patient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from aggregate import Run, train
from aggregate.explain.models import models_for, siblings_of
from clear.bags import Bags
from clear.errors import InputError

QUICK = {"epochs": 2, "batch": 8, "lr": 1e-3, "progress": False}


@pytest.fixture
def run(make_bags, planted, tmp_path: Path) -> Run:
    features, labels = planted(n=24)
    table = tmp_path / "labels.csv"
    pl.DataFrame({"patient_id": list(labels), "lesion": list(labels.values())}).write_csv(table)
    return train(
        make_bags(features), labels=table, target="lesion", folds=3, repeats=2, output=tmp_path / "run", **QUICK
    )


def test_a_scan_of_the_cohort_is_explained_by_the_models_that_scored_it(run: Run) -> None:
    for scan in ("scan000", "scan007", "scan023"):
        scored = run.predictions.filter(pl.col("scan_id") == scan).select("repeat", "fold").unique().sort("repeat")
        found = models_for(run, scan)
        assert list(found.pairs) == scored.rows()
        assert len(found.models) == 2  # one a repeat
        assert found.out_of_fold
        fitted = run.folds.filter((pl.col("scan_id") == scan) & pl.col("split").is_in(["train", "inner"]))
        assert not set(found.pairs) & set(fitted.select("repeat", "fold").rows())
        for model, pair in zip(found.models, found.pairs, strict=True):
            assert all(
                torch.equal(a, b) for a, b in zip(model.parameters(), run.model(*pair).parameters(), strict=True)
            )


def test_a_scan_that_the_run_does_not_know_has_all_models(run: Run) -> None:
    found = models_for(run, "from elsewhere", digest="0" * 64)
    assert list(found.pairs) == run.pairs
    assert not found.out_of_fold


def test_another_scan_of_a_patient_of_the_run_is_not_explained_by_models_of_its_patient(run: Run) -> None:
    fitted = run.folds.filter((pl.col("patient_id") == "scan003") & pl.col("split").is_in(["train", "inner"]))
    found = models_for(run, "left out", digest="0" * 64, patient_id="scan003")
    assert found.pairs == models_for(run, "scan003").pairs
    assert set(found.pairs) == set(run.pairs) - set(fitted.select("repeat", "fold").iter_rows())
    assert not found.out_of_fold
    assert list(models_for(run, "left out", patient_id="of no one here").pairs) == run.pairs


def test_a_patient_whom_the_run_calls_otherwise_is_known_by_the_other_scans(run: Run) -> None:
    found = models_for(run, "left out", digest="0" * 64, patient_id="as the header has it", siblings=["scan003"])
    assert found.pairs == models_for(run, "scan003").pairs
    assert set(found.pairs) < set(run.pairs)
    assert list(models_for(run, "left out", patient_id="as the header has it").pairs) == run.pairs


def test_siblings_are_the_other_scans_of_the_patient_in_the_bag_file(make_bags) -> None:
    scans = {name: np.zeros((2, 16), np.float32) for name in "abc"}
    with Bags(make_bags(scans, patients={"a": "P", "b": "P", "c": "Q"})) as bags:
        assert siblings_of(bags, bags.row("a")) == ["b"]
        assert siblings_of(bags, bags.row("c")) == []
        assert siblings_of(bags, replace(bags.row("a"), patient_id=None)) == []


def test_another_scan_of_a_patient_who_trained_every_model_is_refused(run: Run) -> None:
    split = pl.when(pl.col("patient_id") == "scan003").then(pl.lit("train")).otherwise("split").alias("split")
    run.folds.with_columns(split).write_csv(run.path / "folds.csv")
    with pytest.raises(InputError, match="every model of the run was fitted on the patient of scan left out"):
        models_for(Run.open(run.path), "left out", patient_id="scan003")


def test_a_scan_whose_voxels_are_recorded_but_that_is_in_no_fold_goes_by_its_patient(run: Run) -> None:
    run.settings["scan_digests"]["gone"] = "0" * 64
    assert models_for(run, "new", digest="0" * 64, patient_id="scan003").pairs == models_for(run, "scan003").pairs


def test_a_scan_is_known_again_by_its_voxels(run: Run) -> None:
    digest = run.settings["scan_digests"]["scan003"]
    assert models_for(run, "another name", digest=digest).pairs == models_for(run, "scan003").pairs
    with pytest.raises(InputError, match=r"its voxels .* are not those that the run"):
        models_for(run, "scan004", digest=digest)


def test_a_scan_that_trained_every_model_is_explained_by_none(run: Run) -> None:
    table = run.folds.with_columns(
        pl.when(pl.col("scan_id") == "scan005").then(pl.lit("train")).otherwise("split").alias("split")
    )
    table.write_csv(run.path / "folds.csv")
    with pytest.raises(InputError, match="every model of the run was fitted on the patient of scan scan005"):
        models_for(Run.open(run.path), "scan005")


def test_a_scan_that_a_fold_left_out_is_not_explained_by_models_of_its_patient(run: Run) -> None:
    """scan005 takes no part; its patient is that of scan006, which trained wherever it was not scored."""
    patient = pl.when(pl.col("scan_id") == "scan005").then(pl.lit("scan006")).otherwise("patient_id")
    split = pl.when(pl.col("scan_id") == "scan005").then(pl.lit("unused")).otherwise("split")
    run.folds.with_columns(patient.alias("patient_id"), split.alias("split")).write_csv(run.path / "folds.csv")
    found = models_for(Run.open(run.path), "scan005")
    assert found.pairs == models_for(run, "scan006").pairs
    assert found.out_of_fold


def test_a_model_that_could_not_learn_the_endpoint_does_not_explain_it(run: Run) -> None:
    first, second = models_for(run, "scan000").pairs
    settings = json.loads((run.path / "run.json").read_text())
    for fit in settings["fits"]:
        if (fit["repeat"], fit["fold"]) == first:
            fit["not_learnt"] = ["lesion"]
    (run.path / "run.json").write_text(json.dumps(settings))
    assert models_for(Run.open(run.path), "scan000", endpoint="lesion").pairs == (second,)
    assert models_for(Run.open(run.path), "scan000").pairs == (first, second)
    for fit in settings["fits"]:
        fit["not_learnt"] = ["lesion"]
    (run.path / "run.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="had nothing to learn lesion from"):
        models_for(Run.open(run.path), "scan000", endpoint="lesion")
