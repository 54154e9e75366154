"""Cross-validation: from a bag file and labels to a run folder.

Everything that can be wrong is found before the first model is built: labels, windows, patients, folds, the place of
the output. Then folds.csv is written, and each fold gets a model, an optimiser and a generator of its own.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from aggregate.aggregators import AGGREGATORS, Aggregator, build_aggregator, predict
from aggregate.cohort import Cohort, build_cohort, choose_windows
from aggregate.fit import Fitted, Plan, fit, training_precision
from aggregate.folds import Folds, make_folds, read_folds
from aggregate.packed import RowSource
from aggregate.run import (
    FORMAT,
    VERSION,
    AttentionFile,
    Run,
    check_output,
    fold_name,
    free_name,
    new_run_folder,
    write_json,
    write_model,
    write_table,
)
from aggregate.scores import metrics_table
from aggregate.targets import probabilities
from clear.atomic import OutputError
from clear.bags import Bags
from clear.errors import InputError
from clear.label_join import Joined, join_labels
from clear.labels import Labels, read_labels, read_saved_labels, write_labels
from clear.tasks import PRESETS, JoinRule, Preset, Task, load_task, target_task
from clear.windows import Window

_PREDICTIONS = {
    "scan_id": pl.String,
    "patient_id": pl.String,
    "endpoint": pl.String,
    "class": pl.String,
    "repeat": pl.Int64,
    "fold": pl.Int64,
    "split": pl.String,
    "y_true": pl.Int64,
    "event": pl.Int64,
    "y_score": pl.Float64,
}


@dataclass(frozen=True)
class FoldResult:
    """One fold: the fitted model, the bags it scored, their (n, n_out) probabilities and attention (K,) each."""

    fitted: Fitted
    scored: NDArray[np.int64]
    scores: NDArray[np.float64]
    attention: list[NDArray[np.float32]]


def train(
    bags: Path | str | Bags,
    *,
    task: str | Task | None = None,
    labels: Path | str | None = None,
    target: str | Sequence[str] | None = None,
    output: Path | str | None = None,
    aggregator: str = "abmil",
    folds: int | None = None,
    folds_file: Path | str | None = None,
    repeats: int = 1,
    seed: int = 0,
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    patience: int | None = None,
    dropout: float | None = None,
    standardise: bool | None = None,
    preset: str | None = None,
    windows: Sequence[Window | str] | None = None,
    join_rule: JoinRule | None = None,
    id_column: str | None = None,
    patients: Path | str | None = None,
    patient_pattern: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Cross-validate an aggregator on a bag file and write the run folder.

    A task by name, or `labels` with `target` (one column or several) of a table of one's own. Without `labels` those
    that lie beside the bag file for the task are used; the joined labels of a task are kept there. folds:
    patient-grouped folds, the task's number by default; folds_file: read them instead. epochs, batch, lr, ...: in place
    of the preset's (`clear.tasks.PRESETS`); giving epochs or batch switches its adaptation to small cohorts off.
    precision: of training's matrix products, `auto`, float32 or bfloat16; scores are always computed in float32.
    output: a new folder; `runs/<task>-<aggregator>-<bag file>` by default. Raises ClearErrors, all of them before
    training but for a loss that diverges.
    """
    chosen_task = _task(task, labels, target)
    _check_numbers(folds, folds_file, repeats, seed)
    if aggregator not in AGGREGATORS:
        raise InputError(f"--aggregator {aggregator}: no such aggregator; expected one of {', '.join(AGGREGATORS)}")
    settings = _preset(
        preset or chosen_task.preset,
        epochs=epochs,
        batch=batch,
        lr=lr,
        weight_decay=weight_decay,
        patience=patience,
        dropout=dropout,
        standardise=standardise,
    )
    place = check_device(device)
    exactness = training_precision(precision, place)
    with ExitStack() as stack:
        opened = bags if isinstance(bags, Bags) else stack.enter_context(Bags(bags))
        name = f"{chosen_task.name}-{aggregator}-{opened.path.stem}".replace("/", "_")
        path = Path(output) if output is not None else free_name(Path("runs"), name)
        check_output(path, overwrite)
        used = choose_windows(opened, windows or chosen_task.windows, str(opened.path))
        known = (
            read_labels(labels, chosen_task, id_column=id_column)
            if labels is not None
            else read_saved_labels(opened.path, chosen_task)
        )
        joined = join_labels(
            known,
            opened.scans,
            rule=join_rule or chosen_task.join,
            patients=patients,
            patient_pattern=patient_pattern,
            source=str(opened.path),
        )
        kept = _keep_labels(opened, task, labels, joined, chosen_task)
        n_folds = chosen_task.folds if folds is None else folds
        cohort = build_cohort(opened, joined, used, 2 if folds_file is not None else n_folds)
        table, noted = _folds(cohort, folds_file, n_folds, repeats, seed, settings.inner_fraction)
        with new_run_folder(path, overwrite) as folder:
            table.write(folder / "folds.csv")
            record = _record(opened, chosen_task, known, joined, cohort, table, settings, used, [*kept, *noted])
            record |= {"aggregator": aggregator, "seed": seed, "device": place, "precision": exactness}
            record["threads"] = torch.get_num_threads()
            record["arguments"] = {
                "labels": _file(labels),
                "id_column": id_column,
                "join": join_rule,
                "patients": _file(patients),
                "patient_pattern": patient_pattern,
                "folds_file": _file(folds_file),
            }
            _run_folds(folder, opened, cohort, table, aggregator, settings, seed, place, exactness, record, progress)
    return Run(path)


def fit_fold(
    cohort: Cohort,
    rows: RowSource,
    folds: Folds,
    repeat: int,
    fold: int,
    *,
    aggregator: str,
    preset: Preset,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "auto",
    on_epoch: Any = None,
) -> FoldResult:
    """One fold of a cross-validation on its own: the same numbers as within the whole run."""
    split = {name: cohort.bags_of(scans) for name, scans in folds.split(repeat, fold).items()}

    def build(dim: int, n_out: int, dropout: float) -> Aggregator:
        return build_aggregator(aggregator, dim, n_out, dropout)

    fitted = fit(
        rows,
        cohort.targets,
        split["train"],
        split["inner"],
        build,
        preset,
        (seed, repeat, fold),
        device=device,
        precision=training_precision(precision, device),
        on_epoch=on_epoch,
    )
    logits, attention = predict(fitted.model, rows, split["test"])
    return FoldResult(fitted, split["test"], probabilities(logits, cohort.targets), attention)


def check_device(device: str) -> str:
    """`auto` is the GPU where torch sees one, else the CPU; raises InputError for what torch cannot use."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    if device.partition(":")[0] != "cuda":
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    return device


def _check_numbers(folds: int | None, folds_file: Path | str | None, repeats: int, seed: int) -> None:
    if folds_file is not None and (folds is not None or repeats != 1):
        raise InputError("--folds-file says how many folds and repeats there are; leave out --folds and --repeats")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")


def _task(task: str | Task | None, labels: Path | str | None, target: str | Sequence[str] | None) -> Task:
    if task is not None and target:
        raise InputError("--task and --target exclude each other: a task names its own endpoints")
    if task is not None:
        return load_task(task)
    if not target:
        raise InputError("expected --task NAME, or --labels TABLE with --target COLUMN")
    if labels is None:
        raise InputError("--target names a column of a table: give it with --labels TABLE")
    return target_task(target)


def _keep_labels(
    bags: Bags, task: str | Task | None, labels: Path | str | None, joined: Joined, chosen: Task
) -> list[str]:
    """Joined labels of a task go beside the bag file, so that the next run needs none; a remark where they cannot."""
    if task is None or labels is None:
        return []
    try:
        write_labels(bags.path, chosen.name, joined.frame, joined.endpoints)
    except OutputError as error:
        return [f"the labels could not be kept beside the bag file, so give --labels again next time: {error}"]
    return []


def _preset(name: str, **changes: Any) -> Preset:
    if name not in PRESETS:
        raise InputError(f"--preset {name}: no such preset; expected one of {', '.join(PRESETS)}")
    fixed = changes.get("epochs") is not None or changes.get("batch") is not None
    return PRESETS[name].with_changes(**changes, min_steps=0 if fixed else None)


def _folds(
    cohort: Cohort, file: Path | str | None, folds: int, repeats: int, seed: int, inner_fraction: float
) -> tuple[Folds, list[str]]:
    scans, patients, indicators = cohort.by_scan()
    if file is not None:
        return read_folds(file, scans, patients, indicators, seed=seed, inner_fraction=inner_fraction)
    made = make_folds(
        scans, patients, indicators, folds=folds, repeats=repeats, seed=seed, inner_fraction=inner_fraction
    )
    return made, []


def _run_folds(
    folder: Path,
    bags: Bags,
    cohort: Cohort,
    folds: Folds,
    aggregator: str,
    preset: Preset,
    seed: int,
    device: str,
    precision: str,
    record: dict[str, Any],
    progress: bool,
) -> None:
    rows = cohort.rows(bags, device)
    attention = AttentionFile(folder / "attention.h5", len(bags.features), bags.digest)
    history: list[dict[str, Any]] = []
    predictions: list[tuple[Any, ...]] = []
    fits: list[dict[str, Any]] = []
    plans = [Plan.of(preset, len(cohort.bags_of(folds.split(r, f)["train"]))) for r, f in folds.pairs]
    with tqdm(
        total=sum(plan.epochs for plan in plans), unit="epoch", disable=None if progress else True, leave=False
    ) as bar:
        reached = 0
        for number, ((repeat, fold), plan) in enumerate(zip(folds.pairs, plans, strict=True), start=1):
            bar.set_description(f"{aggregator}, fold {number} of {len(plans)}")

            def on_epoch(row: dict[str, Any], where: tuple[int, int] = (repeat, fold)) -> None:
                history.append({"repeat": where[0], "fold": where[1], **row})
                bar.update()

            result = fit_fold(
                cohort,
                rows,
                folds,
                repeat,
                fold,
                aggregator=aggregator,
                preset=preset,
                seed=seed,
                device=device,
                precision=precision,
                on_epoch=on_epoch,
            )
            name = fold_name(repeat, fold)
            write_model(folder / name, result.fitted.model)
            attention.add(name, [cohort.row_numbers(int(bag)) for bag in result.scored], result.attention)
            predictions += prediction_rows(cohort, result, repeat, fold)
            fits.append(
                {
                    "repeat": repeat,
                    "fold": fold,
                    "batch": plan.batch,
                    "epochs_at_most": plan.epochs,
                    "best_epoch": result.fitted.best_epoch,
                    "steps": result.fitted.steps,
                }
            )
            reached += plan.epochs
            bar.update(reached - bar.n)
    table = pl.DataFrame(predictions, schema=_PREDICTIONS, orient="row")
    metrics = metrics_table(table, cohort.targets.endpoints, record["task"]["metrics"], seed=seed)
    write_table(folder / "history.csv", pl.DataFrame(history))
    write_table(folder / "predictions.csv", table)
    write_table(folder / "metrics.csv", metrics)
    write_json(folder / "run.json", {**record, "fits": fits})


def prediction_rows(cohort: Cohort, result: FoldResult, repeat: int, fold: int) -> list[tuple[Any, ...]]:
    """The rows of predictions.csv of one fold: one a bag for a binary endpoint (its positive class), else one a class.

    y_true is 1 when the bag is of this class, 0 when not, null when unknown.
    """
    rows: list[tuple[Any, ...]] = []
    names = cohort.names
    for e, (endpoint, columns) in enumerate(zip(cohort.targets.endpoints, cohort.targets.columns, strict=True)):
        codes = [1] if endpoint.kind == "binary" else range(len(endpoint.classes))
        for position, code in enumerate(codes):
            for i, bag in enumerate(result.scored):
                truth = cohort.targets.codes[bag, e]
                y_true = int(truth == code) if np.isfinite(truth) else None
                score = float(result.scores[i, columns.start + position])
                key = (names[bag], cohort.patient_ids[bag], endpoint.name, endpoint.classes[code])
                rows.append((*key, repeat, fold, "test", y_true, None, score))
    return rows


def _record(
    bags: Bags,
    task: Task,
    labels: Labels,
    joined: Joined,
    cohort: Cohort,
    folds: Folds,
    preset: Preset,
    windows: tuple[Window, ...],
    noted: Sequence[str],
) -> dict[str, Any]:
    """run.json but for what the fits add."""
    counts = {}
    for e, endpoint in enumerate(cohort.targets.endpoints):
        codes = cohort.targets.codes[:, e]
        counts[endpoint.name] = {name: int((codes == code).sum()) for code, name in enumerate(endpoint.classes)}
        counts[endpoint.name]["unknown"] = int(np.isnan(codes).sum())
    trained_on = bags.provenance.get("trained on", "weights not described")
    if isinstance(trained_on, dict):
        trained_on = "; ".join(map(str, trained_on.get("several", [trained_on])))
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": task.as_dict(),
        "endpoints": [endpoint.as_dict() for endpoint in cohort.targets.endpoints],
        "labels": {"source": labels.source, "joined_by": joined.flow["joined_by"], "join": joined.rule},
        "label_counts": counts,
        "cohort": {**joined.flow, "bags": len(cohort), "patients": len(set(cohort.patient_ids))},
        "remarks": [*joined.remarks, *cohort.remarks, *noted],
        "windows": [window.as_dict() for window in windows],
        "training": preset.as_dict(),
        "n_folds": folds.table["fold"].n_unique(),
        "repeats": folds.table["repeat"].n_unique(),
        "bags": {
            "path": str(bags.path),
            "digest": bags.digest,
            "encoder": bags.encoder,
            "encoder_digest": bags.encoder_digest,
            "trained_on": str(trained_on),
            "dim": bags.dim,
            "windows": [window.as_dict() for window in bags.windows],
            "preprocessing": bags.preprocessing,
            "provenance": bags.provenance,
        },
        "versions": {
            "clear": _version("clear-mil"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "polars": pl.__version__,
        },
    }


def _file(path: Path | str | None) -> dict[str, str] | None:
    """A file that was given: its path, and its sha256 (of a folder the path alone)."""
    if path is None:
        return None
    here = Path(path)
    digest = {"sha256": hashlib.sha256(here.read_bytes()).hexdigest()} if here.is_file() else {}
    return {"path": str(path), **digest}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
