"""The bag file, version 1: what it holds, whatever stores it (docs/bag-format.md).

`BagHeader` says what the embeddings are and which files may be joined, `ScanRow` is one row of /scans, `SCAN_COLUMNS`
lists its columns. `clear/bags_hdf5.py` and `clear/bags_zarr.py` put these on disk; `Contents` is what both give back,
checked by `check_contents`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clear.errors import BagFileError, InputError, ScanRefused
from clear.windows import Window, check_windows

FORMAT = "clear-bags"
VERSION = 1
FEATURE_TYPES = ("float16", "float32")
MAX_WINDOWS = 256  # /instances/window is uint8
MAX_REMARK_BYTES = 4000
MAX_TEXT_BYTES = 4096  # a column is as wide as its widest text

Kind = Literal["text", "remarks", "int64", "int32", "float64", "spacing"]

# column of /scans: how it is stored. Absent values: "" (text), "[]" (remarks), nan (float64), -1 (days_since_first)
SCAN_COLUMNS: dict[str, Kind] = {
    "scan_id": "text",
    "patient_id": "text",
    "study_uid": "text",
    "series_uid": "text",
    "source": "text",
    "digest": "text",
    "start": "int64",
    "length": "int64",
    "n_slices": "int32",
    "spacing_mm": "spacing",
    "plane": "text",
    "modality": "text",
    "manufacturer": "text",
    "kernel": "text",
    "thickness_mm": "float64",
    "contrast": "text",
    "days_since_first": "int32",
    "remarks": "remarks",
}
# array of /instances: dtype and trailing shape
INSTANCE_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "slice": ("<i4", ()),
    "window": ("|u1", ()),
    "position_mm": ("<f4", (3,)),
}
HEADER_TEXTS = ("encoder", "encoder_digest", "encoder_card", "windows", "preprocessing", "provenance")

Column = list[str] | NDArray[Any]


@dataclass(frozen=True)
class Bag:
    """One scan as K encoded slices, slice by slice, windows inside a slice.

    features: (K, d) float16 or float32
    slice: (K,) int32, 0 = first along Z, -1 = the whole volume; window: (K,) uint8, index into the file's windows
    position_mm: (K, 3) float32 LPS, centre of the slice's first voxel
    """

    scan_id: str
    features: NDArray[Any]
    slice: NDArray[np.int32]
    window: NDArray[np.uint8]
    position_mm: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, kw_only=True)
class ScanRow:
    """One row of /scans, but for `start`, which follows from the rows before it.

    digest: sha256 of voxels and geometry (`Volume.digest`); source: relative to the input folder; length: K;
    spacing_mm: (z, y, x), nan where unknown. Texts lose NULs, and what is not valid Unicode is escaped; one of more
    than 4096 bytes raises ScanRefused `oversized_text`.
    """

    scan_id: str
    digest: str
    length: int
    n_slices: int
    spacing_mm: tuple[float, float, float]
    plane: str
    modality: str
    patient_id: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    source: str | None = None
    manufacturer: str | None = None
    kernel: str | None = None
    thickness_mm: float | None = None
    contrast: str | None = None
    days_since_first: int | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, kind in SCAN_COLUMNS.items():
            value = getattr(self, name, None)
            if kind == "text" and value is not None:
                text = clean_text(value)
                if len(text.encode()) > MAX_TEXT_BYTES:
                    raise ScanRefused(
                        "oversized_text", f"{name} has {len(text)} characters; expected at most {MAX_TEXT_BYTES} bytes"
                    )
                object.__setattr__(self, name, text)
        spacing = tuple(math.nan if math.isnan(v) else float(v) for v in self.spacing_mm)
        object.__setattr__(self, "spacing_mm", spacing)  # one nan object, so that equal rows compare equal
        object.__setattr__(self, "remarks", _short_remarks(self.remarks))
        if self.thickness_mm is not None and math.isnan(self.thickness_mm):
            object.__setattr__(self, "thickness_mm", None)
        if self.days_since_first is not None and self.days_since_first < 0:
            object.__setattr__(self, "days_since_first", None)
        if not self.scan_id:
            raise ValueError("scan_id: expected a name; found an empty text")


@dataclass(frozen=True, kw_only=True)
class BagHeader:
    """What the embeddings of a file are.

    `identity` (encoder digest, windows, preprocessing, dtype, dim) decides what may stand in one file; the encoder's
    name and card describe it; `provenance` (versions, precision, batch, threads, device) is told, not compared.
    """

    encoder: str
    encoder_digest: str
    encoder_card: Mapping[str, Any]
    windows: tuple[Window, ...]
    preprocessing: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    dim: int
    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_windows(self.windows)
        if len(self.windows) > 1 and any(window.kind == "encoder" for window in self.windows):
            raise InputError("a window of kind 'encoder' is the only one of its file; found others beside it")
        if len(self.windows) > MAX_WINDOWS:
            raise InputError(f"a bag file holds at most {MAX_WINDOWS} windows; found {len(self.windows)}")
        if self.dtype not in FEATURE_TYPES:
            raise InputError(f"features are stored as {' or '.join(FEATURE_TYPES)}; found {self.dtype!r}")

    @property
    def whole_scans(self) -> bool:
        """Whether the encoder takes whole volumes: a bag is then one instance, of slice -1."""
        return "volume" in self.preprocessing

    def instances(self, n_slices: int) -> int:
        """K, the instances of a scan of so many slices."""
        return 1 if self.whole_scans else n_slices * len(self.windows)

    @property
    def identity(self) -> dict[str, Any]:
        """What two files must share to be joined or compared, as plain data."""
        return {
            "encoder_digest": self.encoder_digest,
            "windows": [window.as_dict() for window in self.windows],
            "preprocessing": plain(self.preprocessing),
            "dtype": self.dtype,
            "dim": self.dim,
        }

    def differences(self, other: BagHeader) -> list[str]:
        """How the other's identity differs, as phrases; empty when the two may stand in one file."""
        mine, theirs = self.identity, other.identity
        found = []
        for name in mine:
            if canonical_json(mine[name]) == canonical_json(theirs[name]):
                continue
            if name == "encoder_digest":
                a, b = f"{self.encoder} ({self.encoder_digest[:12]})", f"{other.encoder} ({other.encoder_digest[:12]})"
                found.append(f"encoder {a} and {b}")
            elif name == "windows":
                found.append(f"windows {_window_names(self.windows)} and {_window_names(other.windows)}")
            else:
                found.append(f"{name} {_short(mine[name])} and {_short(theirs[name])}")
        return found

    def attributes(self) -> dict[str, str | int]:
        """The root attributes in the order in which they are written."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "encoder": clean_text(self.encoder),
            "encoder_digest": clean_text(self.encoder_digest),
            "encoder_card": canonical_json(self.encoder_card),
            "windows": canonical_json([window.as_dict() for window in self.windows]),
            "preprocessing": canonical_json(self.preprocessing),
            "provenance": canonical_json(self.provenance),
        }

    @classmethod
    def from_attributes(cls, path: Path, attributes: Mapping[str, Any], dim: int, dtype: str) -> BagHeader:
        """The inverse of `attributes`; raises BagFileError naming the attribute."""
        values: dict[str, Any] = {}
        for name in HEADER_TEXTS:
            text = attributes.get(name)
            if not isinstance(text, str):
                raise BagFileError(f"{path}: expected the text attribute {name!r}; {DAMAGED}")
            if name in ("encoder", "encoder_digest"):
                values[name] = text
                continue
            try:
                values[name] = json.loads(text)
            except (ValueError, RecursionError):
                raise BagFileError(f"{path}: the attribute {name!r} is not JSON; {DAMAGED}") from None
            expected = list if name == "windows" else dict
            if not isinstance(values[name], expected):
                raise BagFileError(f"{path}: the attribute {name!r} is not a JSON {expected.__name__}; {DAMAGED}")
        try:
            values["windows"] = tuple(Window.from_dict(data) for data in values["windows"])
            return cls(dim=dim, dtype=dtype, **values)
        except (InputError, TypeError, ValueError, AttributeError) as error:
            raise BagFileError(f"{path}: the attribute 'windows' cannot be used; {DAMAGED}") from error


DAMAGED = "the file is damaged or was not written by clear. Copy it again, or extract it again."


def check_version(path: Path, attributes: Mapping[str, Any]) -> None:
    """Raises BagFileError unless the attributes are those of a bag file that this version reads."""
    if attributes.get("format") != FORMAT:
        raise BagFileError(
            f"{path}: not a bag file of clear (attribute format = {FORMAT!r} is missing). "
            "Features of other tools are read with `clear bags import`."
        )
    version = attributes.get("version")
    if not isinstance(version, int) or version < 1:
        raise BagFileError(f"{path}: expected a version number; found {version!r}; {DAMAGED}")
    if version > VERSION:
        raise BagFileError(
            f"{path}: written by a newer clear: version {version} of the bag file; this clear reads version {VERSION}. "
            "Update clear (pip install --upgrade clear-mil)."
        )


@dataclass(frozen=True)
class Contents:
    """What a store gives back: checked header and columns, and arrays that are read when indexed.

    features: (N, d), slice (N,), window (N,), position_mm (N, 3): anything with shape, dtype and numpy slicing.
    release: gives mapped memory back to the system.
    note: the attribute `part`, which the parts of an unfinished extraction carry; "" in a finished file.
    """

    header: BagHeader
    columns: dict[str, Column]
    features: Any
    slice: Any
    window: Any
    position_mm: Any
    release: Callable[[], None]
    note: str = ""


def check_contents(path: Path, contents: Contents) -> None:
    """The laws of docs/bag-format.md that can be checked without reading a feature; raises BagFileError."""
    columns = contents.columns
    n_scans, n = len(columns["scan_id"]), int(contents.features.shape[0])
    for name, column in columns.items():
        if len(column) != n_scans:
            raise BagFileError(f"{path}: /scans/{name} has {len(column)} rows, scan_id {n_scans}; {DAMAGED}")
    scan_ids = columns["scan_id"]
    if any(not a < b for a, b in pairwise(["", *scan_ids])):
        raise BagFileError(f"{path}: scan ids are not sorted, not unique or empty; {DAMAGED}")
    length = np.asarray(columns["length"])
    start = np.asarray(columns["start"])
    if n_scans and (length.min() < 1 or length.max() > n):
        raise BagFileError(f"{path}: a scan has no instances, or more than the file; {DAMAGED}")
    ends = np.cumsum(length, dtype=np.int64)
    if not np.array_equal(start, ends - length) or (int(ends[-1]) if n_scans else 0) != n:
        raise BagFileError(f"{path}: the scans do not cover the {n} rows of /features one after another; {DAMAGED}")
    windows = contents.header.windows
    highest = max((int(contents.window[i : i + (1 << 22)].max()) for i in range(0, n, 1 << 22)), default=0)
    if highest >= len(windows):
        raise BagFileError(f"{path}: an instance names window {highest} of {len(windows)}; {DAMAGED}")


def columns_of(rows: Sequence[ScanRow]) -> dict[str, Column]:
    """Rows as columns in file order; `start` is the running sum of the lengths."""
    columns: dict[str, Column] = {}
    lengths = np.array([row.length for row in rows], dtype=np.int64)
    for name, kind in SCAN_COLUMNS.items():
        if name == "start":
            columns[name] = np.cumsum(lengths) - lengths
            continue
        values = [getattr(row, name) for row in rows]
        if kind == "text":
            columns[name] = [value or "" for value in values]
        elif kind == "remarks":
            columns[name] = [canonical_json(list(value)) for value in values]
        elif kind == "spacing":
            columns[name] = np.array(values, dtype=np.float64).reshape(-1, 3)
        elif kind == "float64":
            columns[name] = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        else:
            columns[name] = np.array([-1 if value is None else value for value in values], dtype=kind)
    return columns


def row_of(path: Path, columns: Mapping[str, Column], i: int) -> ScanRow:
    """Row i of checked columns."""
    values: dict[str, Any] = {}
    for name, kind in SCAN_COLUMNS.items():
        value: Any = columns[name][i]
        if name == "start":
            continue
        if kind == "text":
            values[name] = str(value) if value or name in ("scan_id", "digest", "plane", "modality") else None
        elif kind == "remarks":
            values[name] = parse_remarks(path, str(value))
        elif kind == "spacing":
            values[name] = tuple(float(v) for v in value)
        elif kind == "float64":
            values[name] = None if math.isnan(value) else float(value)
        else:
            values[name] = None if name == "days_since_first" and value < 0 else int(value)
    return ScanRow(**values)


def parse_remarks(path: Path, text: str) -> tuple[str, ...]:
    """Remarks as stored; raises BagFileError unless they are a JSON list of texts."""
    try:
        remarks = json.loads(text or "[]")
    except (ValueError, RecursionError):
        remarks = None
    if not isinstance(remarks, list) or not all(isinstance(remark, str) for remark in remarks):
        raise BagFileError(f"{path}: /scans/remarks is not a JSON list of texts; {DAMAGED}")
    return tuple(remarks)


def content_digest(header: BagHeader, columns: Mapping[str, Column]) -> str:
    """sha256 over identity, scan ids, scan digests and lengths: which rows a file holds and what they are of.

    Features are not read, so it is quick for any size; provenance, patients and remarks do not enter.
    """
    sha = hashlib.sha256(f"{FORMAT} {canonical_json(header.identity)}".encode())
    for scan_id, digest, length in zip(columns["scan_id"], columns["digest"], columns["length"], strict=True):
        sha.update(f"\n{canonical_json([str(scan_id), str(digest), int(length)])}".encode())
    return sha.hexdigest()


def joined_provenance(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One provenance for scans encoded in several runs: a field on which they differ becomes {"several": [...]}.

    The order of the runs does not matter.
    """
    joined: dict[str, Any] = {}
    for name in sorted({name for provenance in provenances for name in provenance}):
        values: dict[str, Any] = {}
        for provenance in provenances:
            value = plain(provenance.get(name))
            nested = value["several"] if isinstance(value, dict) and set(value) == {"several"} else [value]
            values.update((canonical_json(item), item) for item in nested)
        ordered = [values[key] for key in sorted(values)]
        joined[name] = ordered[0] if len(ordered) == 1 else {"several": ordered}
    return joined


def canonical_json(data: Any) -> str:
    """The one JSON text of plain data: sorted keys, no spaces, UTF-8. nan and infinity raise ValueError."""
    text = json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_mapping
    )
    return clean_text(text)


def plain(data: Any) -> Any:
    """Data as JSON would give it back: tuples become lists, keys text."""
    return json.loads(canonical_json(data))


def clean_text(text: str) -> str:
    """Text that can be stored everywhere: no NULs, and what is not valid Unicode (odd file names) is escaped."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def _mapping(data: Any) -> Any:
    if isinstance(data, Mapping):
        return dict(data)
    raise TypeError(f"expected plain data for JSON; found {type(data).__name__}")


def _short_remarks(remarks: Sequence[str]) -> tuple[str, ...]:
    """At most MAX_REMARK_BYTES, so that one odd scan does not widen the column for all."""
    kept: list[str] = []
    room = MAX_REMARK_BYTES
    for i, remark in enumerate(remarks):
        remark = clean_text(str(remark))
        room -= len(remark.encode()) + 3
        if room < 0:
            return (*kept, f"and {len(remarks) - i} more remarks")
        kept.append(remark)
    return tuple(kept)


def _window_names(windows: Sequence[Window]) -> str:
    return ", ".join(f"{w.name} {w.low:g}..{w.high:g}{'%' if w.kind == 'percentile' else ''}" for w in windows)


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


assert {f.name for f in fields(ScanRow)} | {"start"} == set(SCAN_COLUMNS)
