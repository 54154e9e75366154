"""The command line from bags to answers: train, crossval, probe, predict, compare, labels, tasks. No logic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# typer reads Optional[...] on every Python; each noqa below says so to the linter
Bags = Annotated[Path, typer.Argument(help="A bag file that `clear extract` wrote.")]
Task = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="A built-in task, such as rad-chestct (`clear tasks list`), or a task file (.yaml)."),
]
LabelTable = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Table of labels (CSV, TSV, Excel, Parquet), or the folder of a data set."),
]
Target = Annotated[Optional[list[str]], typer.Option(help="Column to predict; repeatable.")]  # noqa: UP045
Patients = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Table of scan_id and patient_id, when the bags hold no patients."),
]
PatientPattern = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Regular expression whose first group in scan_id is the patient."),
]
Join = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="When a label fits several scans: all, first, earliest or pool."),
]
IdColumn = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="The label table's column that holds ids, when it is not called scan_id or patient_id."),
]
Window = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--window", "-w", help="Of the file's windows those to use; the task's by default; repeatable."),
]
Folds = Annotated[Optional[int], typer.Option(help="Number of folds, grouped by patient.")]  # noqa: UP045
FoldsFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folds to use: folds.csv of a run, a table of fold, STAMP's or nnU-Net's JSON."),
]
Several = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Several scans of a patient: pool (one bag) or average (their scores)."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.")]
Out = Annotated[Optional[Path], typer.Option(help="The folder to write.")]  # noqa: UP045
Overwrite = Annotated[bool, typer.Option(help="Replace the output.")]

tasks_app = typer.Typer(help="What can be asked: built-in tasks, and files of your own.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for command in (train, crossval, probe, predict, compare, labels):
        app.command()(command)
    app.add_typer(tasks_app, name="tasks")


def train(
    bags: Bags,
    task: Task = None,
    labels: LabelTable = None,
    target: Target = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    join: Join = None,
    id_column: IdColumn = None,
    aggregator: Annotated[
        str, typer.Option(help="abmil, mean, gated-abmil, slice-transformer, ...; a wrong name lists them.")
    ] = "abmil",
    option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="NAME=VALUE of the aggregator, as in positions=rotary; repeatable."),
    ] = None,
    protocol: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cv, cv-test (a fixed test set) or nested-cv (settings chosen inside)."),
    ] = None,
    grid: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Of nested-cv: NAME=VALUE,VALUE, as in lr=1e-4,1e-3; repeatable."),
    ] = None,
    group: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Hold out one value of this column at a time, such as site."),
    ] = None,
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Column that says train, val or test, for cv-test."),
    ] = None,
    several: Several = None,
    baseline: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="acquisition, or a table (age, sex, ...), judged beside the model; none for no baseline."),
    ] = None,
    preset: Annotated[Optional[str], typer.Option(help="paper or adaptive; the task's by default.")] = None,  # noqa: UP045
    window: Window = None,
    folds: Folds = None,
    folds_file: FoldsFile = None,
    repeats: Annotated[int, typer.Option(help="Cross-validations with other folds.")] = 1,
    seed: Seed = 0,
    epochs: Annotated[Optional[int], typer.Option(help="At most this many epochs.")] = None,  # noqa: UP045
    batch: Annotated[Optional[int], typer.Option(help="Bags in a step.")] = None,  # noqa: UP045
    lr: Annotated[Optional[float], typer.Option(help="AdamW's.")] = None,  # noqa: UP045
    out: Out = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Of training: auto, float32 or bfloat16.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Cross-validate a small attention model on a bag file and print how well it does."""
    from clear.api import train as run
    from clear.arguments import named_lists, named_values

    extra = {} if baseline is None else {"baselines": [each for each in baseline if each != "none"]}
    result = run(
        bags,
        task=task,
        labels=labels,
        target=target,
        patients=patients,
        patient_pattern=patient_pattern,
        join_rule=join,
        id_column=id_column,
        aggregator=aggregator,
        options=named_values(option or [], "--option"),
        protocol=protocol,
        grid=named_lists(grid, "--grid") if grid else None,
        group=group,
        split=split,
        several=several,
        preset=preset,
        windows=window,
        folds=folds,
        folds_file=folds_file,
        repeats=repeats,
        seed=seed,
        epochs=epochs,
        batch=batch,
        lr=lr,
        output=out,
        device=device,
        precision=precision,
        overwrite=overwrite,
        **extra,
    )
    print(result.table())


def crossval(
    matrix: Annotated[Path, typer.Argument(help="A YAML file of encoders, aggregators and tasks (docs/tasks.md).")],
    device: Device = "auto",
) -> None:
    """Run encoders x aggregators x tasks, go on where it stopped, and print the paper's tables."""
    from clear.api import crossval as run

    result = run(matrix, device=device, report=print)
    print(result.summary())
    raise typer.Exit(result.exit_status)


def probe(
    bags: Annotated[list[Path], typer.Argument(help="One bag file or several of the same scans.")],
    task: Task = None,
    labels: LabelTable = None,
    target: Target = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    join: Join = None,
    id_column: IdColumn = None,
    window: Window = None,
    folds: Folds = None,
    folds_file: FoldsFile = None,
    seed: Seed = 0,
    out: Annotated[Optional[Path], typer.Option(help="A CSV file for the metrics.")] = None,  # noqa: UP045
) -> None:
    """Nearest neighbours and a linear model on pooled embeddings: how much an encoder knows without training one."""
    from clear.api import probe as run

    result = run(
        bags,
        task=task,
        labels=labels,
        target=target,
        patients=patients,
        patient_pattern=patient_pattern,
        join_rule=join,
        id_column=id_column,
        windows=window,
        folds=folds,
        folds_file=folds_file,
        seed=seed,
        output=out,
    )
    print(result.table())


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder that `clear train` wrote.")],
    bags: Bags,
    labels: LabelTable = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    join: Join = None,
    id_column: IdColumn = None,
    out: Out = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Score other scans with all models of a run; with labels, say how well."""
    from clear.api import predict as score

    place = out or Path("predictions") / f"{run.name}-on-{bags.stem}"
    result = score(
        run,
        bags,
        labels=labels,
        patients=patients,
        patient_pattern=patient_pattern,
        join_rule=join,
        id_column=id_column,
        output=place,
        device=device,
        overwrite=overwrite,
    )
    print(result.table())
    print(f"scores are in {place}/")


def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder.")],
    run_b: Annotated[Path, typer.Argument(help="A run folder of the same labels and folds.")],
    common: Annotated[bool, typer.Option(help="Compare on the scans that both scored.")] = False,
    seed: Seed = 0,
    out: Annotated[Optional[Path], typer.Option(help="A CSV file for all rows.")] = None,  # noqa: UP045
) -> None:
    """Paired tests between two runs: DeLong and the bootstrap over patients, Holm-corrected over endpoints."""
    from clear.api import compare as run

    result = run(run_a, run_b, common=common, seed=seed, output=out)
    print(result.text())


def labels(
    bags: Bags,
    task: Annotated[str, typer.Option(help="The task whose labels these are (`clear tasks list`), or a task file.")],
    table: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--labels", help="Table of labels, or the folder of a data set as downloaded."),
    ] = None,
    folder: Annotated[Optional[Path], typer.Option(help="The folder of scans in which to look for them.")] = None,  # noqa: UP045
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    join: Join = None,
    id_column: IdColumn = None,
) -> None:
    """Attach the labels of a task to a bag file, or replace them: `clear train --task` then needs nothing else."""
    from clear.api import attach_labels

    attached = attach_labels(
        bags,
        task,
        table,
        folder=folder,
        rule=join,
        id_column=id_column,
        patients=patients,
        patient_pattern=patient_pattern,
    )
    print(attached.summary())


@tasks_app.command("list")
def tasks_list() -> None:
    """The built-in tasks, a line each."""
    from clear.tasks import tasks_table

    print(tasks_table())


@tasks_app.command("show")
def tasks_show(name: Annotated[str, typer.Argument(help="A task's name, or a task file.")]) -> None:
    """What a task asks, of which files, how it is judged, and what is uncertain about it."""
    from clear.tasks import describe

    for key, value in describe(name).items():
        if value:
            print(f"{key:<14}{value}")


@tasks_app.command("init")
def tasks_init(
    file: Annotated[Path, typer.Argument(help="The task file to write, such as my-task.yaml.")],
) -> None:
    """Write a commented task file to fill in."""
    from clear.api import init_task

    print(f"{init_task(file)}: fill it in, then: clear train --task {file} feats.h5")
