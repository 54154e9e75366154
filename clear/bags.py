"""Bags: a cohort as embeddings, one bag a scan, in one file.

    bags = Bags("feats.h5")             # or feats.zarr
    bags.scans                          # polars: scan_id, patient_id, n_slices, spacing_mm, ...
    bags["1.2.840..."].features         # (K, d), mapped from the file

Opening checks the whole layout (docs/bag-format.md) and reads no features. `write_bags` writes a file at once or not
at all, one bag at a time; `validate` reads every value.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from clear.atomic import as_size, output_errors, rename_into_place
from clear.bag_format import (
    FORMAT,
    SCAN_COLUMNS,
    VERSION,
    Bag,
    BagHeader,
    Contents,
    ScanRow,
    content_digest,
    parse_remarks,
    row_of,
)
from clear.bags_hdf5 import read_hdf5, write_hdf5
from clear.errors import BagFileError, InputError
from clear.windows import Window

__all__ = ["Bag", "BagHeader", "Bags", "ScanRow", "Validation", "bags_info", "check_bag_path", "validate", "write_bags"]

HDF5_ENDINGS = (".h5", ".hdf5")
ZARR_ENDING = ".zarr"
_REQUIRED_TEXTS = ("scan_id", "digest", "plane", "modality")


class Bags:
    """An open bag file, read-only. Raises BagFileError when it is no valid one of a version that this clear reads.

    features: (N, d) float16 or float32, sliced like an array (HDF5: mapped; Zarr: read when sliced)
    slice, window: (N,); position_mm: (N, 3); scans: one row a scan, ordered by scan_id, whose `start` and `length`
    say which rows are its bag.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._contents: Contents | None = _read(self.path)
        header, columns = self._contents.header, self._contents.columns
        self.header = header
        self.encoder: str = header.encoder
        self.encoder_digest: str = header.encoder_digest
        self.encoder_card: dict[str, Any] = dict(header.encoder_card)
        self.windows: tuple[Window, ...] = header.windows
        self.preprocessing: dict[str, Any] = dict(header.preprocessing)
        self.provenance: dict[str, Any] = dict(header.provenance)
        self.dim: int = header.dim
        self.digest: str = content_digest(header, columns)
        self._index = {scan_id: i for i, scan_id in enumerate(columns["scan_id"])}
        self._scans: pl.DataFrame | None = None

    @property
    def contents(self) -> Contents:
        """The checked arrays and columns as stored; raises BagFileError after `close`."""
        if self._contents is None:
            raise BagFileError(f"{self.path}: this bag file was closed. Open it again.")
        return self._contents

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._contents is None

    @property
    def scans(self) -> pl.DataFrame:
        """One row a scan, ordered by scan_id; what is not known is null, `remarks` is a list of sentences."""
        if self._scans is None:
            self._scans = _as_table(self.path, self.contents)
        return self._scans

    @property
    def features(self) -> Any:
        return self.contents.features

    @property
    def slice(self) -> NDArray[np.int32]:
        """(N,) index along Z of each instance, -1 for the whole volume."""
        return _array(self.contents.slice)

    @property
    def window(self) -> NDArray[np.uint8]:
        """(N,) index into `windows` of each instance."""
        return _array(self.contents.window)

    @property
    def position_mm(self) -> NDArray[np.float32]:
        """(N, 3) LPS centre of the first voxel of each instance's slice."""
        return _array(self.contents.position_mm)

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, scan_id: object) -> bool:
        return scan_id in self._index

    def __getitem__(self, scan_id: str) -> Bag:
        contents = self.contents
        i = self._position(scan_id)
        start = int(contents.columns["start"][i])
        stop = start + int(contents.columns["length"][i])
        return Bag(
            scan_id=scan_id,
            features=_array(contents.features, start, stop),
            slice=_array(contents.slice, start, stop),
            window=_array(contents.window, start, stop),
            position_mm=_array(contents.position_mm, start, stop),
        )

    def row(self, scan_id: str) -> ScanRow:
        """What the file says of one scan."""
        return row_of(self.path, self.contents.columns, self._position(scan_id))

    def release(self) -> None:
        """Gives mapped pages back to the system; they are read again when needed."""
        self.contents.release()

    def close(self) -> None:
        """Lets go of the file; arrays taken from it before stay readable."""
        self._contents = None  # a map lives as long as the arrays made from it, so that none of them can dangle

    def __enter__(self) -> Bags:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Bags], tuple[Path]]:
        return Bags, (self.path,)  # worker processes open the file themselves

    def __repr__(self) -> str:
        windows = ", ".join(window.name for window in self.windows)
        return f"Bags({str(self.path)!r}: {len(self)} scans, {self.encoder}, d = {self.dim}, windows {windows})"

    def _repr_html_(self) -> str:
        from clear.notebook import bags_card

        return bags_card(self)

    def _position(self, scan_id: str) -> int:
        try:
            return self._index[scan_id]
        except KeyError:
            raise InputError(f"{self.path}: no scan {scan_id!r} among its {len(self)}.") from None


def write_bags(
    path: Path | str,
    header: BagHeader,
    rows: Sequence[ScanRow],
    load: Callable[[ScanRow], Bag],
    *,
    aside: Path | None = None,
) -> None:
    """A bag file at `path`, at once or not at all; what was there is replaced.

    rows: in any order, each scan_id once; load: gives the bag of a row, called once for each in order of scan_id.
    aside: where the file stands until it is renamed, on the same file system (default: beside `path`).
    Raises OutputError when it cannot be written, ValueError when a bag does not fit its row or the header.
    """
    path = check_bag_path(path)
    rows = sorted(rows, key=lambda row: row.scan_id)
    if len({row.scan_id for row in rows}) != len(rows):
        raise ValueError("expected each scan_id once")
    aside = aside or path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        if path.suffix == ZARR_ENDING:
            from clear.bags_zarr import replace_zarr, write_zarr

            write_zarr(aside, header, rows, load, name=path)
            replace_zarr(aside, path)
        else:
            write_hdf5(aside, header, rows, load, name=path)
            with output_errors(path):
                rename_into_place(aside, path)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def check_bag_path(path: Path | str) -> Path:
    """The path as a Path; raises InputError when its name does not say which store it is."""
    path = Path(path)
    if path.suffix not in (*HDF5_ENDINGS, ZARR_ENDING):
        raise InputError(f"{path}: a bag file's name ends in .h5 (HDF5) or .zarr (Zarr). Rename the output.")
    return path


def bags_info(path: Path | str) -> dict[str, Any]:
    """What a bag file holds, as plain data for JSON or a table."""
    with Bags(path) as bags:
        scans = bags.scans
        columns = bags.contents.columns
        return {
            "path": str(bags.path),
            "format": FORMAT,
            "version": VERSION,
            "digest": bags.digest,
            "encoder": bags.encoder,
            "encoder_digest": bags.encoder_digest,
            "dim": bags.dim,
            "dtype": bags.header.dtype,
            "windows": [window.as_dict() for window in bags.windows],
            "preprocessing": bags.preprocessing,
            "provenance": bags.provenance,
            "scans": len(bags),
            "patients": scans["patient_id"].drop_nulls().n_unique(),
            "scans_without_patient": scans["patient_id"].null_count(),
            "instances": int(bags.features.shape[0]),
            "slices": int(np.sum(columns["n_slices"])),
            "modalities": dict(sorted(scans["modality"].value_counts().iter_rows())),
            "planes": dict(sorted(scans["plane"].value_counts().iter_rows())),
            "remarked": int((scans["remarks"].list.len() > 0).sum()),
            "size": as_size(_size_on_disk(bags.path)),
        }


@dataclass(frozen=True)
class Validation:
    """A valid bag file and what is worth knowing of it; `str()` of it is for the terminal."""

    path: Path
    scans: int
    instances: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.path}: valid, version {VERSION}, {self.scans} scans, {self.instances} instances"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])


def validate(path: Path | str, *, deep: bool = True) -> Validation:
    """Checks a bag file; raises BagFileError with the first violation of docs/bag-format.md.

    deep: read every feature, slice index and position, not only the layout.
    """
    notes = []
    with Bags(path) as bags:
        digests: dict[str, str] = {}
        for scan_id, digest in zip(bags, bags.contents.columns["digest"], strict=True):
            if digest in digests:
                notes.append(f"{digests[digest]} and {scan_id} hold the same voxels")
            digests.setdefault(str(digest), scan_id)
        several = [name for name, v in bags.provenance.items() if isinstance(v, dict) and set(v) == {"several"}]
        if several:
            notes.append(f"the scans were encoded in runs that differ in {', '.join(several)}")
        for scan_id in bags if deep else ():
            _check_bag(bags, scan_id)
            bags.release()
        return Validation(bags.path, len(bags), int(bags.features.shape[0]), tuple(notes))


def _check_bag(bags: Bags, scan_id: str) -> None:
    bag, row = bags[scan_id], bags.row(scan_id)
    where = f"{bags.path}: scan {scan_id}"
    if not np.isfinite(bag.features).all():
        bad = int((~np.isfinite(bag.features).all(axis=1)).sum())
        raise BagFileError(f"{where}: {bad} of {row.length} embeddings are not finite. Extract it again.")
    whole = bags.header.whole_scans
    if (
        (whole and (len(bag) != 1 or bag.slice[0] != -1))
        or (not whole and bag.slice.min() < 0)
        or (bag.slice.max() >= row.n_slices)
    ):
        raise BagFileError(
            f"{where}: slice indices {bag.slice.min()}..{bag.slice.max()} with {row.n_slices} slices. Extract it again."
        )
    order = bag.slice.astype(np.int64) * 256 + bag.window
    if (np.diff(order) <= 0).any():
        raise BagFileError(f"{where}: instances do not run slice by slice, windows inside. Extract it again.")
    if not np.isfinite(bag.position_mm).all():
        raise BagFileError(f"{where}: a position is not finite. Extract it again.")


def _read(path: Path) -> Contents:
    if path.is_dir():
        from clear.bags_zarr import read_zarr

        return read_zarr(path)
    if not path.exists():
        raise BagFileError(f"{path}: no such bag file. `clear extract` writes one.")
    if not path.is_file():
        raise BagFileError(f"{path}: expected a bag file; found something that is neither a file nor a folder.")
    return read_hdf5(path)


def _array(values: Any, start: int | None = None, stop: int | None = None) -> NDArray[Any]:
    return np.asarray(values[start:stop])


def _as_table(path: Path, contents: Contents) -> pl.DataFrame:
    series: list[pl.Series] = []
    for name, kind in SCAN_COLUMNS.items():
        values = contents.columns[name]
        if kind == "text":
            texts = [str(v) if v or name in _REQUIRED_TEXTS else None for v in values]
            series.append(pl.Series(name, texts, dtype=pl.String))
        elif kind == "remarks":
            lists = [list(parse_remarks(path, str(v))) for v in values]
            series.append(pl.Series(name, lists, dtype=pl.List(pl.String)))
        elif kind == "spacing":
            flat = pl.Series(name, np.asarray(values).ravel(), dtype=pl.Float64)
            series.append(flat.fill_nan(None).reshape((-1, 3)))
        else:
            column = pl.Series(name, np.asarray(values))
            if name == "days_since_first":
                column = column.to_frame().select(pl.when(pl.col(name) >= 0).then(pl.col(name))).to_series()
            series.append(column.fill_nan(None) if kind == "float64" else column)
    return pl.DataFrame(series)


def _size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
