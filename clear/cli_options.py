"""Arguments and options that several commands of the command line share."""

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
Protocol = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="cv, cv-test (a fixed test set) or nested-cv (settings chosen inside); the task's by default."),
]
Group = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Hold out one value of this column at a time, such as site."),
]
Split = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Column that says train, val or test, for cv-test."),
]
Repeats = Annotated[int, typer.Option(help="Cross-validations with other folds.")]
