"""YAML files of one's own: plain values, and a sentence for whatever else a file may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.errors import InputError
from clear.yaml_file import MOST_BYTES, read_yaml, shown

BOMB = "a: &a0 [x, x]\n" + "".join(f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "own.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_plain_values_are_read_as_they_are_written(tmp_path: Path) -> None:
    text = "a: 1\nb: [x, 2.5, true, null]\nc: {d: 1e-4, 3: y}\nd: 2020-01-02\n"
    data = read_yaml(write(tmp_path, text), "a task file")
    assert data["b"] == ["x", 2.5, True, None]
    assert data["c"] == {"d": "1e-4", 3: "y"}
    assert str(data["d"]) == "2020-01-02"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, r"line 2: .*\*a0.*write the value out"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", r"line 2: .*\*x"),
        ("b: 1\nname: 2020-13-45\n", r"line 2: .*'2020-13-45'.*quotation marks"),
        ("b: 1\n\nname: " + "9" * 5000, r"line 3: .*'9{10}.*quotation marks"),
        ("name: 0x" + "f" * 5000, r"line 1: .*quotation marks"),
        ("name: !!bool perhaps", r"line 1: .*'perhaps'"),
        ("name: !!timestamp soon", r"line 1: .*'soon'"),
        ("name: !!int ''", r"line 1"),
        ("name: [a", r"is not YAML in line \d"),
        ("name: " + "[" * 20_000, "nested too deeply"),
        ("name: !!python/object/apply:os.getcwd []", "is not YAML in line 1"),
        ("- a\n- b", "expected fields with names.*found list"),
        ("", "expected fields with names.*found nothing"),
        ("1: a", "expected fields with names"),
        (b"name: \xff\xfe", "is not UTF-8 text"),
        ("#" * (MOST_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_what_is_no_plain_value_is_a_short_sentence(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        read_yaml(write(tmp_path, text), "a task file")
    assert str(error.value).startswith(str(tmp_path / "own.yaml"))
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match=r"expected a task file"):
            read_yaml(path, "a task file")


def test_a_value_is_shown_in_few_characters_however_large_it_is() -> None:
    assert shown(["x", 1, None]) == "['x', 1, None]"
    nested = [["x" * 1000] * 1000] * 1000
    assert len(shown(nested)) < 1000
    assert len(shown({str(i): nested for i in range(1000)})) < 1000
    assert len(shown("x" * 10**6)) < 200
