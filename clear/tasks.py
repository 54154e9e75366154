"""Tasks: what is predicted from the bags, and how it is judged, as plain data.

The registry is a literal (`clear.builtin_tasks`): no other file branches on a task's name. A task of one's own is a
YAML file with the same fields (`clear.task_files`); a table and a column need no task at all, see `target_task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clear.builtin_tasks import TASKS
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.presets import PRESETS, Preset
from clear.task import JOIN_RULES, KNOWN_METRICS, METRICS, RESERVED, JoinRule, Protocol, Several, Task, rule_of_scans
from clear.windows import Window

__all__ = [
    "JOIN_RULES",
    "KNOWN_METRICS",
    "METRICS",
    "PRESETS",
    "RESERVED",
    "TASKS",
    "JoinRule",
    "Preset",
    "Protocol",
    "Several",
    "Task",
    "describe",
    "load_task",
    "rule_of_scans",
    "target_task",
    "tasks_table",
]


def load_task(name: str | Path | Task) -> Task:
    """The task of this name, or of this task file (.yaml, .yml).

    Raises InputError listing the known names, or naming the field of the file that is wrong.

    >>> load_task("mrnet").endpoints[1].name
    'acl'
    """
    if isinstance(name, Task):
        return name
    if str(name) in TASKS:
        return TASKS[str(name)]
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        from clear.task_files import read_task_file

        return read_task_file(name)
    raise InputError(
        f"--task {name}: no such task. Built in: {', '.join(TASKS)}. A task of your own is a .yaml file "
        "(`clear tasks init`); a table of your own needs no task: --labels TABLE --target COLUMN"
    )


def target_task(targets: str | Sequence[str], *, name: str = "") -> Task:
    """A task made of columns of the user's own table; kinds and classes are inferred when the table is read."""
    columns = [targets] if isinstance(targets, str) else list(targets)
    if not columns or not all(columns):
        raise InputError("--target: expected the name of a column of the label table")
    return Task(
        name=name or "+".join(columns),
        description=f"own labels: {', '.join(columns)}",
        endpoints=tuple(Endpoint(column) for column in columns),
    )


def tasks_table(tasks: Mapping[str, Task] = TASKS) -> str:
    """A line a task: name, endpoints and their kind, windows, protocol, description; for `clear tasks list`."""
    rows = [("task", "endpoints", "windows", "protocol", "description")]
    for task in tasks.values():
        kinds = ", ".join(dict.fromkeys(endpoint.kind for endpoint in task.endpoints))
        windows = ", ".join(window.name for window in task.windows) or "all"
        rows.append((task.name, f"{len(task.endpoints)} {kinds}", windows, task.protocol, task.description))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows
    )


def describe(task: str | Path | Task) -> dict[str, str]:
    """All that is known of one task, a line a field; for `clear tasks show`."""
    one = load_task(task)
    fixed = {
        "name": one.name,
        "description": one.description,
        "endpoints": "\n".join(_endpoint_line(endpoint) for endpoint in one.endpoints),
        "windows": ", ".join(_window_text(window) for window in one.windows) or "all of the bag file",
        "labels": one.table or one.labels,
        "patients": one.patients or "from the scans, or the label table",
        "join": one.join or "asked when a label row matches several scans",
        "several": _SEVERAL[one.several],
        "protocol": _PROTOCOL[one.protocol].format(folds=one.folds),
        "grid": "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in one.grid.items()),
        "preset": one.preset,
        "metrics": ", ".join(dict.fromkeys(name for each in one.endpoints for name in one.metrics_of(each))),
        "modality": one.modality,
        "select": one.select,
        "ids": one.ids,
        "citation": one.citation,
        "notes": "\n".join(one.notes),
    }
    return {name: text for name, text in fixed.items() if text}


_SEVERAL: Mapping[Any, str] = {
    None: "each scan is a case of its own; folds keep a patient together",
    "pool": "the scans of a patient form one bag",
    "average": "each scan is scored, and the scores of a patient are averaged",
}
_PROTOCOL: Mapping[str, str] = {
    "cv": "cv: out-of-fold scores of {folds} patient-grouped folds",
    "cv-test": "cv-test: {folds} patient-grouped folds for fitting, scored on the official test scans",
    "nested-cv": "nested-cv: {folds} patient-grouped folds, hyper-parameters chosen on inner folds",
}


def _endpoint_line(endpoint: Endpoint) -> str:
    parts = [f"{endpoint.name}: {endpoint.kind}"]
    if endpoint.classes and endpoint.classes != ("absent", "present"):
        parts.append(f"({', '.join(endpoint.classes)})")
    if endpoint.source_column != endpoint.name:
        parts.append(
            f"from column {endpoint.source_column!r}" + (f", event {endpoint.event!r}" if endpoint.event else "")
        )
    return " ".join(parts)


def _window_text(window: Window) -> str:
    unit = {"percentile": " %", "range": ""}.get(window.kind, "")
    return f"{window.name} ({window.low:g}..{window.high:g}{unit})"
