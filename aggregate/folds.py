"""Folds: who trains, who stops the training, who is scored. Patients, never scans, are dealt out.

`folds.csv` has a row for every scan in every fold: repeat, fold, split, patient_id, scan_id, with split `train`,
`inner` (patients who end the training early, and never teach), `test` (scored in this fold) or `unused` (takes no part
in this fold: another scan of its patient is scored, or a file left it out). It is written before the first model is
built and can be read back (`aggregate.folds_file`).

Either the folds of a repeat score every scan once (cross-validation), or all of them score the same scans (a fixed test
set); what a table is follows from its rows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.stratify import draw_inner, stratify
from clear.atomic import write_aside
from clear.errors import InputError
from clear.tables import some

COLUMNS = ("repeat", "fold", "split", "patient_id", "scan_id")
SPLITS = ("train", "inner", "test")
UNUSED = "unused"
Row = tuple[int, int, str, str, str]
# (scans, C) of all scans; or what gives those of some, by their numbers, and reads no label of the others
Indicators = NDArray[np.bool_] | Callable[[NDArray[np.int64]], NDArray[np.bool_]]


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

    @cached_property
    def fixed_test(self) -> bool:
        """Whether every fold scores the same scans."""
        return _fixed_test(self.table)

    def split(self, repeat: int, fold: int) -> dict[str, list[str]]:
        """split -> scan ids, of those that take part."""
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
    indicators: Indicators,
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
    inner_fraction: float = 0.2,
) -> Folds:
    """Folds by patient, stratified over every column of `indicators`: one a class of each endpoint.

    A patient has a class when one of the scans has it. Raises InputError when there are fewer patients than folds.
    """
    patients = sorted(set(patient_ids))
    _enough(patients, scan_ids, folds, repeats)
    of_patient = _of_patients(patients, patient_ids, indicators)
    rows: list[Row] = []
    for repeat in range(repeats):
        assigned = stratify(of_patient, np.full(folds, 1 / folds), np.random.default_rng([seed, repeat]))
        for fold in range(folds):
            rest = [patient for patient, part in zip(patients, assigned, strict=True) if part != fold]
            of_rest = _of_patients(rest, patient_ids, indicators)
            inner = draw_inner(of_rest, inner_fraction, np.random.default_rng([seed, repeat, fold]))
            of = dict.fromkeys(patients, "test")
            of |= {patient: "inner" if here else "train" for patient, here in zip(rest, inner, strict=True)}
            rows += [(repeat, fold, of[p], p, s) for s, p in zip(scan_ids, patient_ids, strict=True)]
    return Folds(folds_table(rows))


def make_group_folds(
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    indicators: Indicators,
    groups: Sequence[str],
    *,
    repeats: int = 1,
    seed: int = 0,
    inner_fraction: float = 0.2,
) -> Folds:
    """A fold for each group (a site, a scanner): its scans are scored by a model that saw nothing of the group.

    groups: (scans,). Fold numbers follow the groups' alphabetical order. Where a patient has scans in several groups,
    those of the other groups are `unused` while one is scored. A repeat differs in the inner split only. Raises
    InputError for fewer than two groups.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise InputError(
            f"--group: all {len(scan_ids)} labelled scans are of {some(names)}; expected two groups or more"
        )
    rows: list[Row] = []
    for repeat in range(repeats):
        for fold, name in enumerate(names):
            scored = [group == name for group in groups]
            rows += rows_of_fold(
                repeat, fold, scan_ids, patient_ids, scored, indicators, seed=seed, inner_fraction=inner_fraction
            )
    return Folds(folds_table(rows))


def make_test_folds(
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    indicators: Indicators,
    splits: Sequence[str | None],
    *,
    folds: int,
    repeats: int = 1,
    seed: int = 0,
) -> Folds:
    """Folds for fitting beside a fixed test set that the model of every fold scores.

    splits: (scans,) `train`, `val`, `test` or None, which takes no part. The patients of train and val are dealt into
    folds; in each fold one part ends the training early and the others teach. Raises InputError when a patient is on
    both sides, or there is nothing to fit or to score.
    """
    fitting = [split in ("train", "val") for split in splits]
    testing = [split == "test" for split in splits]
    both = sorted(
        {p for p, fit in zip(patient_ids, fitting, strict=True) if fit}
        & {p for p, test in zip(patient_ids, testing, strict=True) if test}
    )
    if both:
        raise InputError(
            f"split: {len(both)} patients have scans both for fitting and in the test set, first {some(both, 3)}; "
            "all scans of a patient belong to one side"
        )
    if not any(testing):
        raise InputError(
            "split: none of the labelled scans is in the test set; use --protocol cv, or correct the split"
        )
    patients = sorted({p for p, fit in zip(patient_ids, fitting, strict=True) if fit})
    _enough(patients, [s for s, fit in zip(scan_ids, fitting, strict=True) if fit], folds, repeats)
    of_patient = _of_scans(patients, patient_ids, np.flatnonzero(fitting), indicators)
    rows: list[Row] = []
    for repeat in range(repeats):
        assigned = stratify(of_patient, np.full(folds, 1 / folds), np.random.default_rng([seed, repeat]))
        of = dict(zip(patients, assigned.tolist(), strict=True))
        for fold in range(folds):
            for scan, patient, fit, test in zip(scan_ids, patient_ids, fitting, testing, strict=True):
                part = "test" if test else UNUSED if not fit else "inner" if of[patient] == fold else "train"
                rows.append((repeat, fold, part, patient, scan))
    return Folds(folds_table(rows))


def rows_of_fold(
    repeat: int,
    fold: int,
    scan_ids: Sequence[str],
    patient_ids: Sequence[str],
    scored: Sequence[bool],
    indicators: Indicators,
    *,
    given: Sequence[str | None] | None = None,
    seed: int = 0,
    inner_fraction: float = 0.2,
) -> list[Row]:
    """One fold in which these scans are scored and no other scan of their patients takes part.

    given: (scans,) `train`, `inner` or `unused` where that is settled; inner is drawn where nobody is.
    """
    held = {p for p, here in zip(patient_ids, scored, strict=True) if here}
    wanted = list(given) if given is not None else [None] * len(scan_ids)
    free = [p not in held and w != UNUSED for p, w in zip(patient_ids, wanted, strict=True)]
    rest = np.flatnonzero(free)
    patients = sorted({patient_ids[int(i)] for i in rest})
    if len(patients) < 2:
        raise InputError(f"folds: fold {fold} leaves {len(patients)} patients for training; expected 2 or more")
    if "inner" in wanted:
        inner = {p for p, w in zip(patient_ids, wanted, strict=True) if w == "inner"}
    else:
        of_patient = _of_scans(patients, patient_ids, rest, indicators)
        drawn = draw_inner(of_patient, inner_fraction, np.random.default_rng([seed, repeat, fold]))
        inner = {p for p, chosen in zip(patients, drawn, strict=True) if chosen}
    rows: list[Row] = []
    for scan, patient, here, takes_part in zip(scan_ids, patient_ids, scored, free, strict=True):
        part = "test" if here else UNUSED if not takes_part else "inner" if patient in inner else "train"
        rows.append((repeat, fold, part, patient, scan))
    return rows


def _enough(patients: Sequence[str], scan_ids: Sequence[str], folds: int, repeats: int) -> None:
    if folds < 2 or repeats < 1:
        raise InputError(f"--folds {folds}, --repeats {repeats}: expected at least 2 folds and 1 repeat")
    if len(patients) < folds or len(patients) < 3:
        raise InputError(
            f"{len(patients)} labelled patients ({len(scan_ids)} scans) cannot fill {max(folds, 3)} folds; give a "
            "smaller number with --folds (2 at least, with 3 patients or more), or label more patients"
        )


def _of_patients(patients: Sequence[str], patient_ids: Sequence[str], indicators: Indicators) -> NDArray[np.bool_]:
    """(patients, C) from all scans of these patients."""
    wanted = set(patients)
    return _of_scans(patients, patient_ids, np.flatnonzero([p in wanted for p in patient_ids]), indicators)


def _of_scans(
    patients: Sequence[str], patient_ids: Sequence[str], scans: NDArray[np.int64], indicators: Indicators
) -> NDArray[np.bool_]:
    """(patients, C) from these scans alone."""
    here = indicators(scans) if callable(indicators) else indicators[scans]
    return by_patient(patients, [patient_ids[int(i)] for i in scans], here)


def by_patient(patients: Sequence[str], patient_ids: Sequence[str], indicators: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(patients, C): whether one of the patient's scans has the class."""
    number = {patient: i for i, patient in enumerate(patients)}
    out = np.zeros((len(patients), indicators.shape[1]), dtype=bool)
    np.logical_or.at(out, [number[patient] for patient in patient_ids], indicators)
    return out


def check_folds(table: pl.DataFrame) -> None:
    """Raises InputError when a patient crosses, a scan is scored twice or never in a repeat, or a part is empty."""
    strange = set(table["split"].unique().to_list()) - {*SPLITS, UNUSED}
    if strange:
        raise InputError(f"folds: split {some(map(str, strange))}; expected train, inner, test or unused")
    used = table.filter(pl.col("split") != UNUSED)
    crossing = used.group_by("repeat", "fold", "patient_id").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    if crossing.height:
        first = crossing.sort("repeat", "fold", "patient_id").row(0, named=True)
        raise InputError(
            f"folds: patient {first['patient_id']!r} is in more than one part of fold {first['fold']}; "
            f"{crossing.height} such cases. All scans of a patient belong together"
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
    if not _fixed_test(table):
        _scored_once(table, used)


def _scored_once(table: pl.DataFrame, used: pl.DataFrame) -> None:
    scored = table.filter(pl.col("split") == "test")
    in_two = scored.group_by("repeat", "scan_id").agg(pl.col("fold").n_unique()).filter(pl.col("fold") > 1)
    if in_two.height:
        raise InputError(
            f"folds: scan {in_two.sort('repeat', 'scan_id')['scan_id'][0]!r} is scored in several folds, others are "
            "not; expected every scan in one, or the same scans in all"
        )
    scans = used["scan_id"].n_unique()
    for repeat, count in scored.group_by("repeat").agg(pl.col("scan_id").n_unique()).iter_rows():
        if count < scans:
            raise InputError(f"folds: {scans - count} of {scans} scans are scored in no fold of repeat {repeat}")


def _fixed_test(table: pl.DataFrame) -> bool:
    """Whether every fold scores the same scans; a single fold does."""
    folds = table.select("repeat", "fold").unique().height
    scored = table.filter(pl.col("split") == "test").group_by("scan_id").len()
    return bool((scored["len"] == folds).all())


def folds_table(rows: Sequence[Row]) -> pl.DataFrame:
    """Rows of (repeat, fold, split, patient_id, scan_id) as the table of `Folds`."""
    schema = {"repeat": pl.Int64, "fold": pl.Int64, "split": pl.String, "patient_id": pl.String, "scan_id": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")
