"""Folds from a file: our folds.csv, a table of ids and folds, STAMP's splits.json or nnU-Net's splits_final.json.

`folds.csv` says everything. The others say who is scored where; what they leave open, the inner split that ends the
training early, is drawn here from the training patients:

    a table      `fold` (where the row is scored) and scan_id or patient_id
    STAMP        {"splits": [{"train_patients": [...], "test_patients": [...]}, ...]}
    nnU-Net      [{"train": [...], "val": [...]}, ...]: case identifiers; a fold's `val` is what it scores

A fold of the last two scores what it lists and trains on what it lists; other scans are `unused` in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from aggregate.folds import UNUSED, Folds, Indicators, Row, folds_table, rows_of_fold
from clear.errors import InputError
from clear.tables import need_column, read_table, some


def read_folds(
    path: Path | str,
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    indicators: Indicators,
    *,
    seed: int = 0,
    inner_fraction: float = 0.2,
) -> tuple[Folds, list[str]]:
    """Folds from a file, for these scans; (folds, remarks).

    indicators: see `aggregate.folds.Indicators`. Raises InputError when a scan is missing or a patient would cross.
    """
    if Path(path).suffix.lower() == ".json":
        return _from_json(Path(path), scan_ids, patient_ids, indicators, seed, inner_fraction)
    table = read_table(path)
    need_column(table, "fold", path)
    key = next((name for name in ("scan_id", "patient_id") if name in table.columns), None)
    if key is None:
        need_column(table, "scan_id", path)
    ids = list(scan_ids) if key == "scan_id" else list(patient_ids)
    remarks = _compare(path, str(key), set(ids), set(table[str(key)].to_list()))
    if {"repeat", "fold", "split", "scan_id"} <= set(table.columns):
        patient_of = dict(zip(scan_ids, patient_ids, strict=True))
        rows: list[Row] = [
            (_whole(r, path, "repeat"), _whole(f, path, "fold"), split, patient_of[scan], scan)
            for r, f, split, scan in table.select("repeat", "fold", "split", "scan_id").iter_rows()
            if scan in patient_of
        ]
        return _checked(rows, path), remarks
    pairs = table.select(str(key), "fold").unique()
    twice = pairs.filter(pl.col(str(key)).is_duplicated())
    if twice.height:
        raise InputError(f"{path}: {key} {twice[str(key)][0]!r} is in two folds; expected one")
    fold_of = {name: _whole(fold, path, "fold") for name, fold in pairs.iter_rows()}
    numbers = [fold_of[name] for name in ids]
    of_each: dict[str, int] = {}
    for patient, number in zip(patient_ids, numbers, strict=True):
        if of_each.setdefault(patient, number) != number:
            raise InputError(
                f"{path}: patient {patient!r} has scans in folds {of_each[patient]} and {number}; all scans of a "
                "patient belong into one"
            )
    rows = []
    for fold in sorted(set(numbers)):
        scored = [number == fold for number in numbers]
        rows += _fold(path, fold, scan_ids, patient_ids, scored, indicators, None, seed, inner_fraction)
    return _checked(rows, path), remarks


def _from_json(
    path: Path,
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    indicators: Indicators,
    seed: int,
    inner_fraction: float,
) -> tuple[Folds, list[str]]:
    listed, names = _listed(path)
    everyone = {name for fold in listed for part in fold.values() for name in part}
    short = [scan.rsplit("/", 1)[-1] for scan in scan_ids]
    spellings = {"scan_id": list(scan_ids), "scan_id's last part": short, "patient_id": list(patient_ids)}
    if names == "patients":
        spellings = {"patient_id": list(patient_ids)}
    key, ids = max(spellings.items(), key=lambda item: sum(each in everyone for each in item[1]))
    remarks = _compare(path, key, set(ids), everyone)
    rows: list[Row] = []
    for number, parts in enumerate(listed):
        both = sorted(set(parts["test"]) & (set(parts["train"]) | set(parts["inner"])))
        if both:
            raise InputError(
                f"{path}: fold {number} both trains on and scores {some(both, 3)}; expected one of the two"
            )
        scored = [each in parts["test"] for each in ids]
        held = {p for p, here in zip(patient_ids, scored, strict=True) if here}
        trains = parts["train"] | parts["inner"]
        crossing = sorted({p for p, each in zip(patient_ids, ids, strict=True) if each in trains and p in held})
        if crossing:
            raise InputError(
                f"{path}: fold {number} trains on scans of patients whom it scores, first {some(crossing, 3)}; all "
                "scans of a patient belong together"
            )
        given = ["inner" if e in parts["inner"] else None if e in parts["train"] else UNUSED for e in ids]
        rows += _fold(path, number, scan_ids, patient_ids, scored, indicators, given, seed, inner_fraction)
    return _checked(rows, path), remarks


def _listed(path: Path) -> tuple[list[dict[str, set[str]]], str]:
    """(for each fold the ids of train, inner and test, whether those are patients or cases)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read; expected folds as a table or as JSON") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON, or damaged; write it again") from error
    if isinstance(data, dict) and isinstance(data.get("splits"), list):
        folds, names = data["splits"], "patients"
        parts = {"train": "train_patients", "inner": "val_patients", "test": "test_patients"}
    elif isinstance(data, list):
        folds, names = data, "cases"
        parts = {"train": "train", "inner": "", "test": "val"}
    else:
        folds, names, parts = [], "", {}
    good = bool(folds) and all(isinstance(f, dict) and parts["train"] in f and parts["test"] in f for f in folds)
    if not good:
        raise InputError(
            f'{path}: expected STAMP\'s {{"splits": [{{"train_patients": [...], "test_patients": [...]}}, ...]}} or '
            'nnU-Net\'s [{"train": [...], "val": [...]}, ...]'
        )
    return [{part: _names(fold.get(key, [])) for part, key in parts.items()} for fold in folds], names


def _names(values: Any) -> set[str]:
    return {str(value) for value in values}


def _compare(path: Path | str, key: str, wanted: set[str], named: set[str]) -> list[str]:
    absent = sorted(wanted - named)
    if absent:
        raise InputError(f"{path}: {len(absent)} of {len(wanted)} {key}s are in no fold, first {some(absent, 3)}")
    surplus = sorted(str(name) for name in named - wanted)
    return [f"{path}: {len(surplus)} {key}s are not among the labelled ones: {some(surplus)}"] if surplus else []


def _fold(
    path: Path | str,
    fold: int,
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    scored: Sequence[bool],
    indicators: Indicators,
    given: Sequence[str | None] | None,
    seed: int,
    inner_fraction: float,
) -> list[Row]:
    try:
        return rows_of_fold(
            0, fold, scan_ids, patient_ids, scored, indicators, given=given, seed=seed, inner_fraction=inner_fraction
        )
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('folds: ')}") from None


def _checked(rows: Sequence[Row], path: Path | str) -> Folds:
    try:
        return Folds(folds_table(rows))
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('folds: ')}") from None


def _whole(text: str | None, path: Path | str, column: str) -> int:
    try:
        return int(str(text))
    except ValueError:
        found = "an empty cell" if text is None else repr(text)
        raise InputError(f"{path}: column {column} holds {found}; expected whole numbers") from None
