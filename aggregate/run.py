"""The run folder: what a training leaves behind, and how it is read again.

    run.json          everything needed to repeat it, and what the cohort was
    folds.csv         written before training
    history.csv       repeat, fold, epoch, step, train_loss, inner_loss
    grid.csv          nested-cv only: the inner score of every candidate, see `aggregate.protocols`
    predictions.csv   see `aggregate.predictions`
    metrics.csv       see `aggregate.scores`
    curves.csv        points of ROC, precision-recall and calibration curves, see `aggregate.curves`
    baselines.csv     the same of what was predicted without images, see `aggregate.baselines`
    attention.h5      one dataset a fold, (N,) float32, rows as in the bag file, nan where the fold did not score; of
                      folds whose model weighs its instances (`Aggregator.returns_attention`), else no such file
    fold-*/model.safetensors

A run is written into a hidden folder beside its place and renamed when complete: a folder with a run.json under its own
name is a whole run.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aggregate.aggregators import AGGREGATORS, Aggregator, build_aggregator
from aggregate.predictions import read_predictions
from clear.atomic import output_errors, rename_into_place, write_aside
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.windows import Window

FORMAT = "clear-run"
VERSION = 1


class Run:
    """A finished run folder, read when asked. Raises InputError when the folder is not a complete one."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.settings: dict[str, Any] = _read_settings(self.path)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """The run at this path."""
        return cls(path)

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """The rows of metrics.csv; what is not defined is null."""
        return self._table("metrics.csv", {"endpoint": pl.String, "class": pl.String})

    @cached_property
    def predictions(self) -> pl.DataFrame:
        """The rows of predictions.csv."""
        return read_predictions(self.path / "predictions.csv")

    @cached_property
    def baselines(self) -> pl.DataFrame:
        """The rows of baselines.csv, none when there is no such file: `baseline`, then the columns of metrics.csv."""
        if not (self.path / "baselines.csv").is_file():
            return pl.DataFrame()
        return self._table("baselines.csv", {"baseline": pl.String, "endpoint": pl.String, "class": pl.String})

    @cached_property
    def curves(self) -> pl.DataFrame:
        """The rows of curves.csv."""
        return self._table("curves.csv", {"endpoint": pl.String, "class": pl.String})

    @cached_property
    def grid(self) -> pl.DataFrame:
        """The rows of grid.csv of a nested cross-validation, none of another run."""
        return self._table("grid.csv", {}) if (self.path / "grid.csv").is_file() else pl.DataFrame()

    @cached_property
    def history(self) -> pl.DataFrame:
        """The rows of history.csv."""
        return self._table("history.csv", {})

    @cached_property
    def folds(self) -> pl.DataFrame:
        """The rows of folds.csv."""
        return self._table("folds.csv", {"split": pl.String, "patient_id": pl.String, "scan_id": pl.String})

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints of the run's models, in the order of their outputs."""
        return tuple(Endpoint.from_dict(each) for each in self.settings["endpoints"])

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows that the models were trained on."""
        return tuple(Window.from_dict(each) for each in self.settings["windows"])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(repeat, fold) of every model."""
        return [(fit["repeat"], fit["fold"]) for fit in self.settings["fits"]]

    def scale(self, repeat: int = 0, fold: int = 0) -> NDArray[np.float64]:
        """(E, 2) mean and sd of quantities in this fold's training, for `aggregate.targets.predicted`."""
        fit = self._fit(repeat, fold)
        return np.asarray(fit.get("scale", [[0.0, 1.0]] * len(self.endpoints)), dtype=np.float64)

    def not_learnt(self, repeat: int = 0, fold: int = 0) -> tuple[str, ...]:
        """Endpoints that this fold's training bags could not teach: its scores of them mean nothing."""
        return tuple(self._fit(repeat, fold).get("not_learnt", ()))

    def attention(self, repeat: int = 0, fold: int = 0) -> NDArray[np.float32]:
        """(N,) the attention of one fold's scored instances, rows as in the bag file, nan elsewhere.

        Raises InputError for a fold that the run has not, or whose aggregator weighs no instance.
        """
        name, place = fold_name(repeat, fold), self.path / "attention.h5"
        if (repeat, fold) not in self.pairs:
            have = ", ".join(fold_name(*pair) for pair in self.pairs)
            raise InputError(f"{self.path}: the run has no {name}; it has {have}")
        used = self._fit(repeat, fold).get("aggregator", self.settings["aggregator"])
        if not AGGREGATORS[used].returns_attention:
            weighing = ", ".join(each for each, model in AGGREGATORS.items() if model.returns_attention)
            raise InputError(
                f"{self.path}: {name} is a model of {used}, which weighs no instance, so there is no attention to "
                f"show. Those that have one: {weighing}"
            )
        try:
            with h5py.File(place, "r") as file:
                return np.asarray(file[name][:], dtype=np.float32)
        except (OSError, KeyError) as error:
            raise InputError(f"{place}: missing or damaged; train again") from error

    def model(self, repeat: int = 0, fold: int = 0) -> Aggregator:
        """The model of one fold, in eval mode; it takes features as the bag file holds them."""
        file = self.path / fold_name(repeat, fold) / "model.safetensors"
        try:
            state = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: missing or damaged; train again") from error
        fit, settings = self._fit(repeat, fold), self.settings
        n_out = sum(endpoint.n_out for endpoint in self.endpoints)
        dropout = float(fit.get("dropout", settings["training"]["dropout"]))
        name = fit.get("aggregator", settings["aggregator"])
        model = build_aggregator(name, int(settings["bags"]["dim"]), n_out, dropout, settings.get("options") or None)
        model.load_state_dict(state)
        return model.eval()

    def table(self) -> str:
        """What a terminal shows: metrics by endpoint, those of the baselines, the cohort, and what the weights are."""
        from aggregate.summary import run_table

        return run_table(self)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.settings['task']['name']}, {self.settings['aggregator']})"

    def _repr_html_(self) -> str:
        from aggregate.notebook import run_card

        return run_card(self)

    def _fit(self, repeat: int, fold: int) -> dict[str, Any]:
        """The record of one fit; empty when there is none."""
        fits = self.settings["fits"]
        return next((dict(fit) for fit in fits if (fit["repeat"], fit["fold"]) == (repeat, fold)), {})

    def _table(self, name: str, types: Mapping[str, Any]) -> pl.DataFrame:
        path = self.path / name
        try:
            return pl.read_csv(path, schema_overrides=types, infer_schema_length=None)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{path}: missing or damaged; train again") from error


def fold_name(repeat: int, fold: int) -> str:
    """`fold-0`, and `repeat-1-fold-0` beyond the first repeat: a folder, and a dataset of attention.h5."""
    return f"fold-{fold}" if repeat == 0 else f"repeat-{repeat}-fold-{fold}"


def free_name(folder: Path, name: str) -> Path:
    """`folder/name`, numbered from -2 when that is taken."""
    candidate, number = folder / name, 2
    while candidate.exists():
        candidate, number = folder / f"{name}-{number}", number + 1
    return candidate


def check_output(path: Path, overwrite: bool, mark: str = "run.json") -> None:
    """Raises InputError when the place of a run is taken by something that must not be replaced.

    mark: the file that tells a folder of this kind, which may be overwritten, from any other.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; expected a folder to write. Choose another output")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{path}: exists and is not empty. Choose another output, or give --overwrite")
    if not (path / mark).is_file():
        what = "a run folder" if mark == "run.json" else f"a folder with {mark}"
        raise InputError(
            f"{path}: is not {what}, or a half-written one, and is not replaced. Remove it yourself, or choose another "
            "output"
        )


@contextmanager
def new_run_folder(path: Path, overwrite: bool, mark: str = "run.json") -> Iterator[Path]:
    """A hidden folder to write a run into; it becomes `path` when the block ends well and vanishes otherwise."""
    check_output(path, overwrite, mark)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with output_errors(path):
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    try:
        yield aside
        check_output(path, overwrite, mark)
        with output_errors(path):
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            if path.is_dir():
                path.rename(old)
            rename_into_place(aside, path)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """JSON for people and programs: indented, sorted nowhere, nan as null."""
    write_aside(path, (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_table(path: Path, table: pl.DataFrame) -> None:
    """A CSV file at once or not at all; null is an empty cell."""
    buffer = io.BytesIO()
    table.write_csv(buffer)
    write_aside(path, buffer.getvalue())


def write_model(folder: Path, model: Aggregator) -> None:
    """`model.safetensors` with weights and the statistics that standardise."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")


class AttentionFile:
    """attention.h5 while it is written: one dataset a fold, as long as the bag file has rows; no file before one."""

    def __init__(self, path: Path, rows: int, bags_digest: str) -> None:
        self.path = path
        self.rows = rows
        self.bags_digest = bags_digest

    def add(self, name: str, where: Sequence[NDArray[np.int64]], what: Sequence[NDArray[np.float32]]) -> None:
        """Row numbers and attention of each scored bag."""
        values = np.full(self.rows, np.nan, dtype=np.float32)
        for rows, weights in zip(where, what, strict=True):
            values[rows] = weights
        with output_errors(self.path), h5py.File(self.path, "a", track_order=True) as file:
            file.attrs["format"] = "clear-attention"
            file.attrs["version"] = VERSION
            file.attrs["bags_digest"] = self.bags_digest
            file.create_dataset(name, data=values, chunks=True, compression="gzip", compression_opts=1, shuffle=True)


def _read_settings(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    if not file.is_file():
        raise InputError(f"{path}: not a finished run folder (no run.json in it). `clear train` writes one")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        version = settings["version"]
        if settings["format"] != FORMAT:
            raise KeyError("format")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the run.json of a clear run, or damaged; train again") from error
    if version > VERSION:
        raise InputError(f"{file}: version {version}, from a newer clear; this one reads up to {VERSION}. Update clear")
    return dict(settings)
