"""Folds: who trains, who stops the training, who is scored. Patients, never scans, are dealt out.

`folds.csv` has a row for every scan in every fold: repeat, fold, split, patient_id, scan_id, with split `train`,
`inner` (a part of the training patients, for early stopping) or `test` (scored in this fold). It is written before the
first model is built and can be read back (`--folds-file FILE`), as can any table of scan_id or patient_id and fold.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clear.atomic import write_aside
from clear.errors import InputError
from clear.tables import need_column, read_table, some

COLUMNS = ("repeat", "fold", "split", "patient_id", "scan_id")
SPLITS = ("train", "inner", "test")


@dataclass(frozen=True)
class Folds:
    """table: COLUMNS, a row for every scan in every fold of every repeat. Checked on construction."""

    table: pl.DataFrame

    def __post_init__(self) -> None:
        check_folds(self.table)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(repeat, fold), in order."""
        return self.table.select("repeat", "fold").unique().sort("repeat", "fold").rows()

    def split(self, repeat: int, fold: int) -> dict[str, list[str]]:
        """split -> scan ids."""
        rows = self.table.filter((pl.col("repeat") == repeat) & (pl.col("fold") == fold))
        return {name: rows.filter(pl.col("split") == name)["scan_id"].to_list() for name in SPLITS}

    def write(self, path: Path) -> None:
        """Writes folds.csv at once or not at all."""
        buffer = io.BytesIO()
        self.table.write_csv(buffer)
        write_aside(path, buffer.getvalue())


def make_folds(
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    indicators: NDArray[np.bool_],
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    inner_fraction: float = 0.2,
) -> Folds:
    """Folds by patient, stratified over every column of `indicators` (scans, C): one a class of each endpoint.

    A patient has a class when one of the scans has it. Raises InputError when there are fewer patients than folds.
    """
    patients = sorted(set(patient_ids))
    if folds < 2 or repeats < 1:
        raise InputError(f"--folds {folds}, --repeats {repeats}: expected at least 2 folds and 1 repeat")
    if len(patients) < folds or len(patients) < 3:
        raise InputError(
            f"{len(patients)} labelled patients ({len(scan_ids)} scans) cannot fill {max(folds, 3)} folds; give a "
            "smaller number with --folds (2 at least, with 3 patients or more), or label more patients"
        )
    of_patient = by_patient(patients, patient_ids, indicators)
    rows = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        assigned = stratify(of_patient, np.full(folds, 1 / folds), rng)
        for fold in range(folds):
            rest = np.flatnonzero(assigned != fold)
            inner = _inner(of_patient[rest], inner_fraction, np.random.default_rng([seed, repeat, fold]))
            split = np.full(len(patients), "test", dtype=object)
            split[rest] = np.where(inner, "inner", "train")
            of = dict(zip(patients, split, strict=True))
            rows += [(repeat, fold, of[p], p, s) for s, p in zip(scan_ids, patient_ids, strict=True)]
    return Folds(_table(rows))


def by_patient(patients: Sequence[str], patient_ids: Sequence[str], indicators: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(patients, C): whether one of the patient's scans has the class."""
    number = {patient: i for i, patient in enumerate(patients)}
    out = np.zeros((len(patients), indicators.shape[1]), dtype=bool)
    np.logical_or.at(out, [number[patient] for patient in patient_ids], indicators)
    return out


def stratify(indicators: NDArray[np.bool_], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) the part that each row of (n, C) goes to, by iterative stratification.

    Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011, algorithm 1: the class
    with the fewest rows left is dealt first, each row to the part that lacks that class most; ties go to the part that
    lacks rows most, then by lot. Rows of no class fill up at the end. shares: (parts,), summing to 1.
    """
    n = len(indicators)
    part = np.full(n, -1, dtype=np.int64)
    lacking = np.outer(shares, indicators.sum(axis=0))
    lacking_rows = shares * n
    order = rng.permutation(n)
    while (part < 0).any():
        left = order[part[order] < 0]
        counts = indicators[left].sum(axis=0)
        if counts.any():
            column = int(np.flatnonzero(counts == counts[counts > 0].min())[0])
            rows, wanted = left[indicators[left, column]], lacking[:, column]
        else:
            rows, wanted = left, lacking_rows
        for row in rows:
            best = np.flatnonzero(np.isclose(wanted, wanted.max()))
            best = best[np.isclose(lacking_rows[best], lacking_rows[best].max())]
            chosen = int(rng.choice(best))
            part[row] = chosen
            lacking[chosen, indicators[row]] -= 1
            lacking_rows[chosen] -= 1
    return part


def _inner(indicators: NDArray[np.bool_], fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) True for the rows held back for early stopping: at least one, never all."""
    inner = np.asarray(stratify(indicators, np.array([1 - fraction, fraction]), rng) == 1)
    if not inner.any():
        inner[rng.integers(len(inner))] = True
    if inner.all():
        inner[rng.integers(len(inner))] = False
    return inner


def read_folds(
    path: Path | str,
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    indicators: NDArray[np.bool_],
    *,
    seed: int = 0,
    inner_fraction: float = 0.2,
) -> tuple[Folds, list[str]]:
    """Folds from a file, for these scans; (folds, remarks).

    The file is a folds.csv, or a table with `fold` (where the scan is scored) and scan_id or patient_id; then the
    inner splits are drawn here. Raises InputError when a scan is missing or a patient would cross.
    """
    table = read_table(path)
    need_column(table, "fold", path)
    key = next((name for name in ("scan_id", "patient_id") if name in table.columns), None)
    if key is None:
        need_column(table, "scan_id", path)
    full = {"repeat", "fold", "split", "scan_id"} <= set(table.columns)
    wanted = set(scan_ids) if key == "scan_id" else set(patient_ids)
    named = set(table[str(key)].to_list())
    absent = sorted(wanted - named)
    if absent:
        raise InputError(f"{path}: {len(absent)} of {len(wanted)} {key}s are in no fold, first {some(absent, 3)}")
    surplus = sorted(str(name) for name in named - wanted)
    remarks = [f"{path}: {len(surplus)} {key}s are not among the labelled ones: {some(surplus)}"] if surplus else []
    patient_of = dict(zip(scan_ids, patient_ids, strict=True))
    if full:
        rows = [
            (_whole(r, path, "repeat"), _whole(f, path, "fold"), split, patient_of[scan], scan)
            for r, f, split, scan in table.select("repeat", "fold", "split", "scan_id").iter_rows()
            if scan in patient_of
        ]
        return _checked(_table(rows), path), remarks
    pairs = table.select(str(key), "fold").unique()
    twice = pairs.filter(pl.col(str(key)).is_duplicated())
    if twice.height:
        raise InputError(f"{path}: {key} {twice[str(key)][0]!r} is in two folds; expected one")
    fold_of = {name: _whole(fold, path, "fold") for name, fold in pairs.iter_rows()}
    numbers = [fold_of[scan if key == "scan_id" else patient_of[scan]] for scan in scan_ids]
    of_each: dict[str, int] = {}
    for patient, number in zip(patient_ids, numbers, strict=True):
        if of_each.setdefault(patient, number) != number:
            raise InputError(
                f"{path}: patient {patient!r} has scans in folds {of_each[patient]} and {number}; all scans of a "
                "patient belong into one"
            )
    patients = sorted(of_each)
    of_patient = by_patient(patients, patient_ids, indicators)
    rows = []
    for fold in sorted(set(numbers)):
        scored = {patient_of[scan] for scan, number in zip(scan_ids, numbers, strict=True) if number == fold}
        rest = [i for i, patient in enumerate(patients) if patient not in scored]
        if len(rest) < 2:
            raise InputError(f"{path}: fold {fold} leaves {len(rest)} patients for training; expected 2 or more")
        held = _inner(of_patient[rest], inner_fraction, np.random.default_rng([seed, 0, fold]))
        inner = {patients[i] for i, chosen in zip(rest, held, strict=True) if chosen}
        for scan, number in zip(scan_ids, numbers, strict=True):
            patient = patient_of[scan]
            split = "test" if number == fold else "inner" if patient in inner else "train"
            rows.append((0, fold, split, patient, scan))
    return _checked(_table(rows), path), remarks


def _checked(table: pl.DataFrame, path: Path | str) -> Folds:
    try:
        return Folds(table)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix('folds: ')}") from None


def check_folds(table: pl.DataFrame) -> None:
    """Raises InputError when a patient crosses, a scan is scored twice or never in a repeat, or a part is empty."""
    strange = set(table["split"].unique().to_list()) - set(SPLITS)
    if strange:
        raise InputError(f"folds: split {some(map(str, strange))}; expected train, inner or test")
    crossing = (
        table.group_by("repeat", "fold", "patient_id").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    )
    if crossing.height:
        first = crossing.sort("repeat", "fold", "patient_id").row(0, named=True)
        raise InputError(
            f"folds: patient {first['patient_id']!r} is in more than one part of fold {first['fold']}; "
            f"{crossing.height} such cases. All scans of a patient belong together"
        )
    scored = table.filter(pl.col("split") == "test")
    in_two = scored.group_by("repeat", "patient_id").agg(pl.col("fold").n_unique()).filter(pl.col("fold") > 1)
    if in_two.height:
        raise InputError(
            f"folds: patient {in_two.sort('repeat', 'patient_id')['patient_id'][0]!r} is scored in several folds; "
            "expected one"
        )
    per_fold = table.group_by("repeat", "fold").agg(*((pl.col("split") == s).sum().alias(s) for s in SPLITS), pl.len())
    for row in per_fold.sort("repeat", "fold").iter_rows(named=True):
        empty = [name for name in SPLITS if not row[name]]
        if empty:
            raise InputError(f"folds: fold {row['fold']} of repeat {row['repeat']} has no {empty[0]} scans")
    doubled = table.select("repeat", "fold", "scan_id").is_duplicated()
    if doubled.any():
        raise InputError(f"folds: scan {table.filter(doubled)['scan_id'][0]!r} is listed twice in a fold")
    if per_fold["len"].n_unique() > 1:
        raise InputError("folds: not every fold lists the same scans; a folds.csv names every scan in every fold")
    scans = table["scan_id"].n_unique()
    for repeat, count in scored.group_by("repeat").agg(pl.col("scan_id").n_unique()).iter_rows():
        if count < scans:
            raise InputError(f"folds: {scans - count} of {scans} scans are scored in no fold of repeat {repeat}")


def _table(rows: list[tuple[int, int, str, str, str]]) -> pl.DataFrame:
    schema = {"repeat": pl.Int64, "fold": pl.Int64, "split": pl.String, "patient_id": pl.String, "scan_id": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _whole(text: str | None, path: Path | str, column: str) -> int:
    try:
        return int(str(text))
    except ValueError:
        found = "an empty cell" if text is None else repr(text)
        raise InputError(f"{path}: column {column} holds {found}; expected whole numbers") from None
