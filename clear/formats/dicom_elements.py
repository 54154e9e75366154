"""DICOM data elements: from bytes to the few raw values that reading a scan needs (PS3.5 sections 7 and 10).

A header has 100 to 300 elements, of which we want some forty. `parse` walks over all of them once and copies only
these: about 0.2 ms a file, where building data sets costs 1 to 2 ms. Private sequences are stepped over by their length
and never opened, so it does not matter when they are malformed. Nothing here trusts a length: the walk is bounded in
bytes, depth and steps, a deflated file is inflated up to a limit, and every failure is one of the exceptions below.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
NATIVE_SYNTAXES = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE})

TRANSFER_SYNTAX = 0x00020010
MEDIA_STORAGE_CLASS = 0x00020002
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # float, double float and integer pixel data

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT"}
    | {b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
VRS = LONG_VRS | SHORT_VRS

MAX_DEPTH = 32
MAX_FRAGMENTS = 1 << 17
MAX_HEADER_BYTES = 1 << 26
MAX_INFLATED_BYTES = 1 << 29

Item = dict[int, "bytes | list[Item]"]


class NotDicom(Exception):
    """The bytes are no DICOM file."""


class MoreBytes(Exception):
    """The bytes end inside the header, but the file goes on."""


class Damaged(Exception):
    """The structure is broken beyond the point where a value could still be trusted; the text says where."""


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data lie: tag, offset and length of the value in `Parsed.data`; length None if encapsulated."""

    tag: int
    offset: int
    length: int | None


@dataclass(frozen=True)
class Parsed:
    """What one walk found.

    data: the bytes that offsets refer to (inflated for the deflated syntax); syntax: transfer syntax UID;
    big_endian; elements: wanted tag -> raw value, or a list of items for a sequence; pixels: None without pixel
    data; cut: the file ends inside its header.
    """

    data: bytes
    syntax: str
    big_endian: bool
    elements: Item = field(repr=False)
    pixels: PixelElement | None
    cut: bool


def parse(data: bytes, wanted: frozenset[int], sequences: frozenset[int], *, whole: bool) -> Parsed:
    """The wanted top-level elements of a DICOM file, up to its pixel data.

    wanted: tags whose raw values are kept, at the top and inside the wanted `sequences`.
    whole: `data` is the complete file; else MoreBytes is raised where the header goes on.
    Raises NotDicom, MoreBytes, Damaged.
    """
    start = _dataset_start(data)
    meta: Item = {}
    position = start
    if data[start : start + 2] == b"\x02\x00":
        walk = _Walk(data, big_endian=False, wanted=frozenset({TRANSFER_SYNTAX, MEDIA_STORAGE_CLASS}))
        position = walk.group_two(start, meta, whole)
    syntax = _uid(meta.get(TRANSFER_SYNTAX))
    if syntax == DEFLATED_LE:
        data = _inflate(data[position:], complete=whole)
        position, whole = 0, True
    big_endian = syntax == EXPLICIT_BE
    explicit = _looks_explicit(data, position, syntax)
    walk = _Walk(data, big_endian=big_endian, wanted=wanted, sequences=sequences)
    elements: Item = {}
    pixels, cut = walk.top(position, explicit, elements, whole)
    elements.update({MEDIA_STORAGE_CLASS: meta[MEDIA_STORAGE_CLASS]} if MEDIA_STORAGE_CLASS in meta else {})
    if start == 0 and 0x00080016 not in elements:
        raise NotDicom
    return Parsed(data, syntax or (EXPLICIT_LE if explicit else IMPLICIT_LE), big_endian, elements, pixels, cut)


def fragments(read: Callable[[int, int], bytes], offset: int) -> tuple[list[tuple[int, int]], bool]:
    """The fragments of encapsulated pixel data (PS3.5 A.4), and whether they are all there.

    read: (position, count) -> bytes, fewer at the end of the file. offset: first byte of the value.
    Returns [(position, length), ...] without the offset table; False when the last fragment ends beyond the file or
    the list does not end in a delimiter and is cut in the middle of an item.
    """
    found: list[tuple[int, int]] = []
    position = offset
    while len(found) <= MAX_FRAGMENTS:
        head = read(position, 8)
        if len(head) < 8:
            return found[1:], len(found) > 1 and not head  # without delimiter, but ending with a fragment
        tag, length = _item_head(head)
        if tag == SEQUENCE_END:
            return found[1:], True
        if tag != ITEM or length == UNDEFINED:
            return found[1:], False
        if length and len(read(position + 8 + length - 1, 1)) < 1:
            return found[1:], False
        found.append((position + 8, length))
        position += 8 + length
    return found[1:], False


class _Walk:
    """One walk over `data`; `wanted` and `sequences` say what to keep."""

    def __init__(
        self, data: bytes, *, big_endian: bool, wanted: frozenset[int], sequences: frozenset[int] = frozenset()
    ) -> None:
        order = ">" if big_endian else "<"
        self.data, self.wanted, self.sequences = data, wanted, sequences
        self.explicit_head = struct.Struct(order + "HH2sH").unpack_from
        self.implicit_head = struct.Struct(order + "HHI").unpack_from
        self.long = struct.Struct(order + "I").unpack_from
        self.delimiter = struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)

    def head(self, position: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty when implicit), length and start of the value of the element at `position`."""
        data = self.data
        if explicit:
            group, element, vr, length = self.explicit_head(data, position)
            tag = group << 16 | element
            if vr in SHORT_VRS:
                return tag, vr, length, position + 8
            if group != 0xFFFE and (vr in LONG_VRS or (vr.isalpha() and vr.isupper())):  # a VR of later editions
                return tag, vr, self.long(data, position + 8)[0], position + 12
        group, element, length = self.implicit_head(data, position)
        return group << 16 | element, b"", length, position + 8

    def group_two(self, position: int, into: Item, whole: bool) -> int:
        """File meta information, always explicit little endian (PS3.10 7.1); returns where the data set starts."""
        try:
            while self.data[position : position + 2] == b"\x02\x00":
                tag, _, length, start = self.head(position, explicit=True)
                if length == UNDEFINED or start + length > len(self.data):
                    break
                if tag in self.wanted:
                    into[tag] = self.data[start : start + length]
                position = start + length
            else:
                return position
        except struct.error:
            pass
        if not whole:
            raise MoreBytes
        raise Damaged("the file ends inside its meta information")

    def top(self, position: int, explicit: bool, into: Item, whole: bool) -> tuple[PixelElement | None, bool]:
        """Elements of the data set up to the pixel data; returns these, and whether the file ended before its time."""
        end = min(len(self.data), MAX_HEADER_BYTES)
        wanted, sequences, head = self.wanted, self.sequences, self.head
        try:
            while position < end:
                tag, vr, length, start = head(position, explicit)
                if tag in PIXEL_TAGS:
                    return PixelElement(tag, start, None if length == UNDEFINED else length), False
                if length == UNDEFINED or tag in sequences:
                    items, position = self.items(start, length, explicit and vr != b"UN", tag in sequences, 1)
                    if tag in sequences:
                        into[tag] = items
                    continue
                position = start + length
                if tag in wanted and position <= end:
                    into[tag] = self.data[start:position]
        except struct.error:  # the bytes end inside an element's head
            position = end + 1
        if end == MAX_HEADER_BYTES:
            raise Damaged(f"its header is larger than {MAX_HEADER_BYTES >> 20} MiB")
        if not whole:
            raise MoreBytes
        return None, position > end

    def items(self, position: int, length: int, explicit: bool, keep: bool, depth: int) -> tuple[list[Item], int]:
        """Items of a sequence (PS3.5 7.5); returns them (empty unless `keep`) and where the sequence ends."""
        if depth > MAX_DEPTH:
            raise Damaged(f"sequences are nested more than {MAX_DEPTH} deep")
        found: list[Item] = []
        end = len(self.data) if length == UNDEFINED else position + length
        while position < end:
            tag, _, size, start = self.head(position, explicit=False)
            if tag == SEQUENCE_END:
                return found, start
            if tag != ITEM:
                return found, self.resume(position)
            item: Item = {}
            if size != UNDEFINED and not keep:
                position = start + size
            else:
                stop = None if size == UNDEFINED else start + size
                position = self.item(start, stop, explicit, item if keep else None, depth)
            if keep:
                found.append(item)
        return found, end if length != UNDEFINED else position

    def item(self, position: int, stop: int | None, explicit: bool, into: Item | None, depth: int) -> int:
        """Elements of one item; returns where it ends."""
        end = len(self.data) if stop is None else stop
        while position < end:
            tag, vr, length, start = self.head(position, explicit)
            if tag == ITEM_END and stop is None:
                return start
            if tag in (SEQUENCE_END, ITEM):  # the item's own end is missing
                return position
            keep = into is not None and tag in self.sequences
            if length == UNDEFINED or keep:
                items, position = self.items(start, length, explicit and vr != b"UN", keep, depth + 1)
                if keep and into is not None:
                    into[tag] = items
                continue
            if into is not None and tag in self.wanted:
                into[tag] = self.data[start : start + length]
            position = start + length
        return position if stop is None else stop

    def resume(self, position: int) -> int:
        """After the next sequence delimiter: what follows a sequence whose items are malformed."""
        at = self.data.find(self.delimiter, position)
        if at < 0:
            raise struct.error("no delimiter")
        return at + 8


def _dataset_start(data: bytes) -> int:
    """132 after preamble and prefix (PS3.10 7.1); 0 for a file that starts with its elements."""
    if data[128:132] == b"DICM":
        return 132
    plausible = data[:2] in (b"\x02\x00", b"\x08\x00") and data[3:4] == b"\0"
    if not plausible or (data[4:6] not in VRS and data[6:8] != b"\0\0"):
        raise NotDicom
    return 0


def _looks_explicit(data: bytes, position: int, syntax: str) -> bool:
    """Whether VRs are written out. The first element decides: writers have got the transfer syntax wrong."""
    if syntax == EXPLICIT_BE:
        return True
    vr = data[position + 4 : position + 6]
    return vr in VRS if len(vr) == 2 else syntax != IMPLICIT_LE


def _inflate(packed: bytes, *, complete: bool) -> bytes:
    """A deflated data set (PS3.5 A.5), at most MAX_INFLATED_BYTES of it: a small file can claim any amount."""
    if not complete:
        raise MoreBytes
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(packed, MAX_INFLATED_BYTES)
    except zlib.error:
        try:
            data = zlib.decompressobj().decompress(packed, MAX_INFLATED_BYTES)  # with a zlib header, by some writers
        except zlib.error:
            raise Damaged("its deflated part cannot be inflated") from None
        return data
    if inflater.unconsumed_tail:
        raise Damaged(f"its deflated part grows beyond {MAX_INFLATED_BYTES >> 20} MiB")
    return data


def _item_head(head: bytes) -> tuple[int, int]:
    group, element, length = struct.unpack("<HHI", head)
    return group << 16 | element, length


def _uid(value: object) -> str:
    return value.strip(b" \0").decode("ascii", "replace") if isinstance(value, bytes) else ""
