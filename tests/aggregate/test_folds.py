"""Folds: patients stay together, classes are spread, the file says all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregate.folds import Folds, make_folds, make_group_folds, make_test_folds
from aggregate.folds_file import read_folds
from aggregate.stratify import stratify
from clear.errors import InputError


def cohort(n_patients: int = 30, seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    """Patients with one to three scans and three classes, one of them rare."""
    rng = np.random.default_rng(seed)
    scans, patients, rows = [], [], []
    for p in range(n_patients):
        of_patient = np.array([p % 2 == 0, p % 2 == 1, p % 6 == 0])
        for s in range(int(rng.integers(1, 4))):
            scans.append(f"s{p:02d}{s}")
            patients.append(f"p{p:02d}")
            rows.append(of_patient)
    return scans, patients, np.array(rows)


def test_no_patient_crosses_and_every_scan_is_scored_once_a_repeat() -> None:
    scans, patients, indicators = cohort()
    folds = make_folds(scans, patients, indicators, folds=5, repeats=2)
    for (_, _), table in folds.table.group_by("repeat", "fold"):
        assert table.group_by("patient_id").agg(pl.col("split").n_unique())["split"].max() == 1
        assert set(table["split"]) == {"train", "inner", "test"}
        assert sorted(table["scan_id"]) == scans
    scored = folds.table.filter(split="test")
    assert scored.group_by("repeat", "scan_id").len()["len"].to_list() == [1] * (2 * len(scans))
    first, second = (scored.filter(repeat=r).sort("scan_id")["fold"].to_list() for r in (0, 1))
    assert first != second


def test_every_class_is_spread_evenly_over_the_folds() -> None:
    scans, patients, indicators = cohort(60)
    folds = make_folds(scans, patients, indicators, folds=5)
    of = dict(zip(patients, indicators, strict=True))
    scored = folds.table.filter(split="test").unique("patient_id")
    for column in range(3):
        counts = [sum(of[p][column] for p in t["patient_id"]) for _, t in scored.group_by("fold")]
        assert max(counts) - min(counts) <= 1
    inner = folds.table.filter(split="inner").unique(["fold", "patient_id"])
    for _, table in inner.group_by("fold"):
        assert table.height == pytest.approx(48 * 0.2, abs=1.5)
        assert 0 < sum(of[p][2] for p in table["patient_id"]) <= 3


@settings(deadline=None, max_examples=40)
@given(st.integers(6, 60), st.integers(2, 6), st.integers(0, 1000))
def test_stratifying_deals_every_row_and_keeps_parts_equal_in_size(n: int, parts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indicators = rng.random((n, 4)) < [0.5, 0.2, 0.05, 0.0]
    part = stratify(indicators, np.full(parts, 1 / parts), rng)
    sizes = np.bincount(part, minlength=parts)
    assert sizes.sum() == n
    assert np.ptp(sizes) <= 3
    for column in indicators.T:
        assert np.ptp(np.bincount(part[column], minlength=parts)) <= 3


def test_one_binary_endpoint_is_split_as_evenly_as_numbers_allow() -> None:
    positive = np.arange(53) < 17
    part = stratify(np.stack([~positive, positive], 1), np.full(5, 0.2), np.random.default_rng(0))
    assert np.ptp(np.bincount(part[positive])) == 1
    assert np.ptp(np.bincount(part[~positive])) <= 1


def test_folds_follow_from_the_seed_alone() -> None:
    scans, patients, indicators = cohort()
    first, again, other = (make_folds(scans, patients, indicators, folds=3, seed=s) for s in (0, 0, 1))
    assert first.table.equals(again.table)
    assert not first.table.equals(other.table)


def test_a_folds_file_reads_back_as_the_same_folds(tmp_path: Path) -> None:
    scans, patients, indicators = cohort()
    made = make_folds(scans, patients, indicators, folds=3, repeats=2)
    made.write(tmp_path / "folds.csv")
    back, remarks = read_folds(tmp_path / "folds.csv", scans, patients, indicators)
    assert back.table.equals(made.table)
    assert remarks == []


def test_a_file_of_patient_and_fold_is_enough(tmp_path: Path) -> None:
    scans, patients, indicators = cohort(12)
    lines = ["patient_id,fold", *(f"p{p:02d},{p % 3}" for p in range(12)), "stranger,0"]
    (tmp_path / "f.csv").write_text("\n".join(lines))
    folds, remarks = read_folds(tmp_path / "f.csv", scans, patients, indicators)
    assert folds.pairs == [(0, 0), (0, 1), (0, 2)]
    scored = folds.table.filter(split="test")
    assert all(int(p[1:]) % 3 == f for p, f in scored.select("patient_id", "fold").iter_rows())
    assert "stranger" in remarks[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scan_id,fold\na,0\nb,1\nc,2\n", r"1 of 4 scan_ids are in no fold, first d"),
        ("scan_id,fold\na,0\nb,1\nc,2\nd,0\n", "patient 'p1' has scans in folds 0 and 1"),
        ("scan_id,fold\na,0\nb,0\na,1\nc,2\nd,1\n", "'a' is in two folds"),
        ("scan_id,fold\na,x\nb,0\nc,1\nd,1\n", "whole numbers"),
        ("name,fold\na,1\n", "no column 'scan_id'"),
        ("scan_id,part\na,1\n", "no column 'fold'"),
    ],
)
def test_a_folds_file_that_would_leak_or_lacks_scans_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    scans, patients = ["a", "b", "c", "d"], ["p1", "p1", "p2", "p3"]
    indicators = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    with pytest.raises(InputError, match=says):
        read_folds(tmp_path / "f.csv", scans, patients, indicators)


def test_a_table_in_which_a_patient_crosses_cannot_become_folds() -> None:
    scans, patients, indicators = cohort(12)
    table = make_folds(scans, patients, indicators, folds=3).table
    several = table.filter(pl.col("patient_id").is_duplicated() & (pl.col("fold") == 0))
    scan = several.filter(pl.col("split") == "train").filter(pl.col("patient_id").is_duplicated())["scan_id"][0]
    moved = table.with_columns(
        split=pl.when((pl.col("fold") == 0) & (pl.col("scan_id") == scan)).then(pl.lit("test")).otherwise("split")
    )
    with pytest.raises(InputError, match="more than one part of fold 0"):
        Folds(moved)


def test_fewer_patients_than_folds_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"4 labelled patients \(4 scans\) cannot fill 5 folds"):
        make_folds(list("abcd"), list("abcd"), np.ones((4, 1), bool), folds=5)
    with pytest.raises(InputError, match="at least 2 folds"):
        make_folds(list("abcd"), list("abcd"), np.ones((4, 1), bool), folds=1)


PEOPLE = (["a", "b", "c", "d", "e", "f"], ["p1", "p1", "p2", "p3", "p4", "p5"])
CLASSES = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1]], dtype=bool)


def scored_in(folds: Folds) -> dict[str, list[int]]:
    """scan -> the folds that score it."""
    rows = folds.table.filter(split="test").group_by("scan_id").agg(pl.col("fold").sort())
    return dict(rows.iter_rows())


def test_splits_of_stamp_are_patients_and_keep_their_folds(tmp_path: Path) -> None:
    splits = [
        {"train_patients": ["p3", "p4", "p5"], "test_patients": ["p1", "p2"]},
        {"train_patients": ["p1", "p2"], "test_patients": ["p3", "p4", "p5", "gone"]},
    ]
    (tmp_path / "splits.json").write_text(json.dumps({"splits": splits}))
    folds, remarks = read_folds(tmp_path / "splits.json", *PEOPLE, CLASSES)
    assert scored_in(folds) == {"a": [0], "b": [0], "c": [0], "d": [1], "e": [1], "f": [1]}
    assert set(folds.table.filter(fold=0, split="inner")["patient_id"]) < {"p3", "p4", "p5"}
    assert "gone" in remarks[0]


def test_splits_of_nnunet_are_cases_and_score_their_val(tmp_path: Path) -> None:
    scans = [f"imagesTr/{name}" for name in PEOPLE[0]]
    splits = [{"train": list("def"), "val": list("abc")}, {"train": list("abc"), "val": list("de")}]
    (tmp_path / "splits_final.json").write_text(json.dumps([*splits, {"train": list("abc"), "val": ["f"]}]))
    folds, _ = read_folds(tmp_path / "splits_final.json", scans, PEOPLE[1], CLASSES)
    assert scored_in(folds)["imagesTr/a"] == [0]
    assert scored_in(folds)["imagesTr/f"] == [2]
    left_out = folds.table.filter(fold=1, split="unused")["scan_id"].to_list()
    assert left_out == ["imagesTr/f"]  # listed neither for training nor for scoring


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([{"train": list("cdef"), "val": ["a"]}], "1 of 6 scan_ids are in no fold, first b"),
        ([{"train": list("bcd"), "val": list("aef")}], "trains on scans of patients whom it scores, first p1"),
        ([{"train": list("abcd"), "val": list("def")}], "both trains on and scores d"),
        ([{"training": [], "val": []}], "expected STAMP's"),
        ({"splits": []}, "expected STAMP's"),
        ({"folds": []}, "expected STAMP's"),
        ([{"train": ["d"], "val": list("abcef")}], "leaves 1 patients for training"),
    ],
)
def test_a_splits_file_that_would_leak_or_says_nothing_is_refused(tmp_path: Path, data: object, says: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=says):
        read_folds(tmp_path / "s.json", *PEOPLE, CLASSES)


def test_a_splits_file_that_is_no_json_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("[{")
    with pytest.raises(InputError, match="is not JSON"):
        read_folds(tmp_path / "s.json", *PEOPLE, CLASSES)


def test_folds_of_every_protocol_come_back_from_their_file(tmp_path: Path) -> None:
    scans, patients, indicators = cohort(20)
    site = {p: f"site {i % 3}" for i, p in enumerate(sorted(set(patients)))}
    part = {p: ["train", "val", "test"][i % 3] for i, p in enumerate(sorted(set(patients)))}
    for made in (
        make_folds(scans, patients, indicators, folds=3, repeats=2),
        make_group_folds(scans, patients, indicators, [site[p] for p in patients]),
        make_test_folds(scans, patients, indicators, [part[p] for p in patients], folds=3),
    ):
        made.write(tmp_path / "folds.csv")
        assert read_folds(tmp_path / "folds.csv", scans, patients, indicators)[0].table.equals(made.table)


def test_a_scan_scored_in_some_folds_but_not_in_all_is_refused() -> None:
    scans, patients, indicators = cohort(12)
    table = make_folds(scans, patients, indicators, folds=3).table
    first = table.filter(fold=0, split="test")["patient_id"][0]
    twice = table.with_columns(
        split=pl.when((pl.col("fold") == 1) & (pl.col("patient_id") == first)).then(pl.lit("test")).otherwise("split")
    )
    with pytest.raises(InputError, match="is scored in several folds, others are not"):
        Folds(twice)
