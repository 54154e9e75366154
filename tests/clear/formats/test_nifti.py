"""NIfTI: values, geometry against SimpleITK and nibabel, and headers that lie."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from clear.errors import ScanRefused
from clear.formats.nifti import probe, read_grid
from clear.scans import Scan, find_scans, read_volume
from clear.volume import Volume

RNG = np.random.default_rng(1)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def hu(shape: tuple[int, ...] = (6, 20, 16)) -> np.ndarray:
    """(k, j, i) int16 HU."""
    array = RNG.integers(-1000, 1500, shape).astype(np.int16)
    array.flat[0] = -1024
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """A NIfTI-1 file of an array (k, j, i) with a RAS affine."""
    affine = np.diag([0.7, 0.8, 2.5, 1]) if affine is None else affine
    image = nib.Nifti1Image(array.T, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch(path: Path, at: int, form: str, *values: float) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, *values)
    path.write_bytes(data)


def world(volume: Volume, value: int) -> np.ndarray:
    """LPS of the only voxel that holds a value."""
    ((z, y, x),) = np.argwhere(volume.voxels == value)
    return volume.affine[:3] @ [x, y, z, 1]


def reason(path: Path) -> str:
    (scan,) = find_scans(path, cache=False)
    assert scan.verdict == "refused"
    assert path.name in scan.message
    with pytest.raises(ScanRefused) as refusal:
        read_volume(scan)
    assert refusal.value.reason == scan.reason
    return scan.reason


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_every_type_gives_the_same_hu(tmp_path: Path, ending: str, dtype: type) -> None:
    array = hu()
    volume = read_volume(save(tmp_path / f"ct{ending}", array.astype(dtype)))
    assert volume.voxels.dtype == np.int16
    # the RAS affine runs right and front: both in-plane axes are flipped on the way to LPS
    assert_array_equal(volume.hu, array[:, ::-1, ::-1])
    assert volume.modality == "CT"
    assert volume.plane == "axial"
    assert_allclose(volume.spacing_mm, (2.5, 0.8, 0.7), rtol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_every_voxel_keeps_its_place_in_the_patient(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    array = hu((7, 9, 8))
    array[5, 2, 3] = 3000
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, list(order)] * (np.array(signs) * (0.7, 0.75, 3.0)))
    affine[:3, 3] = 11, -20, 30
    path = save(tmp_path / "ct.nii.gz", array, affine)
    volume = read_volume(path)
    assert_allclose(world(volume, 3000), (LPS @ affine @ [3, 2, 5, 1])[:3], atol=1e-4)
    image = sitk.ReadImage(str(path))
    assert_allclose(world(volume, 3000), image.TransformIndexToPhysicalPoint((3, 2, 5)), atol=1e-4)
    assert volume.n_slices == 7  # 3 mm stands out, whatever the plane


def test_the_qform_is_used_where_the_sform_is_unset(tmp_path: Path) -> None:
    array = hu()
    array[3, 4, 5] = 3000
    angle = 0.3
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]] @ affine[:3, :3]
    affine[:3, 3] = 1, 2, 3
    for flip in (1, -1):
        own = affine @ np.diag([flip, 1, 1, 1])
        image = nib.Nifti1Image(array.T, None)
        image.set_qform(own, code=1)
        image.set_sform(None, code=0)
        nib.save(image, tmp_path / "q.nii")
        volume = read_volume(tmp_path / "q.nii")
        assert_allclose(world(volume, 3000), (LPS @ own @ [5, 4, 3, 1])[:3], atol=1e-4)
        assert not any("orientation" in remark for remark in volume.remarks)


def test_a_file_without_orientation_says_so(tmp_path: Path) -> None:
    image = nib.Nifti1Image(hu().T, None)
    image.header.set_zooms((0.7, 0.8, 2.5))
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.save(image, tmp_path / "none.nii")
    volume = read_volume(tmp_path / "none.nii")
    assert any("no orientation in the header" in remark for remark in volume.remarks)
    assert_allclose(volume.spacing_mm, (2.5, 0.8, 0.7), rtol=1e-6)


def test_a_tilted_gantry_is_a_sheared_sform_and_is_kept(tmp_path: Path) -> None:
    array = hu()
    array[4, 4, 5] = 3000
    affine = np.diag([0.7, 0.8, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(np.radians(14))
    volume = read_volume(save(tmp_path / "tilted.nii.gz", array, affine, qform_code=0))
    assert any("gantry tilt 14.0 degrees" in remark for remark in volume.remarks)
    assert_allclose(world(volume, 3000), (LPS @ affine @ [5, 4, 4, 1])[:3], atol=1e-3)


def test_rescale_in_the_header_is_applied_once(tmp_path: Path) -> None:
    stored = (hu().astype(np.int32) + 1024).astype(np.uint16)
    path = save(tmp_path / "ct.nii", stored)
    patch(path, 112, "<2f", 1.0, -1024.0)
    expected = stored.astype(np.int32) - 1024
    assert_array_equal(read_volume(path).hu, expected[:, ::-1, ::-1])
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert_array_equal(image, expected)
    patch(path, 112, "<2f", 0.0, 55.0)  # a slope of 0 means none (nifti1.h)
    volume = read_volume(path)
    assert volume.modality == "MR"
    assert volume.voxels.max() == stored.max()


def test_units_other_than_millimetres_are_converted(tmp_path: Path) -> None:
    array = hu()
    for code, scale in ((1, 1e-3), (3, 1e3)):
        path = save(tmp_path / "ct.nii", array, np.diag([0.7 * scale, 0.8 * scale, 2.5 * scale, 1]))
        patch(path, 123, "<B", code)
        assert_allclose(read_volume(path).spacing_mm, (2.5, 0.8, 0.7), rtol=1e-6)


def test_big_endian_and_nifti_2_read_alike(tmp_path: Path) -> None:
    array = hu()
    affine = np.diag([0.7, 0.8, 2.5, 1])
    digest = read_volume(save(tmp_path / "a.nii", array, affine)).digest
    big = nib.Nifti1Image(array.T, affine).header.as_byteswapped(">")
    nib.save(nib.Nifti1Image(array.T, affine, big), tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes()[:2] == b"\0\0"
    nib.save(nib.Nifti2Image(array.T, affine), tmp_path / "c.nii.gz")
    for name in ("b.nii", "c.nii.gz"):
        assert read_volume(tmp_path / name).digest == digest


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    packed = save(tmp_path / "ct.nii.gz", hu())
    for name in ("scan.001", "ct.dat", "ct.nrrd"):
        shutil.copy(packed, tmp_path / name)
        (scan,) = find_scans(tmp_path / name, cache=False)
        assert (scan.format, scan.verdict) == ("nifti", "use")
    assert not probe(gzip.compress(b"just text " * 100)[:1024], packed)


def test_the_scan_id_is_the_path_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "train_1" / "a.b").mkdir(parents=True)
    save(tmp_path / "train_1" / "a.b" / "1.2.840.nii.gz", hu())
    (scan,) = find_scans(tmp_path, cache=False)
    assert scan.scan_id == "train_1/a.b/1.2.840"
    assert scan.source == "train_1/a.b/1.2.840.nii.gz"
    assert scan.files == (scan.source,)


def test_a_series_over_time_is_refused(tmp_path: Path) -> None:
    assert reason(save(tmp_path / "bold.nii.gz", hu((3, 4, 5, 6)))) == "time_series"


def test_a_fourth_axis_of_one_is_one_volume(tmp_path: Path) -> None:
    array = hu()
    assert_array_equal(read_volume(save(tmp_path / "one.nii", array[None])).hu, array[:, ::-1, ::-1])


def test_colour_and_complex_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    assert reason(tmp_path / "rgb.nii") == "colour"
    assert reason(save(tmp_path / "complex.nii", np.ones((5, 6, 7), np.complex64))) == "unsupported_values"


def test_a_cut_file_is_refused_before_and_while_reading(tmp_path: Path) -> None:
    for name in ("cut.nii", "cut.nii.gz"):
        path = save(tmp_path / name, hu())
        data = path.read_bytes()
        for keep in (0.9, 0.5):
            path.write_bytes(data[: int(len(data) * keep)])
            assert reason(path) == "truncated_pixel_data"


def test_damage_inside_a_gzip_stream_is_found_when_its_voxels_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii.gz", hu((64, 64, 64)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = b"\0" * 64
    path.write_bytes(data)
    with pytest.raises(ScanRefused) as refusal:
        read_volume(path)
    assert refusal.value.reason == "truncated_pixel_data"


def test_headers_that_lie_are_refused_quickly(tmp_path: Path) -> None:
    for name in ("lie.nii", "lie.nii.gz"):
        plain = save(tmp_path / "plain.nii", hu())
        for at, form, values, expected in (
            (40, "<8h", (3, 32767, 32767, 32767, 1, 1, 1, 1), "too_large"),
            (40, "<8h", (3, 2000, 2000, 400, 1, 1, 1, 1), "truncated_pixel_data"),
            (40, "<8h", (3, 0, 20, 6, 1, 1, 1, 1), "bad_header"),
            (40, "<8h", (3, -5, 20, 6, 1, 1, 1, 1), "bad_header"),
            (40, "<8h", (99, 16, 20, 6, 1, 1, 1, 1), "bad_header"),
            (108, "<f", (float("nan"),), "bad_header"),
            (108, "<f", (1e30,), "truncated_pixel_data"),
            (70, "<h", (12345,), "unsupported_values"),
            (280, "<12f", (float("nan"),) * 12, "bad_geometry"),
        ):
            data = bytearray(plain.read_bytes())
            struct.pack_into(form, data, at, *values)
            path = tmp_path / name
            path.write_bytes(gzip.compress(data) if name.endswith("gz") else bytes(data))
            assert reason(path) == expected, (name, at, values)


def test_values_not_in_hu_are_used_with_a_remark_and_never_as_ct(tmp_path: Path) -> None:
    image = (hu() % 256).astype(np.uint8)
    path = save(tmp_path / "windowed.nii.gz", image)
    (scan,) = find_scans(path, cache=False)
    assert scan.modality == "MR"
    assert any(remark.startswith("not HU: 8-bit values") for remark in scan.remarks)
    (scan,) = find_scans(path, cache=False, modality="CT")
    assert (scan.verdict, scan.reason) == ("refused", "not_hu")


def test_labels_and_blank_images_are_set_aside(tmp_path: Path) -> None:
    labels = np.zeros((6, 20, 16), np.uint8)
    labels[2:4, 5:12, 4:12] = 2
    path = save(tmp_path / "mask.nii.gz", labels)
    save(tmp_path / "empty.nii.gz", labels * 0)
    reasons = {scan.scan_id: (scan.verdict, scan.reason) for scan in find_scans(tmp_path, cache=False)}
    assert reasons == {"mask": ("set aside", "segmentation"), "empty": ("set aside", "constant")}
    assert read_volume(path, modality="MR").voxels.max() == 2


def test_a_ct_rate_volume_with_a_blank_header_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "train_1_a_1.nii.gz", hu(), np.eye(4))
    assert reason(path) == "blank_header"
    path.rename(tmp_path / "other.nii.gz")
    (scan,) = find_scans(tmp_path, cache=False)
    assert scan.verdict == "use"
    assert any("may be blank" in remark for remark in read_volume(scan).remarks)


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "ct.nii", hu())
    (scan,) = find_scans(tmp_path, cache=False)
    save(path, hu((9, 20, 16)))
    with pytest.raises(ScanRefused) as refusal:
        read_volume(scan)
    assert refusal.value.reason == "changed_since_plan"
    path.unlink()
    with pytest.raises(ScanRefused) as refusal:
        read_volume(scan)
    assert refusal.value.reason == "missing_file"


def test_a_random_flip_of_header_bits_is_a_scan_or_a_refusal(tmp_path: Path) -> None:
    whole = save(tmp_path / "ct.nii", hu()).read_bytes()
    path = tmp_path / "ct.nii"
    for _ in range(300):
        data = bytearray(whole)
        for at in RNG.integers(0, 352, 3):
            data[at] ^= 1 << RNG.integers(0, 8)
        path.write_bytes(data)
        (scan,) = find_scans(path, cache=False)
        assert isinstance(scan, Scan)
        assert scan.reason != "unexpected_error", scan.message
        if scan.verdict == "use":
            with contextlib.suppress(ScanRefused):
                assert read_volume(scan).voxels.shape == (scan.n_slices, *scan.shape)


VOLUMES = [
    "ct_nifti/example_ct.nii.gz",
    "ct_nifti/example_ct_sm.nii.gz",
    "ct_nifti_traps/CT_pitch.nii.gz",
    "mr_nifti/example_mr_sm.nii.gz",
]


@pytest.mark.parametrize("name", VOLUMES)
def test_real_files_have_the_affine_that_simpleitk_reads(shared_data: Path, name: str) -> None:
    path = shared_data / "data" / name
    image = sitk.ReadImage(str(path))
    grid = read_grid(path, name)
    for index in ((0, 0, 0), (3, 5, 7), (10, 2, 1)):
        own = grid.affine @ [*index[::-1], 1]
        assert_allclose(own[:3], image.TransformIndexToPhysicalPoint(index), atol=2e-3)
