"""Files of a downloaded tree: found by name, at any depth, whatever the case."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.datasets.assemble import split_name, whole_number
from clear.datasets.files import find_files, need_files
from clear.errors import InputError


def test_files_are_found_at_any_depth_and_in_any_case(tmp_path: Path) -> None:
    for name in ("a/b/DL_INFO.csv", "dl_info_copy.csv", "a/.DL_info.csv", "a/other.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x\n")
    found = find_files(tmp_path, ["DL_info*.csv"])
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["a/b/DL_INFO.csv", "dl_info_copy.csv"]
    assert [file.name for file in find_files(tmp_path, ["DL_info*.csv"], depth=1)] == ["dl_info_copy.csv"]
    assert find_files(tmp_path / "a" / "other.csv", ["DL_info*.csv"]) == []


def test_what_was_looked_for_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file named a\*\.csv or b\.csv; expected the label files of the archive"):
        need_files(tmp_path, ["a*.csv", "b.csv"], "the archive")


@pytest.mark.parametrize(
    ("word", "name"), [("Train", "train"), ("VALIDATION", "val"), ("tst", "test"), ("3", None), (None, None)]
)
def test_names_of_official_sets_are_understood(word: str | None, name: str | None) -> None:
    assert split_name(word) == name


def test_whole_numbers_lose_what_spreadsheets_add() -> None:
    assert [whole_number(word) for word in ("1", "1.0", "01", "-1.0", "2.5", "NA", None)] == [
        "1",
        "1",
        "1",
        "-1",
        "2.5",
        "NA",
        None,
    ]
