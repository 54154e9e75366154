"""Tables of scans: the user's own names for what lies in a folder, and which of it to take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import polars as pl

from clear.errors import InputError
from clear.scans import Scan
from clear.tables import read_table


def apply_scans_table(scans: Sequence[Scan], path: Path | str) -> list[Scan]:
    """`apply_table` with the table of a file; every complaint names the file. Raises InputError."""
    table = scans_table(path)
    try:
        return apply_table(scans, table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def scans_table(path: Path | str) -> pl.DataFrame:
    """The user's table of scans: columns `path`, `scan_id`, `series_uid`, `patient_id`, `study_uid` as text.

    At least one of `path`, `series_uid` and `scan_id` must be there to find the scan by. Other columns are left out.
    Raises InputError for a table that cannot be read or finds no scan.
    """
    table = read_table(path)
    names = [name for name in ("path", "series_uid", "scan_id", "patient_id", "study_uid") if name in table.columns]
    if not set(names) & {"path", "series_uid", "scan_id"}:
        raise InputError(f"{path}: needs a column path, series_uid or scan_id; found {', '.join(table.columns[:12])}")
    return table.select(names)


def apply_table(scans: Sequence[Scan], table: pl.DataFrame) -> list[Scan]:
    """The scans that a table names, with its ids; the others are set aside as `not_in_table`.

    A row finds its scan by `path` (the file, or the folder that holds the series, relative to the input folder or
    absolute) if there is one, else by `series_uid`, else by `scan_id`; its other ids replace the scan's own.
    Raises InputError when a row finds no scan or several, when two rows find the same one, or when ids repeat.
    """
    rows = table.to_dicts()
    key = next(name for name in ("path", "series_uid", "scan_id") if name in table.columns)
    index: dict[str, list[int]] = defaultdict(list)
    for i, scan in enumerate(scans):
        for word in _known_as(scan, key):
            index[word].append(i)
    renamed: dict[int, dict[str, str]] = {}
    for row in rows:
        word = (row[key] or "").strip()
        root = scans[0].root if scans else Path()
        found = index.get(_relative(word, root) if key == "path" else word, [])
        if len(found) > 1:
            found = [i for i in found if scans[i].verdict == "use"] or found
        if len(found) != 1 or found[0] in renamed:
            state = "no scan" if not found else f"{len(found)} scans" if len(found) > 1 else "a scan named before"
            raise InputError(f"the table's {key} {word!r} finds {state}; expected one scan a row")
        ids = ("scan_id", "patient_id", "study_uid", "series_uid")
        renamed[found[0]] = {name: row[name] for name in ids if name != key and row.get(name)}
    result = []
    for i, scan in enumerate(scans):
        if i in renamed:
            result.append(replace(scan, **renamed[i]))  # type: ignore[arg-type]  # text fields only
        elif scan.verdict == "use":
            message = f"{scan.scan_id}: the table does not name it"
            result.append(replace(scan, verdict="set aside", reason="not_in_table", message=message, remarks=()))
        else:
            result.append(scan)
    named = Counter(scan.scan_id for scan in result if scan.verdict == "use")
    repeated = sorted(scan_id for scan_id, n in named.items() if n > 1)
    if repeated:
        raise InputError(
            f"the table gives the scan_id {repeated[0]!r} to {named[repeated[0]]} scans; expected one each"
        )
    return sorted(result, key=lambda scan: (scan.scan_id, scan.source))


def _known_as(scan: Scan, key: str) -> set[str]:
    """The words by which a table may name a scan."""
    if key == "scan_id":
        return {scan.scan_id}
    if key == "series_uid":
        return {scan.series_uid} if scan.series_uid else set()
    folders = {PurePosixPath(file).parent.as_posix() for file in scan.files} if len(scan.files) > 1 else set()
    return {scan.source, *scan.files, *folders}


def _relative(word: str, root: Path) -> str:
    """A path of the table as the plan writes it."""
    path = Path(word)
    if path.is_absolute():
        try:
            path = path.relative_to(root.resolve())
        except ValueError:
            return word
    return path.as_posix()
