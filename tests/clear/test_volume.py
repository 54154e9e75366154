from __future__ import annotations

import itertools

import numpy as np
import pytest

from clear.errors import ScanRefused
from clear.volume import CANONICAL_AXES, Volume, grid_geometry, stack_geometry

# a lattice in the patient: value = a distinct number for every point, coordinates in mm
SHAPE_XYZ = (4, 5, 3)
ORIGIN = np.array([-10.0, 20.0, 100.0])


def lattice(plane: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (nx, ny, nz) and steps so that the slice axis of `plane` is the one with the wide step."""
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    steps = np.roll(np.array([2.0, 0.5, 0.75]), axis)
    return np.arange(np.prod(SHAPE_XYZ), dtype=np.int16).reshape(SHAPE_XYZ), steps


def stored(plane: str, swap: bool, flips: tuple[bool, bool, bool], order: list[int] | None = None):
    """The lattice as a scanner might store it: any in-plane orientation, any slice order."""
    values, steps = lattice(plane)
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    rows, columns = (a for a in range(3) if a != axis)
    if swap:
        rows, columns = columns, rows
    stack = values.transpose(axis, rows, columns)
    directions = np.eye(3)
    start = ORIGIN.copy()
    row, column = directions[columns].copy(), directions[rows].copy()
    positions = start + np.arange(stack.shape[0])[:, None] * steps[axis] * directions[axis]
    if flips[0]:
        stack, positions = stack[::-1], positions[::-1]
    if flips[1]:
        stack = stack[:, ::-1]
        positions = positions + column * steps[rows] * (stack.shape[1] - 1)
        column = -column
    if flips[2]:
        stack = stack[:, :, ::-1]
        positions = positions + row * steps[columns] * (stack.shape[2] - 1)
        row = -row
    if order:
        stack, positions = stack[order], positions[order]
    geometry = stack_geometry(positions, row, column, stack.shape[1:], (steps[rows], steps[columns]))
    return Volume.from_stack(stack, geometry, "CT"), values, steps


@pytest.mark.parametrize("plane", list(CANONICAL_AXES))
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_every_stored_orientation_gives_the_same_volume(plane: str, swap: bool, flips: tuple[bool, bool, bool]) -> None:
    volume, values, steps = stored(plane, swap, flips, order=[2, 0, 1] if plane == "axial" else None)
    reference, _, _ = stored(plane, False, (False, False, False))
    assert volume.plane == plane
    assert np.array_equal(volume.voxels, reference.voxels)
    assert np.allclose(volume.positions_mm, reference.positions_mm)
    assert volume.digest == reference.digest
    for axis, direction in zip(
        (volume.normal, volume.column_direction, volume.row_direction), CANONICAL_AXES[plane], strict=True
    ):
        assert np.allclose(axis, direction)
    # every voxel's value is found in the lattice at the place the affine says
    for z, y, x in np.ndindex(volume.voxels.shape):
        place = volume.affine @ [x, y, z, 1]
        i, j, k = np.rint((place[:3] - ORIGIN) / steps).astype(int)
        assert volume.voxels[z, y, x] == values[i, j, k]


def test_axial_slices_run_feet_to_head_with_the_patients_right_on_the_left() -> None:
    volume, values, _ = stored("axial", False, (True, True, True))
    assert volume.voxels[0, 0, 0] == values[0, 0, 0]  # feet, front, right
    assert volume.voxels[-1, 0, 0] == values[0, 0, -1]
    assert np.all(np.diff(volume.z_mm) > 0)


def test_coronal_and_sagittal_rows_run_head_to_feet() -> None:
    coronal, values, _ = stored("coronal", True, (False, True, False))
    assert coronal.voxels[0, 0, 0] == values[0, 0, -1]  # front, head, right
    sagittal, values, _ = stored("sagittal", False, (True, False, True))
    assert sagittal.voxels[0, 0, 0] == values[0, 0, -1]  # right, head, front


def test_gantry_tilt_is_remarked_and_shears_the_affine() -> None:
    tilt = np.radians(14)
    column = np.array([0, np.cos(tilt), -np.sin(tilt)])
    positions = np.array([[0, 0, 5.0 * i] for i in range(4)])
    geometry = stack_geometry(positions, [1, 0, 0], column, (8, 8), (0.5, 0.5))
    assert geometry.tilt_deg == pytest.approx(14, abs=1e-6)
    assert geometry.spacing_mm[0] == pytest.approx(5 * np.cos(tilt))
    assert geometry.remarks == ("gantry tilt 14.0 degrees",)
    volume = Volume.from_stack(np.zeros((4, 8, 8), np.int16), geometry, "CT")
    assert np.allclose(volume.affine @ [0, 0, 3, 1], [0, 0, 15, 1])


def test_a_missing_slice_is_remarked_and_leaves_no_affine() -> None:
    geometry = stack_geometry([[0, 0, z] for z in (0, 5, 10, 20)], [1, 0, 0], [0, 1, 0], (4, 4), (1, 1))
    assert geometry.remarks == ("gap: 1 slice(s) of 5 mm missing, the widest gap (10.00 mm) after slice 2",)
    volume = Volume.from_stack(np.zeros((4, 4, 4), np.int16), geometry, "CT")
    assert not volume.has_even_gaps
    with pytest.raises(ScanRefused, match="not evenly spaced") as refusal:
        _ = volume.affine
    assert refusal.value.reason == "uneven_spacing"


def test_uneven_spacing_is_remarked_with_its_range() -> None:
    geometry = stack_geometry([[0, 0, z] for z in (0, 2.5, 5, 8.4)], [1, 0, 0], [0, 1, 0], (4, 4), (1, 1))
    assert geometry.remarks == ("uneven spacing: 2.50 to 3.40 mm, median 2.50 mm",)


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        ([[0, 0, 1]] * 3, "not_a_volume"),
        ([[0, 0, 1], [0, 0, 1], [0, 0, 2]], "duplicate_positions"),
        ([[0, 0, np.nan], [0, 0, 1]], "bad_geometry"),
    ],
)
def test_positions_that_are_no_stack_are_refused(positions: list[list[float]], reason: str) -> None:
    with pytest.raises(ScanRefused) as refusal:
        stack_geometry(positions, [1, 0, 0], [0, 1, 0], (4, 4), (1, 1))
    assert refusal.value.reason == reason


@pytest.mark.parametrize("directions", [([1, 0, 0], [1, 0, 0]), ([0, 0, 0], [0, 1, 0]), ([1, 0, 0], [0.1, 1, 0])])
def test_directions_that_span_no_slice_are_refused(directions: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ScanRefused) as refusal:
        stack_geometry([[0, 0, 0]], *directions, (4, 4), (1, 1))
    assert refusal.value.reason == "bad_geometry"


def test_a_grid_is_sliced_along_the_axis_whose_spacing_stands_out() -> None:
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        affine = np.eye(4)
        affine[axis, axis] = 3.0
        found, geometry = grid_geometry(affine, (6, 7, 8))
        assert (found, geometry.plane, geometry.spacing_mm) == (axis, plane, (3.0, 1.0, 1.0))


def test_an_isotropic_grid_is_sliced_along_the_body() -> None:
    affine = np.array([[0, 0, -2.0, 5], [0, 2, 0, 6], [2, 0, 0, 7], [0, 0, 0, 1]])  # first index runs feet to head
    found, geometry = grid_geometry(affine, (6, 7, 8))
    assert (found, geometry.plane) == (0, "axial")
    stack = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    volume = Volume.from_stack(np.moveaxis(stack, found, 0), geometry, "CT")
    assert volume.voxels[0, 0, 0] == stack[0, 0, 7]  # x runs to the right in the file, so it is flipped
    assert np.allclose(volume.positions_mm[0], [5 - 14, 6, 7])


def test_padding_follows_its_slices() -> None:
    geometry = stack_geometry([[0, 0, 2.0], [0, 0, 0], [0, 0, 1]], [1, 0, 0], [0, 1, 0], (2, 2), (1, 1))
    padding = np.array([[2, 2], [0, 0], [1, 1]], dtype=np.int16)
    stack = np.stack([np.full((2, 2), value, np.int16) for value in (2, 0, 1)])
    volume = Volume.from_stack(stack, geometry, "CT", padding=padding)
    assert volume.padding is not None
    assert np.array_equal(volume.voxels[:, 0, 0], volume.padding[:, 0])


def test_the_digest_sees_values_and_geometry() -> None:
    def digest(value: int = 0, step: float = 1.0) -> str:
        geometry = stack_geometry([[0, 0, 0], [0, 0, step]], [1, 0, 0], [0, 1, 0], (2, 2), (1, 1))
        return Volume.from_stack(np.full((2, 2, 2), value, np.int16), geometry, "CT").digest

    assert digest() == digest()
    assert len({digest(), digest(value=1), digest(step=1.01)}) == 3


def test_only_ct_has_hu() -> None:
    geometry = stack_geometry([[0, 0, 0], [0, 0, 1]], [1, 0, 0], [0, 1, 0], (2, 2), (1, 1))
    volume = Volume.from_stack(np.zeros((2, 2, 2), np.float32), geometry, "MR")
    with pytest.raises(AttributeError, match="only CT has HU"):
        _ = volume.hu
    with pytest.raises(ValueError, match="int16"):
        Volume.from_stack(np.zeros((2, 2, 2), np.float32), geometry, "CT")


def test_small_deviations_that_add_up_are_uneven() -> None:
    z = np.concatenate([[0.0], np.cumsum([1.0] * 100 + [1.018] * 100)])  # each gap within 2 % of the median
    geometry = stack_geometry([(0, 0, v) for v in z], (1, 0, 0), (0, 1, 0), (2, 2), (1, 1))
    volume = Volume.from_stack(np.zeros((201, 2, 2), np.int16), geometry, "CT")
    assert not volume.has_even_gaps  # an affine would put the middle slice almost a millimetre off
    assert geometry.remarks == ("uneven spacing: 1.00 to 1.02 mm, median 1.01 mm",)
