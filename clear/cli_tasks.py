"""The command line of tasks and their labels: tasks list, show and init, labels. No logic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from clear.cli_options import Bags, IdColumn, Join, PatientPattern, Patients

tasks_app = typer.Typer(help="What can be asked: built-in tasks, and files of your own.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command()(labels)
    app.add_typer(tasks_app, name="tasks")


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
        print("\n".join(f"{'' if number else key:<14}{line}" for number, line in enumerate(value.splitlines())))


@tasks_app.command("init")
def tasks_init(
    file: Annotated[Path, typer.Argument(help="The task file to write, such as my-task.yaml.")],
) -> None:
    """Write a commented task file to fill in."""
    from clear.api import init_task

    print(f"{init_task(file)}: fill it in, then: clear train --task {file} feats.h5")
