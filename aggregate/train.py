"""Training: from a bag file and labels to a run folder.

Everything that can be wrong is found before the first model is built: labels, windows, patients, folds, the place of
the output. Then folds.csv is written, and the folds run (`aggregate.crossval`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from aggregate.aggregators import AGGREGATORS, build_aggregator, check_aggregator
from aggregate.baselines import ACQUISITION, baselines_table
from aggregate.cohort import Cohort
from aggregate.crossval import Settings, run_folds
from aggregate.curves import curves_table
from aggregate.fit import training_precision
from aggregate.predictions import average_scans
from aggregate.protocols import candidates
from aggregate.question import ask, read_task, with_settings
from aggregate.record import file_record, record_of
from aggregate.run import Run, check_output, free_name, new_run_folder, write_json, write_table
from aggregate.scores import metrics_table
from clear.bags import Bags
from clear.errors import InputError
from clear.tasks import JoinRule, Task
from clear.windows import Window


def train(
    bags: Path | str | Bags,
    *,
    task: str | Path | Task | None = None,
    labels: Path | str | None = None,
    target: str | Sequence[str] | None = None,
    output: Path | str | None = None,
    aggregator: str = "abmil",
    options: Mapping[str, Any] | None = None,
    protocol: str | None = None,
    folds: int | None = None,
    folds_file: Path | str | None = None,
    repeats: int = 1,
    seed: int = 0,
    group: str | None = None,
    split: str | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    several: str | None = None,
    baselines: Sequence[Path | str] = (ACQUISITION,),
    epochs: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    patience: int | None = None,
    dropout: float | None = None,
    standardise: bool | None = None,
    class_weights: str | None = None,
    sampling: str | None = None,
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
    that lie beside the bag file for the task are used; the joined labels of a task are kept there.

    protocol: `cv`, `cv-test` or `nested-cv` (`aggregate.protocols`), the task's by default. folds: patient-grouped
    folds, the task's number by default; folds_file: read them instead (`aggregate.folds_file`). group: a column of the
    scan table or the label table whose values are the folds, such as a site. split: the column that says train, val or
    test for cv-test, where the task's labels do not. grid: hyper-parameters of nested-cv, a field of `Preset` or
    `aggregator` to its values. several: `pool` or `average` a patient's scans. options: of the aggregator.
    baselines: `acquisition` and tables whose columns alone predict, in the same folds, beside the model.

    epochs, batch, lr, ...: in place of the preset's (`clear.presets`); giving epochs or batch switches its adaptation
    to small cohorts off. class_weights, sampling: `none` or `balanced`, one of the two at most. precision: of
    training's matrix products, `auto`, float32 or bfloat16; scores are always computed in float32. output: a new
    folder; `runs/<task>-<aggregator>-<bag file>` by default. Raises ClearErrors, all of them before training but for a
    loss that diverges.
    """
    changes = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "patience": patience,
        "dropout": dropout,
        "standardise": standardise,
        "class_weights": class_weights,
        "sampling": sampling,
    }
    chosen_task = read_task(task, labels, target)
    with_settings(preset or chosen_task.preset, changes)
    check_aggregator(aggregator, options)
    place = check_device(device)
    exactness = training_precision(precision, place)
    with ExitStack() as stack:
        opened = bags if isinstance(bags, Bags) else stack.enter_context(Bags(bags))
        name = f"{chosen_task.name}-{aggregator}-{opened.path.stem}".replace("/", "_")
        path = Path(output) if output is not None else free_name(Path("runs"), name)
        check_output(path, overwrite)
        question = ask(
            opened,
            task=task,
            labels=labels,
            target=target,
            protocol=protocol,
            folds=folds,
            folds_file=folds_file,
            repeats=repeats,
            seed=seed,
            group=group,
            split=split,
            grid=grid,
            several=several,
            preset=preset,
            settings=changes,
            windows=windows,
            join_rule=join_rule,
            id_column=id_column,
            patients=patients,
            patient_pattern=patient_pattern,
        )
        nested = question.protocol == "nested-cv"
        tried = tuple(candidates(question.grid, aggregator, question.preset)) if nested else ()
        settings = Settings(aggregator, question.preset, dict(options or {}), seed, place, exactness, tried)
        ordered: list[str] = []
        for name in sorted({each.aggregator for each in tried or (settings,)}):
            _check_model(name, options, opened, question.cohort)
            ordered += _order_remark(name, options, opened.dim, question.cohort)
        sampled = any(each.preset.sampling == "balanced" for each in tried or (settings,))
        if sampled and not any(endpoint.is_classes for endpoint in question.cohort.targets.endpoints):
            raise InputError(
                "--sampling balanced: evens out classes, and no endpoint of the task has any; leave it out"
            )
        compared, noted = baselines_table(baselines, opened, question, seed=seed)
        with new_run_folder(path, overwrite) as folder:
            question.folds.write(folder / "folds.csv")
            record = record_of(opened, question)
            record["remarks"] += [*ordered, *noted]
            record |= {"aggregator": aggregator, "options": settings.options, "seed": seed}
            record |= {"device": place, "precision": exactness, "threads": torch.get_num_threads()}
            record["grid"] = {key: list(values) for key, values in question.grid.items()}
            record["arguments"] = {
                "labels": file_record(labels),
                "id_column": id_column,
                "join": join_rule,
                "patients": file_record(patients),
                "patient_pattern": patient_pattern,
                "folds_file": file_record(folds_file),
                "split": split,
                "baselines": [str(each) for each in baselines],
            }
            predictions, fits = run_folds(folder, opened, question.cohort, question.folds, settings, progress)
            judged = average_scans(predictions) if question.several == "average" else predictions
            metrics = metrics_table(judged, question.cohort.targets.endpoints, question.task.metrics, seed=seed)
            write_table(folder / "predictions.csv", predictions)
            write_table(folder / "metrics.csv", metrics)
            write_table(folder / "curves.csv", curves_table(judged, question.cohort.targets.endpoints))
            if compared.height:
                write_table(folder / "baselines.csv", compared)
            write_json(folder / "run.json", {**record, "fits": fits})
    return Run(path)


def _check_model(name: str, options: Mapping[str, Any] | None, bags: Bags, cohort: Cohort) -> None:
    """Raises InputError where the aggregator cannot take these bags, before any is fitted."""
    check_aggregator(name, options, dim=bags.dim)
    longest = max(sum(len(range(*part.indices(len(bags.features)))) for part in parts) for parts in cohort.parts)
    if AGGREGATORS[name].single_vector and longest > 1:
        raise InputError(
            f"--aggregator {name}: takes one vector a scan, and the bags of {bags.path} have up to {longest} "
            "instances; choose an aggregator of bags, such as abmil"
        )


def _order_remark(name: str, options: Mapping[str, Any] | None, dim: int, cohort: Cohort) -> list[str]:
    """A sentence where a model that looks at the order of slices gets several scans one after the other."""
    pooled = max(len(ids) for ids in cohort.scan_ids) > 1
    with torch.random.fork_rng(devices=[]):
        ordered = build_aggregator(name, dim, cohort.targets.n_out, 0.0, options).ordered
    if not (pooled and ordered):
        return []
    return [f"{name} looks at the order of slices; the scans of a patient are read one after the other, as if one"]


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
