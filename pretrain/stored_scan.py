"""Stored scans: one scan of a slice store, a Zarr array of its own, written aside and renamed when it is complete.

`scans/<key>/` holds `zarr.json` and one shard, in which every slice is a chunk: blosc (lz4, bytes shuffled) and a
crc32c, so that a slice is one read of a few hundred kilobytes. What is known of the scan stands in the array's
attributes, so a build that was killed finds what it had finished. The name is a hash of the scan's id and voxels: a
scan whose files changed becomes another array, and readers of the old one are not disturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.atomic import output_errors, rename_into_place, sync_folder
from clear.bag_format import clean_text
from clear.errors import ScanRefused
from clear.scans import Scan
from clear.volume import AIR_HU, Volume

SCANS_FOLDER = "scans"
ARRAY_ATTRIBUTE = "clear-slices-scan"
SHARD = Path("c", "0", "0", "0")
INDEX_ENTRY, INDEX_CHECKSUM = (
    16,
    4,
)  # bytes of a shard's index: offset and length of each chunk, and a crc32c at its end
CODEC = {"cname": "lz4", "clevel": 5, "shuffle": "shuffle"}
MAX_TEXT = 4096


@dataclass(frozen=True, kw_only=True)
class StoredScan:
    """One scan as it lies in a store.

    key: the array's name below `scans/`; digest: sha256 of voxels and geometry (`Volume.digest`)
    height, width: of the slices; spacing_mm: (z, y, x), None where the file does not say
    z_mm, offset, length: a value a slice: position along the normal, and where its chunk lies in the shard
    n_bytes, sha256: of the shard; origin: hash of where its files lay; fingerprint: of their names, sizes and times
    dataset: the task it was read for
    """

    key: str
    scan_id: str
    digest: str
    n_slices: int
    height: int
    width: int
    spacing_mm: tuple[float | None, float | None, float | None]
    modality: str
    plane: str
    z_mm: tuple[float, ...]
    offset: tuple[int, ...]
    length: tuple[int, ...]
    n_bytes: int
    sha256: str
    origin: str
    fingerprint: str
    patient_id: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    source: str | None = None
    dataset: str | None = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StoredScan:
        """The inverse of `dataclasses.asdict`, after JSON. Raises TypeError or KeyError for anything else."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name in known
        }
        return cls(**values)


def write_scan(
    store: Path, scan: Scan, volume: Volume, *, origin: str, fingerprint: str, dataset: str | None
) -> StoredScan:
    """The volume becomes an array of the store, at once or not at all, and is on disk when this returns.

    What lies in the padding range of a slice is stored as air, as `clear.slices.prepare` shows it. Raises ScanRefused
    for anything but CT, OutputError when the disk fails.
    """
    if volume.modality != "CT":
        raise ScanRefused(
            "modality", f"{scan.source}: {volume.modality or 'no known modality'}; a slice store holds CT in HU"
        )
    digest = volume.digest
    key = scan_key(scan.scan_id, digest)
    place = store / SCANS_FOLDER / key
    facts: dict[str, Any] = {
        "key": key,
        "scan_id": scan.scan_id,
        "digest": digest,
        "n_slices": volume.n_slices,
        "height": volume.voxels.shape[1],
        "width": volume.voxels.shape[2],
        "spacing_mm": known_spacing(scan, volume),
        "modality": volume.modality,
        "plane": volume.plane,
        "z_mm": tuple(float(z) for z in np.round(volume.z_mm, 6)),
        "origin": origin,
        "fingerprint": fingerprint,
        "dataset": dataset,
        "remarks": tuple(dict.fromkeys(clean_text(text)[:MAX_TEXT] for text in (*scan.remarks, *volume.remarks))),
        **plan_facts(scan),
    }
    aside = place.with_name(f".{key}.{os.getpid()}.tmp")
    try:
        with output_errors(store):
            shutil.rmtree(aside, ignore_errors=True)
            shard = _write_array(aside, painted(volume))
            facts |= shard
            stored = StoredScan(**facts)
            _write_attributes(aside, stored)
            _sync_tree(aside)
            try:
                rename_into_place(aside, place)
            except OSError:  # a folder is not renamed onto another: the same voxels, of an earlier run
                shutil.rmtree(place)
                rename_into_place(aside, place)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)
        raise
    return stored


def scan_key(scan_id: str, digest: str) -> str:
    """The name of a scan's array, of its id and its voxels (docs/slice-store.md)."""
    return hashlib.sha256(f"{scan_id}\n{digest}".encode()).hexdigest()[:32]


def plan_facts(scan: Scan) -> dict[str, str | None]:
    """What the plan says of a scan, which can change while its voxels do not."""
    names = ("patient_id", "study_uid", "series_uid", "source")
    facts = {name: clean_text(getattr(scan, name) or "") or None for name in names}
    too_long = next((name for name, text in facts.items() if text and len(text) > MAX_TEXT), None)
    if too_long:
        raise ScanRefused("oversized_text", f"{too_long} has more than {MAX_TEXT} characters; the header is damaged")
    return facts


def known_spacing(scan: Scan, volume: Volume) -> tuple[float | None, float | None, float | None]:
    """The volume's spacing (z, y, x); None for what the file does not say, where the volume's is nominal."""
    if scan.spacing_mm is None:
        return None, None, None
    z, y, x = (float(value) if np.isfinite(value) else None for value in volume.spacing_mm)
    return z, y, x


def painted(volume: Volume) -> NDArray[np.int16]:
    """(Z, Y, X) HU with what lies in each slice's padding range as air; the volume's own array where none does."""
    hu = volume.hu
    if volume.padding is None:
        return hu
    hu = hu.copy()
    for image, (low, high) in zip(hu, volume.padding, strict=True):
        if low <= high:
            image[(image >= low) & (image <= high)] = AIR_HU
    return hu


def read_attributes(folder: Path) -> StoredScan | None:
    """What a complete array says of itself; None for anything else."""
    try:
        attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
        stored = StoredScan.from_dict(attributes[ARRAY_ATTRIBUTE])
        whole = stored.key == folder.name and (folder / SHARD).stat().st_size == stored.n_bytes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return stored if whole else None


def read_index(shard: Path, n_slices: int) -> NDArray[np.uint64]:
    """(n_slices, 2) offset and length of each chunk, from the shard's own index (zarr-specs, sharding-indexed 1.0).

    Raises OSError and ValueError for a shard without a sound one.
    """
    import google_crc32c

    size = INDEX_ENTRY * n_slices + INDEX_CHECKSUM
    with shard.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        index, checksum = file.read(size - INDEX_CHECKSUM), file.read(INDEX_CHECKSUM)
    if int.from_bytes(checksum, "little") != google_crc32c.value(index):
        raise ValueError(f"{shard}: the index of its chunks has another crc32c")
    return np.frombuffer(index, "<u8").reshape(n_slices, 2)


def _write_array(folder: Path, hu: NDArray[np.int16]) -> dict[str, Any]:
    """The array, and the facts that only the written shard tells."""
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    array = zarr.create_array(
        str(folder),
        shape=hu.shape,
        dtype="int16",
        chunks=(1, *hu.shape[1:]),
        shards=hu.shape,
        compressors=[BloscCodec(typesize=2, **CODEC), Crc32cCodec()],
        config={"write_empty_chunks": True},  # or a slice of zeros would have no bytes
    )
    array[...] = hu
    shard = folder / SHARD
    offset, length = read_index(shard, len(hu)).T.tolist()
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"offset": tuple(offset), "length": tuple(length), "n_bytes": shard.stat().st_size, "sha256": digest}


def _write_attributes(folder: Path, stored: StoredScan) -> None:
    file = folder / "zarr.json"
    metadata = json.loads(file.read_bytes())
    metadata["attributes"] = {ARRAY_ATTRIBUTE: asdict(stored)}
    file.write_text(json.dumps(metadata), encoding="utf-8")


def _sync_tree(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in files:
            fd = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(place))
