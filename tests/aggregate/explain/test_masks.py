"""Masks: the scan's voxels take the value of the mask's nearest voxel, whatever grid the mask is on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from aggregate.explain.masks import find_masks, on_volume
from clear.errors import InputError
from clear.volume import Volume, stack_geometry

SHAPE, SPACING, ORIGIN = (4, 5, 6), (3.0, 0.8, 0.7), np.array([-20.0, 11.0, 30.0])
TURN = np.deg2rad(20)
ROW = np.array([np.cos(TURN), np.sin(TURN), 0.0])
COLUMN = np.array([-np.sin(TURN), np.cos(TURN), 0.0])


def volume() -> Volume:
    positions = ORIGIN + np.arange(SHAPE[0])[:, None] * [0, 0, SPACING[0]]
    geometry = stack_geometry(positions, ROW, COLUMN, SHAPE[1:], SPACING[1:])
    return Volume.from_stack(np.zeros(SHAPE, dtype=np.int16), geometry, "CT")


def marked() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1, 2:4, 1], mask[3, 0, 5] = True, True
    return mask


def by_index(of: Volume) -> np.ndarray:
    """(4, 4) from (z, y, x) to LPS."""
    affine = np.eye(4)
    affine[:, :3] = of.affine[:, [2, 1, 0]]
    affine[:, 3] = of.affine[:, 3]
    return affine


def test_a_mask_on_the_scans_own_grid_is_taken_as_it_is() -> None:
    assert (on_volume(marked(), by_index(volume()), volume()) == marked()).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_stored_the_other_way_round_marks_the_same_places(axis: int) -> None:
    affine = by_index(volume())
    affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
    affine[:3, axis] *= -1
    assert (on_volume(np.flip(marked(), axis), affine, volume()) == marked()).all()


def test_a_mask_with_its_axes_exchanged_marks_the_same_places() -> None:
    affine = by_index(volume())[:, [2, 0, 1, 3]]
    assert (on_volume(marked().transpose(2, 0, 1), affine, volume()) == marked()).all()


def test_a_finer_mask_is_read_at_the_centres_and_a_smaller_one_marks_nothing_outside() -> None:
    affine = by_index(volume())
    fine = affine.copy()
    fine[:3, :3] /= 3
    fine[:3, 3] -= fine[:3, :3].sum(axis=1)  # the middle one of three has the scan's centre
    tripled = marked().repeat(3, 0).repeat(3, 1).repeat(3, 2)
    assert (on_volume(tripled, fine, volume()) == marked()).all()
    expected = marked().copy()
    expected[2:] = False
    assert (on_volume(marked()[:2], affine, volume()) == expected).all()


def test_files_of_other_programs_mark_what_they_mark_there(tmp_path: Path) -> None:
    own = volume()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ own.affine
    values = marked().transpose(2, 1, 0).astype(np.uint8) * 7  # (x, y, z), as nibabel orders them
    (tmp_path / "nodule").mkdir()
    nib.save(nib.Nifti1Image(values, ras), tmp_path / "nodule" / "P1.nii.gz")
    image = sitk.GetImageFromArray(marked().astype(np.uint8))
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin(own.positions_mm[0].tolist())
    image.SetDirection(np.stack([own.row_direction, own.column_direction, own.normal], axis=1).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "P1.nrrd"))
    masks = find_masks(tmp_path, frozenset({"P1", "P2"}))
    assert masks.labels == ("", "nodule")
    assert masks.scans_with(("nodule",)) == {"P1"}
    for label in masks.labels:
        assert (masks.region("P1", (label,), own) == marked()).all(), label


def test_masks_of_two_spellings_are_one_region(tmp_path: Path) -> None:
    own = volume()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ own.affine
    other = np.zeros_like(marked())
    other[0, 0, 0] = True
    for label, mask in (("nodule", marked()), ("Nodule", other)):
        (tmp_path / label).mkdir()
        nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0).astype(np.uint8), ras), tmp_path / label / "P1.nii.gz")
    masks = find_masks(tmp_path, frozenset({"P1"}))
    assert not (marked() & other).any()
    assert (masks.region("P1", ("Nodule", "nodule"), own) == marked() | other).all()


def test_what_marks_nothing_is_refused(tmp_path: Path) -> None:
    own = volume()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ own.affine
    nib.save(nib.Nifti1Image(np.zeros(SHAPE[::-1], dtype=np.uint8), ras), tmp_path / "P1.nii")
    ras[2, 3] += 500
    nib.save(nib.Nifti1Image(np.ones(SHAPE[::-1], dtype=np.uint8), ras), tmp_path / "P2.nii")
    masks = find_masks(tmp_path, frozenset({"P1", "P2"}))
    for scan in ("P1", "P2"):
        with pytest.raises(InputError, match=f"marks nothing inside the scan {scan}"):
            masks.region(scan, ("",), own)


def test_masks_of_other_scans_are_told_and_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    for name in ("P1.nii", "other.nii"):
        nib.save(nib.Nifti1Image(np.ones((2, 2, 2), dtype=np.uint8), np.eye(4)), tmp_path / name)
    assert "1 masks are of no scan of the bag file, first other" in find_masks(tmp_path, frozenset({"P1"})).remarks[0]
    with pytest.raises(InputError, match=r"no mask of a scan .* found 2 other mask files, first P1|first other"):
        find_masks(tmp_path, frozenset({"P9"}))
    with pytest.raises(InputError, match="no such folder of masks"):
        find_masks(tmp_path / "absent", frozenset({"P1"}))
    (tmp_path / "P1.nii.gz").write_bytes((tmp_path / "P1.nii").read_bytes())
    with pytest.raises(InputError, match="marks the same in the same scan"):
        find_masks(tmp_path, frozenset({"P1"}))
