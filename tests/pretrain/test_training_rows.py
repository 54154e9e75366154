"""Rows that are trained on: nobody who is left out is, and nobody is let through by a zero."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from clear.errors import InputError
from pretrain.objectives import build_objective
from pretrain.settings import PretrainSettings
from pretrain.store import SliceStore
from pretrain.training_rows import few_lesions, rows_to_train_on


def patients(store: SliceStore, rows: np.ndarray) -> set[str | None]:
    return set(store.table[rows]["patient_id"].to_list())


def test_without_anybody_to_leave_out_all_rows_are_trained_on(store: Path) -> None:
    rows, remark = rows_to_train_on(SliceStore(store), None)
    assert rows.tolist() == list(range(24))
    assert remark == ""


def test_patients_and_the_patients_of_scans_are_left_out(store: Path) -> None:
    opened = SliceStore(store)
    rows, remark = rows_to_train_on(opened, ["P-1", "P-scan-4"])
    assert patients(opened, rows) == {"P-0", "P-2", "P-3", "P-5"}
    assert remark == "left out: 2 patients with 8 slices"


def test_a_table_leaves_out_its_test_patients(store: Path, tmp_path: Path) -> None:
    opened = SliceStore(store)
    table = pl.DataFrame({"patient_id": [f"P-{i}" for i in range(6)], "split": ["train"] * 4 + ["test"] * 2})
    table.write_csv(tmp_path / "split.csv")
    rows, _ = rows_to_train_on(opened, tmp_path / "split.csv")
    assert patients(opened, rows) == {"P-0", "P-1", "P-2", "P-3"}


def test_names_that_are_not_in_the_store_are_counted(store: Path) -> None:
    _, remark = rows_to_train_on(SliceStore(store), ["P-1", "somebody"])
    assert remark.endswith("; 1 of the 2 names are not in the store")


def memory(ids: list[str | None]) -> Any:
    table = pl.DataFrame({"row": range(len(ids)), "patient_id": ids, "scan_id": [f"s{i}" for i in range(len(ids))]})
    return SimpleNamespace(path=Path("slices.zarr"), table=table)


def test_slices_of_nobody_known_could_be_anybodys() -> None:
    rows, remark = rows_to_train_on(memory(["a", None, "b", "b"]), ["b"])
    assert rows.tolist() == [0]
    assert remark == "left out: 1 patients with 2 slices, and 1 slices whose patient is not known"


def test_a_name_spelled_nearly_alike_stops() -> None:
    with pytest.raises(InputError, match=r"'91' is to be left out, and slices.zarr has '000091'"):
        rows_to_train_on(memory(["000091", "b"]), ["91"])


def test_leaving_everybody_out_stops(store: Path) -> None:
    with pytest.raises(InputError, match=r"no slice of .* is left"):
        rows_to_train_on(SliceStore(store), [f"P-{i}" for i in range(6)])


def test_a_store_with_hardly_any_lesions_is_remarked_on_where_lesions_matter(small: ModuleType) -> None:
    boxes = [1, *[0] * 99]
    store = SimpleNamespace(table=pl.DataFrame({"n_boxes": boxes}))
    asked = PretrainSettings(objective="lecl", model="small", batch=32)
    lecl = build_objective("lecl", small.CARD, {"hidden": 8, "dim": 4})
    moco = build_objective("moco-v3", small.CARD, {"hidden": 8, "dim": 4})
    rows = np.arange(100)
    assert "1 of 100 slices have a box, 0.3 a batch" in few_lesions(lecl, store, rows, asked)
    assert few_lesions(moco, store, rows, asked) == ""
    assert few_lesions(lecl, store, rows[:10], asked) == ""  # 3.2 a batch
