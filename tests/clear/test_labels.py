"""Label tables: what a cell means, which column is the id, and what is refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.labels import (
    Labels,
    find_id_column,
    labels_from_frame,
    labels_path,
    parse_endpoint,
    read_labels,
    read_saved_labels,
    write_labels,
)
from clear.tasks import Task, target_task


def parse(values: list[str | None], endpoint: Endpoint | None = None):
    return parse_endpoint(endpoint or Endpoint("y"), pl.Series("y", values, dtype=pl.String), "t.csv")


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        (["1", "0", "1"], [1, 0, 1]),
        (["1.0", "0.0", None], [1, 0, None]),
        (["True", "false", "TRUE"], [1, 0, 1]),
        (["yes", "No", "unknown"], [1, 0, None]),
        (["Positive", "negative"], [1, 0]),
    ],
)
def test_yes_and_no_are_binary_in_many_spellings(values: list[str | None], codes: list[int | None]) -> None:
    endpoint, coded, _ = parse(values)
    assert endpoint.kind == "binary"
    assert coded.to_list() == codes


@pytest.mark.parametrize("word", [None, "NA", "nan", "NaN", "N/A", "None", "null", "Unknown", "?", "-"])
def test_a_cell_that_says_nothing_is_masked_and_never_a_zero(word: str | None) -> None:
    _, coded, remarks = parse(["1", "0", word])
    assert coded.to_list() == [1, 0, None]
    assert ("unknown and left out" in " ".join(remarks)) == (word is not None)


def test_none_as_a_grade_is_a_class_and_not_a_gap() -> None:
    endpoint, coded, _ = parse(["none", "mild", "severe", "none"])
    assert endpoint.classes == ("mild", "none", "severe")
    assert coded.to_list() == [1, 0, 2, 1]


def test_two_texts_are_binary_and_the_positive_class_is_said() -> None:
    endpoint, coded, remarks = parse(["wildtype", "mutant", "wildtype"])
    assert endpoint.classes == ("mutant", "wildtype")
    assert coded.to_list() == [1, 0, 1]
    assert remarks == ["y: the positive class is 'wildtype', the negative 'mutant'"]


def test_two_numbers_are_binary_with_the_larger_one_positive() -> None:
    assert parse(["10", "9", "10"])[0].classes == ("9", "10")


def test_one_number_written_in_two_ways_is_one_class() -> None:
    endpoint, coded, _ = parse(["1", "1.0", "2", "2.00", "3"])
    assert endpoint.classes == ("1", "2", "3")
    assert coded.to_list() == [0, 0, 1, 1, 2]


def test_one_class_in_two_cases_stops() -> None:
    with pytest.raises(InputError, match="holds both 'Male' and 'male'"):
        parse(["Male", "male", "female"])


def test_classes_are_listed_and_a_negative_code_is_pointed_out() -> None:
    remarks = parse(["-1", "0", "1", "1"])[2]
    assert remarks[0] == "y: 3 classes, '-1' (1), '0' (1), '1' (2)"
    assert "empty the cells where it means unknown" in remarks[1]


def test_a_declared_endpoint_may_be_unknown_throughout() -> None:
    endpoint = Endpoint("y", "binary", ("absent", "present"))
    assert parse(["NA", None], endpoint)[1].to_list() == [None, None]


def test_a_few_values_are_multiclass_in_order_of_number_or_alphabet() -> None:
    assert parse(["2", "10", "1"])[0].classes == ("1", "2", "10")
    endpoint, coded, _ = parse(["IIIb", "I", "II", "I"])
    assert endpoint.kind == "multiclass"
    assert coded.to_list() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["0.5", "1.25", "7.5"], "Regression arrives later"),
        ([str(i) for i in range(30)], "Regression arrives later"),
        ([f"text {i}" for i in range(30)], "id or a free text"),
        (["1", "1", "NA"], "one class only: '1' in all 2 known rows"),
        (["a", "a"], "one class only: 'a'"),
        ([None, "NA"], "no known value"),
    ],
)
def test_a_column_that_is_no_class_label_is_refused(values: list[str | None], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(values)


def test_a_value_outside_a_tasks_classes_is_refused() -> None:
    endpoint = Endpoint("y", "binary", ("absent", "present"))
    assert parse(["1", "absent", "0"], endpoint)[1].to_list() == [1, 0, 0]
    with pytest.raises(InputError, match="holds 2; expected absent, present, 0/1"):
        parse(["1", "2"], endpoint)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["patient_id", "scan_id"], ("scan_id", "scan_id")),
        (["PatientID", "y"], ("PatientID", "patient_id")),
        (["Patient ID", "Study Instance UID"], ("Study Instance UID", "study_uid")),
        (["SeriesInstanceUID", "study_uid"], ("SeriesInstanceUID", "series_uid")),
    ],
)
def test_the_id_column_is_the_most_exact_one_under_any_common_name(columns: list[str], found: tuple[str, str]) -> None:
    assert find_id_column(pl.DataFrame({name: ["a"] for name in columns}), "t.csv") == found


def test_a_table_without_ids_says_which_columns_it_has() -> None:
    with pytest.raises(InputError, match=r"no id column; .*--id-column.*age, y"):
        find_id_column(pl.DataFrame({"age": ["1"], "y": ["1"]}), "t.csv")


def test_ids_are_text_and_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("patient_id,y\n007,1\n7,0\n")
    labels = read_labels(tmp_path / "t.csv", target_task("y"))
    assert labels.frame["id"].to_list() == ["007", "7"]


def test_equal_rows_of_an_id_count_once_and_different_ones_stop() -> None:
    table = pl.DataFrame({"patient_id": ["a", "a", "b", None], "y": ["1", "1", "0", "1"]})
    labels = labels_from_frame(table, target_task("y"), "t.csv")
    assert labels.frame.height == 2
    assert len(labels.remarks) == 2
    with pytest.raises(InputError, match=r"1 ids have several rows with different labels, first patient_id 'a'"):
        labels_from_frame(table.with_columns(y=pl.Series(["1", "0", "0", "1"])), target_task("y"), "t.csv")


def test_a_wrong_target_names_the_nearest_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("patient_id,lesion\na,1\nb,0\n")
    with pytest.raises(InputError, match="no column 'lesions'; did you mean 'lesion'"):
        read_labels(tmp_path / "t.csv", target_task("lesions"))


def test_labels_beside_the_bag_file_read_back_as_they_were_written(tmp_path: Path) -> None:
    endpoints = (Endpoint("a", "binary", ("absent", "present")), Endpoint("stage", "multiclass", ("I", "II", "III")))
    task = Task("own task", "", endpoints)
    frame = pl.DataFrame(
        {"scan_id": ["s2", "s1", "s3"], "patient_id": ["p2", "p1", None], "a": [1, 0, None], "stage": [2, None, 0]},
        schema={"scan_id": pl.String, "patient_id": pl.String, "a": pl.Int64, "stage": pl.Int64},
    )
    path = write_labels(tmp_path / "feats.h5", task.name, frame, endpoints)
    assert path == tmp_path / "feats.labels" / "own_task.parquet" == labels_path(tmp_path / "feats.h5", task.name)
    assert pl.read_parquet(path)["stage"].to_list() == [None, "III", "I"]
    back: Labels = read_saved_labels(tmp_path / "feats.h5", task)
    assert back.key == "scan_id"
    assert back.frame.sort("id").rows() == [("s1", "p1", 0, None), ("s2", "p2", 1, 2), ("s3", None, None, 0)]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_labels_that_are_not_there_say_how_to_give_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist\. Give them with --labels"):
        read_saved_labels(tmp_path / "feats.h5", target_task("y"))
