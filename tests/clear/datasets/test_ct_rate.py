"""CT-RATE as downloaded: labels keyed by VolumeName with its ending, several reconstructions a scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.builtin_tasks import CT_RATE_18
from clear.errors import InputError
from clear.labels import read_labels
from clear.scans import find_scans
from clear.tasks import TASKS

TRAIN = {
    "train_1_a_1": {"Emphysema"},
    "train_1_a_2": {"Emphysema"},
    "train_1_b_1": set(),
    "train_2_a_1": {"Atelectasis"},
}
VALID = {"valid_1_a_1": {"Lung nodule"}, "valid_2_a_1": set()}


def write_labels(folder: Path, second: str = "valid", *, no_chest: str = "") -> Path:
    place = folder / "dataset" / "multi_abnormality_labels"
    place.mkdir(parents=True)
    for name, volumes in (("train", TRAIN), (second, VALID)):
        lines = [",".join(["VolumeName", *CT_RATE_18])]
        lines += [
            ",".join([f"{volume}.nii.gz", *(str(int(finding in found)) for finding in CT_RATE_18)])
            for volume, found in volumes.items()
        ]
        (place / f"{name}_predicted_labels.csv").write_text("\n".join(lines) + "\n")
    if no_chest:
        (folder / "dataset" / "metadata").mkdir()
        (folder / "dataset" / "metadata" / "no_chest_train.txt").write_text(no_chest)
    return folder


def write_volumes(folder: Path, nifti, *, kind: str = "_fixed", blank: bool = False) -> None:
    for volume in [*TRAIN, *VALID]:
        split, patient, scan, _ = volume.split("_")
        place = folder / "dataset" / f"{split}{kind}" / f"{split}_{patient}" / f"{split}_{patient}_{scan}"
        nifti(place / f"{volume}.nii.gz", blank=blank)


@pytest.mark.parametrize("second", ["valid", "validation"])
def test_findings_are_keyed_by_the_volume_without_its_ending(tmp_path: Path, second: str) -> None:
    frame = read_labels(write_labels(tmp_path, second), TASKS["ct-rate"]).frame
    assert frame["id"].to_list() == [*TRAIN, *VALID]
    assert frame["emphysema"].to_list() == [1, 1, 0, 0, 0, 0]
    assert frame["lung_nodule"].to_list() == [0, 0, 0, 0, 1, 0]
    assert frame["split"].to_list() == ["train"] * 4 + ["test"] * 2
    assert frame["patient_id"].to_list() == ["train_1"] * 3 + ["train_2", "valid_1", "valid_2"]


def test_one_reconstruction_of_a_scan_is_used_and_patients_come_from_the_name(
    tmp_path: Path, joined_of, scans_of, nifti
) -> None:
    write_volumes(write_labels(tmp_path), nifti)
    joined = joined_of(tmp_path / "dataset", "ct-rate")
    names = [scan.rsplit("/", 1)[-1] for scan in joined.frame["scan_id"]]
    assert names == ["train_1_a_1", "train_1_b_1", "train_2_a_1", "valid_1_a_1", "valid_2_a_1"]
    assert joined.frame["split"].to_list() == ["train", "train", "train", "test", "test"]
    assert any("1 scans are other reconstructions" in remark for remark in joined.remarks)
    scans = scans_of(tmp_path / "dataset", "ct-rate")
    assert scans["patient_id"].unique().sort().to_list() == ["train_1", "train_2", "valid_1", "valid_2"]
    assert scans["study_uid"].unique().sort().to_list()[:2] == ["train_1_a", "train_1_b"]


def test_the_second_reconstruction_serves_where_the_first_is_absent(tmp_path: Path, joined_of, nifti) -> None:
    write_volumes(write_labels(tmp_path), nifti)
    (tmp_path / "dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz").unlink()
    joined = joined_of(tmp_path / "dataset" / "train_fixed", "ct-rate")
    assert joined.frame["scan_id"].to_list()[0].endswith("train_1_a_2")


def test_volumes_without_a_chest_are_left_out(tmp_path: Path) -> None:
    folder = write_labels(tmp_path, no_chest="train_2_a_1.nii.gz\n")
    for place in (folder, folder / "dataset" / "multi_abnormality_labels"):
        labels = read_labels(place, TASKS["ct-rate"])
        assert "train_2_a_1" not in labels.frame["id"].to_list()
        assert "1 volumes without a chest are left out" in labels.remarks


def test_volumes_with_a_blank_header_are_refused(tmp_path: Path, nifti) -> None:
    write_volumes(tmp_path, nifti, kind="", blank=True)
    scans = find_scans(tmp_path, cache=False, workers=1)
    assert {(scan.verdict, scan.reason) for scan in scans} == {("refused", "blank_header")}


def test_both_releases_side_by_side_stop_and_say_so(tmp_path: Path, joined_of, nifti) -> None:
    write_labels(tmp_path)
    write_volumes(tmp_path, nifti)
    write_volumes(tmp_path, nifti, kind="")
    with pytest.raises(InputError, match=r"is the name of 2 scans .*train_fixed.*Extract one of these folders alone"):
        joined_of(tmp_path / "dataset", "ct-rate")


def test_a_volume_of_another_name_is_refused(tmp_path: Path) -> None:
    folder = write_labels(tmp_path)
    file = folder / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    file.write_text(file.read_text().replace("train_2_a_1", "case 7"))
    with pytest.raises(InputError, match=r"1 volumes are named otherwise than train_1_a_1\.nii\.gz: case 7"):
        read_labels(folder, TASKS["ct-rate"])
