"""Joining labels to scans: on ids, with a rule where it is ambiguous, and with known patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import join_labels
from clear.labels import Labels, labels_from_frame
from clear.task import JoinRule, Task
from clear.tasks import target_task


def scans(**columns: list[object]) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    base: dict[str, list[object]] = {
        "scan_id": [f"s{i}" for i in range(n)],
        "series_uid": [None] * n,
        "study_uid": [None] * n,
        "patient_id": [f"p{i}" for i in range(n)],
        "digest": [f"d{i}" for i in range(n)],
        "days_since_first": [None] * n,
    }
    text = dict.fromkeys(base, pl.String) | {"days_since_first": pl.Int32}
    return pl.DataFrame({**base, **columns}, schema=text)


def labels(id_column: str = "patient_id", **columns: list[str | None]) -> Labels:
    named = {id_column if name == "id" else name: values for name, values in columns.items()}
    return labels_from_frame(pl.DataFrame(named), target_task("y"), "t.csv")


def test_what_does_not_join_is_counted_and_named_on_both_sides() -> None:
    joined = join_labels(labels(id=["p0", "p1", "x9"], y=["1", "0", "1"]), scans(patient_id=["p0", "p1", "p2"]))
    assert joined.frame.rows() == [("s0", "p0", 1), ("s1", "p1", 0)]
    assert joined.flow["label_rows_without_scan"] == 1
    assert joined.flow["scans_without_label_row"] == 1
    assert any("x9" in remark for remark in joined.remarks)
    assert any("s2" in remark for remark in joined.remarks)


def test_a_table_of_another_cohort_shows_examples_of_both_sides() -> None:
    with pytest.raises(InputError, match=r"none of its 2 ids is a patient_id of .*The table has x, z; .*has p0, p1"):
        join_labels(labels(id=["x", "z"], y=["1", "0"]), scans(patient_id=["p0", "p1"]))


def test_ids_under_the_wrong_name_are_recognised() -> None:
    with pytest.raises(InputError, match="Its ids are patient_ids of the bag file"):
        join_labels(labels("scan_id", id=["p0", "p1"], y=["1", "0"]), scans(patient_id=["p0", "p1"]))


@pytest.mark.parametrize("spelt", [["1", "2"], ["001.0", "002.0"], ["1.0", "2.0"]])
def test_ids_that_a_spreadsheet_changed_are_recognised(spelt: list[str]) -> None:
    with pytest.raises(InputError, match=r"differ in leading zeros, a trailing \.0 or case"):
        join_labels(labels(id=spelt, y=["1", "0"]), scans(patient_id=["001", "002"]))


def test_a_patients_table_that_names_half_of_a_patients_scans_stops(tmp_path: Path) -> None:
    table = labels("scan_id", id=["s0", "s1", "s2"], y=["1", "1", "0"])
    (tmp_path / "p.csv").write_text("scan_id,patient_id\ns0,x\n")
    with pytest.raises(InputError, match=r"some scans of patient 'p0' and not others, first s1"):
        join_labels(table, scans(patient_id=["p0", "p0", "p1"]), patients=tmp_path / "p.csv")
    known = join_labels(table, scans(patient_id=["p0", "p1", "p1"]), patients=tmp_path / "p.csv")
    assert known.frame["patient_id"].to_list() == ["x", "p1", "p1"]


def test_file_names_join_scans_found_in_sub_folders() -> None:
    joined = join_labels(labels("scan_id", id=["a", "b"], y=["1", "0"]), scans(scan_id=["x/a", "y/b"]))
    assert joined.frame["scan_id"].to_list() == ["x/a", "y/b"]
    assert "last part" in joined.flow["joined_by"]


def test_a_file_name_of_two_folders_stops_and_shows_both() -> None:
    with pytest.raises(InputError, match=r"its id 'a' is the name of 2 scans of the bag file \(x/a, y/a\)"):
        join_labels(labels("scan_id", id=["a", "b"], y=["1", "0"]), scans(scan_id=["x/a", "y/a"]))


def test_equal_names_of_other_scans_do_not_matter() -> None:
    joined = join_labels(labels("scan_id", id=["a", "b"], y=["1", "0"]), scans(scan_id=["x/a", "y/c", "z/c", "z/b"]))
    assert joined.frame["scan_id"].to_list() == ["x/a", "z/b"]


def test_ids_that_are_file_names_join_without_their_ending() -> None:
    table = labels("scan_id", id=["a.nii.gz", "b.nii.gz"], y=["1", "0"])
    assert join_labels(table, scans(scan_id=["x/a", "y/b"])).frame["y"].to_list() == [1, 0]
    exact = join_labels(table, scans(scan_id=["a.nii.gz", "b"]))
    assert exact.frame["scan_id"].to_list() == ["a.nii.gz"]


def test_a_label_row_of_several_scans_stops_until_a_rule_is_given() -> None:
    two = scans(scan_id=["s0", "s1", "s2"], patient_id=["p0", "p0", "p1"], days_since_first=[30, 0, 0])
    table = labels(id=["p0", "p1"], y=["1", "0"])
    with pytest.raises(InputError, match=r"match several scans, first patient_id 'p0' with 2 \(s0, s1\).*--join"):
        join_labels(table, two)
    chosen = {rule: join_labels(table, two, rule=rule).frame["scan_id"].to_list() for rule in ("all", "first")}
    assert chosen == {"all": ["s0", "s1", "s2"], "first": ["s0", "s2"]}
    assert join_labels(table, two, rule="earliest").frame["scan_id"].to_list() == ["s1", "s2"]
    assert join_labels(table, two, rule="pool").rule == "pool"


BASELINE_GONE = {"patient_id": ["p0", "p1"], "days_since_first": [90, 0]}


def test_a_follow_up_whose_first_study_is_absent_stops_until_a_rule_is_given() -> None:
    with pytest.raises(
        InputError, match=r"labels are of patients, and 1 scans .* follow-ups .*'s0' \(day 90\).*earliest"
    ):
        join_labels(labels(id=["p0", "p1"], y=["1", "0"]), scans(**BASELINE_GONE))


def test_by_the_rule_earliest_a_follow_up_never_inherits_the_label_of_a_first_study_that_is_absent() -> None:
    joined = join_labels(labels(id=["p0", "p1"], y=["1", "0"]), scans(**BASELINE_GONE), rule="earliest")
    assert joined.frame["scan_id"].to_list() == ["s1"]
    assert any("1 follow-ups without their first study are left out: s0" in remark for remark in joined.remarks)


@pytest.mark.parametrize("rule", ["all", "first", "pool"])
def test_a_follow_up_that_gets_the_label_by_a_rule_is_remarked_upon(rule: JoinRule) -> None:
    joined = join_labels(labels(id=["p0", "p1"], y=["1", "0"]), scans(**BASELINE_GONE), rule=rule)
    assert joined.frame["scan_id"].to_list() == ["s0", "s1"]
    assert f"--join {rule}: 1 follow-ups have the label of their patient: s0" in joined.remarks


def test_a_follow_up_with_a_label_of_its_own_is_no_accident() -> None:
    later = scans(patient_id=["p0", "p0"], days_since_first=[0, 90])
    joined = join_labels(labels("scan_id", id=["s0", "s1"], y=["1", "0"]), later)
    assert joined.frame["y"].to_list() == [1, 0]


def test_the_split_and_the_event_come_along() -> None:
    task = Task("t", "", (Endpoint("os", "survival", column="days", event="dead"),))
    table = pl.DataFrame(
        {"scan_id": ["s1", "s0"], "days": ["10", "20"], "dead": ["1", "0"], "split": ["test", "train"]}
    )
    joined = join_labels(labels_from_frame(table, task, "t.csv"), scans(scan_id=["s0", "s1"]))
    time, event = joined.endpoints[0].label_columns
    assert joined.frame.select("scan_id", time, event, "split").rows() == [
        ("s0", 20.0, 0, "train"),
        ("s1", 10.0, 1, "test"),
    ]


def test_versions_of_one_scan_count_once() -> None:
    table = labels("scan_id", id=["s0", "s1", "s2", "s3"], y=["1", "1", "0", "0"])
    versions = pl.Series("one_of", ["a", "a", None, None], dtype=pl.String)
    table = replace(table, frame=table.frame.with_columns(versions))
    joined = join_labels(table, scans(scan_id=["s0", "s1", "s2", "s3"]))
    assert joined.frame["scan_id"].to_list() == ["s0", "s2", "s3"]
    assert "one_of" not in joined.frame.columns


@pytest.mark.parametrize(("days", "says"), [([0, 0, 0], "several scans on their earliest day"), ([None, 3, 0], "date")])
def test_earliest_needs_dates_that_decide(days: list[int | None], says: str) -> None:
    two = scans(patient_id=["p0", "p0", "p1"], days_since_first=days)
    with pytest.raises(InputError, match=says):
        join_labels(labels(id=["p0", "p1"], y=["1", "0"]), two, rule="earliest")


def test_a_rule_that_is_not_needed_changes_nothing() -> None:
    table = labels(id=["p0", "p1"], y=["1", "0"])
    assert join_labels(table, scans(patient_id=["p0", "p1"]), rule="earliest").rule is None


def test_without_patient_ids_folds_stop_and_say_what_would_do(tmp_path: Path) -> None:
    nameless = scans(scan_id=["a_1", "a_2", "b_1"], patient_id=[None, None, None])
    table = labels("scan_id", id=["a_1", "a_2", "b_1"], y=["1", "1", "0"])
    with pytest.raises(InputError, match=r"3 of 3 scans have no patient id.*--patients.*--patient-pattern"):
        join_labels(table, nameless)
    by_pattern = join_labels(table, nameless, patient_pattern="^([^_]+)_")
    assert by_pattern.frame["patient_id"].to_list() == ["a", "a", "b"]
    (tmp_path / "p.csv").write_text("scan_id,patient_id\na_1,x\na_2,y\nb_1,z\n")
    by_table = join_labels(table, nameless, patients=tmp_path / "p.csv")
    assert by_table.frame["patient_id"].to_list() == ["x", "y", "z"]
    in_labels = labels("scan_id", id=["a_1", "a_2", "b_1"], y=["1", "1", "0"], patient_id=["q", "q", "r"])
    assert join_labels(in_labels, nameless).frame["patient_id"].to_list() == ["q", "q", "r"]


def test_an_unknown_patient_is_no_patient(tmp_path: Path) -> None:
    nameless = scans(patient_id=[None, None, None])
    table = labels("scan_id", id=["s0", "s1", "s2"], y=["1", "1", "0"], patient_id=["nan", "Unknown", "r"])
    with pytest.raises(InputError, match="2 of 3 scans have no patient id, first s0, s1"):
        join_labels(table, nameless)
    (tmp_path / "p.csv").write_text("scan_id,patient_id\ns0,NA\ns1,q\n")
    with pytest.raises(InputError, match="1 of 3 scans have no patient id, first s0"):
        join_labels(table, nameless, patients=tmp_path / "p.csv")


def test_a_pattern_must_be_one_with_a_group() -> None:
    nameless = scans(patient_id=[None, None])
    table = labels("scan_id", id=["s0", "s1"], y=["1", "0"])
    for pattern, says in (("s(", "regular expression"), ("s", "group")):
        with pytest.raises(InputError, match=says):
            join_labels(table, nameless, patient_pattern=pattern)


def test_a_patient_of_the_table_that_is_two_in_the_file_stops() -> None:
    table = labels("scan_id", id=["s0", "s1"], y=["1", "0"], patient_id=["same", "same"])
    with pytest.raises(InputError, match=r"its patient 'same' has scans of several patients.*\(p0, p1\)"):
        join_labels(table, scans(patient_id=["p0", "p1"]))


def test_equal_voxels_under_two_patients_stop() -> None:
    with pytest.raises(InputError, match=r"two patients with the same voxels, first s0, s1"):
        join_labels(labels(id=["p0", "p1"], y=["1", "0"]), scans(patient_id=["p0", "p1"], digest=["same", "same"]))


def test_scans_whose_label_is_unknown_are_left_out_and_counted() -> None:
    joined = join_labels(labels(id=["p0", "p1", "p2"], y=["1", "NA", "0"]), scans(patient_id=["p0", "p1", "p2"]))
    assert joined.frame["scan_id"].to_list() == ["s0", "s2"]
    assert any("1 joined scans have no known label" in remark for remark in joined.remarks)


def test_a_column_of_ids_can_be_named() -> None:
    table = pl.DataFrame({"Fallnummer": ["p0", "p1"], "y": ["1", "0"]})
    named = labels_from_frame(table, target_task("y"), "t.csv", id_column="Fallnummer")
    assert join_labels(named, scans(patient_id=["p0", "p1"])).flow["joined_by"] == "patient_id"
