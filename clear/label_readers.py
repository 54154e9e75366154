"""Label readers: which module reads the label files of a task; `clear.tasks` names the reader of each.

`table` is one table of the user's own. Every other reader takes the files of a data set exactly as downloaded, and a
table of one's own in their place: one with an id column and a column an endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType

from clear.datasets import (
    ct_rate,
    deeplesion,
    duke_breast,
    lidc,
    medmnist3d,
    merlin,
    mrnet,
    nsclc_radiomics,
    rad_chestct,
)
from clear.datasets.files import fits
from clear.labels import Labels, labels_from_table
from clear.tables import SUFFIXES, read_table
from clear.task import Task

Reader = Callable[[Path, Task, str | None], Labels]

DATASETS: Mapping[str, ModuleType] = MappingProxyType(
    {
        "deeplesion": deeplesion,
        "rad-chestct": rad_chestct,
        "nsclc-radiomics": nsclc_radiomics,
        "lidc": lidc,
        "mrnet": mrnet,
        "duke-breast": duke_breast,
        "medmnist3d": medmnist3d,
        "ct-rate": ct_rate,
        "merlin": merlin,
    }
)


def reader_of(module: ModuleType) -> Reader:
    """The reader of a data set; a table that is none of its files is read as the user's own."""

    def read(path: Path, task: Task, id_column: str | None = None) -> Labels:
        if path.is_file() and path.suffix.lower() in SUFFIXES and not fits(path.name, module.FILES):
            return _own_table(path, task, id_column)
        labels: Labels = module.read(path, task)
        return labels

    return read


def is_source(task: Task, column: str) -> bool:
    """Whether a column of a data set's own tables is what a label of the task is made of, or follows from it."""
    rule = getattr(DATASETS.get(task.labels), "is_source", None)
    return rule is not None and any(rule(column, endpoint.source_column) for endpoint in task.endpoints)


def user_table(path: Path, task: Task, id_column: str | None = None) -> Labels:
    """One table of the user's own; its column of ids is the one given, else the task's."""
    return labels_from_table(path, task, id_column or task.id_column or None)


def _own_table(path: Path, task: Task, id_column: str | None) -> Labels:
    """Endpoints by their own names where the table has those, else by the columns that the task names."""
    columns = read_table(path).columns
    named = tuple(replace(endpoint, column="") if endpoint.name in columns else endpoint for endpoint in task.endpoints)
    return labels_from_table(path, replace(task, endpoints=named), id_column)


READERS: Mapping[str, Reader] = MappingProxyType(
    {"table": user_table, **{name: reader_of(module) for name, module in DATASETS.items()}}
)
