"""MedMNIST 3D: one archive is many scans, and what is not one is left alone."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from clear.errors import InputError, ScanRefused
from clear.formats.medmnist import MAX_CODES, read_labels
from clear.scans import find_scans, read_volume

RNG = np.random.default_rng(8)


def save(path: Path, *, side: int = 6, counts: tuple[int, int, int] = (3, 1, 2)) -> dict[str, np.ndarray]:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (count, side, side, side)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.zeros((count, 1), np.uint8)
    np.savez_compressed(path, **arrays)
    return arrays


def test_every_volume_is_a_scan_of_its_own_values(tmp_path: Path) -> None:
    arrays = save(tmp_path / "sub" / "organmnist3d.npz")
    scans = find_scans(tmp_path, cache=False)
    assert [scan.scan_id for scan in scans] == [
        *(f"sub/organmnist3d_test_{i:05d}" for i in range(2)),
        *(f"sub/organmnist3d_train_{i:05d}" for i in range(3)),
        "sub/organmnist3d_val_00000",
    ]
    assert {(scan.modality, scan.plane, scan.n_slices, scan.spacing_mm) for scan in scans} == {("OT", "axial", 6, None)}
    for scan in scans:
        split, index = scan.scan_id.rsplit("_", 2)[1:]
        volume = read_volume(scan)
        assert_array_equal(volume.voxels, arrays[f"{split}_images"][int(index)])
        assert volume.voxels.dtype == np.float32
    assert "no geometry in the file: 1 mm assumed, first axis taken as slices" in volume.remarks


def test_a_volume_keeps_its_place_under_another_name(tmp_path: Path) -> None:
    import dataclasses

    arrays = save(tmp_path / "organmnist3d.npz")
    scan = dataclasses.replace(find_scans(tmp_path, cache=False)[-2], scan_id="mine")
    assert_array_equal(read_volume(scan).voxels, arrays["train_images"][2])


def test_two_files_read_in_turns_do_not_mix(tmp_path: Path) -> None:
    arrays = {name: save(tmp_path / f"{name}.npz") for name in ("a", "b")}
    scans = {scan.scan_id: scan for scan in find_scans(tmp_path, cache=False)}
    for i in (0, 1):
        for name in ("a", "b"):
            voxels = read_volume(scans[f"{name}_test_{i:05d}"]).voxels
            assert_array_equal(voxels, arrays[name]["test_images"][i])


def test_a_file_that_was_replaced_is_read_again_or_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.npz")
    scans = find_scans(tmp_path, cache=False)
    read_volume(scans[1])
    arrays = save(tmp_path / "a.npz", counts=(3, 1, 1))
    assert_array_equal(read_volume(scans[0]).voxels, arrays["test_images"][0])
    with pytest.raises(ScanRefused) as refusal:
        read_volume(scans[1])
    assert refusal.value.reason == "changed_since_plan"


def test_the_2d_sets_are_no_scans(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "organamnist.npz", train_images=np.zeros((4, 28, 28), np.uint8))
    np.savez_compressed(tmp_path / "pathmnist.npz", train_images=np.zeros((4, 28, 28, 3), np.uint8))
    with pytest.raises(InputError, match="none of its 2 file"):
        find_scans(tmp_path, cache=False)


def test_a_damaged_archive_is_refused_when_it_is_listed_or_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "organmnist3d.npz"
    save(path, side=24)
    data = path.read_bytes()
    reasons = {}
    for at in (100, 38_000):  # in the header of train_images; far behind it, in its last volume
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        scan = next(scan for scan in find_scans(tmp_path, cache=False) if "test" not in scan.scan_id)
        with pytest.raises(ScanRefused) as refusal:
            read_volume(scan)
        reasons[at] = scan.verdict, refusal.value.reason
    assert reasons == {100: ("refused", "truncated_pixel_data"), 38_000: ("use", "truncated_pixel_data")}
    path.write_bytes(data[:-400])  # the directory at its end is cut off
    with pytest.raises(ScanRefused) as refusal:
        read_volume(path)
    assert refusal.value.reason == "truncated_pixel_data"


def npy(shape: tuple[int, ...], values: bytes = b"") -> bytes:
    """A .npy file of 8-bit codes that declares a shape, whatever it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + values


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (npy((10**15, 1)), "too_large"),
        (npy((MAX_CODES + 1, 1), bytes(MAX_CODES + 1)), "too_large"),
        (npy((), b"1"), "bad_header"),
        (npy((3, 2), bytes(6)), "bad_header"),
        (npy((3, 1, 1), bytes(3)), "bad_header"),
        (npy((4, 1), bytes(4)), "bad_header"),  # of three volumes
        (npy((3, 1), bytes(2)), "truncated_pixel_data"),
        (b"no array", "bad_header"),
    ],
)
def test_labels_that_are_not_one_code_a_volume_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: bytes, reason: str
) -> None:
    with zipfile.ZipFile(tmp_path / "organmnist3d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", npy((3, 2, 2, 2), bytes(24)))
        archive.writestr("train_labels.npy", labels)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the array was unpacked"))
    with pytest.raises(ScanRefused) as refusal:
        read_labels(tmp_path / "organmnist3d.npz", "train")
    assert refusal.value.reason == reason


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_labels_are_one_code_a_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    codes = np.array([2, 0, 7], np.uint8).reshape(shape)
    np.savez_compressed(tmp_path / "a.npz", train_images=np.zeros((3, 2, 2, 2), np.uint8), train_labels=codes)
    assert read_labels(tmp_path / "a.npz", "train") == [2, 0, 7]


def test_sets_of_several_sizes_are_refused(tmp_path: Path) -> None:
    images = {
        f"{split}_images": np.zeros((2, side, side, side), np.uint8) for split, side in (("train", 4), ("test", 5))
    }
    np.savez_compressed(tmp_path / "a.npz", **images)
    (scan,) = find_scans(tmp_path, cache=False)
    assert (scan.verdict, scan.reason) == ("refused", "mixed_shapes")


def test_the_real_adrenal_set_is_listed_from_its_headers(shared_data: Path) -> None:
    scans = find_scans(shared_data / "data" / "labelled_adrenal_shapes", cache=False)
    assert len(scans) == 1188 + 98 + 298
    voxels = read_volume(scans[0]).voxels
    assert voxels.shape == (64, 64, 64)
    assert set(np.unique(voxels)) <= {0.0, 255.0}
