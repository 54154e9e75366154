"""The header of one DICOM file as a plain record: everything that a plan needs, nothing that names a patient.

A record is JSON-able, a pure function of the file's bytes, and holds one entry in `slices` for each frame. Names, birth
dates, addresses, accession numbers and descriptions are never read. The study date is kept as a day number, because
the plan needs days since the patient's first study.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

from clear.formats.dicom_elements import (
    DEFLATED_LE,
    MEDIA_STORAGE_CLASS,
    NATIVE_SYNTAXES,
    Damaged,
    MoreBytes,
    NotDicom,
    Parsed,
    fragments,
    parse,
)
from clear.formats.dicom_kinds import DIRECTORY_STORAGE, MODALITY_OF_CLASS, aside_reason, modality_of
from clear.formats.dicom_values import FRAME_GROUPS, SEQUENCES, SHARED_GROUPS, WANTED, Values

READ_STEPS = (1 << 16, 1 << 20, 1 << 24, 1 << 26)  # a header is usually in the first; bytes
MAX_SLICE_PIXELS = 1 << 26
MAX_FRAMES = 1 << 20

JPEG, J2K = "1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.4.20"
PLUGIN_SYNTAXES = frozenset(  # JPEG, lossless JPEG, JPEG-LS, JPEG 2000, HTJ2K and RLE, by pydicom and pylibjpeg
    {JPEG + "50", JPEG + "57", JPEG + "70", JPEG + "80", JPEG + "81", JPEG + "90", JPEG + "91"}
    | {J2K + "1", J2K + "2", J2K + "3", "1.2.840.10008.1.2.5"}
)
GDCM_SYNTAXES = frozenset({JPEG + "51", JPEG + "53", JPEG + "55"})  # 12-bit and progressive JPEG
LOSSY_SYNTAXES = GDCM_SYNTAXES | {JPEG + "50", JPEG + "81"}

# What can tell apart several volumes in one series, in the order in which it is tried: name -> (tags, kind)
VOLUME_ATTRIBUTES: dict[str, tuple[tuple[str, ...], type[str] | type[float]]] = {
    "ImageType": (("FrameType", "ImageType"), str),
    "ConvolutionKernel": (("ConvolutionKernel",), str),
    "KVP": (("KVP",), float),
    "SliceThickness": (("SliceThickness",), float),
    "EchoNumbers": (("EchoNumbers",), str),
    "EchoTime": (("EffectiveEchoTime", "EchoTime"), float),
    "InversionTime": (("InversionTime",), float),
    "DiffusionBValue": (("DiffusionBValue",), float),
    "TemporalPosition": (("TemporalPositionIndex", "TemporalPositionIdentifier"), float),
    "TemporalPositionTimeOffset": (("TemporalPositionTimeOffset",), float),
    "TriggerTime": (("NominalCardiacTriggerDelayTime", "TriggerTime"), float),
    "StackID": (("StackID",), str),
    "AcquisitionNumber": (("FrameAcquisitionNumber", "AcquisitionNumber"), float),
}

Record = dict[str, Any]


def read_record(path: Path) -> Record | None:
    """The record of one file, read no further than needed; None when it is no DICOM file.

    Whatever is wrong with its content is in the record's `problem`, a (reason, sentence part) pair. Raises OSError
    only: where the file cannot be read at all.
    """
    with path.open("rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size)


def record_of(data: bytes) -> tuple[Record, Parsed]:
    """The record of a complete file in memory, and where its pixels are. Raises NotDicom and Damaged."""
    parsed = parse(data, WANTED, SEQUENCES, whole=True)
    return _record(parsed, _reader(parsed.data), len(parsed.data)), parsed


def _read(handle: BinaryIO, size: int) -> Record | None:
    data = b""
    for step in READ_STEPS:
        data += _read_at(handle, len(data), step - len(data))
        whole = len(data) >= size or len(data) < step
        try:
            parsed = parse(data, WANTED, SEQUENCES, whole=whole)
        except NotDicom:
            return None
        except MoreBytes:
            continue
        except (Damaged, struct.error) as error:
            detail = str(error) if isinstance(error, Damaged) else "a sequence in it does not end"
            return _broken("damaged_header", f"has a damaged header: {detail}; fetch the file again or remove it")
        if parsed.syntax == DEFLATED_LE:
            return _record(parsed, _reader(parsed.data), len(parsed.data))
        return _record(parsed, lambda position, count: _read_at(handle, position, count), size)
    return _broken("damaged_header", f"has a header larger than {READ_STEPS[-1] >> 20} MiB; remove the file")


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda position, count: data[position : position + count]


def _read_at(handle: BinaryIO, position: int, count: int) -> bytes:
    handle.seek(position)
    return handle.read(count)


def _broken(reason: str, text: str) -> Record:
    return {"kind": "broken", "problem": [reason, text]}


def _record(parsed: Parsed, read: Callable[[int, int], bytes], size: int) -> Record:
    """The record of parsed elements; read and size: the bytes that hold the pixels, and how many there are."""
    values = Values(parsed.elements, parsed.big_endian)
    sop_class = values.text("SOPClassUID") or _media_class(parsed)
    if sop_class == DIRECTORY_STORAGE:
        return {"kind": "directory", "problem": None}
    modality = modality_of(sop_class, values.text("Modality"))
    if not sop_class and not modality and (parsed.cut or parsed.pixels is None):
        return _broken("damaged_header", "ends inside its header or says nothing; fetch the file again or remove it")
    image_type = values.texts("ImageType")
    rows, columns = values.integer("Rows") or 0, values.integer("Columns") or 0
    samples, photometric = values.integer("SamplesPerPixel") or 1, values.text("PhotometricInterpretation").upper()
    has_pixels = (rows > 0 and columns > 0) or parsed.pixels is not None or sop_class in MODALITY_OF_CLASS
    colour = samples > 1 or photometric in ("RGB", "PALETTE COLOR") or photometric.startswith("YBR")
    record: Record = {
        "kind": "image",
        "problem": None,
        "aside": aside_reason(sop_class, modality, image_type, colour=colour, pixels=has_pixels),
        "syntax": parsed.syntax,
        "sop_class": sop_class,
        "sop_uid": values.text("SOPInstanceUID"),
        "series_uid": values.text("SeriesInstanceUID"),
        "study_uid": values.text("StudyInstanceUID"),
        "frame_of_reference": values.text("FrameOfReferenceUID"),
        "series_number": values.text("SeriesNumber"),
        "patient_id": values.name("PatientID"),
        "modality": modality,
        "image_type": image_type,
        "study_day": _day(values.text("StudyDate")),
        "manufacturer": values.name("Manufacturer"),
        "kernel": values.name("ConvolutionKernel"),
        "contrast": values.name("ContrastBolusAgent"),
        "thickness_mm": values.number("SliceThickness"),
        "rows": rows,
        "columns": columns,
        "samples": samples,
        "photometric": photometric,
        "bits_allocated": values.integer("BitsAllocated") or 16,
        "bits_stored": values.integer("BitsStored") or values.integer("BitsAllocated") or 16,
        "high_bit": values.integer("HighBit"),
        "signed": values.integer("PixelRepresentation") == 1,
        "frames": 1,
        "padding": None,
        "lossy": values.text("LossyImageCompression") == "01" or parsed.syntax in LOSSY_SYNTAXES,
        "rescale_type": values.text("RescaleType").upper(),
        "slices": [],
    }
    if record["aside"]:
        return record
    if record["high_bit"] is None:
        record["high_bit"] = record["bits_stored"] - 1
    record["padding"] = _padding(values, record["signed"])
    record["frames"] = _frame_count(values)
    record["slices"] = _slices(values, record)
    record["problem"] = _problem(record, parsed, read, size)
    return record


def _slices(values: Values, record: Record) -> list[dict[str, Any]]:
    """One entry a frame: its geometry, rescale and what may tell volumes apart. Per-frame values come first."""
    frames = values.items(FRAME_GROUPS)
    shared = [values.macros(item) for item in values.items(SHARED_GROUPS)]
    if not frames:
        return [_slice([values, *shared])] if record["frames"] == 1 else []
    layers = [[values.macros(frame), *shared, values] for frame in frames]
    record["kernel"] = record["kernel"] or _first(layers[0], Values.name, "ConvolutionKernel")
    record["thickness_mm"] = record["thickness_mm"] or _first(layers[0], Values.number, "SliceThickness")
    record["rescale_type"] = record["rescale_type"] or _first(layers[0], Values.text, "RescaleType") or ""
    return [_slice(frame) for frame in layers]


def _slice(layers: list[Values]) -> dict[str, Any]:
    split: dict[str, str | float] = {}
    for attribute, (names, kind) in VOLUME_ATTRIBUTES.items():
        for name in names:
            value = _first(layers, Values.text if kind is str else Values.number, name)
            if value is not None:
                split[attribute] = value
                break
    rescale = {name: _first(layers, Values.number, name) for name in ("RescaleSlope", "RescaleIntercept")}
    if any(rescale[name] is None and any(layer.raw(name).strip(b" \0") for layer in layers) for name in rescale):
        rescale["RescaleSlope"] = 0.0  # there, but no number: refused like a slope of 0
    gaps = (_first(layers, Values.number, name) for name in ("SpacingBetweenSlices", "SliceThickness"))
    return {
        "position": _vector(layers, "ImagePositionPatient", 3),
        "orientation": _vector(layers, "ImageOrientationPatient", 6),
        "spacing": _vector(layers, "PixelSpacing", 2),
        "gap_mm": next((gap for gap in gaps if gap is not None and gap > 0), None),
        "slope": rescale["RescaleSlope"],
        "intercept": rescale["RescaleIntercept"],
        "split": split,
    }


def _vector(layers: list[Values], name: str, count: int) -> list[float] | None:
    found = _first(layers, Values.numbers, name)
    return found if found is not None and len(found) == count else None


def _first(layers: list[Values], value: Callable[[Values, str], Any], name: str) -> Any:
    """The value of the first layer that has one."""
    for layer in layers:
        found = value(layer, name)
        if found not in (None, ""):
            return found
    return None


def _problem(record: Record, parsed: Parsed, read: Callable[[int, int], bytes], size: int) -> tuple[str, str] | None:
    """What makes an image unreadable, as far as the header and the file's size tell."""
    rows, columns, frames = record["rows"], record["columns"], record["frames"]
    if parsed.cut:
        return "truncated_pixel_data", "ends inside its header, before the pixel data; fetch the file again"
    if rows <= 0 or columns <= 0:
        return "damaged_header", f"says it has {rows} rows and {columns} columns; fetch the file again or remove it"
    if rows * columns > MAX_SLICE_PIXELS or frames > MAX_FRAMES:
        return "too_large", f"says it has {frames} frame(s) of {rows} x {columns} pixels, more than any scanner makes"
    if frames > 1 and len(record["slices"]) != frames:
        found = len(record["slices"])
        if not found:
            return "no_geometry", f"has {frames} frames, but does not say where each of them lies"
        return "damaged_header", f"has {frames} frames, but describes {found} of them; fetch the file again"
    if parsed.pixels is None:
        return "truncated_pixel_data", "has no pixel data; fetch the file again"
    if parsed.syntax not in NATIVE_SYNTAXES | PLUGIN_SYNTAXES | GDCM_SYNTAXES:
        return (
            "unsupported_compression",
            f"is compressed in a way that is not read here (transfer syntax {parsed.syntax or 'not given'}); "
            "write it anew without compression",
        )
    allocated, stored, high = record["bits_allocated"], record["bits_stored"], record["high_bit"]
    if parsed.pixels.tag != 0x7FE00010 or allocated not in (8, 16, 32) or (allocated == 8 and parsed.big_endian):
        return "unsupported_pixel_format", f"stores pixels as floats or in {allocated} bits; expected 8, 16 or 32 bits"
    if not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
        return "damaged_header", f"says bits stored {stored}, high bit {high} of {allocated}, which do not fit together"
    if parsed.pixels.length is not None:
        expected = rows * columns * frames * allocated // 8
        there = max(0, min(parsed.pixels.length, size - parsed.pixels.offset))
        if there < expected:
            return "truncated_pixel_data", f"has {there} of {expected} bytes of pixel data; fetch the file again"
        return None
    if parsed.syntax in NATIVE_SYNTAXES:
        return "damaged_header", "has compressed pixel data, but says it is uncompressed; write it anew"
    if parsed.syntax in GDCM_SYNTAXES and frames > 1:
        return "unsupported_compression", "has several frames in 12-bit or progressive JPEG; write it anew uncompressed"
    pieces, complete = fragments(read, parsed.pixels.offset)
    if not complete or len(pieces) < frames:
        return "truncated_pixel_data", "ends in the middle of its compressed pixel data; fetch the file again"
    return None


def _media_class(parsed: Parsed) -> str:
    raw = parsed.elements.get(MEDIA_STORAGE_CLASS, b"")
    return raw.decode("ascii", "replace").strip(" \0") if isinstance(raw, bytes) else ""


def _frame_count(values: Values) -> int:
    count = values.number("NumberOfFrames")
    if count is None:
        return max(1, len(values.items(FRAME_GROUPS)))
    return max(1, min(int(count), MAX_FRAMES + 1))


def _padding(values: Values, signed: bool) -> list[int] | None:
    """PixelPaddingValue and its range limit as stored values, low first (PS3.3 C.7.5.1.1.2).

    Both are 16 bits, signed as the pixels are, whatever their VR says: 63536 in a signed image is -2000.
    """
    value, limit = values.integer("PixelPaddingValue"), values.integer("PixelPaddingRangeLimit")
    if value is None:
        return None
    pair = [value, value if limit is None else limit]
    return sorted(v - 0x10000 if signed and v >= 0x8000 else v for v in pair)


def _day(text: str) -> int | None:
    digits = text.replace(".", "").replace("-", "")
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).toordinal() if len(digits) == 8 else None
    except ValueError:
        return None
