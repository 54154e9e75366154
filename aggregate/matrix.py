"""A matrix of questions: encoders x aggregators x tasks, every cell a run, computed once.

    encoders: {mambaout-lecl: feats-lecl.h5, dinov2: feats-dinov2.h5}     # names of your own, bag files
    aggregators: [abmil, mean, {name: slice-transformer, positions: rotary}]
    tasks:
      - rad-chestct                                  # a task by name, its labels beside the bag file
      - {labels: labels.csv, target: lesion}         # arguments of clear train
    windows: {both: [abdomen, lung], lung: [lung]}   # optional: a run for each choice of windows
    settings: {folds: 5, seed: 0}                    # optional: arguments of every run
    output: matrix                                   # optional: the folder of runs and tables

Paths are relative to the file. A cell's key is a digest of everything that decides its numbers: the bag file's content,
the labels' content, task, aggregator and settings. Its run lies in `output/runs` under a name that ends in the key; one
that is there is not computed again, whatever the cell is called now, so a stopped matrix goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml  # type: ignore[import-untyped]

from aggregate.aggregators import check_aggregator
from aggregate.matrix_tables import matrix_markdown, matrix_table
from aggregate.question import read_task
from aggregate.run import VERSION, Run, write_table
from aggregate.train import train
from clear.atomic import write_aside
from clear.bags import Bags
from clear.errors import ClearError, InputError
from clear.labels import labels_path
from clear.tables import some

_FIELDS = ("encoders", "aggregators", "tasks", "windows", "settings", "output")
_KEY = 12  # hexadecimal digits of a cell's key that its folder bears
# what may differ between machines without changing a number
_IDLE = ("device", "progress", "overwrite", "output")


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
        return "-".join(re.sub(r"[^A-Za-z0-9._+-]", "_", word) for word in words if word) + f"-{self.key}"


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
    cells = list(cells_of(spec, path.parent))
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
    write_table(folder / "table.csv", table)
    write_aside(folder / "table.md", text.encode())
    return Matrix(tuple(cells), runs, failures, computed, table, text, folder)


def read_matrix(path: Path) -> dict[str, Any]:
    """The fields of a matrix file; raises InputError naming the field that is wrong."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read; expected a matrix file (YAML)") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected the fields {', '.join(_FIELDS)}")
    strange = [str(name) for name in data if name not in _FIELDS]
    if strange:
        raise InputError(f"{path}: no field {some(strange)}; expected {', '.join(_FIELDS)}")
    for name, kind, what in (
        ("encoders", dict, "names with a bag file each"),
        ("aggregators", list, "a list of names, or of {name: ..., option: ...}"),
        ("tasks", list, "a list of task names, or of arguments of clear train"),
    ):
        if not isinstance(data.get(name), kind) or not data[name]:
            raise InputError(f"{path}: {name}: expected {what}; found {data.get(name)!r}")
    for name in ("windows", "settings"):
        if not isinstance(data.get(name, {}), dict):
            raise InputError(f"{path}: {name}: expected names with a value each; found {data[name]!r}")
    return data


def cells_of(spec: Mapping[str, Any], base: Path) -> list[Cell]:
    """Every cell of a matrix, tasks outermost; raises InputError for a file, task or aggregator that is not there."""
    aggregators = [_aggregator(each) for each in spec["aggregators"]]
    for name, options in aggregators:
        check_aggregator(name, options)
    cells = []
    digests: dict[Path, str] = {}
    for task in spec["tasks"]:
        asked = _task_arguments(task, base)
        settings = {**spec.get("settings", {}), **asked}
        chosen = read_task(settings.get("task"), settings.get("labels"), settings.get("target"))
        for encoder, file in spec["encoders"].items():
            bags = base / str(file)
            if bags not in digests:
                with Bags(bags) as opened:
                    digests[bags] = opened.digest
            labels = settings.get("labels") or labels_path(bags, chosen.name)
            for name, options in aggregators:
                for window_name, windows in (spec.get("windows") or {"": None}).items():
                    arguments = {**settings, "bags": bags, "aggregator": name, "options": options or None}
                    if windows is not None:
                        arguments["windows"] = windows
                    deciding = {k: v for k, v in arguments.items() if k not in ("bags", "labels", "task", *_IDLE)}
                    for given in ("folds_file", "patients"):
                        if deciding.get(given) is not None:
                            deciding[given] = _digest(Path(deciding[given]))
                    identity = {
                        "version": VERSION,
                        "bags": digests[bags],
                        "labels": _digest(Path(labels)),
                        "task": chosen.as_dict(),
                        "arguments": deciding,
                    }
                    text = json.dumps(identity, sort_keys=True, default=str)
                    key = hashlib.sha256(text.encode()).hexdigest()[:_KEY]
                    shown = name if not options else f"{name} ({', '.join(f'{k} {v}' for k, v in options.items())})"
                    cells.append(Cell(str(encoder), shown, chosen.name, str(window_name), _Frozen(arguments), key))
    return cells


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
    raise InputError(f"aggregators: expected a name, or {{name: ..., option: ...}}; found {given!r}")


def _task_arguments(given: Any, base: Path) -> dict[str, Any]:
    """Arguments of `train` of an entry of `tasks`, its paths relative to the matrix file."""
    arguments = {"task": given} if isinstance(given, str) else dict(given) if isinstance(given, dict) else None
    if arguments is None:
        raise InputError(f"tasks: expected a task's name, or arguments of clear train; found {given!r}")
    for name in ("labels", "folds_file", "patients"):
        if arguments.get(name) is not None:
            arguments[name] = base / str(arguments[name])
    named = arguments.get("task")
    if isinstance(named, str) and named.endswith((".yaml", ".yml")):
        arguments["task"] = base / named
    return arguments


def _digest(path: Path) -> str:
    """sha256 of a file, or of the files of a folder with their names; of nothing where there is none."""
    files: Sequence[Path] = sorted(path.rglob("*")) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(f"{file.relative_to(path.parent)}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _finished(folder: Path, key: str) -> Run | None:
    """The run whose name ends in this key; a folder that is not a whole run does not count."""
    for path in sorted(folder.glob(f"*-{key}")) if folder.is_dir() else []:
        try:
            return Run.open(path)
        except InputError:
            continue
    return None
