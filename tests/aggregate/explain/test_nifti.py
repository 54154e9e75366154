"""NIfTI outputs, read back by nibabel, SimpleITK and our own reader, against what the source's files say themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from aggregate.explain.nifti import off_grid, write_nifti
from clear.errors import InputError
from clear.scans import find_scans, read_volume
from clear.volume import Volume, stack_geometry

CLOSE_MM = 0.01
TILTED = "dicom_hard_cases/gantry_tilt_siemens_4_slices"
EVEN_DICOM = [
    TILTED,
    "dicom_hard_cases/oblique_nonsquare_pixels_tiny",
    "dicom_hard_cases/flipped_rows_and_columns",
    "dicom_hard_cases/localizer_and_report_mixed_in",
    "dicom_hard_cases/legacy_converted_enhanced_ct",
    "dicom_hard_cases/enhanced_multiframe_ct",
    "mr_dicom/philips_coronal_4_slices",
    "mr_dicom/jpeg2000_sagittal_4_slices",
    "mr_dicom/siemens_enhanced_multiframe",
    "mr_dicom/per_slice_rescale_nonsquare",
]


def volume_of(
    *,
    rotation: np.ndarray | None = None,
    positions: Sequence[float] | np.ndarray = (0, 3, 6, 9),
    shift: Sequence[float] = (0, 0, 0),
    shape: tuple[int, int] = (6, 8),
    spacing: tuple[float, float] = (1.5, 0.7),
    thickness: float | None = None,
) -> Volume:
    """A volume of random values: slices at `positions` along the stack, each moved by `shift` against the last."""
    axes = np.eye(3) if rotation is None else rotation
    along = np.asarray(positions, dtype=float)[:, None] * axes[:, 2]
    origins = along + np.arange(len(along))[:, None] * np.asarray(shift, dtype=float) + [-120.0, 40.0, -700.0]
    geometry = stack_geometry(origins, axes[:, 0], axes[:, 1], shape, spacing, thickness)
    values = np.random.default_rng(0).random((len(along), *shape), dtype=np.float32)
    return Volume.from_stack(values, geometry, "MR")


def centres_of(volume: Volume) -> np.ndarray:
    """(Z, Y, X, 3) LPS, from the positions of the slices, not from the affine."""
    _, rows, columns = volume.voxels.shape
    down = np.arange(rows)[:, None, None] * volume.column_direction * volume.spacing_mm[1]
    right = np.arange(columns)[None, :, None] * volume.row_direction * volume.spacing_mm[2]
    return volume.positions_mm[:, None, None] + (down + right)[None]


def centres_by_nibabel(image: nibabel.Nifti1Image) -> np.ndarray:
    """(Z, Y, X, 3) LPS."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij"), axis=-1)
    ras = nibabel.affines.apply_affine(image.affine, index)
    return (ras * [-1, -1, 1]).transpose(2, 1, 0, 3)


def source_points(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """LPS centres and rescaled values of a sparse grid of pixels of each image or frame, read with pydicom alone."""
    points, values = [], []
    for file in files:
        dataset = pydicom.dcmread(file)
        frames = dataset.get("PerFrameFunctionalGroupsSequence", [None])
        pixels = dataset.pixel_array.reshape(len(frames), dataset.Rows, dataset.Columns)
        for frame, plane in zip(frames, pixels, strict=True):
            layers = [dataset] if frame is None else [frame, *dataset.get("SharedFunctionalGroupsSequence", [])]
            position, orientation, spacing, slope, intercept = (
                find(layers, name, default)
                for name, default in (
                    ("ImagePositionPatient", None),
                    ("ImageOrientationPatient", None),
                    ("PixelSpacing", None),
                    ("RescaleSlope", 1),
                    ("RescaleIntercept", 0),
                )
            )
            rows, columns = (np.unique(np.linspace(0, n - 1, 7).astype(int)) for n in plane.shape)
            right, down = np.reshape(np.asarray(orientation, dtype=float), (2, 3))
            at = (
                np.asarray(position, dtype=float)
                + rows[:, None, None] * down * float(spacing[0])
                + columns[None, :, None] * right * float(spacing[1])
            )
            points.append(at.reshape(-1, 3))
            values.append((plane[np.ix_(rows, columns)] * float(slope) + float(intercept)).ravel())
    return np.concatenate(points), np.concatenate(values)


def find(layers: Sequence[pydicom.Dataset], name: str, default: object) -> object:
    """A value at the top of a data set or in a functional group macro of one of the layers."""
    for layer in layers:
        if layer.get(name) is not None:
            return layer[name].value
        for element in layer:
            if element.VR == "SQ" and len(element.value) == 1 and element.value[0].get(name) is not None:
                return element.value[0][name].value
    return default


@pytest.mark.parametrize("case", EVEN_DICOM)
def test_voxels_lie_where_the_source_has_them_and_keep_their_values(
    case: str, shared_data: Path, tmp_path: Path
) -> None:
    (scan,) = (s for s in find_scans(shared_data / "data" / case, cache=False) if s.verdict == "use")
    volume = read_volume(scan)
    image = nibabel.load(write_nifti(tmp_path / "map.nii.gz", volume.voxels.astype(np.float32), volume))
    centres, values = centres_by_nibabel(image).reshape(-1, 3), np.asarray(image.dataobj).T.ravel()
    expected_centres, expected = source_points(scan.paths)
    distance, nearest = cKDTree(centres).query(expected_centres)
    assert distance.max() < CLOSE_MM
    rounding = 0.51 if scan.modality == "CT" else 1e-3
    np.testing.assert_allclose(values[nearest], expected, atol=rounding)


@pytest.mark.parametrize("case", [case for case in EVEN_DICOM if case != TILTED])
def test_simpleitk_sees_the_same_place_unless_the_stack_is_tilted(case: str, shared_data: Path, tmp_path: Path) -> None:
    (scan,) = (s for s in find_scans(shared_data / "data" / case, cache=False) if s.verdict == "use")
    volume = read_volume(scan)
    image = sitk.ReadImage(str(write_nifti(tmp_path / "map.nii", volume.voxels.astype(np.float32), volume)))
    last = [n - 1 for n in image.GetSize()]
    for corner in ([0, 0, 0], [last[0], 0, 0], [0, last[1], 0], [0, 0, last[2]], last):
        expected = centres_of(volume)[corner[2], corner[1], corner[0]]
        assert np.linalg.norm(np.subtract(image.TransformIndexToPhysicalPoint(corner), expected)) < CLOSE_MM
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.voxels.astype(np.float32))


def test_a_tilted_head_has_a_sheared_sform_and_no_qform(shared_data: Path, tmp_path: Path) -> None:
    (scan,) = find_scans(shared_data / "data" / TILTED, cache=False)
    volume = read_volume(scan)
    image = nibabel.load(write_nifti(tmp_path / "map.nii", np.zeros(volume.voxels.shape, np.float32), volume))
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    step, down = image.affine[:3, 2], image.affine[:3, 1]
    angle = np.degrees(np.arccos(step @ down / np.linalg.norm(step) / np.linalg.norm(down)))
    assert abs(angle - 90) == pytest.approx(14, abs=0.1)
    assert np.linalg.norm(step) == pytest.approx(5, abs=1e-3)  # the table's step


@pytest.mark.parametrize("seed", range(6))
def test_a_tilted_and_oblique_stack_comes_back_at_its_place(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    volume = volume_of(rotation=rotation, shift=rng.uniform(-1, 1, 3))
    path = write_nifti(tmp_path / "map.nii.gz", volume.voxels, volume)  # type: ignore[arg-type]  # MR is float32
    image = nibabel.load(path)
    assert int(image.header["qform_code"]) == 0
    assert np.linalg.norm(centres_by_nibabel(image) - centres_of(volume), axis=-1).max() < 1e-3
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, volume.voxels)


@pytest.mark.parametrize("lean", [(0, 0, 0), (12, -8, 30)])
@pytest.mark.parametrize(("plane", "handed"), [("axial", 1), ("sagittal", -1), ("coronal", 1)])
def test_without_tilt_qform_and_sform_agree_in_every_plane(
    plane: str, handed: int, lean: Sequence[float], tmp_path: Path
) -> None:
    rows, columns = {
        "axial": ([1, 0, 0], [0, 1, 0]),
        "sagittal": ([0, 1, 0], [0, 0, -1]),
        "coronal": ([1, 0, 0], [0, 0, -1]),
    }[plane]
    axes = np.transpose([rows, columns, np.cross(rows, columns)])
    rotation = Rotation.from_euler("xyz", lean, degrees=True).as_matrix() @ axes
    volume = volume_of(rotation=rotation)
    path = write_nifti(tmp_path / "map.nii", volume.voxels, volume)  # type: ignore[arg-type]
    image = nibabel.load(path)
    assert volume.plane == plane
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert float(image.header["pixdim"][0]) == handed  # qfac: a sagittal stack is left-handed in canonical axes
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
    np.testing.assert_allclose(image.header.get_zooms(), (*volume.spacing_mm[:0:-1], volume.spacing_mm[0]), rtol=1e-6)
    assert np.linalg.norm(centres_by_nibabel(image) - centres_of(volume), axis=-1).max() < 1e-3


@pytest.mark.parametrize("shift", [(0, 0, 0), (0.4, -0.3, 0.1)])
def test_our_own_reader_gives_the_volume_back(shift: Sequence[float], tmp_path: Path) -> None:
    volume = volume_of(shift=shift)
    path = write_nifti(tmp_path / "map.nii.gz", volume.voxels, volume)  # type: ignore[arg-type]
    again = read_volume(path, modality="MR")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_allclose(again.positions_mm, volume.positions_mm, atol=1e-3)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-3)


def test_nibabel_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    volume = volume_of()
    path = write_nifti(tmp_path / "map.nii", volume.voxels, volume)  # type: ignore[arg-type]
    assert nibabel.Nifti1Header.diagnose_binaryblock(path.read_bytes()[:348]) == ""
    header = nibabel.load(path).header
    assert header.get_data_dtype() == np.float32
    assert header.get_xyzt_units() == ("mm", "unknown")
    assert header["descrip"].item() == b"saliency by clear: slice attention x in-slice map"
    assert float(header["cal_max"]) == volume.voxels.max()
    assert path.stat().st_size == 352 + 4 * volume.voxels.size


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_the_same_map_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    volume = volume_of()
    first = write_nifti(tmp_path / name, volume.voxels, volume).read_bytes()  # type: ignore[arg-type]
    assert write_nifti(tmp_path / name, volume.voxels, volume).read_bytes() == first  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_uneven_slices_are_refused_with_their_gaps(tmp_path: Path) -> None:
    volume = volume_of(positions=(0, 3, 6, 12))
    with pytest.raises(InputError, match=r"map\.nii: slices are 3\.00 to 6\.00 mm apart.* Write DICOM instead"):
        write_nifti(tmp_path / "map.nii", volume.voxels, volume)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_slices_that_jump_sideways_are_refused(tmp_path: Path) -> None:
    even = volume_of()
    positions = even.positions_mm.copy()
    positions[1, 0] += 1.0
    volume = Volume(
        even.voxels, "MR", "axial", even.spacing_mm, positions, even.row_direction, even.column_direction, even.normal
    )
    with pytest.raises(InputError, match="slices are shifted sideways against each other"):
        write_nifti(tmp_path / "map.nii", volume.voxels, volume)  # type: ignore[arg-type]


def test_how_far_slices_lie_off_the_grid_is_measured_against_where_the_file_puts_them(tmp_path: Path) -> None:
    even = volume_of(shift=(0, 0.4, 0))
    assert off_grid(even) == pytest.approx(0, abs=1e-9)
    volume = volume_of(positions=(0, 3.05, 6.1, 9.1, 12.1))
    image = nibabel.load(write_nifti(tmp_path / "map.nii", volume.voxels, volume))  # type: ignore[arg-type]
    away = np.linalg.norm(centres_by_nibabel(image) - centres_of(volume), axis=-1).max()
    assert off_grid(volume) == pytest.approx(away, abs=1e-3)
    assert off_grid(volume) == pytest.approx(0.05, abs=1e-6)
    assert off_grid(volume_of(positions=[0], thickness=5.0)) == 0


def test_a_single_slice_needs_a_known_thickness(tmp_path: Path) -> None:
    unknown = volume_of(positions=[0])
    with pytest.raises(InputError, match="a single slice of unknown thickness"):
        write_nifti(tmp_path / "map.nii", unknown.voxels, unknown)  # type: ignore[arg-type]
    known = volume_of(positions=[0], thickness=5.0)
    image = nibabel.load(write_nifti(tmp_path / "map.nii", known.voxels, known))  # type: ignore[arg-type]
    assert image.header.get_zooms()[2] == 5.0


def test_another_ending_and_another_shape_are_refused(tmp_path: Path) -> None:
    volume = volume_of()
    with pytest.raises(InputError, match=r"ends in \.nii or \.nii\.gz"):
        write_nifti(tmp_path / "map.mha", volume.voxels, volume)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the volume's shape"):
        write_nifti(tmp_path / "map.nii", volume.voxels[1:], volume)  # type: ignore[arg-type]
