"""Cross-validation end to end: the run folder, the numbers in it, and what stops it beforehand."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from aggregate import Run, train
from aggregate.aggregators import predict
from aggregate.cohort import build_cohort
from aggregate.crossval import fit_fold
from aggregate.folds_file import read_folds
from aggregate.packed import PackedRows
from aggregate.question import ask
from aggregate.run import fold_name
from clear.bags import Bags
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import join_labels
from clear.labels import read_labels, write_labels
from clear.tasks import PRESETS, TASKS, Task, target_task
from clear.windows import LUNG

QUICK = {"epochs": 3, "batch": 8, "lr": 1e-3, "progress": False}


@pytest.fixture
def data(make_bags, planted, tmp_path: Path) -> tuple[Path, Path, dict[str, int]]:
    """(bag file, label table, labels) of 30 patients with a planted signal."""
    features, labels = planted(n=30)
    table = tmp_path / "labels.csv"
    pl.DataFrame({"patient_id": list(labels), "lesion": list(labels.values())}).write_csv(table)
    return make_bags(features), table, labels


@pytest.fixture
def run(data: tuple[Path, Path, dict[str, int]], tmp_path: Path) -> Run:
    return train(data[0], labels=data[1], target="lesion", folds=3, output=tmp_path / "run", **QUICK)


def test_a_run_folder_holds_everything_and_opens_again(run: Run) -> None:
    assert {path.name for path in run.path.iterdir()} == {
        "run.json",
        "folds.csv",
        "history.csv",
        "predictions.csv",
        "metrics.csv",
        "curves.csv",
        "baselines.csv",
        "attention.h5",
        "fold-0",
        "fold-1",
        "fold-2",
    }
    again = Run.open(run.path)
    assert again.metrics.equals(run.metrics)
    assert again.settings["bags"]["trained_on"] == "nothing: a fake encoder for tests"
    assert again.settings["label_counts"] == {"lesion": {"0": 15, "1": 15, "unknown": 0}}
    assert again.settings["training"]["name"] == "adaptive+changed"
    assert [path.name for path in run.path.parent.iterdir() if path.name.startswith(".")] == []


def test_every_scan_is_scored_once_by_a_model_that_never_saw_its_patient(run: Run, data) -> None:
    predictions = run.predictions
    assert predictions.columns == [
        "scan_id",
        "patient_id",
        "endpoint",
        "class",
        "repeat",
        "fold",
        "split",
        "y_true",
        "event",
        "y_score",
    ]
    assert dict(predictions.select("scan_id", "y_true").iter_rows()) == data[2]
    assert predictions["scan_id"].n_unique() == predictions.height == 30
    tested = run.folds.filter(split="test").select("scan_id", "fold").sort("scan_id")
    assert tested.equals(predictions.select("scan_id", "fold").sort("scan_id"))


def test_the_saved_models_give_the_saved_predictions_and_attention(run: Run, data) -> None:
    with Bags(data[0]) as bags:
        for fold in range(3):
            scored = run.predictions.filter(fold=fold)
            attention = run.attention(fold=fold)
            assert len(attention) == len(bags.features)
            source = PackedRows.of([bags[scan].features for scan in scored["scan_id"]])
            logits, weights = predict(run.model(fold=fold), source, range(len(source)))
            np.testing.assert_allclose(torch.sigmoid(logits[:, 0].double()), scored["y_score"], atol=1e-6)
            for scan, expected in zip(scored["scan_id"], weights, strict=True):
                start, length = bags.scans.filter(scan_id=scan).select("start", "length").row(0)
                np.testing.assert_allclose(attention[start : start + length], expected, atol=1e-6)
            assert np.isfinite(attention).sum() == source.lengths.sum()
        with h5py.File(run.path / "attention.h5") as file:
            assert file.attrs["bags_digest"] == bags.digest


def test_the_metrics_are_those_of_the_predictions(run: Run) -> None:
    per_fold = [roc_auc_score(t["y_true"], t["y_score"]) for _, t in run.predictions.group_by("fold")]
    cell = run.metrics.filter(metric="auroc", estimator="fold_mean").row(0, named=True)
    assert cell["estimate"] == pytest.approx(np.mean(per_fold))


def test_the_same_seed_repeats_a_run_and_its_folds_file_too(run: Run, data, tmp_path: Path) -> None:
    arguments = {"labels": data[1], "target": "lesion", **QUICK}
    again = train(data[0], folds=3, output=tmp_path / "again", **arguments)
    by_file = train(data[0], folds_file=run.path / "folds.csv", output=tmp_path / "by_file", **arguments)
    other = train(data[0], folds=3, seed=1, output=tmp_path / "other", **arguments)
    for each in (again, by_file):
        assert each.predictions.equals(run.predictions)
        assert each.folds.equals(run.folds)
    assert not other.predictions.equals(run.predictions)


def test_a_fold_fitted_alone_equals_the_fold_within_the_run(run: Run, data) -> None:
    with Bags(data[0]) as bags:
        joined = join_labels(read_labels(data[1], target_task("lesion")), bags.scans)
        cohort = build_cohort(bags, joined, bags.windows, 3)
        folds, _ = read_folds(run.path / "folds.csv", *cohort.by_scan())
        preset = PRESETS["adaptive"].with_changes(epochs=3, batch=8, lr=1e-3, min_steps=0)
        alone = fit_fold(cohort, cohort.rows(bags), folds, 0, 2, aggregator="abmil", preset=preset)
    within = dict(run.predictions.filter(fold=2).select("scan_id", "y_score").iter_rows())
    assert {cohort.names[bag]: float(s) for bag, s in zip(alone.scored, alone.scores[:, 0], strict=True)} == within


def test_a_signal_that_only_a_leak_could_find_is_not_found(make_bags, tmp_path: Path) -> None:
    """Each patient's scans carry a code of their own that says nothing about others: only a leak can score well."""
    rng = np.random.default_rng(0)
    features, patients, lines = {}, {}, ["patient_id,y"]
    for p in range(24):
        code = rng.standard_normal(16) * 6
        lines.append(f"p{p:02d},{p % 2}")
        for s in range(3):
            scan = f"p{p:02d}s{s}"
            features[scan] = (code + 0.1 * rng.standard_normal((6, 16))).astype(np.float32)
            patients[scan] = f"p{p:02d}"
    (tmp_path / "y.csv").write_text("\n".join(lines))
    run = train(
        make_bags(features, patients=patients),
        labels=tmp_path / "y.csv",
        target="y",
        join_rule="all",
        folds=4,
        epochs=12,
        batch=8,
        lr=1e-3,
        progress=False,
        output=tmp_path / "run",
    )
    cell = run.metrics.filter(metric="auroc", estimator="pooled").row(0, named=True)
    assert cell["interval"].startswith("clustered DeLong")
    assert cell["estimate"] < 0.75  # a model that had seen the patient would reach 1
    assert run.history.filter(pl.col("epoch") == 12)["train_loss"].max() < 0.2  # which it does on those it has seen


def test_early_stopping_does_not_see_the_scored_labels(data, tmp_path: Path) -> None:
    """Flipping the labels of one fold's scored patients leaves that fold's model as it was."""
    run = train(data[0], labels=data[1], target="lesion", folds=3, output=tmp_path / "a", **QUICK)
    scored = set(run.folds.filter(split="test", fold=1)["patient_id"])
    flipped = tmp_path / "flipped.csv"
    rows = [(p, 1 - y if p in scored else y) for p, y in data[2].items()]
    pl.DataFrame(rows, schema=["patient_id", "lesion"], orient="row").write_csv(flipped)
    changed = train(
        data[0], labels=flipped, target="lesion", folds_file=run.path / "folds.csv", output=tmp_path / "b", **QUICK
    )
    for one, other in ((run.history, changed.history), (run.predictions, changed.predictions)):
        columns = [c for c in one.columns if c != "y_true"]
        assert one.filter(fold=1).select(columns).equals(other.filter(fold=1).select(columns))
    assert not run.history.filter(fold=0).equals(changed.history.filter(fold=0))


def test_abmil_finds_the_few_slices_that_the_mean_cannot(data, tmp_path: Path) -> None:
    scores = {}
    for name in ("abmil", "mean"):
        run = train(
            data[0], labels=data[1], target="lesion", aggregator=name, folds=3, output=tmp_path / name,
            epochs=40, batch=8, lr=1e-3, patience=40, progress=False,
        )  # fmt: skip
        scores[name] = run.metrics.filter(metric="auroc", estimator="pooled")["estimate"][0]
        if name == "abmil":
            with Bags(data[0]) as bags:
                found = []
                for scan, fold in run.predictions.filter(y_true=1).select("scan_id", "fold").iter_rows():
                    start, length = bags.scans.filter(scan_id=scan).select("start", "length").row(0)
                    weights = run.attention(fold=fold)[start : start + length]
                    found.append(np.sort(weights)[-3:].sum() > 3 / length)
            assert np.mean(found) > 0.9
    assert scores["abmil"] > 0.9
    assert scores["mean"] < scores["abmil"] - 0.05


def test_only_the_tasks_windows_are_scored_and_attended(data, tmp_path: Path) -> None:
    run = train(data[0], labels=data[1], target="lesion", windows=["lung"], folds=3, output=tmp_path / "r", **QUICK)
    assert run.settings["windows"] == [LUNG.as_dict()]
    with Bags(data[0]) as bags:
        attended = np.isfinite(np.stack([run.attention(fold=f) for f in range(3)])).sum(axis=0)
        assert (attended == (bags.window == 1)).all()
    with pytest.raises(InputError, match=r"no window bone .* it has abdomen"):
        train(data[0], labels=data[1], target="lesion", windows=["bone=-450..1050"], output=tmp_path / "x", **QUICK)
    assert not (tmp_path / "x").exists()


def test_several_columns_and_unknown_cells_make_a_masked_multilabel_run(data, tmp_path: Path) -> None:
    frame = pl.read_csv(data[1]).with_row_index()
    frame = frame.with_columns(
        other=pl.when(pl.col("index") % 5 == 0)
        .then(pl.lit("NA"))
        .otherwise((pl.col("index") // 3 % 2).cast(pl.String)),
        stage=pl.Series(["I", "II", "III"] * 10),
    )
    frame.drop("index").write_csv(tmp_path / "many.csv")
    run = train(
        data[0], labels=tmp_path / "many.csv", target=["lesion", "other", "stage"], folds=3, repeats=2,
        output=tmp_path / "r", **QUICK,
    )  # fmt: skip
    assert run.settings["label_counts"]["other"]["unknown"] == 6
    assert run.predictions.filter(endpoint="other")["y_true"].null_count() == 12
    assert set(run.metrics["endpoint"]) == {"lesion", "other", "stage", "macro"}
    stage = run.predictions.filter(endpoint="stage").group_by("scan_id", "repeat").agg(pl.col("y_score").sum())
    assert stage["y_score"].to_list() == pytest.approx([1.0] * 60)
    assert (run.path / fold_name(1, 2) / "model.safetensors").is_file()
    assert run.predictions.height == 30 * 2 * 5


def test_a_registered_task_reads_its_labels_beside_the_bag_file(make_bags, planted, tmp_path: Path) -> None:
    features, labels = planted(n=24)
    path = make_bags(features)
    names = [endpoint.name for endpoint in TASKS["demo"].endpoints]
    columns = {name: [(y + i) % 2 for y in labels.values()] for i, name in enumerate(names)}
    frame = pl.DataFrame({"scan_id": list(labels), **columns})
    write_labels(path, "demo", frame, TASKS["demo"].endpoints)
    run = train(path, task="demo", folds=3, output=tmp_path / "demo", **QUICK)
    assert run.settings["task"]["name"] == "demo"
    assert run.metrics.filter(endpoint="macro").height == 4
    text = run.table()
    assert "lung_nodule" in text
    assert "24 labelled and used" in text
    assert "encoder: fake, nothing: a fake encoder for tests" in text


def test_the_table_says_what_did_not_join_and_what_is_not_defined(data, tmp_path: Path) -> None:
    lines = Path(data[1]).read_text() + "stranger,1\n"
    (tmp_path / "more.csv").write_text(lines)
    run = train(data[0], labels=tmp_path / "more.csv", target="lesion", folds=3, output=tmp_path / "r", **QUICK)
    assert "note: 1 of 31 label rows have no scan, by patient_id: stranger" in run.table()
    assert "conditional on the fitted models" in run.table()


def test_the_labels_of_a_task_are_kept_beside_the_bag_file_and_used_again(make_bags, planted, tmp_path: Path) -> None:
    features, labels = planted(n=12)
    path = make_bags(features, patients={})
    task = Task("t", "", (Endpoint("a", "binary", ("absent", "present")),))
    pl.DataFrame({"scan_id": list(labels), "a": list(labels.values())}).write_csv(tmp_path / "t.csv")
    arguments = {"task": task, "folds": 2, "aggregator": "mean", **QUICK}
    first = train(path, labels=tmp_path / "t.csv", patient_pattern="(.+)", output=tmp_path / "a", **arguments)
    again = train(path, output=tmp_path / "b", **arguments)
    assert again.predictions.equals(first.predictions)
    assert first.settings["arguments"]["patient_pattern"] == "(.+)"
    assert first.settings["arguments"]["labels"]["sha256"] == sha256((tmp_path / "t.csv").read_bytes()).hexdigest()


def test_labels_that_cannot_be_kept_are_a_remark_and_no_failure(make_bags, planted, tmp_path: Path) -> None:
    features, labels = planted(n=12)
    path = make_bags(features)
    path.with_suffix(".labels").write_text("in the way")
    task = Task("t", "", (Endpoint("a", "binary", ("absent", "present")),))
    pl.DataFrame({"scan_id": list(labels), "a": list(labels.values())}).write_csv(tmp_path / "t.csv")
    run = train(path, task=task, labels=tmp_path / "t.csv", folds=2, output=tmp_path / "r", **QUICK)
    assert any("could not be kept beside the bag file" in remark for remark in run.settings["remarks"])


def test_the_default_place_is_numbered_when_taken(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [train(data[0], labels=data[1], target="lesion", folds=2, aggregator="mean", **QUICK).path for _ in "ab"]
    assert [str(path) for path in paths] == ["runs/lesion-mean-feats", "runs/lesion-mean-feats-2"]


def test_an_existing_run_is_replaced_only_when_asked(run: Run, data) -> None:
    arguments = {"labels": data[1], "target": "lesion", "folds": 2, "output": run.path, "aggregator": "mean", **QUICK}
    with pytest.raises(InputError, match="exists and is not empty"):
        train(data[0], **arguments)
    replaced = train(data[0], overwrite=True, **arguments)
    assert replaced.settings["aggregator"] == "mean"
    assert not (run.path / "fold-2").exists()


def test_a_folder_that_is_no_run_is_never_replaced(data, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("miau")
    with pytest.raises(InputError, match="is not a run folder"):
        train(data[0], labels=data[1], target="lesion", output=tmp_path / "photos", overwrite=True, **QUICK)
    assert (tmp_path / "photos" / "cat.txt").exists()


def test_an_interrupted_training_leaves_nothing_behind(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        written = next((tmp_path / "out").glob(".run.*"))
        assert (written / "folds.csv").is_file()  # before the first model
        raise KeyboardInterrupt

    monkeypatch.setattr("aggregate.crossval.fit_fold", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(data[0], labels=data[1], target="lesion", folds=2, output=tmp_path / "out" / "run", **QUICK)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_half_written_or_newer_run_folder_does_not_open(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a finished run folder"):
        Run.open(tmp_path)
    settings = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**settings, "version": 99}))
    with pytest.raises(InputError, match="newer clear"):
        Run.open(run.path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Run.open(run.path)


def test_a_missing_piece_of_a_run_is_named(run: Run) -> None:
    (run.path / "metrics.csv").unlink()
    with pytest.raises(InputError, match=r"metrics\.csv: missing or damaged"):
        _ = Run.open(run.path).metrics
    with pytest.raises(InputError, match="the run has no fold-9; it has fold-0, fold-1, fold-2"):
        run.attention(fold=9)
    with pytest.raises(InputError, match=r"model\.safetensors: missing"):
        run.model(fold=9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "expected --task NAME, or --labels TABLE"),
        ({"target": "lesion"}, "give it with --labels"),
        ({"task": "demo", "target": "lesion"}, "exclude each other"),
        ({"task": "nope"}, "no such task"),
        ({"labels": True, "target": "lesion", "aggregator": "maxi"}, "no such aggregator"),
        ({"labels": True, "target": "lesion", "preset": "max"}, "no such preset"),
        ({"labels": True, "target": "lesion", "lr": -1.0}, "lr is -1"),
        ({"labels": True, "target": "lesion", "device": "tpu"}, "expected auto, cpu, cuda"),
        ({"labels": True, "target": "lesions"}, "did you mean 'lesion'"),
        ({"labels": True, "target": "lesion", "folds": 20}, "too few for 20 folds"),
        ({"labels": True, "target": "lesion", "folds": 1}, "at least 2 folds"),
        ({"labels": True, "target": "lesion", "folds": 0}, "at least 2 folds"),
        ({"labels": True, "target": "lesion", "seed": -1}, "--seed -1"),
        ({"labels": True, "target": "lesion", "dropout": 1.0}, "dropout is 1"),
        ({"labels": True, "target": "lesion", "folds_file": "folds.csv", "repeats": 2}, "leave out --folds and --rep"),
        ({"labels": True, "target": "patient_id"}, "names an id, a split or a mean"),
    ],
)
def test_what_is_wrong_is_said_before_training(data, tmp_path: Path, arguments: dict, says: str) -> None:
    if arguments.get("labels"):
        arguments = {**arguments, "labels": data[1]}
    with pytest.raises(InputError, match=says):
        train(data[0], output=tmp_path / "r", progress=False, **arguments)
    assert not (tmp_path / "r").exists()


def test_a_task_with_an_empty_endpoint_goes_on_without_it(make_bags, planted, tmp_path: Path) -> None:
    features, labels = planted(n=12)
    task = Task("t", "", tuple(Endpoint(name, "binary", ("absent", "present")) for name in ("a", "b")))
    pl.DataFrame({"scan_id": list(labels), "a": list(labels.values()), "b": [0] * 12}).write_csv(tmp_path / "t.csv")
    run = train(make_bags(features), task=task, labels=tmp_path / "t.csv", folds=3, output=tmp_path / "r", **QUICK)
    assert [endpoint.name for endpoint in run.endpoints] == ["a"]
    assert any("b: set aside" in remark for remark in run.settings["remarks"])


@pytest.fixture
def told(make_bags, tmp_path: Path) -> tuple[Path, Path]:
    """(bags whose mean is a number z, a table of what follows from z: a quantity, a survival time, a grade)."""
    rng = np.random.default_rng(0)
    z = np.linspace(-2, 2, 48)[rng.permutation(48)]
    names = [f"scan{i:02d}" for i in range(48)]
    features = {
        n: (0.3 * rng.standard_normal((6, 8)) + v * np.ones(8)).astype(np.float32)
        for n, v in zip(names, z, strict=True)
    }
    times = np.exp(-z) * rng.uniform(0.8, 1.2, 48)
    table = pl.DataFrame(
        {
            "patient_id": names,
            "volume": 500 + 100 * z,
            "time": times,
            "event": (np.arange(48) % 4 > 0).astype(int),
            "grade": np.digitize(z, [-0.7, 0.7]) + 1,
        }
    )
    table.write_csv(tmp_path / "told.csv")
    return make_bags(features), tmp_path / "told.csv"


def test_quantities_times_and_grades_are_learnt_and_come_back_in_their_own_units(told, tmp_path: Path) -> None:
    endpoints = (
        Endpoint("volume", "regression"),
        Endpoint("survival", "survival", column="time", event="event"),
        Endpoint("grade", "ordinal", ("1", "2", "3")),
    )
    task = Task("told", "", endpoints, metrics=("mae", "r2", "c_index", "kappa"))
    run = train(
        told[0], task=task, labels=told[1], folds=3, epochs=40, batch=8, lr=1e-3, patience=40,
        output=tmp_path / "r", progress=False,
    )  # fmt: skip
    cells = {
        (row["endpoint"], row["metric"]): row["estimate"]
        for row in run.metrics.filter(estimator="fold_mean").iter_rows(named=True)
        if row["class"] in ("", "macro")
    }
    assert cells["volume", "mae"] < 60
    assert cells["volume", "r2"] > 0.6
    assert cells["survival", "c_index"] > 0.8
    assert cells["grade", "kappa"] > 0.6
    volume = run.predictions.filter(endpoint="volume")
    assert 300 < volume["y_score"].mean() < 700
    survival = run.predictions.filter(endpoint="survival")
    assert survival["event"].sum() == 36
    assert run.settings["label_counts"]["survival"] == {"event": 36, "censored": 12, "unknown": 0}
    for fold in range(3):
        taught = run.folds.filter(fold=fold, split="train")["scan_id"].to_list()
        own = pl.read_csv(told[1]).filter(pl.col("patient_id").is_in(taught))["volume"]
        np.testing.assert_allclose(run.scale(fold=fold)[0], [own.mean(), own.std(ddof=0)])


def test_a_fold_alone_gives_the_same_survival_predictions_as_within_the_run(told, tmp_path: Path) -> None:
    task = Task("t", "", (Endpoint("survival", "survival", column="time", event="event"),), metrics=("c_index",))
    run = train(told[0], task=task, labels=told[1], folds=3, output=tmp_path / "r", **QUICK)
    with Bags(told[0]) as bags:
        question = ask(
            bags,
            task=task,
            labels=told[1],
            folds_file=run.path / "folds.csv",
        )
        preset = PRESETS["adaptive"].with_changes(epochs=3, batch=8, lr=1e-3, min_steps=0)
        alone = fit_fold(
            question.cohort, question.cohort.rows(bags), question.folds, 0, 1, aggregator="abmil", preset=preset
        )
    within = dict(run.predictions.filter(fold=1).select("scan_id", "y_score").iter_rows())
    assert {question.cohort.names[b]: float(s) for b, s in zip(alone.scored, alone.scores[:, 0], strict=True)} == within


def test_averaged_scans_are_judged_once_a_patient(make_bags, planted, tmp_path: Path) -> None:
    features, labels = planted(n=40)
    owner = {scan: f"p{int(scan[4:]) // 4 * 2 + int(scan[4:]) % 2:02d}" for scan in features}
    rows = {owner[scan]: label for scan, label in labels.items()}
    pl.DataFrame({"patient_id": list(rows), "y": list(rows.values())}).write_csv(tmp_path / "y.csv")
    run = train(
        make_bags(features, patients=owner), labels=tmp_path / "y.csv", target="y", several="average", folds=2,
        output=tmp_path / "r", **QUICK,
    )  # fmt: skip
    assert run.predictions.height == 40
    cell = run.metrics.filter(metric="auroc", estimator="pooled").row(0, named=True)
    assert (cell["n"], cell["n_positive"]) == (20, 10)
    means = run.predictions.group_by("patient_id").agg(pl.col("y_score").mean(), pl.col("y_true").first())
    assert cell["estimate"] == pytest.approx(roc_auc_score(means["y_true"], means["y_score"]))
    assert run.settings["several"] == "average"


def test_an_aggregator_of_single_vectors_refuses_bags_of_slices(data, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes one vector a scan, and the bags of"):
        train(data[0], labels=data[1], target="lesion", aggregator="mlp", output=tmp_path / "r", **QUICK)
    with pytest.raises(InputError, match="no option 'wings'"):
        train(data[0], labels=data[1], target="lesion", options={"wings": 2}, output=tmp_path / "r", **QUICK)
    assert not (tmp_path / "r").exists()


def test_a_label_table_of_another_cohort_is_one_sentence(data, tmp_path: Path) -> None:
    pl.DataFrame({"patient_id": ["x1", "x2"], "lesion": [0, 1]}).write_csv(tmp_path / "alien.csv")
    with pytest.raises(InputError, match=r"none of its 2 ids is a patient_id of .*feats\.h5"):
        train(data[0], labels=tmp_path / "alien.csv", target="lesion", output=tmp_path / "r", **QUICK)


def test_a_model_that_weighs_no_instance_writes_no_attention_and_says_so(data, tmp_path: Path) -> None:
    run = train(
        data[0], labels=data[1], target="lesion", aggregator="mean", folds=3, output=tmp_path / "mean", **QUICK
    )  # fmt: skip
    assert not (run.path / "attention.h5").exists()
    with pytest.raises(InputError, match="fold-0 is a model of mean, which weighs no instance") as error:
        run.attention()
    assert "Those that have one: abmil, gated-abmil, max" in str(error.value)


def test_balanced_sampling_is_recorded_and_changes_the_fit_but_neither_folds_nor_scored_patients(
    data, tmp_path: Path
) -> None:
    names = list(data[2])
    pl.DataFrame({"patient_id": names, "rare": [int(i % 5 == 0) for i in range(len(names))]}).write_csv(
        tmp_path / "rare.csv"
    )
    runs = {
        how: train(
            data[0], labels=tmp_path / "rare.csv", target="rare", sampling=how, folds=3, output=tmp_path / how, **QUICK
        )
        for how in ("none", "balanced")
    }
    assert runs["balanced"].settings["training"]["sampling"] == "balanced"
    assert runs["balanced"].settings["training"]["class_weights"] == "none"
    assert runs["balanced"].folds.equals(runs["none"].folds)
    keys = ["scan_id", "fold", "y_true"]
    one, other = (run.predictions.select(keys).sort(keys) for run in runs.values())
    assert one.equals(other)
    assert one.height == len(names)
    assert runs["balanced"].history["train_loss"].to_list() != runs["none"].history["train_loss"].to_list()
    positive = {how: run.predictions["y_score"].mean() for how, run in runs.items()}
    assert positive["balanced"] > positive["none"] + 0.1  # the prior that it was taught is one half, not one fifth


def test_sampling_and_class_weights_are_one_of_the_two_and_need_classes(data, tmp_path: Path) -> None:
    where = {"labels": data[1], "target": "lesion", "output": tmp_path / "r", **QUICK}
    with pytest.raises(InputError, match="both balanced, and each alone evens the classes out"):
        train(data[0], preset="paper", sampling="balanced", **where)
    with pytest.raises(InputError, match="sampling is 'some'; expected none or balanced"):
        train(data[0], sampling="some", **where)
    pl.DataFrame({"patient_id": list(data[2]), "age": [50.5 + i for i in range(len(data[2]))]}).write_csv(
        tmp_path / "age.csv"
    )
    with pytest.raises(InputError, match="--sampling balanced: evens out classes, and no endpoint"):
        train(data[0], sampling="balanced", **{**where, "labels": tmp_path / "age.csv", "target": "age"})
