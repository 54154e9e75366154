"""DeepLesion: folders of 16-bit grey PNG slices, HU = value - 32768, numbered from head to foot.

A folder (patient_study_series) can hold several separate blocks of slices, so a scan is one block: `Slice_range` of
DL_info.csv where that table lies in the folder or above it, else a run of consecutive numbers. Spacing is only in
the table (`Spacing_mm_px_`: x, y, z); without it the scan is usable with nominal 1 mm steps and says so.
"""

from __future__ import annotations

import csv
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from clear.errors import ScanRefused
from clear.scans import Scan
from clear.volume import Volume, stack_geometry

HU_OFFSET = 32768
BELOW_AIR = 30768  # -2000 HU: a block that lies wholly below it is not HU + 32768
SIDE_MOST = 8192
TABLE = "*DL_info*.csv"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_NUMBERED = re.compile(r"^(.*?)(\d{1,9})$")
_SERIES = re.compile(r"^(\d{6})_\d{2}_\d{2}$")
NO_ORIGIN = "no origin in the files: positions follow the slice numbers"
NO_SPACING = "no DL_info.csv: spacing unknown, 1 mm assumed"


@dataclass(frozen=True)
class Block:
    """A row of DL_info.csv, as far as it concerns a block: inclusive slice numbers, spacing (z, y, x), patient."""

    first: int
    last: int
    spacing_mm: tuple[float, float, float]
    patient: str


def png_header(head: bytes) -> dict[str, int] | None:
    """width, height, bits and colour type of a PNG's IHDR chunk (ISO/IEC 15948, 11.2.2); None for anything else."""
    if len(head) < 33 or not head.startswith(PNG_MAGIC) or head[12:16] != b"IHDR":
        return None
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    return {"width": width, "height": height, "bits": bits, "colour": colour}


def series_from_pngs(records: Iterable[tuple[str, Mapping[str, int]]], root: Path) -> list[Scan]:
    """Scans of all PNG files found: (path relative to root, `png_header`) each.

    Grey files whose names end in a number count; a folder of any other pictures is no scan. A folder of 8-bit ones
    is refused when its names are numbers alone, as windowed copies of DeepLesion are.
    """
    stacks: dict[tuple[str, str], dict[int, tuple[str, Mapping[str, int]]]] = {}
    for name, header in records:
        path = PurePosixPath(name)
        numbered = _NUMBERED.match(path.stem)
        if numbered and header["colour"] == 0 and (header["bits"] == 16 or (header["bits"] == 8 and not numbered[1])):
            folder = path.parent.as_posix()
            stacks.setdefault((folder, numbered[1]), {})[int(numbered[2])] = (name, header)
    tables: dict[Path, dict[str, list[Block]]] = {}
    scans: list[Scan] = []
    for (folder, prefix), files in sorted(stacks.items()):
        if len(files) == 1 and not prefix and next(iter(files.values()))[1]["bits"] == 8:
            continue  # one picture called 1.png is no copy of a series
        series = prefix.rstrip("_") or (PurePosixPath(folder).name if folder != "." else root.resolve().name)
        blocks = _table_above(root / folder, root, tables).get(series, [])
        scans += _stack_scans(series, folder, prefix, files, blocks, root)
    return scans


def read(scan: Scan) -> Volume:
    """One block as a volume. Raises ScanRefused."""
    numbers = [_number(file) for file in scan.files]
    stack = np.stack([_read_png(path, file, scan) for path, file in zip(scan.paths, scan.files, strict=True)])
    if stack.max() < BELOW_AIR:
        raise ScanRefused(
            "not_hu", f"{scan.source}: no value above {stack.max()}, though air is 31744 in HU + 32768; not HU"
        )
    hu = (stack.astype(np.int32) - HU_OFFSET).astype(np.int16)
    z, y, x = scan.spacing_mm or (1.0, 1.0, 1.0)
    positions = np.zeros((len(numbers), 3))
    positions[:, 2] = -z * np.array(numbers)
    geometry = stack_geometry(positions, (1, 0, 0), (0, 1, 0), hu.shape[1:], (y, x), slice_spacing_mm=z)
    return Volume.from_stack(hu, geometry, "CT", remarks=scan.remarks)


def _stack_scans(
    series: str,
    folder: str,
    prefix: str,
    files: Mapping[int, tuple[str, Mapping[str, int]]],
    blocks: list[Block],
    root: Path,
) -> list[Scan]:
    """The blocks of one folder. Slices that the table does not list make blocks of their own."""
    known = _SERIES.match(series)
    left = set(files)
    found: list[tuple[list[int], Block | None]] = []
    for row in blocks:
        numbers = [n for n in sorted(files) if row.first <= n <= row.last]
        left -= set(numbers)
        if numbers:
            found.append((numbers, row))
    found += [(run, None) for run in _runs(sorted(left))]
    scans = []
    for numbers, block in found:
        first, last = (block.first, block.last) if block else (numbers[0], numbers[-1])
        own = f"{series}_{first:03d}-{last:03d}"
        # a series name of DeepLesion is unique by itself and label tables use it; any other needs its path
        parent = PurePosixPath(folder) if prefix else PurePosixPath(folder).parent
        scan_id = own if known else (parent / own).as_posix()
        spacing = block.spacing_mm if block else (blocks[0].spacing_mm if blocks else None)
        remarks = [NO_ORIGIN] if spacing else [NO_SPACING]
        if block and len(numbers) < last - first + 1:
            remarks.append(f"{len(numbers)} of the {last - first + 1} slices of Slice_range are present")
        headers = [files[n][1] for n in numbers]
        reason, message = _judge(folder if folder != "." else series, headers)
        scans.append(
            Scan(
                scan_id=scan_id,
                patient_id=str(int(known[1])) if known else (block.patient if block else None),
                format="deeplesion",
                modality="CT",
                plane="axial",
                n_slices=len(numbers),
                shape=(headers[0]["height"], headers[0]["width"]),
                spacing_mm=spacing,
                verdict="refused" if reason else "use",
                reason=reason,
                message=message,
                remarks=() if reason else tuple(remarks),
                source=folder,
                files=tuple(files[n][0] for n in reversed(numbers)),  # feet first
                root=root,
            )
        )
    return scans


def _judge(folder: str, headers: list[Mapping[str, int]]) -> tuple[str, str]:
    """(reason, message) of a block that cannot be used, ("", "") otherwise."""
    if any(header["bits"] != 16 for header in headers):
        return "eight_bit_png", (
            f"{folder}: 8-bit PNG slices. DeepLesion's HU are 16-bit (HU + 32768); these are windowed pictures. "
            "Use the original Images_png"
        )
    sizes = {(header["height"], header["width"]) for header in headers}
    if len(sizes) > 1:
        return "mixed_shapes", f"{folder}: slices of different sizes ({sorted(sizes)}) are not one volume"
    if max(max(size) for size in sizes) > SIDE_MOST or min(min(size) for size in sizes) < 1:
        return "too_large", f"{folder}: slices of {sorted(sizes)[0]} pixels; at most {SIDE_MOST} a side are read"
    return "", ""


def _read_png(path: Path, file: str, scan: Scan) -> NDArray[np.uint16]:
    """(rows, columns) uint16 of one slice. Raises ScanRefused."""
    import SimpleITK as sitk

    with path.open("rb") as opened:
        header = png_header(opened.read(64))
    if (
        header is None
        or (header["height"], header["width"]) != scan.shape
        or (header["bits"], header["colour"]) != (16, 0)
    ):
        raise ScanRefused("changed_since_plan", f"{file}: no longer the {scan.shape} 16-bit slice that was planned")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="PNGImageIO")), dtype=np.uint16)
    except RuntimeError:
        raise ScanRefused("truncated_pixel_data", f"{file}: the PNG is cut off or damaged. Fetch it again") from None


def _number(file: str) -> int:
    numbered = _NUMBERED.match(PurePosixPath(file).stem)
    if numbered is None:
        raise ScanRefused("bad_header", f"{file}: expected a name that ends in a slice number, such as 103.png")
    return int(numbered[2])


def _runs(numbers: list[int]) -> list[list[int]]:
    """Runs of consecutive numbers."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return runs


def _table_above(folder: Path, root: Path, tables: dict[Path, dict[str, list[Block]]]) -> dict[str, list[Block]]:
    """DL_info.csv of the nearest folder upward, to `root`: series name to blocks; {} without one."""
    for place in (folder, *folder.parents):
        if place not in tables:
            found = sorted(path for path in place.glob(TABLE) if path.is_file())
            tables[place] = _read_table(found[0]) if found else {}
        if tables[place] or place == root:
            return tables[place]
    return {}


def _read_table(path: Path) -> dict[str, list[Block]]:
    """Blocks of each series; rows that cannot be understood are left out, as their slices still make blocks."""
    blocks: dict[str, dict[tuple[int, int], Block]] = {}
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                series = row["File_name"].rsplit("_", 1)[0]
                first, last = (int(word) for word in row["Slice_range"].split(","))
                x, y, z = (float(word) for word in row["Spacing_mm_px_"].split(","))
                patient = row["Patient_index"].strip()
            except (KeyError, ValueError, AttributeError):
                continue
            if min(x, y, z) > 0 and first <= last:
                blocks.setdefault(series, {})[first, last] = Block(first, last, (z, y, x), patient)
    return {series: [found[key] for key in sorted(found)] for series, found in blocks.items()}
