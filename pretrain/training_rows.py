"""Which slices of a store are trained on: all but those of patients who are left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clear.errors import InputError
from pretrain.left_out import read_left_out
from pretrain.objectives.objective import Objective
from pretrain.settings import PretrainSettings
from pretrain.store import SliceStore


def rows_to_train_on(store: SliceStore, leave_out: Path | str | Sequence[str] | None) -> tuple[NDArray[np.int64], str]:
    """(rows of the store without those of patients left out, remark).

    leave_out: as in `build_slices`; names of scans take their whole patient with them. Slices of nobody known are left
    out too while anybody is, since they could be theirs. Raises InputError where nothing is left, and for a name that
    is nearly that of a patient.
    """
    table = store.table
    if leave_out is None:
        return np.arange(table.height, dtype=np.int64), ""
    who = read_left_out(leave_out, None, [])
    names = who.patients | who.ids
    named = table.filter(pl.col("patient_id").is_in(names) | pl.col("scan_id").is_in(names))
    found = {*named["patient_id"].to_list(), *named["scan_id"].to_list()} & names
    known = {each for name in ("patient_id", "scan_id") for each in table[name].drop_nulls().unique().to_list()}
    plain = {_plain(each): each for each in known - names}
    near = next(((each, plain[_plain(each)]) for each in sorted(names - found) if _plain(each) in plain), None)
    if near is not None:
        raise InputError(
            f"--leave-out: {near[0]!r} is to be left out, and {store.path} has {near[1]!r}. If they are one, spell "
            "them alike; no patient may be let through by a zero"
        )
    patients = named["patient_id"].drop_nulls().unique().to_list()
    keep = pl.col("patient_id").is_not_null() & ~pl.col("patient_id").is_in(patients)
    kept = table.with_row_index("at").filter(keep)["at"].to_numpy().astype(np.int64)
    if not len(kept):
        raise InputError(f"--leave-out: no slice of {store.path} is left; leave fewer patients out")
    nameless = table["patient_id"].null_count()
    remark = f"left out: {len(patients)} patients with {table.height - len(kept) - nameless} slices"
    if nameless:
        remark += f", and {nameless} slices whose patient is not known"
    if absent := len(names - found):
        remark += f"; {absent} of the {len(names)} names are not in the store"
    return kept, remark


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


def _plain(name: str) -> str:
    """An id without what spreadsheets take away or add."""
    return name.lower().removesuffix(".0").lstrip("0")
