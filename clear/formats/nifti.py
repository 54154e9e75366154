"""NIfTI-1 and NIfTI-2, plain or gzipped, from the header definitions of nifti1.h and nifti2.h.

The affine is the sform where its code is set, else the qform, else the plain voxel size (methods 3, 2 and 1 of
nifti1.h); its world is RAS, so x and y change sign for LPS. scl_slope and scl_inter are applied once; a slope of 0
means none. Read here and not through SimpleITK because that refuses a sheared sform (a tilted gantry) and goes by the
file's ending.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.errors import ScanRefused
from clear.formats import without_ending
from clear.formats.grid import Grid, blocks, check_size, grid_scan, grid_volume, look, read_array, value_blocks
from clear.scans import Scan
from clear.volume import Volume

# datatype code of nifti1.h: numpy's type
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
COLOUR = (128, 2304)  # RGB24, RGBA32
UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: metre, millimetre, micrometre
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CT_RATE_NAME = re.compile(r"^(train|valid)_\d+_[a-z]+_\d+$")


def probe(head: bytes, path: Path) -> bool:
    """Whether the content, unpacked if it is gzip, has NIfTI's magic."""
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(31).decompress(head, 1024)
        except zlib.error:
            return False
    return _version(head) is not None


def scans(path: Path, root: Path, modality: str | None = None) -> list[Scan]:
    """The one scan of a NIfTI file. Raises ScanRefused."""
    name = path.relative_to(root).as_posix()
    grid = read_grid(path, name)
    if _is_blank(grid):
        _refuse_ct_rate(name)
        grid = replace(grid, remarks=(*grid.remarks, "voxels of 1 x 1 x 1 mm: the header may be blank"))
    seen = look(value_blocks(name, grid), grid.slope, grid.intercept)
    return [grid_scan(path, root, "nifti", grid, seen, modality)]


def read(scan: Scan) -> Volume:
    """The volume of a NIfTI file. Raises ScanRefused."""
    grid = read_grid(scan.paths[0], scan.source)
    return grid_volume(scan, read_array(scan.source, grid), grid)


def read_grid(path: Path, name: str) -> Grid:
    """The header of one file, checked against the size of what follows. Raises ScanRefused."""
    with path.open("rb") as file:
        compression = "gzip" if file.read(2) == b"\x1f\x8b" else ""
    head = b""
    try:
        for block in blocks(path, 0, compression):
            head += block[: 600 - len(head)]
            if len(head) >= 600:
                break
    except (zlib.error, EOFError):
        pass
    version = _version(head)
    if version is None or len(head) < (348 if version[0] == 1 else 540):
        raise ScanRefused("truncated_pixel_data", f"{name}: the file ends inside its NIfTI header. Fetch it again")
    header = _fields(head, *version)
    if header["pair"]:
        raise ScanRefused("nifti_pair", f"{name}: header and values lie in two files; store it as one .nii file")
    dtype = _dtype(name, header, version[1])
    affine, remarks = _affine(name, header)
    slope, intercept = header["slope"], header["intercept"]
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        slope, intercept = 1.0, 0.0
    offset = header["offset"]
    if not math.isfinite(offset) or offset < 0:
        raise ScanRefused("bad_header", f"{name}: the header says that values start at byte {offset}; it is damaged")
    columns = [2, 1, 0, 3]  # the file's fastest index is the array's last
    grid = Grid(
        shape=_shape(name, header)[::-1],  # type: ignore[arg-type]  # three by _shape
        affine=affine[:, columns],
        dtype=dtype,
        data=path,
        offset=max(int(offset), 352 if version[0] == 1 else 544),
        compression=compression,
        slope=slope,
        intercept=intercept,
        remarks=remarks,
    )
    check_size(name, grid)
    _check_gzip_length(name, grid)
    return grid


def _version(head: bytes) -> tuple[int, str] | None:
    """(1 or 2, byte order) of a NIfTI header, None for anything else."""
    for order in "<>":
        if len(head) >= 348 and head[344:348] in (b"n+1\0", b"ni1\0") and head[:4] == struct.pack(order + "i", 348):
            return 1, order
        if len(head) >= 12 and head[4:8] in (b"n+2\0", b"ni2\0") and head[:4] == struct.pack(order + "i", 540):
            return 2, order
    return None


def _fields(head: bytes, version: int, order: str) -> dict[str, Any]:
    """The fields used here, by the byte offsets of nifti1.h and nifti2.h."""

    def get(form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, head, at)

    if version == 1:
        return {
            "pair": head[344:346] == b"ni",
            "dim": get("8h", 40),
            "type": get("h", 70)[0],
            "pixdim": get("8f", 76),
            "offset": get("f", 108)[0],
            "slope": get("f", 112)[0],
            "intercept": get("f", 116)[0],
            "units": head[123],
            "qform": get("h", 252)[0],
            "sform": get("h", 254)[0],
            "quatern": get("6f", 256),
            "srow": get("12f", 280),
        }
    return {
        "pair": head[4:6] == b"ni",
        "dim": get("8q", 16),
        "type": get("h", 12)[0],
        "pixdim": get("8d", 104),
        "offset": get("q", 168)[0],
        "slope": get("d", 176)[0],
        "intercept": get("d", 184)[0],
        "qform": get("i", 344)[0],
        "sform": get("i", 348)[0],
        "quatern": get("6d", 352),
        "srow": get("12d", 400),
        "units": get("i", 500)[0] & 0xFF,
    }


def _shape(name: str, header: dict[str, Any]) -> tuple[int, ...]:
    """(i, j, k). Raises ScanRefused for anything that is not one volume of one number a voxel."""
    count, *sizes = header["dim"]
    if not 1 <= count <= 7 or min(sizes[:count]) < 1:
        raise ScanRefused("bad_header", f"{name}: the header declares dimensions {header['dim']}; it is damaged")
    sizes = sizes[:count] + [1] * (7 - count)
    if sizes[3] > 1:
        raise ScanRefused(
            "time_series", f"{name}: {sizes[3]} volumes in one file (a time or b-value series). Store each on its own"
        )
    if max(sizes[4:]) > 1:
        raise ScanRefused("not_a_volume", f"{name}: several numbers a voxel ({sizes[4:]}): a vector field, no image")
    return tuple(sizes[:3])


def _dtype(name: str, header: dict[str, Any], order: str) -> np.dtype[np.generic]:
    code = header["type"]
    if code in COLOUR:
        raise ScanRefused("colour", f"{name}: a colour image (NIfTI data type {code}), not measured values")
    if code not in TYPES:
        raise ScanRefused("unsupported_values", f"{name}: NIfTI data type {code} is not a whole or real number")
    return np.dtype(order + TYPES[code])


def _affine(name: str, header: dict[str, Any]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """(4, 4) from index (i, j, k, 1) to LPS millimetres, and remarks."""
    sform = np.vstack([np.array(header["srow"], dtype=np.float64).reshape(3, 4), [0, 0, 0, 1]])
    spacing = np.abs(np.array(header["pixdim"][1:4], dtype=np.float64))
    remarks: tuple[str, ...] = ()
    broken = header["sform"] > 0 and not sform[:3, :3].any(axis=0).all()
    if header["sform"] > 0 and not broken:
        affine = sform
        if header["qform"] > 0:
            corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in _shape(name, header)), 1]]).T
            if not np.allclose(sform @ corners, _qform(header) @ corners, atol=0.1 * spacing.max()):
                remarks = ("sform and qform differ; the sform is used",)
    elif header["qform"] > 0:
        affine = _qform(header)
    else:
        affine = np.diag([*spacing, 1.0])
        remarks = ("no orientation in the header (sform and qform unset): first axis taken as left to right",)
    if broken:
        remarks = ("the sform is empty and was passed over", *remarks)
    affine = affine.copy()
    affine[:3] *= UNIT_MM.get(header["units"] & 7, 1.0)
    return RAS_TO_LPS @ affine, remarks


def _qform(header: dict[str, Any]) -> NDArray[np.float64]:
    """Method 2 of nifti1.h: a rotation as a quaternion, the voxel size and a handedness."""
    b, c, d, x, y, z = (float(v) for v in header["quatern"])
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    size = np.abs(np.array(header["pixdim"][1:4], dtype=np.float64))
    size[2] *= -1.0 if header["pixdim"][0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * size
    affine[:3, 3] = x, y, z
    return affine


def _check_gzip_length(name: str, grid: Grid) -> None:
    """Raises ScanRefused when a gzip file's last four bytes, its unpacked length (RFC 1952), contradict the header.

    Finds a cut file without unpacking it. Files of several gzip members end in the last one's length only; these
    are told from cut ones by unpacking.
    """
    if grid.compression != "gzip":
        return
    with grid.data.open("rb") as file:
        file.seek(-4, 2)
        (length,) = struct.unpack("<I", file.read(4))
    if length < (grid.offset + grid.n_bytes) % 2**32 or length > (grid.offset + grid.n_bytes) % 2**32 + 2**20:
        for _ in value_blocks(name, grid):
            pass


def _is_blank(grid: Grid) -> bool:
    """Whether the affine is what a tool writes that knows nothing: steps of exactly 1 along the axes."""
    steps = np.abs(grid.affine[:3, :3])
    return bool((np.sort(steps, axis=None) == [0] * 6 + [1] * 3).all())


def _refuse_ct_rate(name: str) -> None:
    """CT-RATE's first release has a blank header and unscaled values; its names are known, so it is refused.

    Source: discussions 58, 65 and 66 of ibrahimhamamci/CT-RATE.
    """
    if CT_RATE_NAME.match(without_ending(name).rsplit("/", 1)[-1]):
        raise ScanRefused(
            "blank_header",
            f"{name}: a CT-RATE volume whose header is blank (1 x 1 x 1 mm, no rescale). Use the folder "
            "train_fixed or valid_fixed instead",
        )
