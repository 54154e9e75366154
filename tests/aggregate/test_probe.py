"""Probes: simple models on mean embeddings, in the folds of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.neighbors import KNeighborsClassifier

from aggregate import train
from aggregate.probe import PROBES, pooled_rows, probe
from aggregate.question import ask
from clear.bags import Bags
from clear.errors import InputError


@pytest.fixture
def data(make_bags, tmp_path: Path) -> tuple[Path, Path, Path]:
    """(bags whose mean tells the label, bags of the same scans that are noise, labels) of 36 patients."""
    rng = np.random.default_rng(0)
    truth = np.arange(36) % 2
    names = [f"scan{i:02d}" for i in range(36)]
    told = {n: (rng.standard_normal((8, 6)) + 1.5 * t).astype(np.float32) for n, t in zip(names, truth, strict=True)}
    noise = {n: rng.standard_normal((8, 6)).astype(np.float32) for n in names}
    pl.DataFrame({"patient_id": names, "y": truth, "size": truth * 2.0 + rng.standard_normal(36) * 0.1}).write_csv(
        tmp_path / "y.csv"
    )
    return make_bags(told), make_bags(noise, name="noise.h5"), tmp_path / "y.csv"


def auroc(result, **where: str) -> float:
    return result.metrics.filter(metric="auroc", estimator="fold_mean", **where)["estimate"][0]


def test_a_signal_in_the_mean_is_found_and_noise_is_not(data, tmp_path: Path) -> None:
    result = probe([data[0], data[1]], labels=data[2], target="y", folds=3, output=tmp_path / "probe.csv")
    for name in PROBES:
        assert auroc(result, bags=str(data[0]), probe=name) > 0.9
    assert auroc(result, bags=str(data[1]), probe="linear") < 0.8
    assert pl.read_csv(tmp_path / "probe.csv").height == result.metrics.height
    assert "knn-20" in result.table()


def test_the_folds_are_those_of_training(data, tmp_path: Path) -> None:
    run = train(data[0], labels=data[2], target="y", folds=3, seed=4, epochs=1, output=tmp_path / "r", progress=False)
    result = probe(data[0], labels=data[2], target="y", folds=3, seed=4)
    one = result.predictions.filter(probe="knn-1").select("scan_id", "fold").sort("scan_id")
    assert one.equals(run.predictions.select("scan_id", "fold").sort("scan_id"))


def test_nearest_neighbours_are_those_of_scaled_unit_vectors_of_the_training_patients(data) -> None:
    result = probe(data[0], labels=data[2], target="y", folds=3)
    with Bags(data[0]) as bags:
        question = ask(bags, labels=data[2], target="y", folds=3)
        rows = pooled_rows(question.cohort, bags)
        np.testing.assert_allclose(rows[5], bags["scan05"].features.mean(0), atol=1e-6)
    test = question.cohort.bags_of(question.folds.split(0, 1)["test"])
    train_bags = np.setdiff1d(np.arange(36), test)
    scaled = (rows - rows[train_bags].mean(0)) / rows[train_bags].std(0)
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    truth = question.cohort.targets.codes[:, 0]
    expected = KNeighborsClassifier(5).fit(unit[train_bags], truth[train_bags]).predict_proba(unit[test])[:, 1]
    found = result.predictions.filter(probe="knn-5", fold=1)
    names = [question.cohort.names[bag] for bag in test]
    assert dict(found.select("scan_id", "y_score").iter_rows()) == pytest.approx(
        dict(zip(names, expected, strict=True))
    )


def test_a_quantity_is_answered_too(data) -> None:
    result = probe(data[0], labels=data[2], target="size", folds=3)
    linear = result.metrics.filter(probe="linear", metric="r2", estimator="fold_mean")["estimate"][0]
    assert linear > 0.6
    shown = result.table().splitlines()[1].split()
    assert shown[0] == "size"
    assert shown[2] == "MAE"
    found = result.metrics.filter(probe="linear", metric="mae", estimator="fold_mean").row(0, named=True)
    assert shown[-3:] == [f"{found['estimate']:.3f}", "±", f"{found['fold_sd']:.3f}"]


def test_of_several_classes_their_mean_is_shown_and_a_silent_probe_is_named(data, tmp_path: Path) -> None:
    names = pl.read_csv(data[2])["patient_id"]
    pl.DataFrame({"patient_id": names, "site": ["a", "b", "c"] * 12}).write_csv(tmp_path / "site.csv")
    result = probe(data[0], labels=tmp_path / "site.csv", target="site", folds=3)
    lines = result.table().splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("site")] == [["site:", "mean"]]
    assert not any("knn-20:" in line for line in lines)
    few = pl.read_csv(data[2]).head(18)
    few.write_csv(tmp_path / "few.csv")
    assert any(
        "knn-20: a fold has 12 bags to learn from" in remark
        for remark in probe(data[0], labels=tmp_path / "few.csv", target="y", folds=3).remarks
    )


def test_bag_files_of_other_scans_are_not_compared(data, make_bags) -> None:
    with Bags(data[0]) as bags:
        fewer = make_bags({scan: bags[scan].features for scan in list(bags)[:30]}, name="fewer.h5")
    with pytest.raises(InputError, match=r"fewer\.h5: expected the labelled scans of the first bag file; it lacks 6"):
        probe([data[0], fewer], labels=data[2], target="y", folds=3)
