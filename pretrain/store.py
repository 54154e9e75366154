"""The slice store: CT slices as int16 HU in a Zarr folder, each readable on its own.

>>> store = SliceStore("slices.zarr")  # doctest: +SKIP
>>> store.table.filter(pl.col("n_boxes") > 0)["row"]  # doctest: +SKIP
>>> store.read(17).hu.shape  # doctest: +SKIP
(512, 512)

Every scan is a Zarr array (version 3) whose slices are the chunks of one shard (`pretrain.stored_scan`); three Parquet
tables say what and where they are (`pretrain.store_tables`); docs/slice-store.md is the contract. A random slice is
one read of its chunk, whose place the table knows: measured on a scan of 92 slices of 512 x 512, that is more than 130
times faster than from a chunk of the whole scan, and 2.5 to 6 times faster than through zarr-python's own array.
"""

from __future__ import annotations

import importlib
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pretrain.spacing import unknown_spacing
from pretrain.store_tables import DAMAGED, FORMAT, VERSION, SliceStoreError, Tables, read_tables
from pretrain.stored_scan import SCANS_FOLDER, SHARD

__all__ = ["FORMAT", "VERSION", "SliceStore", "SliceStoreError", "StoredSlice", "describe"]

COLUMNS = (
    *("row", "scan_id", "patient_id", "scan_digest", "slice", "n_slices", "z_mm", "height", "width"),
    *("spacing_y_mm", "spacing_x_mm", "spacing_z_mm", "modality", "plane", "source", "study_uid", "series_uid"),
    *("n_boxes", "dataset"),
)
UNKNOWN_SPACING_MM = 1.0
_CRC_BYTES, _BLOSC_HEADER_BYTES, _VALUE_BYTES = 4, 16, 2


@dataclass(frozen=True)
class StoredSlice:
    """One slice as stored.

    hu: (Y, X) int16, canonical axes, padding painted as air
    spacing_mm: (between rows, between columns); 1.0 where the table says that it is unknown (null), which is for
        what asks for square pixels only: see `pretrain.spacing`
    boxes: (n, 4) float64, y0, x0, y1, x1 in pixels, half-open (pixel i covers i to i + 1); (0, 4) without
    row: of the store's table
    """

    hu: NDArray[np.int16]
    spacing_mm: tuple[float, float]
    boxes: NDArray[np.float64]
    row: int


class SliceStore:
    """A finished slice store, read only.

    `read` keeps no file open and touches nothing but numbers in memory and the disk, so a store can be pickled, forked
    and shared among threads; the tables stay behind when it is pickled, and are read again where they are asked for.

    digest: sha256 over what is stored (scan digests and boxes), whatever the workers or the order of inputs
    table: a row a slice, see COLUMNS; boxes: a row a box; scans: a row a scan (`pretrain.store_tables`)

    Raises SliceStoreError (an InputError) for a store that is damaged, unfinished, of a newer version, or none at all.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._tables: Tables | None = read_tables(self.path)
        tables = self._tables
        self.digest = tables.digest
        self._keys: list[str] = tables.scans["key"].to_list()
        self._scan = tables.slices["scan"].to_numpy()
        self._offset, self._length = tables.slices["offset"].to_numpy(), tables.slices["length"].to_numpy()
        self._shape = tables.scans.select("height", "width").to_numpy()
        self._spacing = tables.scans.select("spacing_y_mm", "spacing_x_mm").fill_null(UNKNOWN_SPACING_MM).to_numpy()
        self._box_rows = tables.boxes["row"].to_numpy()  # ascending
        self._corners = tables.boxes.select("y0", "x0", "y1", "x1").to_numpy().reshape(-1, 4)
        self._check_files()

    @property
    def scans(self) -> pl.DataFrame:
        """A row a scan, ordered by scan_id; the columns are `pretrain.store_tables.SCANS`."""
        return self._read_tables().scans

    @property
    def boxes(self) -> pl.DataFrame:
        """A row a box, ordered by row: row, x0, y0, x1, y1 (pixels from the edge of the first one), x0_mm, y0_mm,
        x1_mm, y1_mm (null where the spacing is unknown), label (null where the table said none)."""
        return self._read_tables().boxes

    @cached_property
    def table(self) -> pl.DataFrame:
        """A row a slice, scans ordered by scan_id, slices along Z; the columns are COLUMNS.

        z_mm: position along the normal; spacing null where unknown; n_boxes: of this slice; dataset: the task that the
        scan was read for.
        """
        tables = self._read_tables()
        counts = tables.boxes.group_by("row").agg(pl.len().cast(pl.Int32).alias("n_boxes"))
        scans = tables.scans.with_row_index("scan").with_columns(pl.col("scan").cast(pl.Int32))
        rows = tables.slices.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
        joined = rows.join(scans, on="scan", how="left", maintain_order="left")
        joined = joined.join(counts, on="row", how="left", maintain_order="left")
        return joined.with_columns(pl.col("n_boxes").fill_null(0)).select(COLUMNS)

    def __len__(self) -> int:
        return len(self._scan)

    def __repr__(self) -> str:
        return (
            f"SliceStore({str(self.path)!r}: {len(self._keys)} scans, {len(self)} slices, {len(self._corners)} boxes)"
        )

    def read(self, row: int) -> StoredSlice:
        """The slice of one row of the table. Raises IndexError, and SliceStoreError for a chunk that is damaged."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a store of {len(self)} slices")
        scan = int(self._scan[row])
        y_mm, x_mm = self._spacing[scan].tolist()
        first, last = np.searchsorted(self._box_rows, [row, row + 1])
        return StoredSlice(self._pixels(row, scan), (y_mm, x_mm), self._corners[first:last].copy(), int(row))

    def _pixels(self, row: int, scan: int) -> NDArray[np.int16]:
        """(Y, X) of a slice: one read, one checksum, one decompression."""
        import google_crc32c

        shard = self.shard(scan)
        try:
            fd = os.open(shard, os.O_RDONLY)
            try:
                chunk = os.pread(fd, int(self._length[row]), int(self._offset[row]))
            finally:
                os.close(fd)
        except OSError as error:
            raise SliceStoreError(f"{shard}: cannot be read ({error.strerror}). Is the disk still there?") from None
        packed, checksum = chunk[:-_CRC_BYTES], chunk[-_CRC_BYTES:]
        height, width = self._shape[scan].tolist()
        # blosc's header says the length unpacked (bytes 4 to 8) and packed (12 to 16): nothing else is unpacked than
        # what is expected
        lengths = tuple(int.from_bytes(packed[at : at + 4], "little") for at in (4, 12))
        fits = len(packed) > _BLOSC_HEADER_BYTES and lengths == (height * width * _VALUE_BYTES, len(packed))
        if not fits or int.from_bytes(checksum, "little") != google_crc32c.value(packed):
            raise SliceStoreError(f"{shard}: the chunk of slice row {row} is not as it was written; {DAMAGED}")
        out = np.empty((height, width), "<i2")
        _blosc().decode(packed, out)
        return out

    def chunks(self, rows: range) -> NDArray[np.int64]:
        """(n, 2) offset and length of the slices' chunks in their shard, for consecutive rows of one scan."""
        return np.stack([self._offset[rows.start : rows.stop], self._length[rows.start : rows.stop]], axis=1)

    def shard(self, scan: int) -> Path:
        """The file with the voxels of a scan (row of `scans`)."""
        return self.path / SCANS_FOLDER / self._keys[scan] / SHARD

    def _check_files(self) -> None:
        """Raises SliceStoreError unless every scan's shard is a regular file of the size it was written with."""
        for scan, (scan_id, n_bytes) in enumerate(self.scans.select("scan_id", "n_bytes").iter_rows()):
            shard = self.shard(scan)
            try:
                status = shard.lstat()
                state = "" if stat.S_ISREG(status.st_mode) and status.st_size == n_bytes else "has another size"
            except OSError:
                state = "is missing"
            if state:
                where = shard.relative_to(self.path)
                raise SliceStoreError(f"{self.path}: the file of scan {scan_id} ({where}) {state}; {DAMAGED}")

    def _read_tables(self) -> Tables:
        if self._tables is None:
            tables = read_tables(self.path)
            if tables.digest != self.digest:
                raise SliceStoreError(f"{self.path}: was changed while it was in use. Start again")
            self._tables = tables
        return self._tables

    def __getstate__(self) -> dict[str, Any]:
        # a process that was forked must not use polars, whose threads it has not: hence no tables
        return {key: value for key, value in self.__dict__.items() if key != "table"} | {"_tables": None}


def describe(path: Path | str) -> dict[str, str]:
    """What a store holds, a line each."""
    store = SliceStore(path)
    patients = store.scans["patient_id"].drop_nulls().n_unique()
    unknown = store.scans["patient_id"].null_count()
    annotated = store.boxes["row"].n_unique()
    unsized = unknown_spacing(store.scans).height
    return {
        "slices": f"{len(store)}",
        "scans": f"{len(store.scans)}",
        "patients": f"{patients}" + (f", and {unknown} scans whose patient is not known" if unknown else ""),
        "boxes": f"{len(store.boxes)} in {annotated} slices",
        "spacing": f"not known of {unsized} scans" if unsized else "known",
        "datasets": ", ".join(sorted(store.scans["dataset"].drop_nulls().unique().to_list())) or "none named",
        "size": f"{int(store.scans['n_bytes'].sum()) / 1e6:.1f} MB",
        "digest": store.digest,
    }


def _blosc() -> Any:
    """The decompressor, told to use no threads: readers are processes already, and a fork under threads can hang."""
    blosc: Any = importlib.import_module("numcodecs.blosc")
    blosc.use_threads = False
    return blosc.Blosc()
