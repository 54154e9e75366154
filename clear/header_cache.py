"""Header cache: records of files already looked at, kept until a file's path, size or time of change differs.

A convenience only: what cannot be read is made again, and what cannot be written is not. It holds what headers hold
(ids, no names), so its folder is readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs
import polars as pl

from clear import formats, headers
from clear.headers import NOTHING, Record, read_records, record_from_json
from clear.tree import Entry

CACHE_FROM_S = 2.0  # reads quicker than this are not remembered
CACHE_DAYS = 90


def default_folder() -> Path:
    """Where records are kept unless the caller says otherwise: the user's cache folder for this system."""
    return platformdirs.user_cache_path("clear-mil") / "headers"


def cached_records(
    root: Path,
    entries: Sequence[Entry],
    cache: Path | None,
    *,
    modality: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """`read_records`, but only for files whose path, size or time of change is new since the last call.

    cache: folder of the remembered records, a file a root; None reads everything. It is a convenience: what cannot
    be read is made again, and what cannot be written is not.
    """
    if cache is None:
        return read_records(root, entries, modality=modality, workers=workers, progress=progress)
    file = cache / f"{hashlib.sha256(f'{root.resolve()}|{modality}'.encode(errors='replace')).hexdigest()[:32]}.parquet"
    known = _load(file)
    records = [known.get((entry.name, entry.size, entry.mtime_ns)) for entry in entries]
    missing = [i for i, record in enumerate(records) if record is None]
    start = time.monotonic()
    fresh = read_records(root, [entries[i] for i in missing], modality=modality, workers=workers, progress=progress)
    for i, record in zip(missing, fresh, strict=True):
        records[i] = record
    complete = [record or NOTHING for record in records]
    if time.monotonic() - start > CACHE_FROM_S or (known and missing):
        _store(file, entries, complete)
    return complete


def _signature() -> str:
    """A digest of the code that makes records: another version of it makes its own."""
    sha = hashlib.sha256()
    for path in [Path(headers.__file__), *sorted(Path(formats.__file__).parent.glob("*.py"))]:
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _load(file: Path) -> dict[tuple[str, int, int], Record]:
    try:
        table = pl.read_parquet(file)
        if table["signature"][0] != _signature():
            return {}
        rows = table.select("name", "size", "mtime_ns", "record").iter_rows()
        known = {(name, size, mtime): record_from_json(record) for name, size, mtime, record in rows}
        os.utime(file)
    except (OSError, ValueError, IndexError, pl.exceptions.PolarsError):
        return {}
    return known


def _speaks_for_its_file_alone(record: Record) -> bool:
    """Whether the same file will always give the same record.

    A refusal may be over what lies beside the file or about this machine (`data_file_missing`, `unreadable_file`), and
    a detached header's values lie in another file: these are looked at again, which costs little.
    """
    scan = record.get("scan")
    return scan is None or (scan["verdict"] != "refused" and len(scan["files"]) == 1)


def _store(file: Path, entries: Sequence[Entry], records: Sequence[Record]) -> None:
    whole = [
        (entry, json.dumps(record))
        for entry, record in zip(entries, records, strict=True)
        if entry.name.isprintable() and _speaks_for_its_file_alone(record)
    ]
    table = pl.DataFrame(
        {
            "signature": [_signature()] * len(whole),
            "name": [entry.name for entry, _ in whole],
            "size": [entry.size for entry, _ in whole],
            "mtime_ns": [entry.mtime_ns for entry, _ in whole],
            "record": [record for _, record in whole],
        }
    )
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        table.write_parquet(part, compression="zstd")
        part.replace(file)
        for other in file.parent.glob("*.parquet"):
            if other.stat().st_mtime < time.time() - CACHE_DAYS * 86400:
                other.unlink()
    except (OSError, pl.exceptions.PolarsError):
        with contextlib.suppress(OSError):
            part.unlink()
