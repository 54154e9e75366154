"""MRNet: arrays without any header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from clear.errors import InputError, ScanRefused
from clear.scans import find_scans, read_volume

RNG = np.random.default_rng(5)


def knee(n: int = 4, side: int = 256) -> np.ndarray:
    return RNG.integers(0, 256, (n, side, side)).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_keep_their_order_and_the_folder_names_the_plane(tmp_path: Path, plane: str) -> None:
    array = knee()
    save(tmp_path / "train" / plane / "0003.npy", array)
    (scan,) = find_scans(tmp_path, cache=False)
    assert scan.scan_id == f"train/{plane}/0003"
    assert (scan.plane, scan.modality, scan.spacing_mm) == (plane, "MR", None)
    volume = read_volume(scan)
    assert volume.voxels.dtype == np.float32
    assert_array_equal(volume.voxels, array)
    assert volume.plane == plane
    assert any("no geometry in the file" in remark for remark in volume.remarks)


def test_the_folder_itself_may_be_what_is_looked_at(tmp_path: Path) -> None:
    save(tmp_path / "sagittal" / "0000.npy", knee())
    (scan,) = find_scans(tmp_path / "sagittal", cache=False)
    assert (scan.scan_id, scan.plane) == ("0000", "sagittal")


def test_an_array_whose_plane_nobody_names_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "0000.npy", knee())
    (scan,) = find_scans(tmp_path, cache=False)
    assert (scan.verdict, scan.reason) == ("refused", "unknown_plane")


def test_other_arrays_are_no_scans(tmp_path: Path) -> None:
    save(tmp_path / "features.npy", RNG.random((12, 768)))
    save(tmp_path / "stack.npy", RNG.random((12, 30, 30)))
    save(tmp_path / "axial" / "labels.npy", np.arange(5))
    with pytest.raises(InputError, match="none of its 3 file"):
        find_scans(tmp_path, cache=False)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "axial" / "0001.npy", knee())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ScanRefused) as refusal:
        read_volume(path)
    assert refusal.value.reason == "truncated_pixel_data"


def test_a_huge_claim_is_refused_without_memory(tmp_path: Path) -> None:
    path = save(tmp_path / "axial" / "0001.npy", knee(2))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(2, 256, 256)", b"(2000000, 256, 256)"[:13].ljust(13)))
    with pytest.raises(ScanRefused):
        read_volume(path)
    path.write_bytes(data.replace(b"(2, 256, 256), }     ", b"(2000000, 256, 256),}"))
    with pytest.raises(ScanRefused) as refusal:
        read_volume(path)
    assert refusal.value.reason == "too_large"
