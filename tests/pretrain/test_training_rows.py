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


def memory(ids: list[str | None], voxels: list[str] | None = None) -> Any:
    """A store of a slice a scan. voxels: the scans' digests, all different by default."""
    digests = [f"d{i}" for i in range(len(ids))] if voxels is None else voxels
    scans = {"scan_id": [f"s{i}" for i in range(len(ids))], "scan_digest": digests}
    return SimpleNamespace(
        path=Path("slices.zarr"), table=pl.DataFrame({"row": range(len(ids)), "patient_id": ids, **scans})
    )


def test_slices_of_nobody_known_could_be_anybodys() -> None:
    rows, remark = rows_to_train_on(memory(["a", None, "b", "b"]), ["b"])
    assert rows.tolist() == [0]
    assert remark == "left out: 1 patients with 2 slices, and 1 slices whose patient is not known"


def test_a_copy_under_another_id_is_left_out_with_all_that_is_its_patients() -> None:
    ids: list[str | None] = ["a", "anonymous-7", "anonymous-7", "b", "copy-of-7", "c"]
    voxels = ["a1", "a1", "other", "b1", "other", "c1"]
    rows, remark = rows_to_train_on(memory(ids, voxels), ["a"])
    assert rows.tolist() == [3, 5]
    assert remark == (
        "left out: 1 patients with 1 slices; 2 other patients with 3 slices, since scans of theirs have the very "
        "voxels of scans that are left out: one person may have several ids here"
    )


def test_the_copy_of_a_named_scan_is_left_out_whoever_the_scan_is_of() -> None:
    rows, remark = rows_to_train_on(memory([None, "a", "b"], ["x", "x", "y"]), ["s0"])
    assert rows.tolist() == [2]
    assert remark.startswith(
        "left out: 0 patients with 0 slices, and 1 slices whose patient is not known; 1 other patients with 1 slices"
    )


def test_a_scan_under_two_patients_is_remarked_on_where_nobody_is_left_out() -> None:
    rows, remark = rows_to_train_on(memory(["a", "b", "c", "c"], ["x", "x", "y", "y"]), None)
    assert rows.tolist() == [0, 1, 2, 3]
    assert remark == (
        "2 scans have the very voxels of a scan of another patient, first s0, s1; one person may have several ids "
        "here. Whoever is left out by one of them is left out by all"
    )


def test_the_test_patients_of_a_task_are_for_building_the_store() -> None:
    with pytest.raises(InputError, match=r"--leave-out test: .*`clear slices build --task NAME --leave-out test`"):
        rows_to_train_on(memory(["a", "b"]), "test")


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
