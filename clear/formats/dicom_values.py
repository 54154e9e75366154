"""Data elements by name, as text and numbers (PS3.5 section 6, PS3.6).

A value is read by what its attribute means, not by the VR that a file gives it: writers put UN for anything and DS into
LO. What is absent or malformed is None or "".
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import warnings
from collections.abc import Iterator

from pydicom.charset import convert_encodings, decode_bytes

from clear.formats.dicom_elements import Item

# Top level and functional groups: name -> tag
TAGS = {
    "CharacterSet": 0x00080005,
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "StudyDate": 0x00080020,
    "Modality": 0x00080060,
    "Manufacturer": 0x00080070,
    "FrameType": 0x00089007,
    "PatientID": 0x00100020,
    "ContrastBolusAgent": 0x00180010,
    "SliceThickness": 0x00180050,
    "KVP": 0x00180060,
    "EchoTime": 0x00180081,
    "InversionTime": 0x00180082,
    "EchoNumbers": 0x00180086,
    "SpacingBetweenSlices": 0x00180088,
    "TriggerTime": 0x00181060,
    "ConvolutionKernel": 0x00181210,
    "EffectiveEchoTime": 0x00189082,
    "DiffusionBValue": 0x00189087,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SeriesNumber": 0x00200011,
    "AcquisitionNumber": 0x00200012,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100,
    "StackID": 0x00209056,
    "TemporalPositionIndex": 0x00209128,
    "NominalCardiacTriggerDelayTime": 0x00209153,
    "FrameAcquisitionNumber": 0x00209156,
    "TemporalPositionTimeOffset": 0x0020930D,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
    "LossyImageCompression": 0x00282110,
}
LARGEST = 1e12  # of any number in a header; nan compares False
SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
# Functional group macros (PS3.3 C.7.6.16.2, C.8.13.5, C.8.15.3) that hold any of the above
CT_MR_PT_GROUPS = (0x00189114, 0x00189117, 0x00189118, 0x00189226, 0x00189314, 0x00189329, 0x00189751)
PLANE_AND_VALUE_GROUPS = (0x00209111, 0x00209113, 0x00209116, 0x00209310, 0x00289110, 0x00289145)
WANTED = frozenset(TAGS.values())
SEQUENCES = frozenset({SHARED_GROUPS, FRAME_GROUPS, *CT_MR_PT_GROUPS, *PLANE_AND_VALUE_GROUPS})


class Values:
    """Values of raw elements by name, whatever their VR says; None or "" for what is absent or malformed."""

    def __init__(self, elements: Item, big_endian: bool, encodings: list[str] | None = None) -> None:
        self.elements, self.big_endian = elements, big_endian
        self.encodings = encodings

    def raw(self, name: str) -> bytes:
        value = self.elements.get(TAGS[name], b"")
        return value if isinstance(value, bytes) else b""

    def text(self, name: str) -> str:
        """Codes, UIDs and numbers in text: ASCII, without padding and control characters."""
        return _printable(self.raw(name).decode("ascii", "replace"))

    def texts(self, name: str) -> list[str]:
        return [part.strip() for part in self.text(name).split("\\")] if self.raw(name) else []

    def name(self, name: str) -> str | None:
        """Free text in the file's character set (PS3.5 6.1); None when empty."""
        raw = self.raw(name)
        if raw.isascii() and b"\x1b" not in raw:
            return self.text(name) or None
        if self.encodings is None:
            self.encodings = _encodings(self.texts("CharacterSet"))
        with quiet_pydicom():
            text = decode_bytes(raw, self.encodings, set())
        return _printable(text) or None

    def numbers(self, name: str) -> list[float] | None:
        """Decimal strings (DS, IS) or binary numbers (FD, FL, US, UL), all finite and below LARGEST."""
        raw = self.raw(name)
        if not raw:
            return None
        if TAGS[name] in _BINARY:
            code = {2: "H", 4: "f" if TAGS[name] in _FLOATS else "I", 8: "d"}.get(len(raw))
            found = struct.unpack((">" if self.big_endian else "<") + code, raw) if code else ()
        else:
            try:
                found = tuple(float(part) for part in raw.decode("ascii").strip(" \0").split("\\"))
            except ValueError:
                return None
        return [float(v) for v in found] if found and all(abs(v) < LARGEST for v in found) else None

    def number(self, name: str) -> float | None:
        found = self.numbers(name)
        return found[0] if found else None

    def integer(self, name: str) -> int | None:
        raw = self.raw(name)
        if len(raw) < 2:
            return None
        return int.from_bytes(raw[:2], "big" if self.big_endian else "little")

    def items(self, tag: int) -> list[Item]:
        value = self.elements.get(tag, [])
        return value if isinstance(value, list) else []

    def macros(self, group: Item) -> Values:
        """All values in the functional group macros of one item of a functional groups sequence."""
        flat: Item = {}
        for value in group.values():
            for item in value if isinstance(value, list) else []:
                flat.update({tag: v for tag, v in item.items() if isinstance(v, bytes)})
                for nested in item.values():  # none of ours is deeper
                    for inner in nested if isinstance(nested, list) else []:
                        flat.update({tag: v for tag, v in inner.items() if isinstance(v, bytes)})
        return Values(flat, self.big_endian, self.encodings)


_FLOATS = frozenset(
    TAGS[name]
    for name in (
        "EffectiveEchoTime",
        "DiffusionBValue",
        "NominalCardiacTriggerDelayTime",
        "TemporalPositionTimeOffset",
    )
)
_BINARY = _FLOATS | {TAGS["TemporalPositionIndex"], TAGS["FrameAcquisitionNumber"]}


def _printable(text: str) -> str:
    text = text.strip(" \0")
    return text if text.isprintable() else "".join(c for c in text if c.isprintable()).strip()


def _encodings(names: list[str]) -> list[str]:
    try:
        with quiet_pydicom():
            return list(convert_encodings(names or [""]))
    except (LookupError, ValueError):
        return ["latin_1"]


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """What pydicom warns of about a file is recorded here or handled, and is no message for a user.

    Warning filters belong to the process, so this is for one thread at a time.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_FILTERS = threading.RLock()
logging.getLogger("pydicom").addHandler(logging.NullHandler())
