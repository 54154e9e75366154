"""DeepLesion: blocks of 16-bit PNG slices, with and without the table beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from clear.errors import InputError, ScanRefused
from clear.scans import find_scans, read_volume

RNG = np.random.default_rng(4)
TABLE = """File_name,Patient_index,Slice_range,Spacing_mm_px_,Coarse_lesion_type
000091_03_01_050.png,91,"36, 40","0.7, 0.8, 2.5",3
000091_03_01_051.png,91,"36, 40","0.7, 0.8, 2.5",3
000091_03_01_093.png,91,"78, 80","0.7, 0.8, 2.5",1
000092_01_01_001.png,92,broken,"0.7, 0.8, 2.5",1
"""


def hu() -> np.ndarray:
    return RNG.integers(-1024, 1500, (24, 20)).astype(np.int32)


def png(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return array


def series(folder: Path, numbers: list[int]) -> dict[int, np.ndarray]:
    slices = {n: hu() for n in numbers}
    for n, values in slices.items():
        png(folder / f"{n:03d}.png", (values + 32768).astype(np.uint16))
    return slices


def test_blocks_are_separate_scans_that_run_feet_to_head(tmp_path: Path) -> None:
    slices = series(tmp_path / "Images_png" / "000091_03_01", [36, 37, 38, 78, 79])
    first, second = find_scans(tmp_path, cache=False)
    assert (first.scan_id, second.scan_id) == ("000091_03_01_036-038", "000091_03_01_078-079")
    assert first.patient_id == second.patient_id == "91"
    assert first.files[0].endswith("038.png")
    volume = read_volume(first)
    assert_array_equal(volume.hu, np.stack([slices[n] for n in (38, 37, 36)]))
    assert volume.hu.dtype == np.int16


def test_without_the_table_the_spacing_is_unknown_and_said_to_be(tmp_path: Path) -> None:
    series(tmp_path / "000091_03_01", [1, 2, 3])
    (scan,) = find_scans(tmp_path, cache=False)
    assert scan.spacing_mm is None
    assert scan.remarks == ("no DL_info.csv: spacing unknown, 1 mm assumed",)
    assert read_volume(scan).spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("place", ["Images_png", ".", "Images_png/000091_03_01"])
def test_the_table_gives_blocks_and_spacing(tmp_path: Path, place: str) -> None:
    series(tmp_path / "Images_png" / "000091_03_01", [36, 37, 38, 39, 78, 79, 80, 99])
    (tmp_path / place / "DL_info.csv").write_text(TABLE)
    scans = find_scans(tmp_path, cache=False)
    assert [scan.scan_id[13:] for scan in scans] == ["036-040", "078-080", "099-099"]
    assert all(scan.spacing_mm == (2.5, 0.8, 0.7) for scan in scans)
    assert "4 of the 5 slices of Slice_range are present" in scans[0].remarks
    volume = read_volume(scans[1])
    assert_allclose(volume.spacing_mm, (2.5, 0.8, 0.7))
    assert_allclose(volume.z_mm, (-200, -197.5, -195))


def test_adjoining_blocks_of_the_table_stay_separate(tmp_path: Path) -> None:
    series(tmp_path / "000091_03_01", list(range(36, 81)))
    (tmp_path / "DL_info.csv").write_text(TABLE)
    ids = [scan.scan_id for scan in find_scans(tmp_path, cache=False)]
    assert ids == ["000091_03_01_036-040", "000091_03_01_041-077", "000091_03_01_078-080"]


def test_a_missing_slice_inside_a_block_is_a_gap(tmp_path: Path) -> None:
    series(tmp_path / "000091_03_01", [36, 37, 39, 40])
    (tmp_path / "DL_info.csv").write_text(TABLE)
    (scan,) = find_scans(tmp_path, cache=False)
    assert any(remark.startswith("gap: 1 slice(s) of 2.5 mm missing") for remark in read_volume(scan).remarks)


def test_files_named_as_in_the_table_in_one_flat_folder(tmp_path: Path) -> None:
    for name in ("000001_01_01_103", "000001_01_01_104", "000002_01_01_007"):
        png(tmp_path / f"{name}.png", (hu() + 32768).astype(np.uint16))
    ids = [scan.scan_id for scan in find_scans(tmp_path, cache=False)]
    assert ids == ["000001_01_01_103-104", "000002_01_01_007-007"]


def test_folders_of_one_name_elsewhere_keep_their_path(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        series(tmp_path / patient / "1", [1, 2])
    ids = [scan.scan_id for scan in find_scans(tmp_path, cache=False)]
    assert ids == ["a/1_001-002", "b/1_001-002"]


def test_eight_bit_copies_are_refused(tmp_path: Path) -> None:
    for n in (1, 2, 10):
        png(tmp_path / "000001_03_03" / f"{n}.png", (hu() % 256).astype(np.uint8))
    scans = find_scans(tmp_path, cache=False)
    assert {scan.reason for scan in scans} == {"eight_bit_png"}
    assert "8-bit" in scans[0].message


def test_pictures_are_no_scans(tmp_path: Path) -> None:
    png(tmp_path / "figure.png", (hu() % 256).astype(np.uint8))
    png(tmp_path / "1.png", (hu() % 256).astype(np.uint8))
    png(tmp_path / "benign (1)_mask.png", (hu() % 256).astype(np.uint8))
    with pytest.raises(InputError):
        find_scans(tmp_path, cache=False)


def test_slices_of_several_sizes_are_no_volume(tmp_path: Path) -> None:
    series(tmp_path / "000091_03_01", [1, 2])
    png(tmp_path / "000091_03_01" / "003.png", (hu()[:10] + 32768).astype(np.uint16))
    (scan,) = find_scans(tmp_path, cache=False)
    assert scan.reason == "mixed_shapes"


def test_other_sixteen_bit_pictures_are_not_hu(tmp_path: Path) -> None:
    png(tmp_path / "000091_03_01" / "001.png", (hu() + 1024).astype(np.uint16))
    with pytest.raises(ScanRefused) as refusal:
        read_volume(tmp_path)
    assert refusal.value.reason == "not_hu"


def test_a_cut_slice_refuses_the_block_and_names_the_file(tmp_path: Path) -> None:
    series(tmp_path / "000091_03_01", [1, 2])
    path = tmp_path / "000091_03_01" / "002.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ScanRefused, match=r"002\.png") as refusal:
        read_volume(tmp_path)
    assert refusal.value.reason == "truncated_pixel_data"


def test_the_real_eight_bit_folder_is_refused(shared_data: Path) -> None:
    (scan,) = find_scans(shared_data / "data" / "format_examples" / "deeplesion_8bit_trap", cache=False)
    assert (scan.verdict, scan.reason) == ("refused", "eight_bit_png")
