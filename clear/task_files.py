"""Task files: a task of one's own as YAML, with the fields of `clear.task.Task`, checked field by field.

Only plain YAML is read (`clear.yaml_file`): a file can make text, numbers, lists and mappings, nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.presets import Preset
from clear.tables import some
from clear.task import Task
from clear.windows import Window, parse_window
from clear.yaml_file import read_yaml, shown

_TEXTS = (
    *("name", "description", "labels", "table", "id_column", "join", "several", "protocol", "preset"),
    *("modality", "select", "ids", "patients", "citation"),
)
_FIELDS = tuple(each.name for each in fields(Task))
_ENDPOINT_FIELDS = ("name", "kind", "classes", "column", "event")
_WINDOW_FIELDS = ("name", "low", "high", "kind")


def read_task_file(path: Path | str) -> Task:
    """The task of a YAML file; `table` is relative to the file, and `name` is the file's when it is left out.

    Raises InputError naming the file and the field: one that is unknown, absent, of another type, or of a value that
    the task cannot have.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: does not exist; expected a task file. `clear tasks init` writes a template")
    data = read_yaml(path, "a task file")
    for name in data:
        _known(name, _FIELDS, str(path))
    if "endpoints" not in data:
        raise InputError(f"{path}: endpoints is missing; expected a list, such as `endpoints: [{{name: fracture}}]`")
    values: dict[str, Any] = {"name": path.stem, "description": ""}
    for name in _TEXTS:
        if data.get(name) is not None:
            values[name] = _text(data[name], f"{path}: {name}")
    if values.get("table"):
        values["table"] = str((path.parent / values["table"]).resolve())
    if "folds" in data:
        values["folds"] = data["folds"]
    values["endpoints"] = tuple(
        _endpoint(each, f"{path}: endpoints[{i}]") for i, each in enumerate(_list(data["endpoints"], path, "endpoints"))
    )
    if data.get("windows") is not None:
        values["windows"] = tuple(
            _window(each, f"{path}: windows[{i}]") for i, each in enumerate(_list(data["windows"], path, "windows"))
        )
    for name in ("metrics", "notes"):
        if data.get(name) is not None:
            values[name] = tuple(_text(each, f"{path}: {name}") for each in _list(data[name], path, name))
    if data.get("grid") is not None:
        values["grid"] = _grid(data["grid"], path)
    try:
        task = Task(**values)
    except InputError as error:
        about = f"task {values['name']}: "
        raise InputError(f"{path}: {str(error).removeprefix(about)}") from None
    _check_labels(task, path)
    return task


def init_text() -> str:
    """A commented template of a task file; `clear tasks init` writes it.

    >>> init_text().splitlines()[0]
    '# A task: what is predicted from the bags, and how it is judged.'
    """
    return _TEMPLATE


def _known(name: str, expected: Iterable[str], where: str) -> None:
    if name not in (names := list(expected)):
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: no field {shown(name)}{hint} The fields are {', '.join(names)}")


def _text(value: Any, where: str) -> str:
    """Text, or a number as text: `classes: [0, 1]` means the words in the table."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        quoted = " (write yes, no, on and off in quotation marks)" if isinstance(value, bool) else ""
        raise InputError(f"{where} is {shown(value)}; expected text{quoted}")
    return str(value)


def _list(value: Any, path: Path, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {name} is {shown(value)}; expected a list")
    return value


def _endpoint(value: Any, where: str) -> Endpoint:
    """A column's name alone, or a mapping."""
    if isinstance(value, str):
        return Endpoint(value)
    if not isinstance(value, dict) or "name" not in value:
        raise InputError(f"{where} is {shown(value)}; expected a column's name, or a mapping with at least `name`")
    for name in value:
        _known(str(name), _ENDPOINT_FIELDS, where)
    words = {
        name: _text(value[name], f"{where}.{name}")
        for name in ("name", "kind", "column", "event")
        if value.get(name) is not None
    }
    classes = value.get("classes") or []
    if not isinstance(classes, list):
        raise InputError(f"{where}.classes is {shown(classes)}; expected a list, the negative class first")
    try:
        return Endpoint(**words, classes=tuple(_text(each, f"{where}.classes") for each in classes))  # type: ignore[arg-type]  # kind is checked there
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _window(value: Any, where: str) -> Window:
    """A preset's name, `NAME=LOW..HIGH`, or a mapping."""
    try:
        if isinstance(value, str):
            return parse_window(value)
        if isinstance(value, dict):
            for name in value:
                _known(str(name), _WINDOW_FIELDS, where)
            return Window.from_dict(value)
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix(f'--window {value}: ')}") from None
    raise InputError(
        f"{where} is {shown(value)}; expected a name, NAME=LOW..HIGH, or a mapping with name, low and high"
    )


def _grid(value: Any, path: Path) -> Mapping[str, tuple[Any, ...]]:
    """Values of the type that the preset's field has; whole numbers will do for real ones."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: grid is {shown(value)}; expected fields with lists, such as `lr: [0.0001, 0.001]`")
    kinds = {each.name: type(getattr(Preset("any"), each.name)) for each in fields(Preset)} | {"aggregator": str}
    grid: dict[str, tuple[Any, ...]] = {}
    for name, values in value.items():
        kind = kinds.get(name)
        listed = _list(values, path, f"grid.{name}")
        if kind is None:
            _known(str(name), [each for each in kinds if each != "name"], f"{path}: grid")
        made = [float(each) if kind is float and type(each) is int else each for each in listed]
        made = [_number(each) if kind is float and isinstance(each, str) else each for each in made]
        wrong = [each for each in made if type(each) is not kind]
        if wrong:
            raise InputError(f"{path}: grid.{name} holds {shown(wrong[0])}; expected {getattr(kind, '__name__', kind)}")
        grid[str(name)] = tuple(made)
    return MappingProxyType(grid)


def _number(word: str) -> float | str:
    """YAML 1.1 reads `1e-4` as text; here it is a number."""
    try:
        return float(word)
    except ValueError:
        return word


def _check_labels(task: Task, path: Path) -> None:
    from clear.label_readers import READERS

    if task.labels not in READERS:
        raise InputError(f"{path}: labels is {task.labels!r}; expected one of {some(READERS, 20)}")
    for name in ("table", "id_column"):
        if getattr(task, name) and task.labels != "table":
            raise InputError(f"{path}: {name} goes with `labels: table`; {task.labels} reads the files of its data set")


_TEMPLATE = """\
# A task: what is predicted from the bags, and how it is judged.
# Use it in place of a task's name:   clear train --task my-task.yaml feats.h5
# Lines that begin with `#` are comments; fields that are commented out show other values that they can have.

name: my-task
description: What is predicted, in one line

# The endpoints: columns of the label table. A cell that is empty, NA or unknown is left out of it, never a 0.
# A name alone takes kind and classes from the values.
endpoints:
  - name: fracture
    kind: binary               # binary, multiclass, ordinal, regression, survival, or auto
    classes: [absent, present] # the words of the table; the negative one first, ordinal from the lowest
  # - name: grade
  #   kind: ordinal
  #   classes: [G1, G2, G3]
  #   column: Grading          # the table's column, when it is called otherwise
  # - name: overall_survival
  #   kind: survival
  #   column: days             # the time
  #   event: died              # 1 = event, 0 = censored

# The label table, relative to this file: an id column (scan_id, series_uid, study_uid or patient_id) and the columns
# above; a column patient_id where the scans do not say the patient, and a column split (train, val, test) for cv-test.
table: labels.csv
# id_column: Fallnummer        # the table's column of ids, when it is called otherwise

# The windows that the model sees: abdomen, lung, percentile, or NAME=LOW..HIGH in HU. All of the bag file without it.
windows: [abdomen, lung]
# windows: ["bone=-450..1050"]

# A label row that matches several scans: all, first, earliest or pool. Without it `clear` stops and asks.
# join: earliest
# Several scans of a patient: pool (one bag) or average (of their scores). Without it each scan is a case of its own.
# several: pool

protocol: cv                   # cv, cv-test (needs the split) or nested-cv (needs the grid)
folds: 5
# grid:
#   lr: [0.0001, 0.0003, 0.001]
#   aggregator: [abmil, mean]

preset: adaptive               # adaptive or paper
metrics: [auroc, average_precision]

# What the files hold, where they do not say it (NIfTI and the like): CT or MR.
# modality: CT
# Which series extraction takes, as `clear extract --select` does.
# select: "modality = 'CT' AND n_slices >= 20"
# Ids that are written into file names: groups patient_id, study_uid, series_uid.
# ids: '(?P<patient_id>P\\d+)_scan'

# For readers; they change nothing.
# patients: PatientID of the headers
# citation: where the data come from
# notes: [what one should know]
"""
