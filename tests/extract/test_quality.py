from __future__ import annotations

import csv
from pathlib import Path

import pytest

from clear.errors import InputError
from extract.quality import QualityRow, quality_path, quality_rows, read_quality, write_quality


def test_rows_come_back_as_written_and_sorted(tmp_path: Path):
    rows = [
        QualityRow(scan_id="b", status="done", n_slices=3, instances=6, read_seconds=1.25, remarks='a "tilt"; ü, x'),
        QualityRow(scan_id="a", status="refused", reason="truncated_pixel_data", message="cut\noff"),
    ]
    write_quality(tmp_path / "f.qc.csv", rows)
    assert read_quality(tmp_path / "f.qc.csv") == {row.scan_id: row for row in rows}
    assert list(read_quality(tmp_path / "f.qc.csv")) == ["a", "b"]


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\tx", "'quoted"])
def test_what_a_spreadsheet_would_run_is_kept_as_text(tmp_path: Path, text: str):
    row = QualityRow(scan_id="a", patient_id=text, status="done")
    write_quality(tmp_path / "f.qc.csv", [row])
    with (tmp_path / "f.qc.csv").open(newline="") as file:
        cell = next(csv.DictReader(file))["patient_id"]
    assert cell == f"'{text}"
    assert read_quality(tmp_path / "f.qc.csv")["a"].patient_id == text


def test_no_record_is_an_empty_one_and_another_file_is_refused(tmp_path: Path):
    assert read_quality(tmp_path / "none.qc.csv") == {}
    (tmp_path / "mine.qc.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"mine\.qc\.csv: not a quality record"):
        read_quality(tmp_path / "mine.qc.csv")


def test_the_record_lies_beside_the_bag_file():
    assert quality_path(Path("x/feats.h5")) == Path("x/feats.qc.csv")
    assert quality_path(Path("x/feats.zarr")) == Path("x/feats.qc.csv")


def test_series_that_claim_one_id_keep_a_row_each(tmp_path: Path):
    rows = [QualityRow(scan_id="a", source=name, status="refused", reason="ambiguous_scan_id") for name in "yx"]
    write_quality(tmp_path / "f.qc.csv", rows)
    assert [row.source for row in quality_rows(tmp_path / "f.qc.csv")] == ["x", "y"]
