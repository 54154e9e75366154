"""RAD-ChestCT: the layout of its arrays, and archives that are damaged or lie."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from clear.errors import InputError, ScanRefused
from clear.scans import find_scans, read_volume

RNG = np.random.default_rng(3)


def save(path: Path, array: np.ndarray, key: str = "ct") -> Path:
    np.savez_compressed(path, **{key: array})
    return path


def chest(dtype: type = np.int16) -> np.ndarray:
    return RNG.integers(-1000, 1000, (9, 12, 14)).astype(dtype)


def reason(path: Path) -> str:
    with pytest.raises(ScanRefused) as refusal:
        read_volume(path)
    assert path.name in str(refusal.value)
    return refusal.value.reason


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_slices_run_head_to_foot_in_the_file_and_feet_to_head_here(tmp_path: Path, dtype: type) -> None:
    array = chest(dtype)
    (scan,) = find_scans(save(tmp_path / "trn12547.npz", array), cache=False)
    assert (scan.scan_id, scan.format, scan.modality) == ("trn12547", "radchestct", "CT")
    assert scan.spacing_mm == (0.8, 0.8, 0.8)
    volume = read_volume(scan)
    assert_array_equal(volume.hu, array[::-1])
    assert_allclose(volume.z_mm, 0.8 * np.arange(-8, 1))
    assert_allclose(volume.row_direction, (1, 0, 0))
    assert any("no origin" in remark for remark in volume.remarks)


def test_arrays_stored_by_columns_read_alike(tmp_path: Path) -> None:
    array = chest()
    assert_array_equal(read_volume(save(tmp_path / "f.npz", np.asfortranarray(array))).hu, array[::-1])


def test_other_archives_are_no_scans(tmp_path: Path) -> None:
    save(tmp_path / "medmnist.npz", chest().astype(np.uint8), key="train_images")
    with zipfile.ZipFile(tmp_path / "book.xlsx", "w") as archive:
        archive.writestr("a.xml", "<a/>")
    with pytest.raises(InputError, match="none of its 2 file"):
        find_scans(tmp_path, cache=False)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.npz", chest())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert reason(path) == "truncated_pixel_data"
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    path.write_bytes(flipped)
    assert reason(path) == "truncated_pixel_data"


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (pytest.fail, ("the pickle ran",))

    np.savez(tmp_path / "trap.npz", ct=np.array([Trap()], dtype=object))
    assert reason(tmp_path / "trap.npz") == "unsupported_values"


def npz(path: Path, shape: tuple[int, ...], body: bytes) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ct.npy", header.getvalue() + body)
    return path


def test_claims_that_the_archive_cannot_hold_are_refused(tmp_path: Path) -> None:
    assert reason(npz(tmp_path / "huge.npz", (100_000, 100_000, 100), b"\0" * 100)) == "too_large"
    assert reason(npz(tmp_path / "short.npz", (100, 100, 100), b"\0" * 100)) == "truncated_pixel_data"
    assert reason(npz(tmp_path / "flat.npz", (10, 10), b"\0" * 200)) == "not_a_volume"
    assert reason(npz(tmp_path / "minus.npz", (-1, 10, 10), b"\0" * 200)) == "not_a_volume"


def test_values_without_air_are_not_hu(tmp_path: Path) -> None:
    assert reason(save(tmp_path / "shifted.npz", chest() + 1024)) == "not_hu"


def test_the_examples_of_its_authors_are_read(shared_data: Path) -> None:
    folder = shared_data / "data" / "format_examples" / "radchestct_fake"
    scans = find_scans(folder, cache=False)
    assert [scan.scan_id for scan in scans] == ["FAKE000", "FAKE111", "FAKE222"]
    for scan in scans:
        stored = np.load(folder / scan.source)["ct"]
        assert stored.dtype == np.int32
        assert_array_equal(read_volume(scan).hu, stored[::-1])
