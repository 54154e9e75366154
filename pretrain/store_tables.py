"""The tables of a slice store, and the commit that makes them count.

`zarr.json` of the store names three Parquet tables in `tables/` by their content: scans, slices and boxes. It is
replaced last and at once, so a store is always what it was or what it shall be; arrays and tables that it does not name
do not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

import clear
from clear.atomic import write_aside
from clear.errors import InputError
from pretrain.boxes import Box
from pretrain.stored_scan import SCANS_FOLDER, StoredScan

FORMAT = "clear-slices"
VERSION = 1
TABLES_FOLDER = "tables"
LOCK_FILE = "lock"  # in the folder of the tables, held while a store is built
TABLES = ("scans", "slices", "boxes")
DAMAGED = "it is damaged, or was changed by another program. Build it again, or restore it from a copy"
SCANS: dict[str, Any] = {
    **dict.fromkeys(("scan_id", "patient_id", "study_uid", "series_uid", "scan_digest", "key"), pl.String),
    **dict.fromkeys(("n_slices", "height", "width"), pl.Int32),
    **dict.fromkeys(("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"), pl.Float64),
    **dict.fromkeys(("modality", "plane", "source", "dataset"), pl.String),
    "remarks": pl.List(pl.String),
    "n_bytes": pl.Int64,
    **dict.fromkeys(("sha256", "origin", "fingerprint"), pl.String),
}
SLICES: dict[str, Any] = {
    "scan": pl.Int32,
    "slice": pl.Int32,
    "z_mm": pl.Float64,
    "offset": pl.Int64,
    "length": pl.Int64,
}
BOXES: dict[str, Any] = {
    "row": pl.Int64,
    **dict.fromkeys(("x0", "y0", "x1", "y1", "x0_mm", "y0_mm", "x1_mm", "y1_mm"), pl.Float64),
    "label": pl.String,
}
SCHEMAS: Mapping[str, dict[str, Any]] = {"scans": SCANS, "slices": SLICES, "boxes": BOXES}
MAY_BE_NULL = frozenset(
    (
        *("patient_id", "study_uid", "series_uid", "spacing_z_mm", "spacing_y_mm", "spacing_x_mm"),
        *("source", "dataset", "x0_mm", "y0_mm", "x1_mm", "y1_mm", "label"),
    )
)
_HEX = re.compile(r"^[0-9a-f]+$")


class SliceStoreError(InputError):
    """A slice store that is damaged, unfinished, of a newer version, or none at all."""


@dataclass(frozen=True)
class Tables:
    """What a finished store holds. attributes: of its root; scans, slices, boxes: see SCANS, SLICES and BOXES."""

    attributes: Mapping[str, Any]
    scans: pl.DataFrame
    slices: pl.DataFrame
    boxes: pl.DataFrame

    @property
    def digest(self) -> str:
        return str(self.attributes["digest"])

    def stored_scans(self) -> list[StoredScan]:
        """The scans as `pretrain.stored_scan` describes them."""
        found, start = [], 0
        z, offset, length = (self.slices[name].to_list() for name in ("z_mm", "offset", "length"))
        for row in self.scans.iter_rows(named=True):
            part = slice(start, start + row["n_slices"])
            start = part.stop
            row["digest"] = row.pop("scan_digest")
            row["spacing_mm"] = tuple(row.pop(f"spacing_{axis}_mm") for axis in "zyx")
            per_slice = {"z_mm": tuple(z[part]), "offset": tuple(offset[part]), "length": tuple(length[part])}
            found.append(StoredScan(**{**row, **per_slice, "remarks": tuple(row["remarks"])}))
        return found

    def boxes_by_scan(self) -> dict[str, tuple[Box, ...]]:
        """scan_id -> its boxes."""
        rows = self.slices.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
        ids = self.scans.select("scan_id").with_row_index("scan").with_columns(pl.col("scan").cast(pl.Int32))
        placed = self.boxes.join(rows, on="row", how="left").join(ids, on="scan", how="left")
        found: dict[str, list[Box]] = {}
        columns = ("scan_id", "slice", "x0", "y0", "x1", "y1", "label")
        for scan_id, at, x0, y0, x1, y1, label in placed.select(columns).iter_rows():
            found.setdefault(scan_id, []).append(Box(at, x0, y0, x1, y1, label or ""))
        return {scan_id: tuple(sorted(boxes)) for scan_id, boxes in found.items()}


def store_digest(scans: Sequence[StoredScan], boxes: Mapping[str, Sequence[Box]]) -> str:
    """sha256 over which voxels are stored under which id and what is marked in them (docs/slice-store.md)."""
    sha = hashlib.sha256(f"{FORMAT} {VERSION}".encode())
    for scan in sorted(scans, key=lambda scan: scan.scan_id):
        marked = [
            [box.slice, *map(float, (box.x0, box.y0, box.x1, box.y1)), box.label]
            for box in sorted(boxes.get(scan.scan_id, ()))
        ]
        line = json.dumps([scan.scan_id, scan.digest, scan.n_slices, marked], separators=(",", ":"))
        sha.update(f"\n{line}".encode())
    return sha.hexdigest()


def is_store(path: Path) -> bool:
    """Whether a folder says of itself that it is a slice store, of any version, finished or not."""
    try:
        return bool(read_root(path)["format"] == FORMAT)
    except SliceStoreError:
        return False


def is_begun(path: Path) -> bool:
    """Whether a folder is empty, or a store whose build was killed before it could say so."""
    aside = r"\.zarr\.json\..*\.tmp"
    ours = re.compile(rf"{aside}|({TABLES_FOLDER}|{SCANS_FOLDER})(/({LOCK_FILE}|zarr\.json|{aside}))?")
    return all(ours.fullmatch(entry.relative_to(path).as_posix()) for entry in path.rglob("*"))


def begin(path: Path) -> None:
    """An empty folder becomes an unfinished store: its root is there and names no tables. Raises OutputError."""
    for folder in (path / SCANS_FOLDER, path / TABLES_FOLDER):
        folder.mkdir(exist_ok=True)
        write_aside(folder / "zarr.json", _group({}))
    if not (path / "zarr.json").exists():
        write_aside(path / "zarr.json", _group({"format": FORMAT, "version": VERSION}))


def commit(path: Path, scans: Sequence[StoredScan], boxes: Mapping[str, Sequence[Box]]) -> Tables:
    """The store holds these scans and boxes, and nothing else counts from now on. Raises OutputError."""
    ordered = sorted(scans, key=lambda scan: scan.scan_id)
    frames = {"scans": _scans_frame(ordered), "slices": _slices_frame(ordered), "boxes": _boxes_frame(ordered, boxes)}
    names: dict[str, str] = {}
    for table, frame in frames.items():
        data = io.BytesIO()
        frame.write_parquet(data, compression="zstd")
        names[table] = f"{table}-{hashlib.sha256(data.getvalue()).hexdigest()}.parquet"
        write_aside(path / TABLES_FOLDER / names[table], data.getvalue())
    attributes = {
        "format": FORMAT,
        "version": VERSION,
        "digest": store_digest(ordered, boxes),
        "tables": names,
        "scans": len(ordered),
        "slices": frames["slices"].height,
        "boxes": frames["boxes"].height,
        "clear": clear.__version__,
    }
    write_aside(path / "zarr.json", _group(attributes))
    return Tables(attributes, **frames)


def sweep(path: Path, tables: Tables) -> None:
    """Removes what the committed root does not name: old tables, replaced arrays, what a killed build was writing."""
    keep = {*tables.attributes["tables"].values(), *tables.scans["key"], "zarr.json", LOCK_FILE}
    with suppress(OSError):  # what cannot be removed does not count anyway
        for entry in (*path.glob(".*.tmp"), *(path / TABLES_FOLDER).iterdir(), *(path / SCANS_FOLDER).iterdir()):
            if entry.name not in keep:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def read_tables(path: Path) -> Tables:
    """The tables of a finished store, checked against each other. Raises SliceStoreError."""
    try:
        return _read_tables(path)
    except FileNotFoundError:  # a build replaced them just now
        try:
            return _read_tables(path)
        except FileNotFoundError as error:
            name = Path(str(error.filename)).name
            raise SliceStoreError(f"{path}: its table {name} is missing; {DAMAGED}") from None


def read_root(path: Path) -> dict[str, Any]:
    """The attributes of a store's root. Raises SliceStoreError for anything that is no store."""
    try:
        data = json.loads((path / "zarr.json").read_bytes())
        attributes = data["attributes"]
        if data["node_type"] != "group" or not isinstance(attributes, dict):
            raise TypeError
    except FileNotFoundError:
        what = "no such folder" if not path.exists() else "no slice store (it has no zarr.json)"
        raise SliceStoreError(f"{path}: {what}. Expected one that `clear slices build` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise SliceStoreError(f"{path}: no slice store; its zarr.json cannot be read as one. {_BUILD}") from None
    if attributes.get("format") != FORMAT:
        found = str(attributes.get("format", "none"))[:40]
        raise SliceStoreError(f"{path}: no slice store; expected the format {FORMAT}, found {found}. {_BUILD}")
    return attributes


_BUILD = "Expected a folder that `clear slices build` wrote"


def _read_tables(path: Path) -> Tables:
    attributes = read_root(path)
    version = attributes.get("version")
    if type(version) is int and version > VERSION:
        raise SliceStoreError(
            f"{path}: a slice store of version {version}; this clear reads up to {VERSION}. Update clear"
        )
    if type(version) is not int or version != VERSION:
        found = str(version)[:40]
        raise SliceStoreError(f"{path}: a slice store of version {found}; expected {VERSION}; {DAMAGED}")
    if "digest" not in attributes:
        raise SliceStoreError(f"{path}: its build is not finished. Run the same `clear slices build` again to go on")
    names = attributes.get("tables")
    frames = {}
    for table in TABLES:
        name = names.get(table) if isinstance(names, dict) else None
        match = re.fullmatch(rf"{table}-([0-9a-f]{{64}})\.parquet", name) if isinstance(name, str) else None
        if match is None:
            raise SliceStoreError(f"{path}: its zarr.json names no table of {table}; {DAMAGED}")
        data = (path / TABLES_FOLDER / str(name)).read_bytes()
        if hashlib.sha256(data).hexdigest() != match[1]:
            raise SliceStoreError(f"{path}: its table {name} is not as it was written; {DAMAGED}")
        try:
            frames[table] = pl.read_parquet(data)
        except pl.exceptions.PolarsError:
            raise SliceStoreError(f"{path}: its table {name} cannot be read; {DAMAGED}") from None
        if dict(frames[table].schema) != SCHEMAS[table]:
            raise SliceStoreError(f"{path}: its table {name} has other columns than version {VERSION} has; {DAMAGED}")
    tables = Tables(attributes, **frames)
    _check(path, tables)
    return tables


def _check(path: Path, tables: Tables) -> None:
    """Raises SliceStoreError where the tables contradict each other or could lead outside the store."""
    scans, slices, boxes = tables.scans, tables.slices, tables.boxes
    filled = all(
        frame[name].null_count() == 0
        for frame in (scans, slices, boxes)
        for name in frame.columns
        if name not in MAY_BE_NULL
    )
    counts = scans["n_slices"].to_numpy() if filled else np.empty(0, np.int32)
    whole = filled and counts.min(initial=1) > 0 and int(counts.sum(dtype=np.int64)) == slices.height
    if not (whole and _agree(scans, slices, boxes, np.repeat(np.arange(scans.height), counts))):
        raise SliceStoreError(f"{path}: its tables contradict each other; {DAMAGED}")
    if store_digest(tables.stored_scans(), tables.boxes_by_scan()) != tables.digest:
        raise SliceStoreError(f"{path}: its tables are not those of its digest; {DAMAGED}")


def _agree(scans: pl.DataFrame, slices: pl.DataFrame, boxes: pl.DataFrame, scan_of: NDArray[np.int64]) -> bool:
    """Whether the tables agree with each other. scan_of: the scan of every slice, as the scans' counts have it."""
    counts = scans["n_slices"].to_numpy()
    first = np.cumsum(counts) - counts
    offset, length = slices["offset"].to_numpy(), slices["length"].to_numpy()
    sizes = scans["n_bytes"].to_numpy()[scan_of]
    sides = scans.select("width", "height").to_numpy()
    corners = boxes.select("x0", "y0", "x1", "y1").to_numpy().reshape(-1, 4)
    rows = boxes["row"].to_numpy()
    return (
        np.array_equal(slices["scan"].to_numpy(), scan_of)
        and np.array_equal(slices["slice"].to_numpy(), np.arange(slices.height) - first[scan_of])
        and bool((offset >= 0).all() and (length > 0).all())
        and bool((length <= sizes).all() and (offset <= sizes - length).all())
        and all(_HEX.match(key) for key in scans["key"])
        and bool((sides > 0).all())
        and scans["scan_id"].is_unique().all()
        and bool((rows[1:] >= rows[:-1]).all())  # reading a slice's boxes relies on it
        and bool(((rows >= 0) & (rows < slices.height)).all())
        and bool((corners >= 0).all() and (corners[:, :2] < corners[:, 2:]).all())
        and bool((corners[:, 2:] <= sides[scan_of[rows]]).all())
    )


def _scans_frame(scans: Sequence[StoredScan]) -> pl.DataFrame:
    rows = [
        {
            **{name: getattr(scan, name) for name in SCANS if hasattr(scan, name)},
            "scan_digest": scan.digest,
            **{f"spacing_{axis}_mm": value for axis, value in zip("zyx", scan.spacing_mm, strict=True)},
            "remarks": list(scan.remarks),
        }
        for scan in scans
    ]
    return pl.DataFrame(rows, schema=SCANS)


def _slices_frame(scans: Sequence[StoredScan]) -> pl.DataFrame:
    counts = [scan.n_slices for scan in scans]
    return pl.DataFrame(
        {
            "scan": np.repeat(np.arange(len(scans)), counts),
            "slice": np.concatenate([np.arange(n) for n in counts] or [np.empty(0, int)]),
            **{name: [v for scan in scans for v in getattr(scan, name)] for name in ("z_mm", "offset", "length")},
        },
        schema=SLICES,
    )


def _boxes_frame(scans: Sequence[StoredScan], boxes: Mapping[str, Sequence[Box]]) -> pl.DataFrame:
    rows, start = [], 0
    for scan in scans:
        _, y_mm, x_mm = scan.spacing_mm
        for box in sorted(boxes.get(scan.scan_id, ())):
            row: dict[str, Any] = {"row": start + box.slice, "label": box.label or None}
            for name, step in (("x0", x_mm), ("y0", y_mm), ("x1", x_mm), ("y1", y_mm)):
                row[name] = getattr(box, name)
                row[f"{name}_mm"] = None if step is None else getattr(box, name) * step
            rows.append(row)
        start += scan.n_slices
    return pl.DataFrame(rows, schema=BOXES)


def _group(attributes: Mapping[str, Any]) -> bytes:
    """A group's zarr.json (zarr-specs, core 3.0)."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1).encode()
