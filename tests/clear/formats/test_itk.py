"""NRRD and MetaImage: against SimpleITK's own reading, and headers that point elsewhere."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.testing import assert_allclose, assert_array_equal

from clear.errors import ScanRefused
from clear.formats.itk import read_grid
from clear.scans import find_scans, read_volume

RNG = np.random.default_rng(2)


def image(dtype: type = np.int16, spacing: tuple[float, float, float] = (0.7, 0.8, 3.0)) -> sitk.Image:
    array = RNG.integers(-1000, 1500, (6, 20, 16)).astype(dtype)
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    made.SetOrigin((-10.5, 20.25, 300))
    made.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    return made


def save(made: sitk.Image, path: Path, compress: bool = False) -> Path:
    sitk.WriteImage(made, str(path), useCompression=compress)
    return path


def reason(path: Path) -> str:
    (scan,) = find_scans(path, cache=False)
    assert scan.verdict == "refused", scan
    assert path.name in scan.message
    return scan.reason


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_every_container_gives_the_same_volume(tmp_path: Path, name: str, compress: bool, dtype: type) -> None:
    made = image(dtype)
    volume = read_volume(save(made, tmp_path / name, compress))
    assert_array_equal(volume.hu, sitk.GetArrayFromImage(made)[:, ::-1])
    assert_allclose(volume.spacing_mm, (3.0, 0.8, 0.7))
    # rows run to the front in the file, so the first canonical row is its last
    assert_allclose(volume.positions_mm[0], made.TransformIndexToPhysicalPoint((0, 19, 0)), atol=1e-4)
    assert_allclose(volume.z_mm, 300 + 3.0 * np.arange(6))
    assert volume.modality == "CT"


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    for source, name in (("a.nrrd", "x.bin"), ("b.mha", "y"), ("c.nrrd", "z.mha")):
        made = image()
        save(made, tmp_path / source, True).rename(tmp_path / name)
        assert_array_equal(read_volume(tmp_path / name).hu, sitk.GetArrayFromImage(made)[:, ::-1])


def test_one_image_in_two_containers_is_refused_under_both_names(tmp_path: Path) -> None:
    save(image(), tmp_path / "a.nrrd")
    save(image(), tmp_path / "a.mha")
    scans = find_scans(tmp_path, cache=False)
    assert [scan.reason for scan in scans] == ["ambiguous_scan_id"] * 2
    assert "a.mha, a.nrrd" in scans[0].message


def test_a_detached_header_is_one_scan_of_two_files(tmp_path: Path) -> None:
    save(image(), tmp_path / "a.mhd")
    (scan,) = find_scans(tmp_path, cache=False)
    assert scan.files == ("a.mhd", "a.raw")
    (tmp_path / "a.raw").unlink()
    assert reason(tmp_path / "a.mhd") == "data_file_missing"


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret.raw", "/dev/zero", "LIST", "s%03d.raw 1 6 1", ".", ""])
def test_a_header_cannot_name_files_elsewhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret.raw").write_bytes(b"\1" * 4000)
    folder = tmp_path / "in"
    folder.mkdir()
    for name, line in (("a.mhd", b"ElementDataFile = "), ("a.nhdr", b"data file: ")):
        path = save(image(), folder / name)
        head = path.read_bytes()
        at = head.index(line)
        path.write_bytes(head[:at] + line + target.encode() + b"\n\n")
        assert reason(path) in ("data_file_elsewhere", "several_data_files", "bad_header", "truncated_pixel_data")


def test_a_pipe_as_data_file_does_not_hang(tmp_path: Path) -> None:
    import os

    path = save(image(), tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    os.mkfifo(tmp_path / "a.raw")
    assert reason(path) == "data_file_missing"


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_cut_file_is_refused(tmp_path: Path, name: str, compress: bool) -> None:
    made = sitk.Cast(image(), sitk.sitkInt16) + 1000  # no CT, so all of it is looked at
    path = save(made, tmp_path / name, compress)
    path.write_bytes(path.read_bytes()[:-700])
    assert reason(path) == "truncated_pixel_data"


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_cut_ct_is_refused_at_the_latest_when_read(tmp_path: Path, name: str) -> None:
    path = save(image(), tmp_path / name, True)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ScanRefused) as refusal:
        read_volume(path)
    assert refusal.value.reason == "truncated_pixel_data"


def test_series_colour_and_claims_are_refused(tmp_path: Path) -> None:
    four = sitk.GetImageFromArray(RNG.integers(0, 9, (3, 4, 5, 6)).astype(np.int16), isVector=False)
    vector = sitk.GetImageFromArray(RNG.integers(0, 9, (4, 5, 6, 3)).astype(np.uint8), isVector=True)
    for ending in ("nrrd", "mha"):
        assert reason(save(four, tmp_path / f"four.{ending}")) == "time_series"
        assert reason(save(vector, tmp_path / f"colour.{ending}")) == "colour"
        path = save(image(), tmp_path / f"huge.{ending}")
        path.write_bytes(path.read_bytes().replace(b"16 20 6", b"16000 20000 6000"))
        assert reason(path) == "too_large"
        path.write_bytes(path.read_bytes().replace(b"16000 20000 6000", b"16 20 x"))
        assert reason(path) == "bad_header"


def test_the_modality_of_a_metaimage_header_counts(tmp_path: Path) -> None:
    path = save(image(), tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(b"DimSize", b"Modality = MET_MOD_MR\nDimSize"))
    (scan,) = find_scans(path, cache=False)
    assert scan.modality == "MR"
    assert not any("inferred" in remark for remark in scan.remarks)


def test_random_damage_to_headers_is_a_scan_or_a_refusal(tmp_path: Path) -> None:
    for name in ("a.nrrd", "a.mha"):
        whole = save(image(), tmp_path / name).read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for at in RNG.integers(8, 300, 2):
                data[at] = RNG.integers(9, 127)
            (tmp_path / name).write_bytes(data)
            with contextlib.suppress(ScanRefused):
                read_volume(tmp_path / name)
            (scan,) = find_scans(tmp_path / name, cache=False)
            assert scan.reason != "unexpected_error", scan.message


@pytest.mark.parametrize(
    "name", ["ct_mha/3DCT_lung.mha", "ct_mha/3DCT_lung_baseline_small.mha", "mr_nrrd_lesion/brain1_image.nrrd"]
)
def test_real_values_are_those_of_simpleitk(shared_data: Path, name: str) -> None:
    path = shared_data / "data" / name
    volume = read_volume(path)
    _, grid = read_grid(path, name)
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    signs = [np.sign(grid.affine[2 - axis, axis]) for axis in range(3)]
    flipped = array[tuple(slice(None, None, int(sign)) for sign in signs)]
    assert_array_equal(volume.voxels, flipped)


def test_a_damaged_header_is_refused_without_a_word_of_the_library(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.mha"
    path.write_bytes(b"NDims = 3\ndimsize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n" + bytes(16))
    with pytest.raises(ScanRefused, match="header"):
        read_grid(path, "a.mha")
    assert capfd.readouterr().err == ""


def test_a_line_skip_that_is_no_number_is_a_bad_header(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\nline skip: x\n\n"
        + bytes(16)
    )
    with pytest.raises(ScanRefused) as caught:
        read_grid(path, "a.nrrd")
    assert caught.value.reason == "bad_header"
