"""DICOM: series of files as scans, and scans as volumes.

`read_header` looks at one file, `series_from_headers` judges all series of a folder tree from these records alone, and
`read_series` reads the voxels of one. The parts: `dicom_elements` and `dicom_values` (bytes to values), `dicom_header`
(values to a record), `dicom_kinds` (what is no volume), `dicom_series` (which images form one: all rules are listed
there; `dicom_split`, `dicom_stack` and `dicom_hu` carry them out) and `dicom_pixels` (stored values to HU).

What is used is CT, MR and PT in any standard transfer syntax, single frames and enhanced multi-frame, with or without
preamble. Real world value mappings and VOI windows are not applied: HU come from the rescale tags alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.errors import ScanRefused
from clear.formats import dicom_pixels
from clear.formats.dicom_elements import Damaged, NotDicom, Parsed
from clear.formats.dicom_header import Record, read_record, record_of
from clear.formats.dicom_hu import check_values, padding_hu
from clear.formats.dicom_image import Image, images_of
from clear.formats.dicom_kinds import SENTENCES
from clear.formats.dicom_series import group_series, most_common, stacks_of
from clear.formats.dicom_stack import Stack, geometry_of
from clear.scans import Scan
from clear.volume import Volume

READABLE_ANYWAY = ("not_selected", "not_in_table")  # set aside by the user's choice, not by what they are


def read_header(path: Path) -> dict[str, Any] | None:
    """What the header of one file says, as JSON-able data; None when the file is no DICOM.

    A pure function of the content; damage is recorded, not raised. Raises OSError when the file cannot be read.
    """
    return read_record(path)


def series_from_headers(records: Iterable[tuple[str, dict[str, Any]]], root: Path) -> list[Scan]:
    """All series of a folder tree, each with its verdict, geometry and remarks, sorted by scan_id.

    records: (path relative to `root`, "/"-separated; what `read_header` returned). Only headers are looked at,
    except where two files claim one position: then their pixels are compared.
    """
    known = [(file, record) for file, record in records if record["kind"] != "directory"]
    first_day = _first_days(record for _, record in known)
    scans = [
        scan
        for series_id, group in group_series(known).items()
        for scan in _scans_of(series_id, group, root, first_day)
    ]
    return sorted(scans, key=lambda scan: scan.scan_id)


def read_series(scan: Scan) -> Volume:
    """The voxels of one scan, HU as int16 for CT and float32 for the rest.

    Headers are read again together with the pixels, from the same bytes, so nothing can be stale. Raises ScanRefused
    naming the file: `truncated_pixel_data`, `damaged_pixel_data`, `changed_since_plan`, ... or what the plan said.
    """
    if scan.verdict != "use" and scan.reason not in READABLE_ANYWAY:
        raise ScanRefused(scan.reason, scan.message)
    images: list[Image] = []
    remarks: list[str] = []
    stack = np.empty((0, 0, 0), np.int16 if scan.modality == "CT" else np.float32)
    for file in scan.files:
        record, parsed = _read(scan.root, file)
        if not images:
            _check_plan(scan, file, record)
            stack = np.empty((scan.n_slices, record["rows"], record["columns"]), stack.dtype)
        at = len(images)
        images += images_of([(file, record)])
        shape = record["rows"], record["columns"]
        if record["modality"] != scan.modality or shape != stack.shape[1:] or len(images) > len(stack):
            raise _changed(scan, file)
        with _naming(file):
            remarks += _read_values(images[at:], parsed, scan.root / file, stack[at:])
    if not images or len(images) != len(stack):
        raise _changed(scan, scan.source)
    geometry = geometry_of(images)
    padding = None
    if stack.dtype == np.int16:
        padding, ignored = padding_hu(images)
        remarks += [*ignored, *check_values(stack, images)]
    return Volume.from_stack(stack, geometry, scan.modality, padding, [*scan.remarks, *dict.fromkeys(remarks)])


def _scans_of(series_id: str, group: list[tuple[str, Record]], root: Path, first_day: dict[str, int]) -> list[Scan]:
    """The scans of one series: one, or several if it holds several volumes."""
    common = _common(series_id, group, root, first_day)
    usable = [(file, record) for file, record in group if record["kind"] == "broken" or not record["aside"]]
    if not usable:
        reasons = [record["aside"] for _, record in group]
        reason = most_common(reasons)
        what = "; ".join(f"{reasons.count(name)} file(s): {SENTENCES[name]}" for name in sorted(set(reasons)))
        source = common["source"]
        return [Scan(**common, verdict="set aside", reason=reason, message=f"{source}: {what}", n_slices=0)]
    remarks = _aside_remarks(group)
    try:
        usable, more = _intact(usable, root)
        stacks = stacks_of(usable, _comparer(root))
    except ScanRefused as refusal:
        count = sum(len(record.get("slices", [])) for _, record in usable)
        message = str(refusal)
        if not any(file in message for file in common["files"]):
            message = f"{common['files'][0]} and its series: {message}"
        return [Scan(**common, verdict="refused", reason=refusal.reason, message=message, n_slices=count)]
    return [_scan(stack, common, (*remarks, *more)) for stack in stacks]


def _scan(stack: Stack, common: dict[str, Any], remarks: Sequence[str]) -> Scan:
    first, geometry = stack.images[0].record, stack.geometry
    shape = (first["columns"], first["rows"]) if geometry.transpose else (first["rows"], first["columns"])
    files = tuple(dict.fromkeys(image.file for image in stack.images))
    return Scan(
        **{
            **common,
            "scan_id": common["scan_id"] + stack.suffix,
            "kernel": first["kernel"],
            "thickness_mm": first["thickness_mm"],
            "contrast": first["contrast"],
            "files": files,
            "source": _source(files),
        },
        plane=geometry.plane,
        n_slices=len(stack.images),
        shape=shape,
        spacing_mm=geometry.spacing_mm,
        remarks=tuple(dict.fromkeys([*remarks, *stack.remarks])),
    )


def _common(series_id: str, group: list[tuple[str, Record]], root: Path, first_day: dict[str, int]) -> dict[str, Any]:
    """The fields of a Scan that do not depend on how its series is judged."""
    images = [record for _, record in group if record["kind"] == "image"]
    first: Record = next((r for r in images if not r["aside"]), images[0] if images else {})
    patient, day = first.get("patient_id"), first.get("study_day")
    files = tuple(file for file, _ in group)
    return {
        "scan_id": series_id,
        "patient_id": patient,
        "study_uid": first.get("study_uid") or None,
        "series_uid": first.get("series_uid") or None,
        "format": "dicom",
        "modality": first.get("modality", ""),
        "files": files,
        "source": _source(files),
        "root": root,
        "manufacturer": first.get("manufacturer"),
        "kernel": first.get("kernel"),
        "thickness_mm": first.get("thickness_mm"),
        "contrast": first.get("contrast"),
        "days_since_first": day - first_day[patient] if patient in first_day and day is not None else None,
    }


def _first_days(records: Iterable[Record]) -> dict[str, int]:
    days: dict[str, int] = {}
    for record in records:
        patient, day = record.get("patient_id"), record.get("study_day")
        if patient and day is not None:
            days[patient] = min(day, days.get(patient, day))
    return days


def _source(files: Sequence[str]) -> str:
    """The file, or the innermost folder that holds all of them ("." at the top)."""
    if len(files) == 1:
        return files[0]
    parents = [PurePosixPath(file).parts[:-1] for file in files]
    shared = []
    for parts in zip(*parents, strict=False):  # folders lie at different depths
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) or "."


def _aside_remarks(group: list[tuple[str, Record]]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for file, record in group:
        if record.get("aside"):
            by_reason.setdefault(record["aside"], []).append(file)
    return [f"{len(files)} {reason} image(s) left out, the first {files[0]}" for reason, files in by_reason.items()]


def _intact(group: list[tuple[str, Record]], root: Path) -> tuple[list[tuple[str, Record]], list[str]]:
    """Files without a problem. A damaged one is left out only if the same image is there unharmed."""
    whole = [(file, record) for file, record in group if not record["problem"]]
    bad = [(file, record) for file, record in group if record["problem"]]
    for file, record in bad:
        if not any(_is_rest_of(root, file, record, *other) for other in whole):
            reason, text = record["problem"]
            raise ScanRefused(reason, f"{file} {text}")
    remarks = [f"{len(bad)} damaged file(s) left out that are there unharmed too, the first {bad[0][0]}"] if bad else []
    return whole, remarks


def _is_rest_of(root: Path, file: str, damaged: Record, whole_file: str, whole: Record) -> bool:
    """Whether a damaged file was once the same as a whole one: one SOPInstanceUID, or the same pixels up to its end."""
    if damaged.get("sop_uid"):
        return bool(damaged["sop_uid"] == whole["sop_uid"])
    if not damaged.get("slices") or damaged["syntax"] != whole["syntax"] or damaged["slices"] != whole["slices"]:
        return False
    try:
        parts = [record_of((root / name).read_bytes())[1] for name in (file, whole_file)]
    except (OSError, NotDicom, Damaged, struct.error):
        return False
    left, right = (part.data[part.pixels.offset :] if part.pixels else b"" for part in parts)
    return bool(left) and right.startswith(left)


def _comparer(root: Path) -> Callable[[Image, Image], bool]:
    """Compares the pixels of two files; each pair is read once."""
    known: dict[tuple[str, str], bool] = {}

    def same(a: Image, b: Image) -> bool:
        key = (a.file, b.file)
        if key not in known:
            known[key] = _same_pixels(root, a.file, b.file)
        return known[key]

    return same


def _same_pixels(root: Path, a: str, b: str) -> bool:
    (record_a, parsed_a), (record_b, parsed_b) = _read(root, a), _read(root, b)
    same_coding = all(
        record_a[key] == record_b[key] for key in ("syntax", "rows", "columns", "frames", "bits_allocated")
    )
    if same_coding and dicom_pixels.pixel_bytes(record_a, parsed_a) == dicom_pixels.pixel_bytes(record_b, parsed_b):
        return True
    shape = record_a["frames"], record_a["rows"], record_a["columns"]
    if shape != (record_b["frames"], record_b["rows"], record_b["columns"]):
        return False
    values_a, values_b = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for file, record, parsed, out in ((a, record_a, parsed_a, values_a), (b, record_b, parsed_b, values_b)):
        with _naming(file):
            _read_values(images_of([(file, record)]), parsed, root / file, out)
    return np.array_equal(values_a, values_b)


def _read(root: Path, file: str) -> tuple[Record, Parsed]:
    """Record and bytes of one file. Raises ScanRefused naming it."""
    try:
        data = (root / file).read_bytes()
    except OSError as error:
        raise ScanRefused(
            "unreadable_file", f"{file}: cannot be read ({error.strerror or 'I/O error'}); check disk and access rights"
        ) from None
    try:
        record, parsed = record_of(data)
    except (NotDicom, Damaged, struct.error):
        raise ScanRefused("damaged_header", f"{file} has a damaged header; fetch the file again") from None
    if record.get("problem"):
        reason, text = record["problem"]
        raise ScanRefused(reason, f"{file} {text}")
    return record, parsed


def _read_values(images: Sequence[Image], parsed: Parsed, path: Path, out: NDArray[Any]) -> list[str]:
    """Values of one file's frames into the first slices of `out`; returns remarks. Raises ScanRefused."""
    record = images[0].record
    if dicom_pixels.needs_gdcm(record):
        values = dicom_pixels.gdcm_values(record, parsed, path)
        out[0] = dicom_pixels.round_to_int16(values) if out.dtype == np.int16 else values
        return ["decoded with SimpleITK (GDCM): 12-bit or progressive JPEG"]
    # `out` goes on with the next file's slices; a file with too few frames is refused by `stored_frames`
    for image, stored, values_out in zip(images, dicom_pixels.stored_frames(record, parsed), out, strict=False):
        if out.dtype == np.int16:
            dicom_pixels.to_hu(stored, *image.rescale, values_out)
        else:
            dicom_pixels.to_float(stored, *image.rescale, values_out)
    return []


class _naming:
    """Puts the file's name before the message of a ScanRefused that lacks it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ScanRefused) and not str(error).startswith(self.file):
            raise ScanRefused(error.reason, f"{self.file} {error}") from None


def _check_plan(scan: Scan, file: str, record: Record) -> None:
    """The first file must be what the plan was made from, before memory is taken for all of them."""
    shape = (record["rows"], record["columns"])
    if record["kind"] != "image" or record["aside"] or scan.shape not in (shape, shape[::-1]):
        raise _changed(scan, file)
    expected = len(scan.files) * record["frames"]
    if (record["frames"] == 1 or len(scan.files) == 1) and scan.n_slices != expected:
        raise _changed(scan, file)


def _changed(scan: Scan, file: str) -> ScanRefused:
    return ScanRefused(
        "changed_since_plan",
        f"{file}: {scan.scan_id} had {scan.n_slices} slices of {scan.shape} when the scans were listed and "
        "has not now; list them again",
    )
