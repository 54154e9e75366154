"""Prediction: the mean of the fold models, refused where they cannot read, marked where they have seen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from aggregate import Run, train
from aggregate.aggregators import predict as score_bags
from aggregate.packed import PackedRows
from aggregate.predict import predict
from clear.bags import BagHeader, Bags, write_bags
from clear.errors import InputError
from clear.training_record import TrainingRecord
from clear.windows import ABDOMEN, LUNG

QUICK = {"epochs": 4, "batch": 8, "lr": 1e-3, "progress": False}


@pytest.fixture
def cohorts(make_bags, planted, tmp_path: Path) -> tuple[Path, Path, Path, Path]:
    """(bags, labels) of 24 patients to train on, (bags, labels) of 20 others with the same signal."""
    features, labels = planted(n=44, strength=1.5)
    files = []
    for name, chosen in (("own", range(24)), ("other", range(24, 44))):
        keys = [f"scan{i:03d}" for i in chosen]
        files.append(make_bags({key: features[key] for key in keys}, name=f"{name}.h5"))
        table = tmp_path / f"{name}.csv"
        pl.DataFrame({"patient_id": keys, "lesion": [labels[key] for key in keys]}).write_csv(table)
        files.append(table)
    return tuple(files)


@pytest.fixture
def run(cohorts, tmp_path: Path) -> Run:
    return train(cohorts[0], labels=cohorts[1], target="lesion", folds=3, output=tmp_path / "run", **QUICK)


def rewritten(path: Path, out: Path, **changes: object) -> Path:
    """The same bags under another header."""
    with Bags(path) as bags:
        header: BagHeader = replace(bags.header, **changes)
        write_bags(out, header, [bags.row(scan) for scan in bags], lambda row: bags[row.scan_id])
    return out


def test_the_score_is_the_mean_over_the_fold_models_and_the_spread_their_deviation(run: Run, cohorts) -> None:
    found = predict(run, cohorts[2]).scores
    with Bags(cohorts[2]) as bags:
        source = PackedRows.of([bags[scan].features for scan in bags])
        logits = [score_bags(run.model(fold=fold), source, range(len(source)))[0][:, 0] for fold in range(3)]
        scans = list(bags)
    each = torch.sigmoid(torch.stack(logits).double()).numpy()
    here = found.sort("scan_id")
    assert here["scan_id"].to_list() == scans
    np.testing.assert_allclose(here["y_score"], each.mean(0), atol=1e-6)
    np.testing.assert_allclose(here["y_sd"], each.std(0, ddof=1), atol=1e-6)
    assert here["models"].to_list() == [3] * 20
    assert here["y_true"].null_count() == 20
    assert set(here["seen"]) == {""}


def test_a_fold_that_could_not_learn_the_endpoint_takes_no_part(run: Run, cohorts) -> None:
    whole = predict(run, cohorts[2])
    settings = json.loads((run.path / "run.json").read_text())
    settings["fits"][0]["not_learnt"] = ["lesion"]
    (run.path / "run.json").write_text(json.dumps(settings))
    found = predict(run.path, cohorts[2])
    with Bags(cohorts[2]) as bags:
        source = PackedRows.of([bags[scan].features for scan in bags])
    logits = [score_bags(run.model(fold=fold), source, range(len(source)))[0][:, 0] for fold in (1, 2)]
    each = torch.sigmoid(torch.stack(logits).double()).numpy()
    here = found.scores.sort("scan_id")
    np.testing.assert_allclose(here["y_score"], each.mean(0), atol=1e-6)
    np.testing.assert_allclose(here["y_sd"], each.std(0, ddof=1), atol=1e-6)
    assert here["models"].to_list() == [2] * 20
    assert np.abs(here["y_score"] - whole.scores.sort("scan_id")["y_score"]).max() > 1e-4
    assert "lesion: 1 of 3 models had nothing to learn it from and take no part in its scores" in found.remarks

    for fit in settings["fits"]:
        fit["not_learnt"] = ["lesion"]
    (run.path / "run.json").write_text(json.dumps(settings))
    nothing = predict(run.path, cohorts[2], labels=cohorts[3])
    assert nothing.scores["y_score"].null_count() == 20
    assert nothing.scores["models"].to_list() == [0] * 20
    assert nothing.metrics["estimate"].drop_nulls().is_empty()


def test_with_labels_the_metrics_are_external_and_have_intervals(run: Run, cohorts, tmp_path: Path) -> None:
    result = predict(run, cohorts[2], labels=cohorts[3], output=tmp_path / "out")
    cell = result.metrics.filter(metric="auroc", estimator="ensemble").row(0, named=True)
    assert cell["estimate"] == pytest.approx(roc_auc_score(result.scores["y_true"], result.scores["y_score"]))
    assert cell["ci_low"] < cell["estimate"] < cell["ci_high"]
    assert cell["n"] == 20
    assert pl.read_csv(tmp_path / "out" / "predictions.csv").height == 20
    assert json.loads((tmp_path / "out" / "predict.json").read_text())["models"] == 3
    assert "AUROC, ensemble (95 % CI)" in result.table()
    with pytest.raises(InputError, match="--overwrite"):
        predict(run, cohorts[2], output=tmp_path / "out")
    predict(run, cohorts[2], output=tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_some_scans_without_a_label_are_scored_all_the_same(run: Run, cohorts, tmp_path: Path) -> None:
    pl.read_csv(cohorts[3]).head(12).write_csv(tmp_path / "some.csv")
    result = predict(run, cohorts[2], labels=tmp_path / "some.csv")
    assert result.scores.height == 20
    assert result.scores["y_true"].null_count() == 8
    assert result.metrics.filter(metric="auroc", estimator="ensemble")["n"][0] == 12


def test_patients_seen_in_training_are_marked_and_left_out_of_the_metrics(run: Run, cohorts) -> None:
    result = predict(run, cohorts[0], labels=cohorts[1])
    assert set(result.scores["seen"]) == {"training"}
    assert result.metrics.height == 0
    assert "24 patients were seen in this run's training" in " ".join(result.remarks)
    assert "no labelled bag is of a new patient" in " ".join(result.remarks)


def test_a_scan_under_another_name_is_known_by_its_voxels(run: Run, make_bags) -> None:
    rng = np.random.default_rng(3)
    digests = {"new0": hashlib.sha256(b"scan003").hexdigest(), "new1": hashlib.sha256(b"other").hexdigest()}
    path = make_bags({name: rng.standard_normal((8, 16)) for name in digests}, name="renamed.h5", digests=digests)
    result = predict(run, path)
    assert dict(result.scores.select("scan_id", "seen").iter_rows()) == {"new0": "training", "new1": ""}
    assert "1 patients were seen in this run's training" in " ".join(result.remarks)


def test_a_fixed_test_set_was_not_seen(cohorts, tmp_path: Path) -> None:
    table = pl.read_csv(cohorts[1]).with_columns(split=pl.Series(["train"] * 16 + ["test"] * 8))
    table.write_csv(tmp_path / "split.csv")
    fixed = train(
        cohorts[0], labels=tmp_path / "split.csv", target="lesion", protocol="cv-test", folds=2,
        output=tmp_path / "fixed", **QUICK,
    )  # fmt: skip
    seen = predict(fixed, cohorts[0]).scores.sort("scan_id")["seen"].to_list()
    assert seen == ["training"] * 16 + [""] * 8


@pytest.mark.parametrize("how", ["plain", "sha256", "record"])
def test_patients_of_the_encoders_pretraining_are_marked(run: Run, cohorts, tmp_path: Path, how: str) -> None:
    hashed = hashlib.sha256(b"scan030").hexdigest()
    card = {
        "plain": {"training": {"patients": ["scan030", "somebody"], "epochs": 3}},
        "sha256": {"training": {"patients": [hashed, "somebody"], "epochs": 3}},
        "record": {"training": {"seen": TrainingRecord.of(["somebody"], ["scan030"], key="k").as_dict()}},
    }[how]
    path = rewritten(cohorts[2], tmp_path / "known.h5", encoder_card=card)
    result = predict(run, path, labels=cohorts[3])
    assert result.scores.filter(seen="pretraining")["scan_id"].to_list() == ["scan030"]
    assert result.metrics.filter(metric="auroc", estimator="ensemble")["n"][0] == 19
    assert "1 patients were seen in the encoder's training" in " ".join(result.remarks)


def test_training_says_which_of_its_patients_the_encoder_knows(cohorts, tmp_path: Path) -> None:
    record = TrainingRecord.of([], ["scan003", "scan004", "somewhere"], key="k")
    path = rewritten(cohorts[0], tmp_path / "known.h5", encoder_card={"training": {"seen": record.as_dict()}})
    known = train(path, labels=cohorts[1], target="lesion", folds=2, output=tmp_path / "known", **QUICK)
    assert "2 of 24 patients were seen in the encoder's training" in " ".join(known.settings["remarks"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder_digest": "1" * 64, "encoder": "other"}, "encoded by other .1111.*trained on fake"),
        ({"windows": (ABDOMEN, replace(LUNG, low=-1000))}, "no window lung .*it has abdomen"),
        ({"preprocessing": {"field_of_view_mm": 300}}, "prepared otherwise"),
    ],
)
def test_bags_that_the_models_cannot_read_are_refused(run: Run, cohorts, tmp_path: Path, changes, says: str) -> None:
    path = rewritten(cohorts[2], tmp_path / "changed.h5", **changes)
    with pytest.raises(InputError, match=says):
        predict(run, path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_precision_is_a_remark(run: Run, cohorts, tmp_path: Path) -> None:
    own = rewritten(cohorts[0], tmp_path / "own.h5", provenance={"trained on": "x", "precision": "float32"})
    first = train(own, labels=cohorts[1], target="lesion", folds=3, output=tmp_path / "r", **QUICK)
    other = rewritten(cohorts[2], tmp_path / "o.h5", provenance={"trained on": "x", "precision": "bfloat16"})
    assert any("precision of the encoding differs: float32" in each for each in predict(first, other).remarks)


def test_a_run_of_pooled_patients_pools_the_new_ones_too(make_bags, planted, tmp_path: Path) -> None:
    features, labels = planted(n=40)
    owner = {scan: f"p{int(scan[4:]) // 4 * 2 + int(scan[4:]) % 2}" for scan in features}  # two scans of one label
    path = make_bags(features, patients=owner)
    rows = {owner[scan]: label for scan, label in labels.items()}
    pl.DataFrame({"patient_id": list(rows), "y": list(rows.values())}).write_csv(tmp_path / "y.csv")
    pooled = train(
        path, labels=tmp_path / "y.csv", target="y", join_rule="pool", folds=2, output=tmp_path / "r", **QUICK
    )
    found = predict(pooled, path).scores
    assert found.height == 20
    assert sorted(found["scan_id"]) == sorted(pooled.predictions["scan_id"])


def test_labels_of_another_cohort_are_one_sentence(run: Run, cohorts) -> None:
    with pytest.raises(InputError, match="none of its 24 ids is a patient_id"):
        predict(run, cohorts[2], labels=cohorts[1])


def test_averaged_scans_of_another_file_have_the_label_of_their_patient(make_bags, planted, tmp_path: Path) -> None:
    features, labels = planted(n=48)
    owner = {scan: f"p{int(scan[4:]) // 4 * 2 + int(scan[4:]) % 2:02d}" for scan in features}
    pl.DataFrame({"scan_id": list(labels), "y": list(labels.values())}).write_csv(tmp_path / "scans.csv")
    rows = {owner[scan]: label for scan, label in labels.items()}
    pl.DataFrame({"patient_id": list(rows), "y": list(rows.values())}).write_csv(tmp_path / "patients.csv")
    own, other = list(features)[:24], list(features)[24:]
    files = [make_bags({s: features[s] for s in each}, patients=owner, name=f"{each[0]}.h5") for each in (own, other)]
    run = train(
        files[0], labels=tmp_path / "scans.csv", target="y", several="average", folds=2, output=tmp_path / "r", **QUICK
    )
    result = predict(run, files[1], labels=tmp_path / "patients.csv")
    assert result.metrics.filter(metric="auroc", estimator="ensemble")["n"][0] == 12
