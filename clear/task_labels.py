"""Labels of a task beside a bag file: found in the downloaded tree, joined, and written so that training needs no more.

`clear extract --task NAME DIR feats.h5` calls both functions; `clear labels` calls `attach_labels` to attach or replace
labels later. What is written is `feats.labels/NAME.parquet`, replaced atomically.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clear.bags import Bags
from clear.datasets.assemble import SPLITS
from clear.datasets.files import find_files
from clear.errors import InputError
from clear.label_join import Joined, join_labels
from clear.label_readers import DATASETS
from clear.labels import read_labels, write_labels
from clear.tables import SUFFIXES
from clear.task import JoinRule, Task, rule_of_scans
from clear.tasks import load_task


@dataclass(frozen=True)
class Attached:
    """Labels that now lie beside a bag file. path: the table written; joined: what it holds, with counts and remarks.

    source: the tables they were read from.
    """

    path: Path
    source: Path
    joined: Joined

    def summary(self) -> str:
        """Counts, and what did not join, a line each."""
        flow = self.joined.flow
        line = (
            f"{self.path}: labels of {flow['scans_used']} of {flow['scans_in_file']} scans "
            f"({flow['patients_used']} patients) from {self.source}, by {flow['joined_by']}"
        )
        if "split" in self.joined.frame.columns:
            sets = self.joined.frame["split"].to_list()
            named = [(name or "none", sets.count(name)) for name in dict.fromkeys([*SPLITS, *sets])]
            line += "; official split: " + ", ".join(f"{name} {count}" for name, count in named if count)
        return "\n".join([line, *(f"  {remark}" for remark in self.joined.remarks)])


def find_labels(task: str | Path | Task, folder: Path | str) -> Path | None:
    """Where the label tables of a task lie: in the folder of the scans or below it, else right above it; None if
    nowhere.

    Tables are known by the names they are published under; a task of one's own names its `table`, or has
    `<task>.csv` or `labels.csv` (or another table) there. What is returned goes to `attach_labels`.
    """
    one, place = load_task(task), Path(folder)
    place = place if place.is_dir() else place.parent
    if one.table:
        return Path(one.table)
    above = place.resolve().parent
    if one.labels == "table":
        names = [f"{name}{suffix}" for name in (one.name, "labels") for suffix in SUFFIXES]
        found = [each / name for each in (place, above) for name in names if (each / name).is_file()]
        return found[0] if found else None
    patterns = DATASETS[one.labels].FILES
    if find_files(place, patterns):
        return place
    beside = find_files(above, patterns, depth=1)
    folders = sorted({file.parent for file in beside})
    return folders[0] if folders else None


def attach_labels(
    bags: Path | str | Bags,
    task: str | Path | Task,
    labels: Path | str | None = None,
    *,
    folder: Path | str | None = None,
    rule: JoinRule | None = None,
    id_column: str | None = None,
    patients: Path | str | None = None,
    patient_pattern: str | None = None,
) -> Attached:
    """Read the labels of a task, join them to the scans of a bag file, and write them beside it.

    labels: a table, a file or the folder of a data set; without it they are looked for with `find_labels` in `folder`.
    rule: what a label row that matches several scans means, in place of the task's. id_column, patients and
    patient_pattern: as in `clear.label_join.join_labels`. Labels of the same task that lay there are replaced.
    Raises InputError when none are found or they cannot be used, OutputError when the table cannot be written.
    """
    one = load_task(task)
    place = Path(labels) if labels is not None else find_labels(one, folder) if folder is not None else None
    if place is None:
        if folder is None:
            raise InputError(
                f"labels of {one.name}: none were given. Give --labels TABLE, or --folder DIR to look in; expected "
                f"{_expected(one)}"
            )
        raise InputError(
            f"labels of {one.name}: none found in or beside {folder}; expected {_expected(one)}. Give --labels TABLE"
        )
    opened = bags if isinstance(bags, Bags) else Bags(bags)
    try:
        known = read_labels(place, one, id_column=id_column)
        joined = join_labels(
            known,
            opened.scans,
            rule=rule_of_scans(one, rule)[0],
            patients=patients,
            patient_pattern=patient_pattern,
            source=str(opened.path),
        )
        path = write_labels(opened.path, one.name, joined.frame, joined.endpoints)
    finally:
        if opened is not bags:
            opened.close()
    return Attached(path, place, joined)


def _expected(task: Task) -> str:
    if task.labels in DATASETS:
        return f"the files of {DATASETS[task.labels].ORIGIN}"
    return f"{task.name}.csv or labels.csv, with an id column and {task.endpoints[0].source_column}"
