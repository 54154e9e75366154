"""The quality record `feats.qc.csv`: what became of every series found.

It is for people and for the next run, not part of the bag file: it may hold times. A cell that a spreadsheet would
take for a formula (one that begins with = + - @, a tab or a return; ids come from headers that anybody can write) is
kept as text by a leading apostrophe, which `read_quality` takes off again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from clear.atomic import write_aside
from clear.bag_format import clean_text
from clear.errors import InputError

Status = Literal["done", "set aside", "refused", "failed"]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One series. reason is a short stable name, message the sentence behind it, both "" for a scan that is done.

    digest: of the voxels that were encoded; fingerprint: of names, sizes and times of the files they came from, by
    which the next run sees that nothing changed. read_seconds, encode_seconds: wall clock, of the run that did it.
    """

    scan_id: str
    patient_id: str = ""
    source: str = ""
    modality: str = ""
    n_slices: int = 0
    instances: int = 0
    status: Status
    reason: str = ""
    message: str = ""
    remarks: str = ""
    read_seconds: float | None = None
    encode_seconds: float | None = None
    digest: str = ""
    fingerprint: str = ""


COLUMNS = tuple(f.name for f in fields(QualityRow))


def quality_path(output: Path) -> Path:
    """`feats.qc.csv` for `feats.h5` or `feats.zarr`."""
    return output.with_name(f"{output.stem}.qc.csv")


def write_quality(path: Path, rows: Iterable[QualityRow], *, aside: Path | None = None) -> None:
    """The rows sorted by scan_id, replacing what was there at once; raises OutputError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: (row.scan_id, row.source)):
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    write_aside(path, text.getvalue().encode(), aside=aside)


def read_quality(path: Path) -> dict[str, QualityRow]:
    """Rows by scan_id, as `quality_rows` reads them; of refused series that claim one id, the last."""
    return {row.scan_id: row for row in quality_rows(path)}


def quality_rows(path: Path) -> list[QualityRow]:
    """All rows; none when there is no such file. Raises InputError for one that clear did not write."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(map(_row, csv.DictReader(file)))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise InputError(
            f"{path}: not a quality record as clear writes it. Remove it, or name another output."
        ) from None


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = clean_text(str(value))
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def _row(cells: dict[str, str]) -> QualityRow:
    values = {name: cells[name].removeprefix("'") for name in COLUMNS}
    if values["status"] not in ("done", "set aside", "refused", "failed"):
        raise ValueError(values["status"])
    numbers = {name: int(values.pop(name)) for name in ("n_slices", "instances")}
    seconds = {name: float(text) if (text := values.pop(name)) else None for name in ("read_seconds", "encode_seconds")}
    return QualityRow(**values, **numbers, **seconds)  # type: ignore[arg-type]  # status was checked above
