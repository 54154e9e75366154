"""Checking a slice store against docs/slice-store.md, every voxel included.

Opening a store checks what reading needs; this checks the rest of the contract: that any Zarr library finds the same
voxels, and that what the tables say of boxes and keys follows from what they say elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pretrain.store import SliceStore
from pretrain.store_tables import DAMAGED, TABLES, SliceStoreError
from pretrain.stored_scan import SCANS_FOLDER, read_index, scan_key

_DIGEST = r"^[0-9a-f]{64}$"
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}
_CHUNK_CODECS = "bytes (little), blosc (lz4, shuffle, typesize 2), crc32c"
_MM_TOLERANCE = 1e-6
_LZ4, _SHUFFLED = 1, 1  # in the third byte of a blosc buffer: its upper three bits, and its lowest


def validate(path: Path | str) -> str:
    """Check every promise of the format, the voxels included; returns one line. Raises SliceStoreError."""
    store = SliceStore(path)
    for problem in (*_root_problems(store), *_table_problems(store)):
        raise SliceStoreError(f"{store.path}: {problem}; {DAMAGED}")
    first = 0
    for scan, row in enumerate(store.scans.iter_rows(named=True)):
        rows = range(first, first + row["n_slices"])
        first = rows.stop
        for problem in _scan_problems(store, scan, row, rows):
            raise SliceStoreError(f"{store.path}: the file of scan {row['scan_id']} {problem}; {DAMAGED}")
        for at in rows:
            store.read(at)
    return f"{store.path}: sound; {len(store.scans)} scans, {len(store)} slices, {len(store.boxes)} boxes"


def _root_problems(store: SliceStore) -> Iterator[str]:
    root = _read_json(store.path / "zarr.json")
    if root.get("zarr_format") != 3:
        yield f"its zarr.json has the zarr_format {_word(root.get('zarr_format'))}; expected 3"
    attributes = root["attributes"]  # an object, or the store would not have opened
    for name, frame in zip(TABLES, (store.scans, store.table, store.boxes), strict=True):
        if attributes.get(name) != frame.height:
            yield f"its zarr.json counts {_word(attributes.get(name))} {name}, its table {frame.height}"
    if not isinstance(attributes.get("clear"), str):
        yield "its zarr.json does not say which clear wrote it"


def _table_problems(store: SliceStore) -> Iterator[str]:
    scans = store.scans
    if scans["scan_id"].to_list() != sorted(scans["scan_id"].to_list()):
        yield "its scans are not ordered by scan_id"
    for scan_id, digest, key in scans.select("scan_id", "scan_digest", "key").iter_rows():
        if key != scan_key(scan_id, digest):
            yield f"the key of scan {scan_id} is not that of its id and digest"
    for name in ("scan_digest", "sha256"):
        if not scans[name].str.contains(_DIGEST).all():
            yield f"its scans have a {name} that is no sha256"
    for axis in "zyx":
        steps = scans[f"spacing_{axis}_mm"].drop_nulls()
        if not ((steps > 0) & steps.is_finite()).all():
            yield f"its scans have a spacing_{axis}_mm that is no length"
    if not (scans["modality"] == "CT").all():
        yield "it holds scans that are no CT"
    boxes = store.boxes.join(store.table.select("row", "spacing_y_mm", "spacing_x_mm"), on="row", how="left")
    for axis in "xy":
        step = boxes[f"spacing_{axis}_mm"]
        for corner in (f"{axis}0", f"{axis}1"):
            if not _equal(boxes[f"{corner}_mm"], boxes[corner] * step):
                yield f"its boxes' {corner}_mm are not {corner} times the pixel spacing (null where that is not known)"


def _equal(found: pl.Series, expected: pl.Series) -> bool:
    """Whether numbers are equal but for rounding, and null in the same places."""
    if not (found.is_null() == expected.is_null()).all():
        return False
    numbers = found.drop_nulls().to_numpy(), expected.drop_nulls().to_numpy()
    return np.allclose(*numbers, rtol=_MM_TOLERANCE, atol=_MM_TOLERANCE)


def _scan_problems(store: SliceStore, scan: int, row: Mapping[str, Any], rows: range) -> Iterator[str]:
    """What is wrong with a scan's two files, as ends of a sentence."""
    shard = store.shard(scan)
    shape = [row["n_slices"], row["height"], row["width"]]
    for what, found, expected in _array_differences(_read_json(shard.parents[3] / "zarr.json"), shape):
        yield f"({SCANS_FOLDER}/{row['key']}/zarr.json) has {what} {found}; expected {expected}"
    with shard.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != row["sha256"]:
            yield "is not as it was written"
    try:
        index = read_index(shard, row["n_slices"])
    except (OSError, ValueError):
        yield "has no sound index of its chunks"
        return
    places = store.chunks(rows)
    if not np.array_equal(index, places):
        yield "has its chunks elsewhere than the table says"
        return
    yield from _chunk_problems(shard, places)


def _chunk_problems(shard: Path, places: NDArray[np.int64]) -> Iterator[str]:
    with shard.open("rb") as file:
        for offset in places[:, 0].tolist():
            file.seek(offset)
            header = file.read(4)
            if len(header) < 4 or (header[2] >> 5, header[2] & 1, header[3]) != (_LZ4, _SHUFFLED, 2):
                yield f"has chunks that are packed in another way; expected {_CHUNK_CODECS}"
                return


def _array_differences(metadata: Mapping[str, Any], shape: list[int]) -> Iterator[tuple[str, str, str]]:
    """(what, found, expected) where an array's zarr.json is not as docs/slice-store.md says (zarr-specs, core 3.0)."""

    def differ(what: str, found: Any, expected: Any) -> Iterator[tuple[str, str, str]]:
        if _word(found) != _word(expected):  # as JSON: true is not 1
            yield what, _word(found), _word(expected)

    for name, expected in (("zarr_format", 3), ("node_type", "array"), ("shape", shape), ("data_type", "int16")):
        yield from differ(name, metadata.get(name), expected)
    if type(metadata.get("fill_value")) is not int:
        yield "fill_value", _word(metadata.get("fill_value")), "a whole number"
    yield from differ("storage_transformers", metadata.get("storage_transformers", []), [])
    key = _named(metadata.get("chunk_key_encoding"))
    yield from differ("chunk_key_encoding", [key[0], key[1].get("separator", "/")], ["default", "/"])
    grid = _named(metadata.get("chunk_grid"))
    yield from differ("chunk_grid", [grid[0], grid[1].get("chunk_shape")], ["regular", shape])
    codecs = metadata.get("codecs")
    name, sharding = _named(codecs[0]) if isinstance(codecs, list) and len(codecs) == 1 else ("", {})
    if name != "sharding_indexed":
        yield "codecs", _word(codecs), "sharding_indexed alone"
        return
    yield from differ("chunk_shape", sharding.get("chunk_shape"), [1, *shape[1:]])
    yield from differ("index_location", sharding.get("index_location", "end"), "end")
    index = sharding.get("index_codecs")
    if _codecs(index) != _codecs([_LITTLE, _CRC32C]):
        yield "index_codecs", _word(index), "bytes (little), crc32c"
    chunks = _codecs(sharding.get("codecs"))
    packed = {"cname": "lz4", "shuffle": "shuffle", "typesize": 2}
    as_written = len(chunks) == 3 and [chunks[0], chunks[2]] == _codecs([_LITTLE, _CRC32C]) and chunks[1][0] == "blosc"
    if not as_written or {name: chunks[1][1].get(name) for name in packed} != packed:
        yield "codecs", _word(sharding.get("codecs")), _CHUNK_CODECS


def _codecs(value: Any) -> list[tuple[str, dict[str, Any]]]:
    return [_named(codec) for codec in value] if isinstance(value, list) else []


def _named(value: Any) -> tuple[str, dict[str, Any]]:
    """Name and configuration of a part of Zarr metadata, which MAY be the name alone; ("", {}) for anything else."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return "", {}
    configuration = value.get("configuration", {})
    return value["name"], configuration if isinstance(configuration, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    """An object. Raises SliceStoreError for anything else."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise SliceStoreError(f"{path}: cannot be read ({error.strerror}); {DAMAGED}") from None
    except (ValueError, RecursionError):
        raise SliceStoreError(f"{path}: is no JSON; {DAMAGED}") from None
    if not isinstance(data, dict):
        raise SliceStoreError(f"{path}: expected a JSON object, found {_word(data)}; {DAMAGED}")
    return data


def _word(value: Any) -> str:
    """A value of somebody's JSON, short enough for a message."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 200 else f"{text[:197]}..."
