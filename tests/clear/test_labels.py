"""Label tables: what a cell means, which column is the id, and what is refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_values import parse_endpoint, parse_survival
from clear.labels import (
    Labels,
    find_id_column,
    labels_from_frame,
    labels_path,
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


@pytest.mark.parametrize("word", [None, "NA", "nan", "NaN", "N/A", "#N/A", "None", "null", "Unknown", "?", "-"])
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
        ([f"text {i}" for i in range(30)], "id or a free text"),
        (["1", "1", "NA"], "one class only: '1' in all 2 known rows"),
        (["a", "a"], "one class only: 'a'"),
        ([None, "NA"], "no known value"),
    ],
)
def test_a_column_that_is_no_class_label_is_refused(values: list[str | None], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(values)


@pytest.mark.parametrize("values", [["0.5", "1.25", "7.5"], [str(i) for i in range(30)]])
def test_fractions_and_many_numbers_are_a_quantity_and_that_is_said(values: list[str]) -> None:
    endpoint, numbers, remarks = parse([*values, "NaN", None])
    assert endpoint.kind == "regression"
    assert numbers.to_list() == [*map(float, values), None, None]
    assert "a quantity, so regression" in remarks[-1]


def test_a_declared_quantity_takes_any_numbers_and_nothing_else() -> None:
    age = Endpoint("y", "regression")
    assert parse(["0", "1", "1", "n/a"], age)[1].to_list() == [0, 1, 1, None]
    with pytest.raises(InputError, match="'y' holds 12 mm; expected numbers"):
        parse(["1", "12 mm"], age)
    with pytest.raises(InputError, match=r"holds 3,5; expected numbers\. Write the decimals with a point"):
        parse(["1", "3,5"], age)
    with pytest.raises(InputError, match="holds inf"):
        parse(["1", "inf"], age)


def test_an_ordinal_endpoint_has_the_order_that_is_declared_or_that_of_its_numbers() -> None:
    grade = Endpoint("y", "ordinal", ("low", "middle", "high"))
    assert parse(["high", "low", "NA", "middle"], grade)[1].to_list() == [2, 0, None, 1]
    settled, codes, _ = parse(["10", "2", "3.0", "3"], Endpoint("y", "ordinal"))
    assert (settled.kind, settled.classes) == ("ordinal", ("2", "3", "10"))
    assert codes.to_list() == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("values", "classes", "says"),
    [
        (["low", "high", "middle"], (), "whose order is not known; name the classes of the ordinal endpoint 'y'"),
        (["1", "2"], (), "holds 2 different numbers; an ordinal endpoint has 3 to 20"),
        (["low", "huge"], ("low", "middle", "high"), "holds huge; expected low, middle, high"),
    ],
)
def test_an_ordinal_column_without_an_order_is_refused(
    values: list[str | None], classes: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        parse(values, Endpoint("y", "ordinal", classes))


def survival(times: list[str | None], events: list[str | None]):
    endpoint = Endpoint("os", "survival", column="days", event="dead")
    columns = pl.Series("days", times, dtype=pl.String), pl.Series("dead", events, dtype=pl.String)
    return parse_survival(endpoint, *columns, "t.csv")


def test_a_survival_time_counts_with_its_event_and_not_without() -> None:
    times, events, remarks = survival(["10", "20.5", "NaN", "30", "0"], ["1", "0", "1", None, "TRUE"])
    assert times.to_list() == [10, 20.5, None, None, 0]
    assert events.to_list() == [1, 0, None, None, 1]
    assert remarks == ["os: 2 rows have a time or an event but not both, and are left out"]
    assert survival(["1", "2", "3"], ["Dead", "alive", "censored"])[1].to_list() == [1, 0, 0]


@pytest.mark.parametrize(
    ("times", "events", "says"),
    [
        (["-3", "1"], ["1", "0"], "'days' holds 1 negative times, first -3"),
        (["3 months", "1"], ["1", "0"], "'days' holds 3 months; expected times"),
        (["3", "1"], ["1", "2"], r"'dead' holds 2; expected 1 \(event\) or 0 .*R's coding 1 is censored"),
        (["3", "1"], ["1", "perhaps"], r"'dead' holds perhaps; expected 1 \(event\) or 0 \(censored\)$"),
    ],
)
def test_a_survival_column_that_says_something_else_is_refused(
    times: list[str | None], events: list[str | None], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        survival(times, events)


def test_a_survival_task_without_its_event_column_names_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("patient_id,days,death\na,1,1\nb,2,0\n")
    task = Task("own", "", (Endpoint("os", "survival", column="days", event="deaths"),))
    with pytest.raises(InputError, match="no column 'deaths'; did you mean 'death'"):
        read_labels(tmp_path / "t.csv", task)


def test_a_value_outside_a_tasks_classes_is_refused() -> None:
    endpoint = Endpoint("y", "binary", ("absent", "present"))
    assert parse(["1", "absent", "0"], endpoint)[1].to_list() == [1, 0, 0]
    with pytest.raises(InputError, match="holds 2; expected absent, present, 0/1"):
        parse(["1", "2"], endpoint)


@pytest.mark.parametrize(
    ("classes", "values", "codes"),
    [
        (("absent", "present"), ["0", "1", "yes", "absent"], [0, 1, 1, 0]),
        (("no", "yes"), ["0", "TRUE", "yes"], [0, 1, 1]),
        (("0", "1"), ["0", "1.0", "no"], [0, 1, 0]),
        (("1", "0"), ["1", "0", "1.0", "0.0"], [0, 1, 0, 1]),
        (("1", "2"), ["1", "2.0"], [0, 1]),
        (("wildtype", "mutant"), ["0", "mutant"], [0, 1]),
    ],
)
def test_a_cell_names_its_class_before_it_says_yes_or_no(
    classes: tuple[str, str], values: list[str | None], codes: list[int]
) -> None:
    for value, code in zip(values, codes, strict=True):
        assert parse([value], Endpoint("y", "binary", classes))[1].to_list() == [code]


@pytest.mark.parametrize(
    ("classes", "values"), [(("1", "2"), ["1", "0"]), (("1", "0"), ["yes"]), (("absent", "2"), ["1"])]
)
def test_yes_and_no_are_no_words_for_classes_that_they_would_turn_round(
    classes: tuple[str, str], values: list[str | None]
) -> None:
    with pytest.raises(InputError, match=f"expected {classes[0]}, {classes[1]}$"):
        parse(values, Endpoint("y", "binary", classes))


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


@pytest.mark.parametrize(
    "classes", [("absent", "present"), ("1", "2"), ("1", "0"), ("0", "1"), ("no", "yes"), ("yes", "no")]
)
def test_saved_binary_labels_are_those_that_were_read(tmp_path: Path, classes: tuple[str, str]) -> None:
    task = Task("own", "", (Endpoint("y", "binary", classes),))
    table = pl.DataFrame({"scan_id": ["a", "b", "c"], "y": [classes[0], classes[1], None]})
    labels = labels_from_frame(table, task, "t.csv")
    assert labels.frame["y"].to_list() == [0, 1, None]
    write_labels(tmp_path / "feats.h5", "own", labels.frame.rename({"id": "scan_id"}), labels.endpoints)
    assert read_saved_labels(tmp_path / "feats.h5", task).frame["y"].to_list() == [0, 1, None]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (["1", "2", "2"], 3),
        (["1", "2", "3"], 2),  # the third class is of a scan that did not join
        (["yes", "no", "no"], 3),
        ([str(i) for i in range(25)], 3),  # a quantity, of which three values are left
    ],
)
def test_an_inferred_endpoint_is_saved_as_it_was_inferred(tmp_path: Path, values: list[str], kept: int) -> None:
    table = pl.DataFrame({"scan_id": [f"s{i}" for i in range(len(values))], "y": values})
    labels = labels_from_frame(table, Task("own", "", (Endpoint("y"),)), "t.csv")
    joined = labels.frame.rename({"id": "scan_id"}).sort("scan_id").head(kept)
    write_labels(tmp_path / "feats.h5", "own", joined, labels.endpoints)
    back = read_saved_labels(tmp_path / "feats.h5", Task("own", "", (Endpoint("y"),)))
    assert back.endpoints == labels.endpoints
    assert back.frame["y"].to_list() == joined["y"].to_list()


def test_codes_that_an_older_version_saved_are_read_as_codes(tmp_path: Path) -> None:
    path = labels_path(tmp_path / "feats.h5", "own")
    path.parent.mkdir()
    pl.DataFrame({"scan_id": ["a", "b"], "y": pl.Series([0, 1], dtype=pl.Int8)}).write_parquet(path)
    task = Task("own", "", (Endpoint("y", "binary", ("1", "0")),))
    assert read_saved_labels(tmp_path / "feats.h5", task).frame["y"].to_list() == [0, 1]


def test_every_kind_and_the_split_read_back_from_beside_the_bag_file(tmp_path: Path) -> None:
    endpoints = (
        Endpoint("grade", "ordinal", ("low", "middle", "high")),
        Endpoint("volume", "regression", column="V (ml)"),
        Endpoint("os", "survival", column="days", event="dead"),
    )
    task = Task("own", "", endpoints)
    volumes = [0.1 + 0.2, 1e-7, None, 12.0]
    table = pl.DataFrame(
        {
            "scan_id": ["s1", "s2", "s3", "s4"],
            "grade": ["high", "low", None, "middle"],
            "V (ml)": [None if v is None else repr(v) for v in volumes],
            "days": ["10", "0.3333333333333333", "7", None],
            "dead": ["1", "0", "0", "1"],
            "split": ["train", "val", "test", None],
        }
    )
    labels = labels_from_frame(table, task, "t.csv")
    expected = {
        "grade": [2, 0, None, 1],
        "volume": volumes,
        "os": [10, 1 / 3, 7, None],
        "os.event": [1, 0, 0, None],
        "split": ["train", "val", "test", None],
    }
    assert {name: labels.frame[name].to_list() for name in expected} == expected
    write_labels(tmp_path / "feats.h5", task.name, labels.frame.rename({"id": "scan_id"}), labels.endpoints)
    back = read_saved_labels(tmp_path / "feats.h5", task).frame.sort("id")
    assert {name: back[name].to_list() for name in expected} == expected


def test_a_split_column_that_contradicts_itself_is_not_used() -> None:
    table = pl.DataFrame({"patient_id": ["a", "a", "b"], "y": ["1", "1", "0"], "split": ["train", "test", "test"]})
    labels = labels_from_frame(table, target_task("y"), "t.csv")
    assert "split" not in labels.frame.columns
    assert "t.csv: column split says two things of 1 ids and is not used" in labels.remarks


def test_labels_that_are_not_there_say_how_to_give_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist\. Give them with --labels"):
        read_saved_labels(tmp_path / "feats.h5", target_task("y"))
