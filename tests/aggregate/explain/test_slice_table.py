"""The slice table: one row a slice and window, and the DICOM image that each slice came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest

from aggregate.explain.slice_attention import SliceAttention
from aggregate.explain.slice_table import slice_table, write_slice_table
from clear.errors import InputError
from clear.scans import find_scans, read_volume
from clear.windows import ABDOMEN, LUNG

COLUMNS = [
    "slice",
    "window",
    "z_mm",
    "position_x_mm",
    "position_y_mm",
    "position_z_mm",
    "attention",
    "attention_sd",
    "models",
    "rank",
    "sop_instance_uid",
    "frame",
]


def attention_of(slices: int, models: int = 2) -> SliceAttention:
    by_model = np.random.default_rng(0).random((models, slices, 2))
    by_model /= by_model.sum(axis=(1, 2), keepdims=True)
    z_mm = 5.0 * np.arange(slices)
    return SliceAttention(
        scan_id="a",
        windows=(ABDOMEN, LUNG),
        weights=by_model.mean(axis=0),
        z_mm=z_mm,
        position_mm=np.stack([np.full(slices, -7.0), np.full(slices, 8.0), z_mm], axis=1),
        by_model=by_model,
        pairs=tuple((0, i) for i in range(models)),
        out_of_fold=True,
    )


def test_a_row_for_each_slice_and_window_with_its_place_and_attention() -> None:
    attention = attention_of(3)
    table = slice_table(attention)
    assert table.columns == COLUMNS
    assert table["slice"].to_list() == [0, 0, 1, 1, 2, 2]
    assert table["window"].to_list() == ["abdomen", "lung"] * 3
    assert table["z_mm"].to_list() == table["position_z_mm"].to_list() == [0, 0, 5, 5, 10, 10]
    assert set(table["position_x_mm"]) == {-7.0}
    assert table["attention"].sum() == pytest.approx(1)
    for row in table.iter_rows(named=True):
        values = attention.by_model[:, row["slice"], ["abdomen", "lung"].index(row["window"])]
        assert row["attention"] == pytest.approx(values.mean())
        assert row["attention_sd"] == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
        assert row["models"] == 2
    assert table["sop_instance_uid"].null_count() == table["frame"].null_count() == 6


def test_ranks_begin_at_the_highest_attention_and_equal_ones_share_the_better() -> None:
    attention = attention_of(3)
    attention.weights[:] = [[0.1, 0.3], [0.3, 0.05], [0.2, 0.05]]
    assert slice_table(attention)["rank"].to_list() == [4, 1, 1, 5, 3, 5]


def test_one_model_has_no_spread() -> None:
    table = slice_table(attention_of(2, models=1))
    assert table["attention_sd"].null_count() == 4
    assert table["attention_sd"].dtype == pl.Float64


@pytest.mark.parametrize(
    "case", ["gantry_tilt_siemens_4_slices", "flipped_rows_and_columns", "localizer_and_report_mixed_in"]
)
def test_each_slice_names_the_dicom_image_at_its_position(case: str, shared_data: Path) -> None:
    (scan,) = (s for s in find_scans(shared_data / "data/dicom_hard_cases" / case, cache=False) if s.verdict == "use")
    volume = read_volume(scan)
    table = slice_table(attention_of(scan.n_slices), scan).filter(pl.col("window") == "lung")
    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, scan.paths)}
    for uid, z_mm in zip(table["sop_instance_uid"], volume.z_mm, strict=True):
        assert np.dot(sources[uid].ImagePositionPatient, volume.normal) == pytest.approx(z_mm, abs=1e-3)
    assert table["sop_instance_uid"].n_unique() == scan.n_slices
    assert table["frame"].null_count() == scan.n_slices


def test_a_multi_frame_image_is_named_with_the_frame(shared_data: Path) -> None:
    (scan,) = find_scans(shared_data / "data/mr_dicom/siemens_enhanced_multiframe", cache=False)
    volume, source = read_volume(scan), pydicom.dcmread(scan.paths[0])
    table = slice_table(attention_of(8), scan).filter(pl.col("window") == "lung")
    assert set(table["sop_instance_uid"]) == {source.SOPInstanceUID}
    frames = [source.PerFrameFunctionalGroupsSequence[number - 1] for number in table["frame"]]
    for frame, z_mm in zip(frames, volume.z_mm, strict=True):
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.dot(place, volume.normal) == pytest.approx(z_mm, abs=1e-3)


def test_other_formats_have_no_instances(shared_data: Path) -> None:
    (scan,) = find_scans(shared_data / "data/mr_nifti", cache=False)
    table = slice_table(attention_of(scan.n_slices), scan)
    assert table["sop_instance_uid"].null_count() == table.height


def test_attention_of_another_number_of_slices_is_refused(shared_data: Path) -> None:
    (scan,) = find_scans(shared_data / "data/dicom_hard_cases/gantry_tilt_siemens_4_slices", cache=False)
    with pytest.raises(InputError, match="4 slices, but the attention is of 5"):
        slice_table(attention_of(5), scan)


def test_the_csv_reads_back_as_the_table(tmp_path: Path) -> None:
    table = slice_table(attention_of(3))
    path = write_slice_table(tmp_path / "attention.csv", table)
    again = pl.read_csv(path, schema=table.schema)
    assert again.equals(table)
    assert [p.name for p in tmp_path.iterdir()] == ["attention.csv"]
