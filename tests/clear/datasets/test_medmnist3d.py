"""MedMNIST 3D as downloaded: volumes and labels in one .npz, with codes that differ from the 2D sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clear.errors import InputError
from clear.labels import read_labels
from clear.scans import find_scans, read_volume
from clear.tasks import TASKS

COUNTS = {"train": 5, "val": 2, "test": 3}


def write_download(folder: Path, name: str, codes: dict[str, list[int]], *, side: int = 28) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(side)
    arrays: dict[str, np.ndarray] = {}
    for split, values in codes.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (len(values), side, side, side)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.array(values, dtype=np.uint8)[:, None]
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    return folder


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("medmnist3d-")])
def test_every_set_has_its_official_split_and_a_patient_a_volume(tmp_path: Path, joined_of, task: str) -> None:
    (endpoint,) = TASKS[task].endpoints
    n = len(endpoint.classes)
    codes = {split: [i % n for i in range(count)] for split, count in COUNTS.items()}
    write_download(tmp_path, endpoint.source_column, codes, side=8)
    joined = joined_of(tmp_path, task)
    assert joined.frame["split"].to_list() == ["test"] * 3 + ["train"] * 5 + ["val"] * 2
    assert joined.frame[endpoint.name].to_list() == [*codes["test"], *codes["train"], *codes["val"]]
    assert joined.flow["patients_used"] == 10


def test_volumes_of_ct_sets_are_taken_as_ct_with_their_grey_values(tmp_path: Path) -> None:
    write_download(tmp_path, "nodulemnist3d", {"train": [0, 1], "val": [0], "test": [1]}, side=6)
    task = TASKS["medmnist3d-nodule"]
    scan = find_scans(tmp_path, cache=False, modality=task.modality)[1]
    volume = read_volume(scan)
    stored = np.load(tmp_path / "nodulemnist3d.npz")["train_images"][0]
    np.testing.assert_array_equal(volume.hu, stored)
    assert "8-bit values without a unit: no HU, whatever the modality" in volume.remarks
    assert TASKS["medmnist3d-vessel"].modality == "MR"
    assert TASKS["medmnist3d-synapse"].modality == ""


def test_organ_codes_are_those_of_the_3d_set(tmp_path: Path) -> None:
    write_download(tmp_path, "organmnist3d", {"train": [0, 10, 5], "val": [6], "test": [9]}, side=4)
    labels = read_labels(tmp_path, TASKS["medmnist3d-organ"])
    (organ,) = labels.endpoints
    named = [organ.classes[code] for code in labels.frame["organ"].to_list()]
    assert named == ["liver", "pancreas", "bladder", "heart", "spleen"]  # in the 2D sets 0 is bladder, 10 spleen


def test_the_task_takes_its_own_file_among_others_and_of_any_size(tmp_path: Path, joined_of) -> None:
    write_download(tmp_path, "nodulemnist3d_64", {"train": [0, 1], "val": [0], "test": [1]}, side=6)
    write_download(tmp_path, "vesselmnist3d", {"train": [1, 1], "val": [1], "test": [1]}, side=4)
    joined = joined_of(tmp_path, "medmnist3d-nodule")
    assert joined.frame.select("scan_id", "patient_id", "malignancy").rows() == [
        ("nodulemnist3d_64_test_00000", "nodulemnist3d_test_00000", 1),
        ("nodulemnist3d_64_train_00000", "nodulemnist3d_train_00000", 0),
        ("nodulemnist3d_64_train_00001", "nodulemnist3d_train_00001", 1),
        ("nodulemnist3d_64_val_00000", "nodulemnist3d_val_00000", 0),
    ]


def test_codes_of_another_set_are_refused(tmp_path: Path) -> None:
    write_download(tmp_path, "nodulemnist3d", {"train": [0, 7], "val": [0], "test": [1]}, side=4)
    with pytest.raises(InputError, match="train_labels holds 7; expected 0 to 1 for malignancy"):
        read_labels(tmp_path, TASKS["medmnist3d-nodule"])


def test_a_file_of_another_set_does_not_answer(tmp_path: Path) -> None:
    write_download(tmp_path, "vesselmnist3d", {"train": [1], "val": [1], "test": [1]}, side=4)
    with pytest.raises(InputError, match=r"no organmnist3d\.npz or organmnist3d_64\.npz"):
        read_labels(tmp_path, TASKS["medmnist3d-organ"])


def test_the_real_adrenal_set_has_its_published_counts(shared_data: Path) -> None:
    frame = read_labels(shared_data / "data" / "labelled_adrenal_shapes", TASKS["medmnist3d-adrenal"]).frame
    counted = frame.group_by("split", maintain_order=True).agg(n="hyperplasia").rows()
    assert [(split, len(codes), sum(codes)) for split, codes in counted] == [
        ("train", 1188, 259),
        ("val", 98, 22),
        ("test", 298, 69),
    ]
