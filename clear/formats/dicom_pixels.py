"""Pixels of one DICOM file: stored values, and the HU or MR values that they mean.

Uncompressed pixels are mapped straight from the file's bytes: bits (PS3.5 8.1.1), then rescale (PS3.3 C.11.1.1.2),
once, in whole-array steps of about 0.1 ms for 512 x 512. Compressed ones are decoded by pydicom with the pylibjpeg
plugins (see DECODERS for two exceptions), never by whichever happens to be installed, so that every machine gets the
same values. JPEG processes 2/4, 6/8 and 10/12 (12-bit and progressive, two of them retired) are read by SimpleITK's
GDCM, and a remark says so. The decoders hold the interpreter lock: threads in one process gain nothing (measured), so
there are none.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from clear.errors import ScanRefused
from clear.formats.dicom_elements import Parsed, fragments
from clear.formats.dicom_header import GDCM_SYNTAXES, Record
from clear.formats.dicom_values import quiet_pydicom
from clear.formats.quiet import quiet_stderr

RLE = "1.2.840.10008.1.2.5"
DECODERS = {  # the rest by pylibjpeg
    "1.2.840.10008.1.2.4.50": "pillow",  # lossy: rounds as GDCM and most viewers do; libjpeg is off by a grey level
    RLE: "pydicom",  # pylibjpeg-rle is quicker, but ends the whole process on some damaged files
}
INT16 = np.iinfo(np.int16)
ITEM_HEAD = struct.Struct("<HHI")
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81 B.1.1.3, T.87 C.1.1


def stored_frames(record: Record, parsed: Parsed) -> Iterator[NDArray[np.integer]]:
    """Frames of stored values (rows, columns), sign and unused bits resolved, in the file's order.

    Raises ScanRefused `damaged_pixel_data` (its message lacks the file's name) when they cannot be decoded.
    """
    rows, columns, frames = record["rows"], record["columns"], record["frames"]
    pixels = parsed.pixels
    assert pixels is not None
    if pixels.length is not None:
        dtype = np.dtype(f"{'>' if parsed.big_endian else '<'}{'i' if record['signed'] else 'u'}{_bytes(record)}")
        flat = np.frombuffer(parsed.data, dtype, rows * columns * frames, pixels.offset)
        for frame in flat.reshape(frames, rows, columns):
            yield resolve_bits(frame, record["bits_allocated"], record["bits_stored"], record["high_bit"])
        return
    for data in _codestreams(record, parsed):
        yield _decode(data, record)


def resolve_bits(stored: NDArray[np.integer], allocated: int, bits: int, high_bit: int) -> NDArray[np.integer]:
    """Only bits high_bit - bits + 1 to high_bit belong to a value (PS3.5 8.1.1); overlays once lay in the others."""
    if bits == allocated:
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if stored.dtype.kind == "u" and high_bit == bits - 1:
        masked: NDArray[np.integer] = np.bitwise_and(stored, (1 << bits) - 1).astype(
            stored.dtype.newbyteorder("="), copy=False
        )
        return masked
    shifted = stored.astype(stored.dtype.newbyteorder("="))
    shifted <<= allocated - 1 - high_bit
    shifted >>= allocated - bits
    return shifted


def to_hu(stored: NDArray[np.integer], slope: float, intercept: float, out: NDArray[np.int16]) -> None:
    """Stored values to HU: stored * slope + intercept, rounded to even, clipped to int16, into `out`."""
    if slope == 1 and intercept == int(intercept) and abs(intercept) < 1 << 15 and stored.dtype.itemsize == 2:
        shift = int(intercept)
        limits = np.iinfo(stored.dtype)
        low, high = max(limits.min, INT16.min - shift), min(limits.max, INT16.max - shift)
        if (low, high) != (limits.min, limits.max):
            stored = np.clip(stored, low, high)
        # modulo 2^16, where the result is exact because it fits
        np.add(stored.view(np.uint16), np.uint16(shift & 0xFFFF), out=out.view(np.uint16))
    elif stored.dtype.itemsize <= 2:
        table = _hu_table(slope, intercept, stored.dtype.str)
        np.take(table, stored.view(f"u{stored.dtype.itemsize}"), out=out, mode="clip")
    else:
        out[...] = round_to_int16(stored * float(slope) + intercept)


def to_float(stored: NDArray[np.integer], slope: float, intercept: float, out: NDArray[np.float32]) -> None:
    """Stored values to a modality's own values, into float32 `out`; computed in float64."""
    out[...] = stored if (slope, intercept) == (1, 0) else stored * float(slope) + intercept


def round_to_int16(values: NDArray[np.floating]) -> NDArray[np.int16]:
    """Rounded to the nearest, halves to even, and clipped."""
    rounded: NDArray[np.int16] = np.clip(np.rint(values), INT16.min, INT16.max).astype(np.int16)
    return rounded


def needs_gdcm(record: Record) -> bool:
    """Whether the file is read by `gdcm_values` instead of `stored_frames`."""
    return record["syntax"] in GDCM_SYNTAXES


def gdcm_values(record: Record, parsed: Parsed, path: Path) -> NDArray[np.float64]:
    """The one frame of a file (rows, columns) as values with rescale applied, decoded by SimpleITK (GDCM).

    Raises ScanRefused `damaged_pixel_data` without the file's name.
    """
    import SimpleITK as sitk  # takes a third of a second, and is needed for retired compressions only

    data = next(_codestreams(record, parsed))
    if not _has_end(data):
        raise ScanRefused("truncated_pixel_data", "ends in the middle of its compressed image; fetch the file again")
    with quiet_stderr():
        try:
            values = sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path), imageIO="GDCMImageIO"))
        except RuntimeError:
            raise _undecodable() from None
    if values.size != record["rows"] * record["columns"]:
        raise _undecodable()
    decoded: NDArray[np.float64] = values.reshape(record["rows"], record["columns"]).astype(np.float64)
    return decoded


def pixel_bytes(record: Record, parsed: Parsed) -> bytes:
    """The pixels as they lie in the file, without what frames them: equal in one coding for equal images."""
    pixels, data = parsed.pixels, parsed.data
    assert pixels is not None
    if pixels.length is not None:
        count = record["rows"] * record["columns"] * record["frames"] * _bytes(record)
        return data[pixels.offset : pixels.offset + count]
    found, _ = fragments(lambda position, count: data[position : position + count], pixels.offset)
    return b"".join(data[position : position + length] for position, length in found)


@functools.lru_cache(maxsize=16)
def _hu_table(slope: float, intercept: float, dtype: str) -> NDArray[np.int16]:
    """HU of every stored value, indexed by its bits."""
    kind = np.dtype(dtype)
    bits = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    return round_to_int16(bits.view(kind) * float(slope) + intercept)


def _bytes(record: Record) -> int:
    return int(record["bits_allocated"]) // 8


def _codestreams(record: Record, parsed: Parsed) -> Iterator[bytes]:
    """The compressed frames, checked to be of the size that the header says before anything decodes them."""
    assert parsed.pixels is not None
    data, frames = parsed.data, record["frames"]
    found, complete = fragments(lambda position, count: data[position : position + count], parsed.pixels.offset)
    if not complete or len(found) < frames:
        raise ScanRefused("truncated_pixel_data", "ends in the middle of its compressed pixels; fetch the file again")
    pieces: Iterator[bytes] = (data[position : position + length] for position, length in found)
    if frames == 1:
        pieces = iter([b"".join(pieces)])
    elif len(found) != frames:
        pieces = generate_frames(data[parsed.pixels.offset :], number_of_frames=frames)
    count = 0
    try:
        for piece in pieces:
            count += 1
            size = _coded_size(piece, record["syntax"])
            if size is not None and size != (record["rows"], record["columns"], 1):
                raise ScanRefused(
                    "damaged_pixel_data",
                    f"says {record['rows']} x {record['columns']} pixels in grey, but its compressed image has "
                    f"{size[0]} x {size[1]} with {size[2]} component(s); fetch the file again",
                )
            yield piece
    except (ValueError, struct.error):  # frames cannot be told apart
        raise _undecodable() from None
    if count != frames:
        raise ScanRefused("truncated_pixel_data", f"has {count} of {frames} frames; fetch the file again")


def _decode(data: bytes, record: Record) -> NDArray[np.integer]:
    """One compressed frame to stored values."""
    one_frame = ITEM_HEAD.pack(0xFFFE, 0xE000, 0) + ITEM_HEAD.pack(0xFFFE, 0xE000, len(data)) + data
    if data[:2] == b"\xff\xd8" and not _has_end(data):
        raise ScanRefused("truncated_pixel_data", "ends in the middle of its compressed image; fetch the file again")
    with quiet_pydicom():
        try:
            array: NDArray[np.integer] = get_decoder(UID(record["syntax"])).as_array(
                one_frame,
                index=0,
                raw=True,
                decoding_plugin=DECODERS.get(record["syntax"], "pylibjpeg"),
                rows=record["rows"],
                columns=record["columns"],
                number_of_frames=1,
                samples_per_pixel=1,
                bits_allocated=record["bits_allocated"],
                bits_stored=record["bits_stored"],
                photometric_interpretation=record["photometric"] or "MONOCHROME2",
                pixel_representation=int(record["signed"]),
                pixel_keyword="PixelData",
            )[0]
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, OverflowError, struct.error):
            raise _undecodable() from None
    return array


def _has_end(data: bytes) -> bool:
    """Whether a JPEG has its end marker: decoders fill up what is missing, each in its own way."""
    return b"\xff\xd9" in data.rstrip(b"\0")[-16:]


def _coded_size(data: bytes, syntax: str) -> tuple[int, int, int] | None:
    """(rows, columns, components) in a codestream's header; None where there is none (RLE)."""
    if syntax == RLE:
        return None
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 42:  # JPEG 2000 SOC, SIZ (ITU-T T.800 A.5.1)
        x1, y1, x0, y0, components = struct.unpack_from(">4I16xH", data, 8)
        return y1 - y0, x1 - x0, components
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in START_OF_FRAME:
            rows, columns, components = struct.unpack_from(">2HB", data, position + 5)
            return rows, columns, components
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _undecodable() -> ScanRefused:
    return ScanRefused("damaged_pixel_data", "has compressed pixels that cannot be decoded; fetch the file again")
