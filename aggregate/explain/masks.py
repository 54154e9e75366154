"""Masks: lesions marked voxel by voxel in files, brought to the voxels of the scans of a bag file.

A folder holds `LABEL/SCAN_ID.nii.gz`, or `SCAN_ID.nii.gz` where only one thing is marked (.nii, .nrrd, .mha and .mhd as
well); every value but 0 is marked. A mask may lie on another grid than its scan: each voxel of the scan takes the value
of the mask's nearest voxel (its centre, in patient millimetres), and what lies outside the mask is not marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clear.errors import InputError, ScanRefused
from clear.formats import itk, nifti, without_ending
from clear.formats.grid import read_array
from clear.volume import Volume

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Masks:
    """The masks of a folder. files: by (scan_id, label); remarks: what of the folder could not be used."""

    path: Path
    files: Mapping[tuple[str, str], Path]
    remarks: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What is marked, sorted."""
        return tuple(sorted({label for _, label in self.files}))

    def scans_with(self, labels: tuple[str, ...]) -> set[str]:
        """Ids of the scans that have a mask of one of these labels."""
        return {scan for scan, here in self.files if here in labels}

    def region(self, scan_id: str, labels: tuple[str, ...], volume: Volume) -> NDArray[np.bool_]:
        """(Z, Y, X) which voxels of the scan are marked, by any of its masks of these labels.

        Raises InputError when a mask marks none, or cannot be read.
        """
        found = np.zeros(volume.voxels.shape, dtype=bool)
        for (scan, label), file in self.files.items():
            if scan != scan_id or label not in labels:
                continue
            own = on_volume(*_read(file), volume)
            if not own.any():
                raise InputError(
                    f"{file}: marks nothing inside the scan {scan_id}: it is empty, or lies elsewhere in the patient. "
                    "Remove it, or correct its geometry"
                )
            found |= own
        return found


def find_masks(folder: Path | str, scan_ids: frozenset[str]) -> Masks:
    """The masks in a folder, of these scans. Raises InputError where there is none."""
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"{folder}: no such folder of masks. Check the path")
    files: dict[tuple[str, str], Path] = {}
    strangers = []
    for file in sorted(place.rglob("*")):
        if not file.name.lower().endswith(ENDINGS):
            continue
        name = without_ending(file.relative_to(place).as_posix())
        label, _, rest = name.partition("/")
        key = (name, "") if name in scan_ids else (rest, label)
        if key[0] not in scan_ids:
            strangers.append(name)
        elif key in files:
            raise InputError(f"{file}: {files[key].name} marks the same in the same scan; remove one of the two")
        else:
            files[key] = file
    if not files:
        raise InputError(
            f"{folder}: no mask of a scan of the bag file. Expected LABEL/SCAN_ID.nii.gz or SCAN_ID.nii.gz; found "
            f"{len(strangers)} other mask files" + (f", first {strangers[0]}" if strangers else "")
        )
    remarks: tuple[str, ...] = ()
    if strangers:
        remarks = (f"{place.name}: {len(strangers)} masks are of no scan of the bag file, first {strangers[0]}",)
    return Masks(place, files, remarks)


def on_volume(mask: NDArray[np.bool_], affine: NDArray[np.float64], volume: Volume) -> NDArray[np.bool_]:
    """(Z, Y, X) the mask's nearest voxel at each voxel centre of the volume; False outside the mask.

    mask: any axes; affine: (4, 4) from its indices to LPS millimetres.
    """
    into = np.linalg.inv(affine)
    out = np.zeros(volume.voxels.shape, dtype=bool)
    _, rows, columns = volume.voxels.shape
    along_row = np.arange(columns)[:, None] * (into[:3, :3] @ volume.row_direction * volume.spacing_mm[2])
    along_column = np.arange(rows)[:, None] * (into[:3, :3] @ volume.column_direction * volume.spacing_mm[1])
    for z, position in enumerate(volume.positions_mm):
        corner = into[:3, :3] @ position + into[:3, 3]
        index = np.rint(corner + along_column[:, None] + along_row[None, :]).astype(np.int64)
        inside = ((index >= 0) & (index < mask.shape)).all(axis=2)
        out[z][inside] = mask[tuple(index[inside].T)]
    return out


def _read(file: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    try:
        if file.name.lower().endswith((".nii", ".nii.gz")):
            grid = nifti.read_grid(file, str(file))
        else:
            _, grid = itk.read_grid(file, str(file))
        return np.asarray(read_array(str(file), grid)) != 0, grid.affine
    except (ScanRefused, OSError) as error:
        raise InputError(f"{error}") from error
