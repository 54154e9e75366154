"""Patients: whose each scan is, by a table given for it, the scans' headers, a label table, or a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from clear.errors import InputError
from clear.labels import find_id_column, known_ids
from clear.tables import need_column, read_table, some


def patients_of_scans(
    scans: pl.DataFrame,
    table: Path | str | None = None,
    pattern: str | None = None,
    labelled: Mapping[str, str | None] | None = None,
) -> dict[str, str | None]:
    """scan_id -> patient or None, of every scan: of the first that knows it.

    scans: `Bags.scans`. In this order: table, an id column and patient_id; the scans' own headers; labelled, scan_id to
    the patient of a label table; pattern, a regular expression whose first group, in the scan id, is the patient.
    Raises InputError for a table that joins nothing, gives a scan two patients or names only some of the scans of a
    patient (of those labelled, where labels are given), and for a pattern that cannot be used.
    """
    from_scan = dict(scans.select("scan_id", "patient_id").iter_rows())
    from_table = _patient_table(scans, table) if table is not None else {}
    expression = None if pattern is None else _compiled(pattern)
    found: dict[str, str | None] = {}
    for scan_id, of_header in from_scan.items():
        patient = from_table.get(scan_id) or of_header or (labelled or {}).get(scan_id)
        if not patient and expression is not None:
            match = expression.search(scan_id)
            patient = match.group(1) if match else None
        found[scan_id] = patient or None
    _no_patient_half_renamed(from_scan if labelled is None else labelled, from_scan, from_table)
    return found


def _no_patient_half_renamed(
    scans: Iterable[str], from_scan: Mapping[str, str | None], from_table: Mapping[str, str]
) -> None:
    """A patient of the headers of whom the table names only some scans would be two, and could cross folds."""
    if not from_table:
        return
    renamed = {from_scan[scan] for scan in scans if scan in from_table} - {None}
    left = [scan for scan in scans if scan not in from_table and from_scan[scan] in renamed]
    if left:
        raise InputError(
            f"--patients: names some scans of patient {from_scan[left[0]]!r} and not others, first {some(left, 3)} "
            f"({len(left)} in all); one patient could end up in two folds. Name every scan of a patient in the table"
        )


def _patient_table(scans: pl.DataFrame, path: Path | str) -> dict[str, str]:
    table = read_table(path)
    need_column(table, "patient_id", path)
    column, key = find_id_column(table, path)
    if key == "patient_id":
        raise InputError(f"{path}: expected an id column (scan_id, series_uid or study_uid) beside patient_id")
    ids, patients = known_ids(table[column]), known_ids(table["patient_id"])
    pairs = pl.DataFrame({"id": ids, "patient_id": patients}).drop_nulls().unique()
    doubled = pairs.filter(pl.col("id").is_duplicated())
    if doubled.height:
        raise InputError(f"{path}: {key} {doubled['id'][0]!r} belongs to two patients; expected one")
    patient_of = dict(pairs.iter_rows())
    found = {
        scan_id: patient_of[value]
        for scan_id, value in zip(scans["scan_id"], scans[key], strict=True)
        if value in patient_of
    }
    if not found:
        raise InputError(
            f"{path}: none of its {pairs.height} {key}s is in the bag file ({some(pairs['id'].to_list(), 3)})"
        )
    return found


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--patient-pattern {pattern}: not a regular expression ({error})") from error
    if compiled.groups < 1:
        raise InputError(f"--patient-pattern {pattern}: expected a group in brackets, such as '^([^_/]+)'")
    return compiled
