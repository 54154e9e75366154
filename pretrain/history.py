"""What a run says of itself while it trains: history.csv, epochs.csv, and TensorBoard.

    history.csv   a row a step: step, epoch, loss, the objective's parts, lr, weight_decay, momentum, grad_norm
    epochs.csv    a row an epoch: epoch, step, loss, lr, spread, effective_rank, what the judge found, seconds,
                  images_per_s
    tensorboard/  the same figures, where tensorboard is installed

history.csv holds no times, so that a run which was killed and resumed has the bytes of an undisturbed one.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clear.atomic import output_errors, write_aside
from clear.errors import InputError, MissingExtra

HISTORY, EPOCHS, TENSORBOARD = "history.csv", "epochs.csv", "tensorboard"


class History:
    """history.csv, appended to; rows reach the disk with `flush`. Raises OutputError.

    step: steps done before; rows of later ones, which a killed run left behind, are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self._waiting: list[str] = []
        self._columns = self._keep_until(step)

    def add(self, row: Mapping[str, float | int]) -> None:
        """One step's figures; every row has the columns of the first."""
        if not self._columns:
            self._columns = list(row)
            self._waiting.append(",".join(self._columns) + "\n")
        self._waiting.append(",".join(repr(row[name]) for name in self._columns) + "\n")

    def flush(self) -> None:
        """All rows so far are on disk when this returns."""
        if not self._waiting:
            return
        with output_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write("".join(self._waiting))
            file.flush()
            os.fsync(file.fileno())
        self._waiting.clear()

    def _keep_until(self, step: int) -> list[str]:
        """Cut the file after this step; returns its columns, none when there is no row."""
        if step == 0 or not self.path.is_file():
            with output_errors(self.path):
                self.path.unlink(missing_ok=True)
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines[1:] if line.endswith("\n") and _first_number(line) <= step]
        if len(kept) < len(lines) - 1:
            write_aside(self.path, "".join([*lines[:1], *kept]).encode())
        return lines[0].strip().split(",") if lines else []


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a history.csv or epochs.csv; an empty cell is nan. No rows without a file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
        except (TypeError, ValueError, csv.Error) as error:
            raise InputError(f"{path}: damaged; remove it to go on without it") from error


def write_epochs(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """epochs.csv, at once or not at all; what an epoch has not is an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(name, math.nan) for name in columns]
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else repr(cell) for cell in cells])
    write_aside(path, buffer.getvalue().encode())


class TensorBoard:
    """A TensorBoard log, or nothing where it is off (folder None). Raises OutputError."""

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer: Any = None
        if folder is not None:
            self._folder = folder
            with output_errors(folder):
                self._writer = _summary_writer()(str(folder), purge_step=step + 1 if step else None)

    def add(self, row: Mapping[str, float | int], step: int, group: str) -> None:
        """Figures of one step or epoch under `group/`."""
        if self._writer is None:
            return
        with output_errors(self._folder):
            for name, value in row.items():
                if name not in ("step", "epoch") and not (isinstance(value, float) and math.isnan(value)):
                    self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """All figures are on disk."""
        if self._writer is not None:
            with output_errors(self._folder):
                self._writer.close()


def wants_tensorboard(asked: bool | None) -> tuple[bool, str]:
    """(whether to write a log, remark). asked: None writes one where tensorboard is installed.

    Raises MissingExtra where one is asked for and it is not installed.
    """
    if asked is False:
        return False, ""
    try:
        _summary_writer()
    except MissingExtra as error:
        if asked:
            raise
        return False, f"no TensorBoard log, the CSV files have all figures: {error}"
    return True, ""


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", "pretrain", "A TensorBoard log") from None
    return SummaryWriter


def _number(cell: str) -> float | int:
    if not cell:
        return math.nan
    return int(cell) if cell.isdigit() else float(cell)


def _first_number(line: str) -> int:
    first = line.partition(",")[0]
    return int(first) if first.isdigit() else 1 << 62
