"""DeepLesion as downloaded: DL_info.csv beside folders of 16-bit slices, several blocks in one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import SimpleITK as sitk

from clear.datasets.deeplesion import SITES
from clear.errors import InputError
from clear.labels import read_labels
from clear.task import Task
from clear.tasks import TASKS

HEADER = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)


def lesion(series: str, key: int, span: str, kind: int, split: int, *, noisy: int = 0, age: str = "62") -> str:
    patient = int(series[:6])
    vectors = '"233.5, 95.0, 234.0, 106.9, 231.1, 101.6, 236.2, 101.1","226.1, 90.0, 241.2, 111.9","11.9, 5.1"'
    return (
        f'{series}_{key:03d}.png,{patient},3,1,{key},{vectors},"0.44, 0.28, 0.43",{kind},{noisy},"{span}",'
        f'"0.48, 0.48, 5","512, 512","-175, 275",F,{age},{split}'
    )


LESIONS = [
    lesion("000091_03_01", 37, "36, 38", 5, 2),
    lesion("000091_03_01", 37, "36, 38", 3, 2),  # two lesions on one slice
    lesion("000091_03_01", 79, "78, 80", 4, 2),  # a second block of the same folder
    lesion("000092_01_01", 2, "1, 3", 8, 3, age="NaN"),
    lesion("000092_01_01", 3, "1, 3", 7, 3, noisy=1),  # possibly noisy: says nothing
    lesion("000093_01_01", 2, "1, 3", -1, 1),  # official training rows are of type -1
    lesion("000094_01_01", 2, "1, 3", 1, 3, noisy=1),  # nothing but a noisy lesion: masked
]


def write_download(folder: Path, lesions: list[str] = LESIONS, *, images: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "DL_info.csv").write_text("\n".join([HEADER, *lesions]) + "\n")
    if images:
        rng = np.random.default_rng(0)
        for series, numbers in {
            "000091_03_01": [36, 37, 38, 78, 79, 80],
            **{series: [1, 2, 3] for series in ("000092_01_01", "000093_01_01", "000094_01_01")},
        }.items():
            place = folder / "Images_png" / series
            place.mkdir(parents=True)
            for number in numbers:
                values = (rng.integers(-1000, 1000, (8, 8)) + 32768).astype(np.uint16)
                sitk.WriteImage(sitk.GetImageFromArray(values), str(place / f"{number:03d}.png"))
    return folder


def marked(frame: pl.DataFrame, key: str) -> dict[str, set[str] | None]:
    return {
        row[key]: None if row["bone"] is None else {site for site in SITES if row[site] == 1}
        for row in frame.iter_rows(named=True)
    }


def test_every_block_of_slices_has_the_sites_of_its_own_lesions(tmp_path: Path) -> None:
    labels = read_labels(write_download(tmp_path, images=False), TASKS["deeplesion"])
    assert marked(labels.frame, "id") == {
        "000091_03_01_036-038": {"lung", "mediastinum"},
        "000091_03_01_078-080": {"liver"},
        "000092_01_01_001-003": {"pelvis"},
        "000093_01_01_001-003": None,
        "000094_01_01_001-003": None,
    }
    assert labels.frame["split"].to_list() == ["val", "val", "test", "train", "test"]
    assert labels.frame["patient_id"].to_list() == ["91", "91", "92", "93", "94"]
    assert "3 of 7 lesions are left out: 1 of unknown type, 2 possibly noisy" in labels.remarks


@pytest.mark.parametrize("where", [".", "Images_png"])
def test_blocks_of_the_images_join_their_labels(tmp_path: Path, joined_of, where: str) -> None:
    joined = joined_of(write_download(tmp_path) / where, "deeplesion")
    assert marked(joined.frame, "scan_id") == {
        "000091_03_01_036-038": {"lung", "mediastinum"},
        "000091_03_01_078-080": {"liver"},
        "000092_01_01_001-003": {"pelvis"},
    }
    assert joined.frame["split"].to_list() == ["val", "val", "test"]
    assert joined.frame["patient_id"].to_list() == ["91", "91", "92"]
    assert joined.flow["scans_in_file"] == 5


def test_a_question_of_fewer_sites_can_be_asked(tmp_path: Path) -> None:
    liver = tuple(endpoint for endpoint in TASKS["deeplesion"].endpoints if endpoint.name == "liver")
    labels = read_labels(write_download(tmp_path, images=False), Task("liver", "", liver, labels="deeplesion"))
    assert labels.frame["liver"].to_list() == [0, 1, 0, None, None]


@pytest.mark.parametrize(
    ("lesions", "says"),
    [
        ([lesion("000091_03_01", 37, "36, 38", 9, 2)], "Coarse_lesion_type holds 9; expected -1 or 1 to 8"),
        (
            [lesion("000091_03_01", 37, "36, 38", 1, 2), lesion("000091_03_01", 37, "36, 38", 1, 3)],
            "block 000091_03_01_036-038 lies in two official sets",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path, lesions: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_labels(write_download(tmp_path, lesions, images=False), TASKS["deeplesion"])


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "DL_info.csv").write_text('File_name,Slice_range\na_001.png,"1, 2"\n')
    with pytest.raises(InputError, match=r"DL_info\.csv: no column 'Patient_index'"):
        read_labels(tmp_path, TASKS["deeplesion"])


def test_the_real_table_is_read_with_its_uploaders_extra_columns(shared_data: Path) -> None:
    labels = read_labels(shared_data / "data" / "format_examples" / "deeplesion_info", TASKS["deeplesion"])
    assert labels.frame.height == 880
    trained = labels.frame.filter(pl.col("split") == "train")
    assert trained.height > 0
    assert trained["bone"].null_count() == trained.height  # official training rows have no type
    patients = labels.frame.select("patient_id", "split").unique()
    assert patients["patient_id"].is_unique().all()  # disjoint between the official sets
