"""Checkpoints: everything a run needs to go on as if nothing had happened, in one file that is whole or not there.

Written aside, synced, renamed: a full disk or a kill leaves the one before. Opened by `torch.load(weights_only=True)`,
so that it cannot run code. Generators need little room: torch's are seeded anew in every step by (seed, step, process),
and views follow from (seed, epoch, row), so their state is the step's number; the states themselves are kept beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch

from clear.atomic import output_errors, rename_into_place
from clear.errors import InputError

CHECKPOINT = "checkpoint.pt"
FORMAT = "clear-pretraining-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    step: steps done; epoch, step_in_epoch: where the next one is. objective, optimiser: state dicts. epochs: rows of
    epochs.csv; sums: of the unfinished epoch's losses; embeddings: what the collapse watch has of it. architecture: of
    the card, for messages. generators: states of torch's generators.
    """

    step: int
    epoch: int
    step_in_epoch: int
    objective: Mapping[str, Any]
    optimiser: Mapping[str, Any]
    architecture: str
    epochs: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    embeddings: torch.Tensor | None = None
    generators: dict[str, torch.Tensor] = field(default_factory=dict)


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """The checkpoint becomes the file at once or not at all. Raises OutputError; the file before stays then."""
    content = {"format": FORMAT, "version": VERSION, **vars(checkpoint)}
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with output_errors(path):
            with aside.open("wb") as file:
                watched = _Watched(file)
                try:
                    torch.save(content, cast(IO[bytes], watched))
                except RuntimeError:
                    if watched.error is not None:  # torch reports a failed write in words of its own
                        raise watched.error from None
                    raise
                file.flush()
                os.fsync(file.fileno())
            rename_into_place(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint of this file on the processor, None where there is none.

    Raises InputError for a file that is damaged, no checkpoint of a pretraining, or of a newer clear.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise KeyError("format")
        version = int(content["version"])
        values = {name: value for name, value in content.items() if name not in ("format", "version")}
        if version <= VERSION:
            return Checkpoint(**values)
    except Exception as error:  # torch.load raises whatever its unpicklers do; all of it means: not this file
        raise InputError(
            f"{path}: not a checkpoint of a pretraining, or damaged. Remove it to begin this run again, or restore it"
        ) from error
    raise InputError(f"{path}: version {version}, from a newer clear; this one reads up to {VERSION}. Update clear")


def load_states(
    checkpoint: Checkpoint,
    objective: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    origin: Path,
    architecture: str,
) -> None:
    """Put a checkpoint's weights and the optimiser's state into those of a run.

    Raises InputError naming what does not fit: a checkpoint of another architecture, or of another objective.
    """
    own = {name: tuple(tensor.shape) for name, tensor in objective.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in checkpoint.objective.items()}
    if own != stored:
        different = [name for name in {**own, **stored} if own.get(name) != stored.get(name)]
        of = checkpoint.architecture
        other = f"of {of}, and this run trains {architecture}" if of != architecture else "of other networks or heads"
        first, shapes = different[0], (stored.get(different[0], "absent"), own.get(different[0], "absent"))
        raise InputError(
            f"{origin}: {other}: {len(different)} tensors differ, first {first} ({shapes[0]} there, {shapes[1]} here). "
            "Use another run folder"
        )
    objective.load_state_dict(dict(checkpoint.objective))
    try:
        optimiser.load_state_dict(dict(checkpoint.optimiser))
    except (ValueError, KeyError) as error:
        raise InputError(f"{origin}: of another optimiser ({error}). Use another run folder") from error


class _Watched:
    """A file that remembers the error which its writing met."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
