"""A saliency volume as NIfTI in the scan's own geometry.

The header is written here, field by field after nifti1.h, because it takes a page and the two libraries at hand do not
serve: SimpleITK refuses the sheared affine of a tilted gantry, and nibabel would be a dependency for this page alone.

The affine goes into the sform (method 3 of nifti1.h), which can be sheared. The qform (method 2: a rotation and voxel
sizes) is set as well where it says the same to QFORM_MM, for readers that look at nothing else; a tilted stack has
none (code 0). The world is RAS: x and y change sign from DICOM's LPS.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from clear.atomic import write_aside
from clear.errors import InputError
from clear.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
QFORM_MM = 0.01  # how far a corner may lie off before the qform is left out
OFF_GRID_MM = 0.01  # how far a slice may lie off the affine's grid before it is said
SCANNER_ANATOMICAL = 1  # NIFTI_XFORM_SCANNER_ANAT
FLOAT32, MILLIMETRE = 16, 2
OFFSET = 352  # header, and four bytes that say "no extension"
LARGEST_SIDE = 32767  # dim is int16
DESCRIPTION = b"saliency by clear: slice attention x in-slice map"


def write_nifti(path: Path | str, saliency: NDArray[np.float32], volume: Volume) -> Path:
    """A map (Z, Y, X) over `volume` as a float32 NIfTI-1 file (.nii or .nii.gz); returns its path.

    Voxel centres are those of `Volume.affine`, rounded to float32; the same input gives the same bytes. Where a scanner
    rounded its table positions, that one affine may miss a slice by up to a tenth of a gap (`off_grid`); DICOM keeps
    the place of each.

    Raises InputError when the slices are not evenly spaced, since one affine cannot say where they lie, or the name has
    another ending; ValueError when the map does not fit the volume; OutputError when the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: expected a name that ends in .nii or .nii.gz")
    if saliency.shape != volume.voxels.shape:
        raise ValueError(f"saliency: expected {volume.voxels.shape}, the volume's shape; found {saliency.shape}")
    check_grid(path, volume)
    values = np.ascontiguousarray(saliency, dtype="<f4")  # x runs fastest in the file, as in a C-ordered (Z, Y, X)
    data = _header(values, LPS_TO_RAS @ volume.affine) + bytes(OFFSET - 348) + values.tobytes()
    write_aside(path, gzip.compress(data, compresslevel=1, mtime=0) if path.name.endswith(".gz") else data)
    return path


def check_grid(path: Path | str, volume: Volume) -> None:
    """Raises InputError where `write_nifti` cannot write a map over this volume to `path`."""
    if not volume.has_even_gaps:
        raise InputError(f"{path}: {_uneven(volume)}, and NIfTI has one step for all slices. Write DICOM instead")
    shape = volume.voxels.shape
    if max(shape) > LARGEST_SIDE:
        raise InputError(f"{path}: {shape} voxels; NIfTI-1 has at most {LARGEST_SIDE} a side. Write DICOM")


def off_grid(volume: Volume) -> float:
    """The largest distance in mm between a slice and its place by `Volume.affine`, which joins first and last."""
    line = np.linspace(volume.positions_mm[0], volume.positions_mm[-1], volume.n_slices)
    return float(np.linalg.norm(volume.positions_mm - line, axis=1).max())


def _header(values: NDArray[np.float32], affine: NDArray[np.float64]) -> bytes:
    """The 348 bytes of nifti1.h, little endian; affine: (4, 4) from index (i, j, k, 1) to RAS millimetres."""
    size = np.linalg.norm(affine[:3, :3], axis=0)
    qfac, quaternion = _qform(affine, size, values.shape[::-1])
    header = struct.pack("<i35xB", 348, 0)  # sizeof_hdr, unused ANALYZE fields, dim_info
    header += struct.pack("<8h", 3, *values.shape[::-1], 1, 1, 1, 1)  # dim
    header += struct.pack("<3f4h", 0, 0, 0, 0, FLOAT32, 32, 0)  # intent_p, intent_code, datatype, bitpix, slice_start
    header += struct.pack("<8f", qfac, *size, 0, 0, 0, 0)  # pixdim
    header += struct.pack("<3fhBB", OFFSET, 1, 0, 0, 0, MILLIMETRE)  # vox_offset, scl, slice_end, slice_code, units
    header += struct.pack("<4f2i", float(values.max(initial=0)), 0, 0, 0, 0, 0)  # cal_max, cal_min, durations
    header += struct.pack("<80s24x", DESCRIPTION)  # descrip, aux_file
    header += struct.pack("<2h", 0 if quaternion is None else SCANNER_ANATOMICAL, SCANNER_ANATOMICAL)
    header += struct.pack("<6f", *((0, 0, 0) if quaternion is None else quaternion), *affine[:3, 3])  # quatern, qoffset
    header += struct.pack("<12f", *affine[:3].ravel())  # srow
    return header + struct.pack("<16s4s", b"", b"n+1\0")  # intent_name, magic


def _qform(
    affine: NDArray[np.float64], size: NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[float, tuple[float, float, float] | None]:
    """qfac and quaternion (b, c, d) of method 2; None where a rotation cannot say what the affine says."""
    axes = affine[:3, :3] / size
    qfac = 1.0 if np.linalg.det(axes) > 0 else -1.0
    axes[:, 2] *= qfac
    rotation = Rotation.from_matrix(axes)  # the nearest rotation
    straight = rotation.as_matrix() * size
    straight[:, 2] *= qfac
    far = np.array(np.meshgrid(*([0, n - 1] for n in shape))).reshape(3, -1)
    off_mm = np.linalg.norm((affine[:3, :3] - straight) @ far, axis=0).max()
    b, c, d, a = rotation.as_quat()
    sign = 1.0 if a >= 0 else -1.0  # the header keeps b, c, d and takes a as positive
    return qfac, (sign * b, sign * c, sign * d) if off_mm <= QFORM_MM else None


def _uneven(volume: Volume) -> str:
    if volume.n_slices < 2:
        return "the scan is a single slice of unknown thickness"
    gaps = np.diff(volume.z_mm)
    if np.ptp(gaps) > 1e-6 * gaps.max():
        return f"slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart"
    return "slices are shifted sideways against each other"
