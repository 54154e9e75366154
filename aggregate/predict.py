"""Prediction: the models of a run on another bag file.

Every fold's model scores every bag; the answer is their mean, and their standard deviation says how far they agree.
Bags of another encoder or without the run's windows are refused, because the models would read noise. Patients whom the
run was fitted on, or the encoder was trained on, are marked: their scores say nothing about new patients, so external
metrics leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.aggregators import predict as score_bags
from aggregate.cohort import Cohort, choose_windows, rows_of_scans
from aggregate.predictions import average_scans, prediction_rows
from aggregate.record import bags_record, file_record, known_to_encoder, trained_on, versions
from aggregate.run import Run, check_output, new_run_folder, write_json, write_table
from aggregate.scores import metrics_table
from aggregate.summary import metrics_text
from aggregate.targets import Targets, predicted
from aggregate.train import check_device
from clear.bags import Bags
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import Joined, join_labels
from clear.labels import read_labels
from clear.patients import patients_of_scans
from clear.tables import some
from clear.tasks import JoinRule, Task

FORMAT = "clear-prediction"
VERSION = 1


@dataclass(frozen=True)
class Prediction:
    """What a run says of another bag file.

    scores: a row a bag and score, as in predictions.csv of a run but for `y_score`, the mean over the models, `y_sd`,
    their standard deviation (null for one model), `models`, how many they are, and `seen`, how the patient is known:
    `training`, `pretraining`, or "". metrics: the rows of metrics.csv over patients not seen, none without labels.
    endpoints: of the run. path: the folder it was written to, None when it was not.
    """

    scores: pl.DataFrame
    metrics: pl.DataFrame
    remarks: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    path: Path | None = None

    def table(self) -> str:
        """What a terminal shows."""
        models = max(self.scores["models"].to_list(), default=0)
        lines = [f"{self.scores['scan_id'].n_unique()} bags scored by {models} models"]
        if self.metrics.height:
            lines += metrics_text(self.metrics, self.endpoints)
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def predict(
    run: Run | Path | str,
    bags: Bags | Path | str,
    *,
    labels: Path | str | None = None,
    output: Path | str | None = None,
    join_rule: JoinRule | None = None,
    id_column: str | None = None,
    patients: Path | str | None = None,
    patient_pattern: str | None = None,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> Prediction:
    """Scores of every bag of a file by all models of a run, and with labels external metrics with intervals.

    labels: a table with the run's target columns, or the task's label files. join_rule, id_column, patients,
    patient_pattern: as in `aggregate.train`. output: a folder for predictions.csv (and metrics.csv) and predict.json;
    nothing is written without. Raises InputError where the bags cannot be compared with the run's.
    """
    opened_run = run if isinstance(run, Run) else Run.open(run)
    place = check_device(device)
    path = None if output is None else Path(output)
    if path is not None:
        check_output(path, overwrite, "predict.json")
    with ExitStack() as stack:
        opened = bags if isinstance(bags, Bags) else stack.enter_context(Bags(bags))
        remarks = check_bags(opened_run, opened)
        joined = None
        if labels is not None:
            known = read_labels(labels, _task(opened_run), id_column=id_column)
            averaged: JoinRule | None = "all" if opened_run.settings.get("several") == "average" else None
            rule = join_rule or opened_run.settings["labels"]["join"] or averaged
            joined = join_labels(
                known,
                opened.scans,
                rule=rule,
                patients=patients,
                patient_pattern=patient_pattern,
                source=str(opened.path),
            )
            remarks += joined.remarks
        owner = patients_of_scans(opened.scans, patients, patient_pattern)
        cohort, noted = _cohort(opened_run, opened, joined, owner)
        seen, told = _seen(opened_run, opened, cohort)
        by_model = _scores(opened_run, opened, cohort, place)
        told += _not_learnt(opened_run)
        scores = _ensemble(opened_run, cohort, by_model, seen)
        metrics, left = (
            _metrics(opened_run, cohort, by_model, seen, seed) if joined is not None else (pl.DataFrame(), [])
        )
        result = Prediction(scores, metrics, (*remarks, *noted, *told, *left), opened_run.endpoints, path)
        if path is not None:
            with new_run_folder(path, overwrite, "predict.json") as folder:
                write_table(folder / "predictions.csv", scores)
                if metrics.height:
                    write_table(folder / "metrics.csv", metrics)
                write_json(
                    folder / "predict.json",
                    {
                        "format": FORMAT,
                        "version": VERSION,
                        "run": {"path": str(opened_run.path), "bags": opened_run.settings["bags"]["digest"]},
                        "bags": bags_record(opened),
                        "labels": file_record(labels),
                        "models": len(opened_run.pairs),
                        "remarks": list(result.remarks),
                        "versions": versions(),
                    },
                )
    return result


def check_bags(run: Run, bags: Bags) -> list[str]:
    """Remarks on how the bags were made otherwise; raises InputError where the run's models cannot read them."""
    own = run.settings["bags"]
    if bags.encoder_digest != own["encoder_digest"]:
        raise InputError(
            f"{bags.path}: encoded by {bags.encoder} ({bags.encoder_digest[:12]}); the run {run.path} was trained on "
            f"{own['encoder']} ({own['encoder_digest'][:12]}). Extract these scans with that encoder and weights"
        )
    if bags.preprocessing != own["preprocessing"]:
        raise InputError(
            f"{bags.path}: slices were prepared otherwise ({bags.preprocessing}) than in the run {run.path} "
            f"({own['preprocessing']}). Extract these scans with the run's settings"
        )
    choose_windows(bags, run.windows, str(bags.path))
    here, there = bags.provenance, own.get("provenance", {})
    differ = [name for name in ("precision", "batch", "device") if name in there and here.get(name) != there[name]]
    return [f"{name} of the encoding differs: {there[name]} in training, {here.get(name)} here" for name in differ]


def _task(run: Run) -> Task:
    """The run's endpoints, with kinds and classes settled, as a task that reads labels in the same way."""
    settings = run.settings["task"]
    return Task(name=settings["name"], description="", endpoints=run.endpoints, labels=settings["labels"])


def _cohort(run: Run, bags: Bags, joined: Joined | None, owner: Mapping[str, str | None]) -> tuple[Cohort, list[str]]:
    """All bags of the file, pooled by patient where the run's were; labels unknown where there are none."""
    pooled = run.settings["labels"]["join"] == "pool"
    scans = bags.scans["scan_id"].to_list()
    of_label = {row["scan_id"]: row for row in joined.frame.iter_rows(named=True)} if joined is not None else {}
    patient = {scan: of_label[scan]["patient_id"] if scan in of_label else owner[scan] for scan in scans}
    nameless = [scan for scan in scans if not patient[scan]]
    if nameless and pooled:
        raise InputError(
            f"{bags.path}: {len(nameless)} scans have no patient id, first {some(nameless, 3)}, and the run has one "
            "bag a patient; give --patients TABLE or --patient-pattern REGEX"
        )
    remarks = [f"{len(nameless)} scans have no patient id: whether they were seen cannot be told"] if nameless else []
    groups: dict[str, list[str]] = {}
    for scan in scans:
        groups.setdefault(str(patient[scan]) if pooled else scan, []).append(scan)
    windows = choose_windows(bags, run.windows, str(bags.path))
    rows = rows_of_scans(bags, windows)
    endpoints = run.endpoints
    codes = np.full((len(groups), len(endpoints)), np.nan)
    events = np.full((len(groups), len(endpoints)), np.nan)
    for b, ids in enumerate(groups.values()):
        for e, endpoint in enumerate(endpoints):
            values = {
                tuple(of_label[scan][column] for column in endpoint.label_columns)
                for scan in ids
                if scan in of_label and of_label[scan][endpoint.name] is not None
            }
            if len(values) > 1:
                raise InputError(
                    f"{endpoint.name}: scans of patient {patient[ids[0]]!r} have different labels; one bag a patient "
                    "needs one label a patient"
                )
            for value in values:
                codes[b, e] = value[0]
                events[b, e] = value[1] if len(value) > 1 else np.nan
    survival = any(endpoint.kind == "survival" for endpoint in endpoints)
    cohort = Cohort(
        scan_ids=tuple(tuple(ids) for ids in groups.values()),
        patient_ids=tuple(patient[ids[0]] or "" for ids in groups.values()),
        targets=Targets(endpoints, codes, events if survival else None),
        parts=tuple(tuple(part for scan in ids for part in rows[scan]) for ids in groups.values()),
        windows=windows,
        remarks=(),
    )
    return cohort, remarks


def _scores(run: Run, bags: Bags, cohort: Cohort, device: str) -> list[NDArray[np.float64]]:
    """(B, S) scores of each model, in the order of `run.pairs`; nan for endpoints that it could not learn."""
    rows = cohort.rows(bags, device)
    everyone = np.arange(len(cohort))
    out = []
    for repeat, fold in run.pairs:
        logits, _ = score_bags(run.model(repeat, fold).to(device), rows, everyone)
        scores = predicted(logits, cohort.targets, run.scale(repeat, fold))
        out.append(cohort.targets.without(scores, run.not_learnt(repeat, fold)))
    return out


def _not_learnt(run: Run) -> list[str]:
    """A remark on each endpoint that some of the run's models could not learn."""
    folds: dict[str, int] = {}
    for repeat, fold in run.pairs:
        for name in run.not_learnt(repeat, fold):
            folds[name] = folds.get(name, 0) + 1
    return [
        f"{name}: {count} of {len(run.pairs)} models had nothing to learn it from and take no part in its scores"
        for name, count in folds.items()
    ]


def _ensemble(run: Run, cohort: Cohort, by_model: Sequence[NDArray[np.float64]], seen: Sequence[str]) -> pl.DataFrame:
    """A row a score: the mean over the models that learnt the endpoint, how many, and their standard deviation."""
    stacked = np.stack(by_model)
    counts = np.isfinite(stacked).sum(axis=0)
    mean = np.nansum(stacked, axis=0) / np.where(counts, counts, np.nan)
    squares = np.nansum((stacked - mean) ** 2, axis=0)
    deviation = np.sqrt(squares / np.where(counts > 1, counts - 1, np.nan))
    everyone = np.arange(len(cohort))

    def rows(values: NDArray[np.float64]) -> pl.DataFrame:
        return prediction_rows(
            cohort.names, cohort.patient_ids, cohort.targets, everyone, values, repeat=0, fold=0, split="external"
        )

    table = rows(mean)
    of_bag = dict(zip(cohort.names, seen, strict=True))
    return table.drop("repeat", "fold", "split").with_columns(
        rows(deviation)["y_score"].alias("y_sd"),
        rows(counts.astype(np.float64))["y_score"].cast(pl.Int64).alias("models"),
        pl.Series("seen", [of_bag[name] for name in table["scan_id"]], dtype=pl.String),
    )


def _metrics(
    run: Run, cohort: Cohort, by_model: Sequence[NDArray[np.float64]], seen: Sequence[str], seed: int
) -> tuple[pl.DataFrame, list[str]]:
    """(metrics of the ensemble and of single models over bags of patients not seen, remarks)."""
    known = np.isfinite(cohort.targets.codes).any(axis=1)
    new = known & np.array([not each for each in seen])
    left_out = int((known & ~new).sum())
    remarks = [f"metrics leave out {left_out} labelled bags of patients seen before"] if left_out else []
    if not new.any():
        return pl.DataFrame(), [*remarks, "no labelled bag is of a new patient, so there are no external metrics"]
    bags = np.flatnonzero(new)
    frames = [
        prediction_rows(cohort.names, cohort.patient_ids, cohort.targets, bags, scores[bags], repeat=repeat, fold=fold)
        for (repeat, fold), scores in zip(run.pairs, by_model, strict=True)
    ]
    nameless = {name: f" {name}" for name, p in zip(cohort.names, cohort.patient_ids, strict=True) if not p}
    table = pl.concat(frames).with_columns(
        pl.when(pl.col("patient_id") == "")
        .then(pl.col("scan_id").replace(nameless))
        .otherwise("patient_id")
        .alias("patient_id")
    )
    if run.settings.get("several") == "average":
        table = average_scans(table)
    return metrics_table(table, run.endpoints, run.settings["task"]["metrics"], seed=seed), remarks


def _seen(run: Run, bags: Bags, cohort: Cohort) -> tuple[list[str], list[str]]:
    """(for each bag `training`, `pretraining` or "", remarks): known by patient, scan id, or voxels under another."""
    fitted = run.folds.filter(pl.col("split").is_in(["train", "inner"]))
    patients, scans = set(fitted["patient_id"].to_list()), set(fitted["scan_id"].to_list())
    digest_of = run.settings.get("scan_digests", {})
    voxels = {digest_of[scan] for scan in scans if scan in digest_of}
    digests = dict(bags.scans.select("scan_id", "digest").iter_rows())
    known_before = known_to_encoder(bags, cohort)
    out = []
    for ids, patient, recorded in zip(cohort.scan_ids, cohort.patient_ids, known_before, strict=True):
        if patient in patients or scans & set(ids) or voxels & {digests[scan] for scan in ids}:
            out.append("training")
        else:
            out.append("pretraining" if recorded else "")
    remarks = []
    known = len({p for p, how in zip(cohort.patient_ids, out, strict=True) if how == "training"})
    if known:
        remarks.append(
            f"{known} patients were seen in this run's training: their scores say nothing about new patients"
        )
    known = len({p for p, how in zip(cohort.patient_ids, out, strict=True) if how == "pretraining"})
    if known:
        remarks.append(f"{known} patients were seen in the encoder's training ({trained_on(bags)})")
    return out, remarks
