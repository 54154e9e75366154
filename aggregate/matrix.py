"""A matrix of questions: encoders x aggregators x tasks, every cell a run, computed once.

    encoders: {mambaout-lecl: feats-lecl.h5, dinov2: feats-dinov2.h5}     # names of your own, bag files
    aggregators: [abmil, mean, {name: slice-transformer, positions: rotary}]
    tasks:
      - rad-chestct                                  # a task by name, its labels beside the bag file
      - {labels: labels.csv, target: lesion}         # arguments of clear train
      - {name: old, labels: old.csv, target: lesion} # under a name of your own, where two would be called the same
    windows: {both: [abdomen, lung], lung: [lung]}   # optional: a run for each choice of windows
    settings: {folds: 5, seed: 0}                    # optional: arguments of every run
    output: matrix                                   # optional: the folder of runs and tables

Paths are relative to the file. A cell's key is a digest of everything that decides its numbers: the content of bag
file, labels and other tables, task, aggregator, preset and settings (`aggregate.matrix_key`). Its run lies in
`output/runs` under a name that ends in the key; one that is there is not computed again, whatever the cell is called
now, so a stopped matrix goes on where it stopped.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from aggregate.aggregators import check_aggregator
from aggregate.baselines import ACQUISITION
from aggregate.fit import training_precision
from aggregate.matrix_key import CACHE, Digests, cell_key
from aggregate.matrix_tables import matrix_markdown, matrix_table
from aggregate.question import read_task, with_settings
from aggregate.run import Run, write_table
from aggregate.train import check_device, train
from clear.atomic import write_aside
from clear.errors import ClearError, InputError
from clear.labels import labels_path
from clear.presets import Preset
from clear.tables import some
from clear.yaml_file import read_yaml, shown

_FIELDS = ("encoders", "aggregators", "tasks", "windows", "settings", "output")
_PATHS = ("labels", "folds_file", "patients")
_OWN = ("bags", "aggregator", "options", "output", "device", "progress", "overwrite")  # not for a matrix to set
_SETTINGS = tuple(name for name in inspect.signature(train).parameters if name not in _OWN)
_NUMBERS = ("folds", "repeats", "seed")
_LISTS = ("windows", "baselines", "target")
_OF_PRESET = tuple(each.name for each in fields(Preset) if each.name in _SETTINGS)


@dataclass(frozen=True)
class Cell:
    """One run of a matrix: names for the table, the arguments of `train`, and the key of its numbers."""

    encoder: str
    aggregator: str
    task: str
    windows: str
    arguments: Mapping[str, Any]
    key: str

    @property
    def folder(self) -> str:
        """The name of its run."""
        words = [self.task, self.encoder, self.aggregator, self.windows]
        return "-".join(re.sub(r"[^A-Za-z0-9._+-]+", "_", word).strip("_") for word in words if word) + f"-{self.key}"


@dataclass(frozen=True)
class Matrix:
    """What a matrix gave. runs: by cell, those done; failures: cell and sentence; computed: how many were new."""

    cells: tuple[Cell, ...]
    runs: Mapping[Cell, Run]
    failures: Mapping[Cell, str]
    computed: int
    table: pl.DataFrame
    markdown: str
    path: Path

    def summary(self) -> str:
        """What a terminal shows: the tables, then what was done."""
        done = f"{len(self.runs)} of {len(self.cells)} cells, {self.computed} computed now; tables in {self.path}/"
        failed = [f"failed: {cell.folder}: {sentence}" for cell, sentence in self.failures.items()]
        return "\n".join([self.markdown, done, *failed])

    @property
    def exit_status(self) -> int:
        """0 when every cell has its run, else 3."""
        return 3 if self.failures else 0


def crossval(
    matrix: Path | str, *, device: str = "auto", progress: bool = True, report: Callable[[str], None] | None = None
) -> Matrix:
    """Run what of the matrix is not yet there, and write `table.csv` and `table.md` beside the runs.

    report: told each cell in a line. A cell that cannot be computed is listed with its reason, and the others go on.
    Raises InputError for a file that is no matrix, before anything is computed.
    """
    path = Path(matrix)
    spec = read_matrix(path)
    folder = path.parent / str(spec.get("output", path.stem))
    digests = Digests(folder / CACHE)
    cells = cells_of(spec, path.parent, digests, check_device(device))
    say = report or (lambda _: None)
    runs: dict[Cell, Run] = {}
    failures: dict[Cell, str] = {}
    by_key: dict[str, Run] = {}
    computed = 0
    for number, cell in enumerate(cells, start=1):
        found = by_key.get(cell.key) or _finished(folder / "runs", cell.key)
        if found is None:
            say(f"cell {number} of {len(cells)}: {cell.folder}")
            try:
                output = folder / "runs" / cell.folder
                found = train(**cell.arguments, output=output, device=device, progress=progress)
                computed += 1
            except ClearError as error:
                failures[cell] = str(error)
                continue
        runs[cell] = by_key[cell.key] = found
    table = matrix_table({(c.task, c.encoder, c.aggregator, c.windows): run for c, run in runs.items()})
    text = matrix_markdown(table)
    folder.mkdir(parents=True, exist_ok=True)
    digests.keep()
    write_table(folder / "table.csv", table)
    write_aside(folder / "table.md", text.encode())
    return Matrix(tuple(cells), runs, failures, computed, table, text, folder)


def read_matrix(path: Path) -> dict[str, Any]:
    """The fields of a matrix file; raises InputError naming the field that is wrong."""
    data = read_yaml(path, "a matrix file")
    strange = [name[:60] for name in data if name not in _FIELDS]
    if strange:
        raise InputError(f"{path}: no field {some(strange)}; expected {', '.join(_FIELDS)}")
    for name, kind, what in (
        ("encoders", dict, "names with a bag file each"),
        ("aggregators", list, "a list of names, or of {name: ..., option: ...}"),
        ("tasks", list, "a list of task names, or of arguments of clear train"),
    ):
        if not isinstance(data.get(name), kind) or not data[name]:
            raise InputError(f"{path}: {name}: expected {what}; found {shown(data.get(name))}")
    for name in ("windows", "settings"):
        if not isinstance(data.get(name, {}), dict):
            raise InputError(f"{path}: {name}: expected names with a value each; found {shown(data[name])}")
    return data


def cells_of(spec: Mapping[str, Any], base: Path, digests: Digests | None = None, device: str = "cpu") -> list[Cell]:
    """Every cell of a matrix, tasks outermost. device: where it would be trained, which decides the precision.

    Raises InputError for a file, task, aggregator or setting that is not there, and for two cells of one name.
    """
    digests = digests or Digests()
    aggregators = [_aggregator(each) for each in spec["aggregators"]]
    for name, options in aggregators:
        check_aggregator(name, options)
    common = _arguments(spec.get("settings", {}), base, "settings")
    cells: list[Cell] = []
    for given in spec["tasks"]:
        own_name, asked = _task_entry(given, base)
        settings = {**common, **asked}
        task = read_task(settings.get("task"), settings.get("labels"), settings.get("target"))
        preset = with_settings(settings.get("preset") or task.preset, {k: settings.get(k) for k in _OF_PRESET})
        for encoder, file in spec["encoders"].items():
            bags = base / str(file)
            labels = settings.get("labels") or labels_path(bags, task.name)
            for name, options in aggregators:
                for window_name, windows in (spec.get("windows") or {"": None}).items():
                    arguments = {**settings, "bags": bags, "aggregator": name, "options": options or None}
                    if windows is not None:
                        arguments["windows"] = _listed(windows)
                    precision = training_precision(str(arguments.get("precision", "auto")), device)
                    key = cell_key(digests, bags, Path(labels), task, preset, arguments, precision)
                    shown_as = name if not options else f"{name} ({', '.join(f'{k} {v}' for k, v in options.items())})"
                    cells.append(
                        Cell(str(encoder), shown_as, own_name or task.name, str(window_name), _Frozen(arguments), key)
                    )
    _different(cells)
    return cells


def _different(cells: Sequence[Cell]) -> None:
    """Raises InputError where two cells would stand in one place of the table."""
    places: set[tuple[str, str, str, str]] = set()
    for cell in cells:
        place = (cell.task, cell.encoder, cell.aggregator, cell.windows)
        if place in places:
            raise InputError(
                f"two cells are called {', '.join(word for word in place if word)}; name the tasks apart, as in "
                "{name: first, ...}, and list no aggregator twice"
            )
        places.add(place)


class _Frozen(dict[str, Any]):
    """Arguments of a cell, which is a key of tables."""

    def __hash__(self) -> int:  # type: ignore[override]  # never changed once made
        return hash(json.dumps(self, sort_keys=True, default=str))


def _aggregator(given: Any) -> tuple[str, dict[str, Any]]:
    """(name, options) of an entry of `aggregators`."""
    if isinstance(given, str):
        return given, {}
    if isinstance(given, dict) and isinstance(given.get("name"), str):
        return given["name"], {key: value for key, value in given.items() if key != "name"}
    raise InputError(f"aggregators: expected a name, or {{name: ..., option: ...}}; found {shown(given)}")


def _task_entry(given: Any, base: Path) -> tuple[str, dict[str, Any]]:
    """(its own name or "", arguments of `train`) of an entry of `tasks`."""
    if isinstance(given, str):
        return "", _arguments({"task": given}, base, "tasks")
    if not isinstance(given, dict):
        raise InputError(f"tasks: expected a task's name, or arguments of clear train; found {shown(given)}")
    name = given.get("name", "")
    if not isinstance(name, str) or ("name" in given and not name.strip()):
        raise InputError(f"tasks: name: expected a text; found {shown(name)}")
    return name.strip(), _arguments({key: value for key, value in given.items() if key != "name"}, base, "tasks")


def _arguments(given: Mapping[Any, Any], base: Path, where: str) -> dict[str, Any]:
    """Arguments of `train`, paths relative to the matrix file; raises InputError for what cannot be one."""
    strange = [str(name)[:60] for name in given if name not in _SETTINGS]
    if strange:
        raise InputError(f"{where}: no setting {some(strange)}; expected some of {', '.join(_SETTINGS)}")
    out = {str(name): value for name, value in given.items() if value is not None}
    for name, value in out.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        if name in _LISTS:
            good, what = isinstance(value, str) or _all_text(value), "a text, or a list of texts"
        elif name in _NUMBERS:
            good, what = number, "a whole number"
        elif name == "grid":
            good = isinstance(value, dict) and all(isinstance(each, list) for each in value.values())
            what = "names with a list of values each"
        else:
            good, what = isinstance(value, str) or name in _OF_PRESET, "a text"
        if not good:
            raise InputError(f"{where}: {name} is {shown(value)}; expected {what}")
        if name in _LISTS and name != "target":
            out[name] = _listed(value)
    for name in _PATHS:
        if name in out:
            out[name] = base / out[name]
    if "baselines" in out:
        out["baselines"] = [each if each == ACQUISITION else base / each for each in out["baselines"]]
    if str(out.get("task", "")).endswith((".yaml", ".yml")):
        out["task"] = base / out["task"]
    return out


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _finished(folder: Path, key: str) -> Run | None:
    """The run whose name ends in this key; a folder that is not a whole run does not count."""
    for path in sorted(folder.glob(f"*-{key}")) if folder.is_dir() else []:
        try:
            return Run.open(path)
        except InputError:
            continue
    return None
