"""The command line from bags to answers: train, crossval, probe, predict, compare. No logic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from clear.cli_options import (
    Bags,
    Device,
    Folds,
    FoldsFile,
    Group,
    IdColumn,
    Join,
    LabelTable,
    Out,
    Overwrite,
    PatientPattern,
    Patients,
    Protocol,
    Repeats,
    Seed,
    Several,
    Split,
    Target,
    Task,
    Window,
)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for command in (train, crossval, probe, predict, compare):
        app.command()(command)


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
    protocol: Protocol = None,
    grid: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Of nested-cv: NAME=VALUE,VALUE, as in lr=1e-4,1e-3; repeatable."),
    ] = None,
    group: Group = None,
    split: Split = None,
    several: Several = None,
    baseline: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="acquisition, or a table (age, sex, ...), judged beside the model; none for no baseline."),
    ] = None,
    preset: Annotated[Optional[str], typer.Option(help="paper or adaptive; the task's by default.")] = None,  # noqa: UP045
    window: Window = None,
    folds: Folds = None,
    folds_file: FoldsFile = None,
    repeats: Repeats = 1,
    seed: Seed = 0,
    epochs: Annotated[Optional[int], typer.Option(help="At most this many epochs.")] = None,  # noqa: UP045
    batch: Annotated[Optional[int], typer.Option(help="Bags in a step.")] = None,  # noqa: UP045
    lr: Annotated[Optional[float], typer.Option(help="AdamW's.")] = None,  # noqa: UP045
    class_weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="none, or balanced: rare classes weigh more in the loss; the preset's by default."),
    ] = None,
    sampling: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="none, or balanced: rare classes are drawn more often; not with class weights."),
    ] = None,
    out: Out = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Of training: auto, float32 or bfloat16.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Cross-validate a small attention model on a bag file and print how well it does."""
    from clear.api import train as run
    from clear.arguments import named_lists, named_values

    extra: dict[str, Any] = {} if baseline is None else {"baselines": [each for each in baseline if each != "none"]}
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
        class_weights=class_weights,
        sampling=sampling,
        output=out,
        device=device,
        precision=precision,
        overwrite=overwrite,
        **extra,
    )
    print(result.table())
    print(f"the run is in {result.path}/")


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
    protocol: Protocol = None,
    group: Group = None,
    split: Split = None,
    several: Several = None,
    window: Window = None,
    folds: Folds = None,
    folds_file: FoldsFile = None,
    repeats: Repeats = 1,
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
        protocol=protocol,
        group=group,
        split=split,
        several=several,
        windows=window,
        folds=folds,
        folds_file=folds_file,
        repeats=repeats,
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
