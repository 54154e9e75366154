"""NRRD/NHDR and MetaImage (MHA/MHD): geometry through SimpleITK, values read here in bounded blocks.

SimpleITK gives the affine (LPS millimetres, https://itk.org/Wiki/ITK/MetaIO/Documentation and
http://teem.sourceforge.net/nrrd/format.html for the headers). It is not asked for the values: a header can name any
file as its data, claim any size, and a cut compressed stream is not always reported. So the few fields that say where
the values lie are read here first; a data file must be a regular file in the header's own folder.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clear.errors import ScanRefused
from clear.formats.grid import Grid, check_size, grid_scan, grid_volume, look, read_array, value_blocks
from clear.formats.quiet import quiet_stderr
from clear.scans import Scan
from clear.volume import Volume

NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
META_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_NM": "NM", "MET_MOD_US": "US"}
COLOUR_KINDS = ("rgb", "rgba", "color", "vector", "3-color", "4-color", "3-vector", "4-vector", "list", "point")
HEADER_MOST = 1 << 20
_META = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|TransformType|ID|Name)\s*=", re.ASCII)


def probe(head: bytes, path: Path) -> bool:
    """Whether the content begins as NRRD or MetaImage does."""
    return head.startswith(b"NRRD000") or bool(_META.match(head) and re.search(rb"^\s*NDims\s*=", head, re.MULTILINE))


def scans(path: Path, root: Path, modality: str | None = None) -> list[Scan]:
    """The one scan of a file. Raises ScanRefused."""
    name = path.relative_to(root).as_posix()
    format, grid = read_grid(path, name)
    seen = look(value_blocks(name, grid))
    return [grid_scan(path, root, format, grid, seen, modality)]


def read(scan: Scan) -> Volume:
    """The volume of a file. Raises ScanRefused."""
    _, grid = read_grid(scan.paths[0], scan.source)
    return grid_volume(scan, read_array(scan.source, grid), grid)


def read_grid(path: Path, name: str) -> tuple[str, Grid]:
    """("nrrd" or "mha", the checked header) of one file. Raises ScanRefused."""
    with path.open("rb") as file:
        head = file.read(HEADER_MOST)
    if head.startswith(b"NRRD000"):
        format, fields, where = "nrrd", *_nrrd_fields(name, head)
        facts = _nrrd(name, path, fields, where)
    else:
        format, fields, where = "mha", *_meta_fields(name, head)
        facts = _meta(name, path, fields, where)
    shape = facts.pop("shape")
    skip = facts.pop("skip")
    grid = Grid(shape=shape, affine=np.eye(4), **facts)
    if skip == -1:  # the values are the file's last bytes
        grid = replace(grid, packed_from=max(0, grid.data.stat().st_size - grid.n_bytes))
    elif grid.compression:  # NRRD counts the skip in the unpacked stream
        grid = replace(grid, offset=skip)
    else:
        grid = replace(grid, packed_from=grid.packed_from + skip)
    check_size(name, grid)
    return format, replace(grid, affine=_affine(path, name, format, shape))


def _affine(path: Path, name: str, format: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(4, 4) from index (k, j, i, 1) to LPS, as SimpleITK reads the header."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if format == "nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        with quiet_stderr():
            reader.ReadImageInformation()
    except RuntimeError:
        raise ScanRefused("bad_header", f"{name}: SimpleITK cannot read its {format.upper()} header") from None
    if reader.GetSize() != shape[::-1]:
        raise ScanRefused("bad_header", f"{name}: the header's sizes are contradictory: {shape[::-1]}")
    steps = np.reshape(reader.GetDirection(), (3, 3)) * np.array(reader.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = steps[:, ::-1]
    affine[:3, 3] = reader.GetOrigin()
    return affine


def _nrrd_fields(name: str, head: bytes) -> tuple[dict[str, str], int]:
    """The `field: value` and `key:=value` lines and where the header ends."""
    end = re.search(rb"\r?\n\r?\n", head)
    text = (head[: end.start()] if end else head).decode("latin-1")
    fields: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        key, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            fields[key.strip().lower()] = value.removeprefix("=").strip()
    if end is None and len(head) == HEADER_MOST:
        raise ScanRefused("bad_header", f"{name}: the NRRD header does not end")
    return fields, end.end() if end else len(head)


def _nrrd(name: str, path: Path, fields: dict[str, str], where: int) -> dict[str, Any]:
    """shape, dtype and place of the values of an NRRD header."""
    sizes = _numbers(name, fields.get("sizes", ""))
    kinds = fields.get("kinds", "").lower().split()
    if len(sizes) != 3 or any(kind in COLOUR_KINDS for kind in kinds):
        if len(sizes) > 3 and any(kind in COLOUR_KINDS[:-2] for kind in kinds):
            raise ScanRefused("colour", f"{name}: several numbers a voxel ({fields['kinds']}): colour or vectors")
        reason = "time_series" if len(sizes) > 3 else "not_a_volume"
        raise ScanRefused(
            reason, f"{name}: an array of sizes {fields.get('sizes', '?')} ({' '.join(kinds)}), no volume"
        )
    type_ = " ".join(fields.get("type", "").lower().split())
    if type_ not in NRRD_TYPES:
        raise ScanRefused("unsupported_values", f"{name}: NRRD type {type_[:40]!r} is not a whole or real number")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise ScanRefused("unsupported_encoding", f"{name}: NRRD encoding {encoding[:20]!r}; expected raw or gzip")
    if _numbers(name, fields.get("line skip", fields.get("lineskip", "0")))[0]:
        raise ScanRefused("unsupported_encoding", f"{name}: NRRD line skip is not read; store it as one .nrrd file")
    elsewhere = fields.get("data file", fields.get("datafile"))
    remarks: tuple[str, ...] = ()
    if "space directions" not in fields:
        remarks = ("no orientation in the header: first axis taken as right to left",)
    return {
        "shape": tuple(sizes[::-1]),
        "dtype": np.dtype((">" if fields.get("endian", "").lower() == "big" else "<") + NRRD_TYPES[type_]),
        "data": path if elsewhere is None else _beside(name, path, elsewhere),
        "packed_from": where if elsewhere is None else 0,
        "compression": "" if encoding == "raw" else "gzip",
        "skip": _numbers(name, fields.get("byte skip", fields.get("byteskip", "0")))[0],
        "modality": fields.get("modality", "").upper() if fields.get("modality", "").upper() in ("CT", "MR") else "",
        "remarks": remarks,
    }


def _meta_fields(name: str, head: bytes) -> tuple[dict[str, str], int]:
    """The `key = value` lines up to ElementDataFile, which is the last (MetaIO), and where it ends."""
    fields: dict[str, str] = {}
    at = 0
    while "elementdatafile" not in fields:
        end = head.find(b"\n", at)
        end = len(head) if end < 0 else end
        key, equals, value = head[at:end].decode("latin-1").partition("=")
        if not equals or len(key) > 80:
            raise ScanRefused("bad_header", f"{name}: the MetaImage header names no ElementDataFile; it is damaged")
        fields[key.strip().lower()] = value.strip()
        at = end + 1
    return fields, at


def _meta(name: str, path: Path, fields: dict[str, str], where: int) -> dict[str, Any]:
    """shape, dtype and place of the values of a MetaImage header."""
    sizes = _numbers(name, fields.get("dimsize", ""))
    if len(sizes) != 3:
        reason = "time_series" if len(sizes) > 3 else "not_a_volume"
        raise ScanRefused(reason, f"{name}: an array of sizes {fields.get('dimsize', '?')}, not one volume")
    if fields.get("elementnumberofchannels", "1") != "1":
        raise ScanRefused("colour", f"{name}: several numbers a voxel (ElementNumberOfChannels): colour or vectors")
    type_ = fields.get("elementtype", "").upper()
    if type_ not in META_TYPES:
        raise ScanRefused("unsupported_values", f"{name}: MetaImage type {type_[:40]!r} is not a whole or real number")
    if not _yes(fields.get("binarydata", "True")):
        raise ScanRefused("unsupported_encoding", f"{name}: values written as text; store it as binary MetaImage")
    target = fields["elementdatafile"]
    local = target.upper() == "LOCAL"
    big = _yes(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "False")))
    directed = {"transformmatrix", "rotation", "orientation"} & fields.keys()
    return {
        "shape": tuple(sizes[::-1]),
        "dtype": np.dtype((">" if big else "<") + META_TYPES[type_]),
        "data": path if local else _beside(name, path, target),
        "packed_from": where if local else 0,
        "compression": "zlib" if _yes(fields.get("compresseddata", "False")) else "",
        "skip": 0 if local else _numbers(name, fields.get("headersize", "0"))[0],
        "modality": META_MODALITIES.get(fields.get("modality", "").upper(), ""),
        "remarks": () if directed else ("no orientation in the header: first axis taken as right to left",),
    }


def _beside(name: str, path: Path, target: str) -> Path:
    """The data file that a header names: a regular file in the header's folder. Raises ScanRefused."""
    if target.upper().startswith("LIST") or "%" in target:
        raise ScanRefused("several_data_files", f"{name}: its values lie in several files; store them in one")
    if "/" in target.replace("\\", "/") or target in ("", ".", ".."):
        raise ScanRefused(
            "data_file_elsewhere", f"{name}: its values are said to lie in {target[:80]!r}; expected a file beside it"
        )
    data = path.parent / target
    if not data.is_file():
        raise ScanRefused("data_file_missing", f"{name}: its data file {target[:80]!r} is not beside it. Copy it there")
    return data


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < -1 or max(numbers) > 2**40:
        raise ScanRefused("bad_header", f"{name}: the header holds {text[:60]!r} where sizes are expected")
    return numbers


def _yes(text: str) -> bool:
    return text[:1].upper() in ("T", "Y", "1")
