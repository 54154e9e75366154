"""MRNet-v1.0 as downloaded: three planes an exam, and tables without a header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clear.errors import InputError
from clear.labels import read_labels
from clear.tasks import TASKS

PLANES = ("axial", "coronal", "sagittal")


def write_download(folder: Path, *, images: bool = True) -> Path:
    root = folder / "MRNet-v1.0"
    root.mkdir(parents=True)
    tables = {
        "train-abnormal": "0000,1\n0001,1\n0002,0\n",
        "train-acl": "0000,0\n0001,1\n0002,0\n",
        "train-meniscus": "0000,1\n0001,0\n0002,0\n",
        "valid-abnormal": "1130,0\n1131,1\n",
        "valid-acl": "1130,0\n1131,0\n",
        "valid-meniscus": "1130,0\n1131,1\n",
    }
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    rng = np.random.default_rng(0)
    for split, exams in {"train": ("0000", "0001", "0002"), "valid": ("1130", "1131")}.items() if images else ():
        for plane in PLANES:
            (root / split / plane).mkdir(parents=True)
            for exam in exams:
                np.save(root / split / plane / f"{exam}.npy", rng.integers(0, 256, (3, 256, 256)).astype(np.uint8))
    return root


def test_the_first_line_is_an_exam_and_not_a_header(tmp_path: Path) -> None:
    labels = read_labels(write_download(tmp_path, images=False), TASKS["mrnet"])
    assert labels.frame.select("id", "abnormal", "acl", "meniscus", "split").rows() == [
        ("0000", 1, 0, 1, "train"),
        ("0001", 1, 1, 0, "train"),
        ("0002", 0, 0, 0, "train"),
        ("1130", 0, 0, 0, "test"),
        ("1131", 1, 0, 1, "test"),
    ]


def test_ids_that_a_spreadsheet_shortened_are_padded(tmp_path: Path) -> None:
    root = write_download(tmp_path, images=False)
    for file in root.glob("train-*.csv"):
        file.write_text(file.read_text().replace("000", ""))
    assert read_labels(root, TASKS["mrnet"]).frame["id"].to_list()[:3] == ["0000", "0001", "0002"]


def test_the_three_planes_of_an_exam_are_one_patient_and_pooled(tmp_path: Path, joined_of) -> None:
    joined = joined_of(write_download(tmp_path), "mrnet")
    assert joined.rule == "pool"
    assert joined.frame.height == 15
    planes = joined.frame.group_by("patient_id", maintain_order=True).agg("scan_id", "acl", "split")
    assert planes["scan_id"].to_list()[1] == [f"train/{plane}/0001" for plane in PLANES]
    assert planes.select("patient_id", "acl", "split").rows()[1] == ("0001", [1] * 3, ["train"] * 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,label\n0000,1\n", r"train-acl\.csv: line 1 is 'id,label'; expected an exam number and 0 or 1"),
        ("0000,1\n0000,0\n", "exam 0000 occurs twice"),
        ("0000\n", "line 1 is '0000'"),
        ("1130,1\n", "in train and valid"),
    ],
)
def test_lines_that_are_none_are_named(tmp_path: Path, text: str, says: str) -> None:
    root = write_download(tmp_path, images=False)
    (root / "train-acl.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_labels(root, TASKS["mrnet"])


def test_an_endpoint_without_a_file_is_named(tmp_path: Path) -> None:
    root = write_download(tmp_path, images=False)
    for split in ("train", "valid"):
        (root / f"{split}-meniscus.csv").unlink()
    with pytest.raises(InputError, match=r"no train-meniscus\.csv or valid-meniscus\.csv"):
        read_labels(root, TASKS["mrnet"])
