"""Tables of people: text in, text out, and a sentence when it cannot be."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from clear.errors import InputError
from clear.tables import need_column, read_table, some


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_delimited_table_reads_the_same_whatever_its_separator_and_encoding(
    tmp_path: Path, separator: str, encoding: str
) -> None:
    path = tmp_path / "t.csv"
    lines = ["patient_id, Läsion ,note", "007,1,a b", "12, 0 ,"]
    path.write_bytes("\r\n".join(lines).replace(",", separator).encode(encoding))
    table = read_table(path)
    assert table.columns == ["patient_id", "Läsion", "note"]
    assert table.rows() == [("007", "1", "a b"), ("12", "0", None)]


def test_excel_and_parquet_give_the_same_text_as_csv(tmp_path: Path) -> None:
    import xlsxwriter

    book = xlsxwriter.Workbook(str(tmp_path / "t.xlsx"))
    sheet = book.add_worksheet()
    for i, row in enumerate([["patient_id", "y", "z"], ["007", 1, 2.5], ["8", 0, None]]):
        sheet.write_row(i, 0, row)
    book.close()
    pl.DataFrame({"patient_id": ["007", "8"], "y": [1.0, 0.0], "z": [2.5, None]}).write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("patient_id,y,z\n007,1,2.5\n8,0,\n")
    expected = read_table(tmp_path / "t.csv").rows()
    assert expected == [("007", "1", "2.5"), ("8", "0", None)]
    assert read_table(tmp_path / "t.xlsx").rows() == expected
    assert read_table(tmp_path / "t.parquet").rows() == expected


def test_integers_with_gaps_in_a_parquet_table_keep_no_decimal_point(tmp_path: Path) -> None:
    pl.DataFrame({"scan_id": [12.0, None, 7.0], "y": [True, False, None]}).write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").rows() == [("12", "1"), (None, "0"), ("7", None)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"", "empty"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,a\n1,2\n", "two columns are named 'a'"),
        ("t.xlsx", b"no workbook", "Excel workbook"),
        ("t.parquet", b"no parquet", "Parquet table"),
        ("t.csv", b"a,b\n1,2\n3,4,5\n", "line 3 has 3 cells and the header 2"),
        ("t.csv", b'a,b\n"1,2\n3,4\n', "is a quotation mark open"),
        ("t.docx", b"x", "expected one of"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_table(tmp_path / name)
    assert name in str(caught.value)
    assert not any(word in str(caught.value).lower() for word in ("schema", "calamine", "zip", "footer"))


def test_an_absent_table_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path)


def test_a_wrong_column_lists_the_columns_and_the_nearest_name() -> None:
    table = pl.DataFrame({"patient_id": ["1"], "Lesion_site": ["a"]})
    with pytest.raises(InputError, match=r"no column 'lesion_sit'; did you mean 'Lesion_site'\? .*patient_id"):
        need_column(table, "lesion_sit", "t.csv")


def test_long_lists_are_cut() -> None:
    assert some(["a", "b", "c"], 2) == "a, b and 1 more"
    assert some(["a"], 2) == "a"
