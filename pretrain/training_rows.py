"""Which slices of a store are trained on: all but those of patients who are left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clear.errors import InputError
from clear.tables import some
from pretrain.copies import with_copies
from pretrain.left_out import OFFICIAL_TEST, read_left_out
from pretrain.objectives.objective import Objective
from pretrain.settings import PretrainSettings
from pretrain.store import SliceStore


def rows_to_train_on(store: SliceStore, leave_out: Path | str | Sequence[str] | None) -> tuple[NDArray[np.int64], str]:
    """(rows of the store without those of patients left out, remark).

    leave_out: as in `build_slices`, but for "test"; names of scans take their whole patient with them. Who shares the
    voxels of a scan with a patient left out is left out too (`pretrain.copies`). Slices of nobody known are left out
    while anybody is, since they could be theirs. Raises InputError where nothing is left, and for a name that is nearly
    that of a patient.
    """
    table = store.table
    if leave_out is None:
        return np.arange(table.height, dtype=np.int64), _two_patients(table)
    if isinstance(leave_out, str | Path) and str(leave_out) == OFFICIAL_TEST:
        raise InputError(
            "--leave-out test: a store does not know who the test patients of a task are. Leave them out when it is "
            "built (`clear slices build --task NAME --leave-out test`), or give a table of patients here"
        )
    who = read_left_out(leave_out, None, [])
    names = who.patients | who.ids
    named = table.filter(pl.col("patient_id").is_in(names) | pl.col("scan_id").is_in(names))
    found = {*named["patient_id"].to_list(), *named["scan_id"].to_list()} & names
    _check_spelling(store, names, found)
    patients = set(named["patient_id"].drop_nulls().to_list())
    pairs = table.select("patient_id", "scan_digest").unique()
    everybody, _ = with_copies(patients, named["scan_digest"].to_list(), pairs.iter_rows())
    kept = table.filter(pl.col("patient_id").is_not_null() & ~pl.col("patient_id").is_in(everybody))
    if not kept.height:
        raise InputError(f"--leave-out: no slice of {store.path} is left; leave fewer patients out")
    remark = f"left out: {len(patients)} patients with {_slices_of(table, patients)} slices"
    if nameless := table["patient_id"].null_count():
        remark += f", and {nameless} slices whose patient is not known"
    if others := everybody - patients:
        remark += (
            f"; {len(others)} other patients with {_slices_of(table, others)} slices, since scans of theirs have the "
            "very voxels of scans that are left out: one person may have several ids here"
        )
    if absent := len(names - found):
        remark += f"; {absent} of the {len(names)} names are not in the store"
    return kept["row"].to_numpy().astype(np.int64), "\n".join(filter(None, [remark, _two_patients(kept)]))


def few_lesions(objective: Objective, store: SliceStore, rows: NDArray[np.int64], settings: PretrainSettings) -> str:
    """A sentence where an objective of lesions hardly meets any."""
    if not any(kind.lesion for kind in objective.kinds) or settings.annotated_share is not None:
        return ""
    annotated = int((store.table[rows]["n_boxes"] > 0).sum())
    expected = settings.batch * annotated / max(1, len(rows))
    if expected >= 2 or not annotated:
        return ""
    return (
        f"{annotated} of {len(rows)} slices have a box, {expected:.1f} a batch: lesions are hardly contrasted with "
        "each other; give --annotated-share"
    )


def _slices_of(table: pl.DataFrame, patients: Collection[str]) -> int:
    return table.filter(pl.col("patient_id").is_in(list(patients))).height


def _two_patients(table: pl.DataFrame) -> str:
    """A sentence where one scan stands under two patients. Nothing is folded here, so it does not stop training."""
    scans = table.select("scan_id", "patient_id", "scan_digest").unique().drop_nulls().sort("scan_id")
    shared = scans.filter(pl.col("patient_id").n_unique().over("scan_digest") > 1)
    if not shared.height:
        return ""
    first = shared.filter(pl.col("scan_digest") == shared["scan_digest"][0])["scan_id"].to_list()
    return (
        f"{shared.height} scans have the very voxels of a scan of another patient, first {some(first, 3)}; one person "
        "may have several ids here. Whoever is left out by one of them is left out by all"
    )


def _check_spelling(store: SliceStore, names: Collection[str], found: Collection[str]) -> None:
    """Raises InputError for a name that is not in the store, but nearly."""
    known = {each for name in ("patient_id", "scan_id") for each in store.table[name].drop_nulls().unique().to_list()}
    plain = {_plain(each): each for each in known.difference(names)}
    near = next(
        ((each, plain[_plain(each)]) for each in sorted(set(names) - set(found)) if _plain(each) in plain), None
    )
    if near is not None:
        raise InputError(
            f"--leave-out: {near[0]!r} is to be left out, and {store.path} has {near[1]!r}. If they are one, spell "
            "them alike; no patient may be let through by a zero"
        )


def _plain(name: str) -> str:
    """An id without what spreadsheets take away or add."""
    return name.lower().removesuffix(".0").lstrip("0")
