"""The plan: every series found as a row, to look at, to choose from, to keep, and for extraction to read.

`plan_text` is for eyes, `plan_rows` for programs, `write_plan` and `read_plan` for files. `select_series` chooses
among the usable series; `apply_scans_table` brings in the user's own names.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from clear.atomic import write_aside
from clear.errors import InputError
from clear.kernels import is_soft_kernel
from clear.scans import Scan
from clear.scans_table import apply_scans_table, scans_table

PLAN_VERSION = 1
COLUMNS: dict[str, Any] = {
    "scan_id": pl.String,
    "patient_id": pl.String,
    "study_uid": pl.String,
    "series_uid": pl.String,
    "modality": pl.String,
    "plane": pl.String,
    "n_slices": pl.Int32,
    "rows": pl.Int32,
    "columns": pl.Int32,
    "spacing_z_mm": pl.Float64,
    "spacing_y_mm": pl.Float64,
    "spacing_x_mm": pl.Float64,
    "verdict": pl.String,
    "reason": pl.String,
    "message": pl.String,
    "remarks": pl.List(pl.String),
    "manufacturer": pl.String,
    "kernel": pl.String,
    "thickness_mm": pl.Float64,
    "contrast": pl.String,
    "days_since_first": pl.Int32,
    "format": pl.String,
    "source": pl.String,
    "files": pl.List(pl.String),
}
__all__ = [
    "apply_scans_table",
    "plan_rows",
    "plan_table",
    "plan_text",
    "read_plan",
    "scans_table",
    "select_series",
    "summary",
    "to_json",
    "write_plan",
]
RULES = ("thinnest", "most-slices", "soft-kernel")


def plan_table(scans: Sequence[Scan]) -> pl.DataFrame:
    """One row a scan, in their order; the columns of `COLUMNS`, null for what is unknown."""
    return pl.DataFrame([_row(scan) for scan in scans], schema=COLUMNS, orient="row")


def plan_rows(scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """The plan as plain data for JSON: a number that is not finite becomes None."""
    return [
        {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in _row(scan).items()}
        for scan in scans
    ]


def to_json(scans: Sequence[Scan]) -> str:
    """`plan_rows` as JSON text, a row a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in plan_rows(scans)) + "\n]"


def plan_text(scans: Sequence[Scan], width: int | None = None) -> str:
    """The plan as a table for a terminal: scan, patient, modality, slices, spacing, verdict, remark; and a count.

    width: characters a line at most; None cuts nothing. Characters that do not print are shown as "?".
    """
    header = ("scan", "patient", "modality", "slices", "spacing (mm)", "verdict", "remark")
    rows = [header, *(_cells(scan, cut=width is not None) for scan in scans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(w) if i == 3 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        line = "  ".join(cells).rstrip()
        lines.append(line if width is None or len(line) <= width else line[: max(width - 1, 0)] + "…")
    return "\n".join([*lines, "", summary(scans)])


def summary(scans: Sequence[Scan]) -> str:
    """How many are used, set aside and refused, with the reasons counted.

    >>> summary([])
    '0 series: 0 to use, 0 set aside, 0 refused'
    """
    parts = []
    for verdict, words in (("use", "to use"), ("set aside", "set aside"), ("refused", "refused")):
        reasons = Counter(scan.reason for scan in scans if scan.verdict == verdict)
        named = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()) if reason)
        parts.append(f"{sum(reasons.values())} {words}" + (f" ({named})" if named else ""))
    return f"{len(scans)} series: {', '.join(parts)}"


def write_plan(scans: Sequence[Scan], path: Path | str) -> None:
    """The plan as Parquet, with the folder its paths are relative to; written aside, then renamed.

    Raises InputError when the scans lie under several folders, OutputError when the file cannot be written.
    """
    path = Path(path)
    roots = {scan.root.resolve() for scan in scans}
    if len(roots) != 1:
        raise InputError(f"{path}: a plan holds scans of one folder; found {len(roots)}")
    (root,) = roots
    notes = {
        "clear_plan": str(PLAN_VERSION),
        "root": str(root),
        "root_from_plan": os.path.relpath(root, path.resolve().parent),
    }
    data = io.BytesIO()
    plan_table(scans).write_parquet(data, metadata=notes)
    write_aside(path, data.getvalue())


def read_plan(path: Path | str) -> list[Scan]:
    """The scans of a plan. Their folder is where it was, or where it lies now relative to the plan.

    Raises InputError for a file that is no plan, of a newer version, or whose folder is gone.
    """
    path = Path(path)
    try:
        notes = pl.read_parquet_metadata(path)
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        raise InputError(
            f"{path}: cannot be read as a plan; expected the Parquet file of `clear inspect --out`"
        ) from None
    if "clear_plan" not in notes or not set(COLUMNS) <= set(table.columns):
        raise InputError(f"{path}: is no plan; expected the Parquet file of `clear inspect --out`")
    if notes["clear_plan"] != str(PLAN_VERSION):
        raise InputError(f"{path}: a plan of version {notes['clear_plan']}, from a newer clear. Make it again")
    candidates = [Path(notes["root"]), path.resolve().parent / notes["root_from_plan"]]
    root = next((folder for folder in candidates if folder.is_dir()), None)
    if root is None:
        raise InputError(f"{path}: the folder of its scans, {candidates[0]}, is gone. Make the plan again")
    try:
        return [_scan(row, root) for row in table.select(list(COLUMNS)).iter_rows(named=True)]
    except (ValueError, TypeError):
        raise InputError(f"{path}: a row of the plan is damaged. Make it again") from None


def select_series(scans: Sequence[Scan], rule: str) -> list[Scan]:
    """The same scans, those not chosen set aside as `not_selected`. Only usable ones are chosen among.

    rule: `thinnest` (smallest slice spacing, then most slices), `most-slices` (then smallest spacing) or
    `soft-kernel` (a soft-tissue kernel, then thinnest; thinnest where the study has none): one series a study and
    modality, ties by scan_id; scans without a study stand alone. Anything else is a boolean SQL expression over the
    plan's columns and keeps every row that fulfils it.

    Raises InputError for an expression that cannot be evaluated.

    >>> select_series([], "n_slices >= 20 AND plane = 'axial'")
    []
    """
    if rule in RULES:
        keep = _one_per_study([scan for scan in scans if scan.verdict == "use"], rule)
        why = f"the rule {rule!r} chose another series of its study"
    else:
        keep = _fulfilling(scans, rule)
        why = f"does not fulfil {rule!r}"
    return [
        scan
        if scan.verdict != "use" or i in keep
        else replace(scan, verdict="set aside", reason="not_selected", message=f"{scan.scan_id}: {why}", remarks=())
        for i, scan in _numbered(scans, rule in RULES)
    ]


def _row(scan: Scan) -> dict[str, Any]:
    rows, columns = scan.shape or (None, None)
    z, y, x = scan.spacing_mm or (None, None, None)
    own: dict[str, Any] = {"rows": rows, "columns": columns, "spacing_z_mm": z, "spacing_y_mm": y, "spacing_x_mm": x}
    own |= {"remarks": list(scan.remarks), "files": list(scan.files)}
    return {name: own[name] if name in own else getattr(scan, name) for name in COLUMNS}


def _scan(row: dict[str, Any], root: Path) -> Scan:
    shape = row.pop("rows"), row.pop("columns")
    spacing = row.pop("spacing_z_mm"), row.pop("spacing_y_mm"), row.pop("spacing_x_mm")
    files, remarks = tuple(row.pop("files") or ()), tuple(row.pop("remarks") or ())
    if any(PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts for file in (*files, row["source"])):
        raise ValueError("a path leaves the folder")
    return Scan(
        **row,
        root=root,
        shape=None if None in shape else shape,
        spacing_mm=None if None in spacing else spacing,
        files=files,
        remarks=remarks,
    )


def _cells(scan: Scan, cut: bool) -> tuple[str, ...]:
    spacing = " x ".join("?" if math.isnan(v) else f"{v:.3g}" for v in scan.spacing_mm) if scan.spacing_mm else "-"
    remark = scan.message if scan.verdict != "use" else "; ".join(scan.remarks)
    verdict = scan.verdict if scan.verdict == "use" else f"{scan.verdict}: {scan.reason}"
    names = [_printable(text) for text in (scan.scan_id, scan.patient_id or "-")]
    if cut:
        names = [text if len(text) <= 28 else f"…{text[-27:]}" for text in names]
    slices = str(scan.n_slices) if scan.n_slices else "-"
    return (*names, scan.modality or "-", slices, spacing, verdict, _printable(remark))


def _printable(text: str) -> str:
    """Text that cannot steer a terminal or break the table."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _numbered(scans: Sequence[Scan], usable_only: bool) -> list[tuple[int, Scan]]:
    """Each scan with its number: among the usable ones, or among all."""
    numbers, n = [], 0
    for i, scan in enumerate(scans):
        numbers.append((n if usable_only else i, scan))
        n += scan.verdict == "use"
    return numbers


def _one_per_study(usable: list[Scan], rule: str) -> set[int]:
    studies: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, scan in enumerate(usable):
        studies[scan.study_uid or f"\0{i}", scan.modality].append(i)

    def rank(i: int) -> tuple[Any, ...]:
        scan = usable[i]
        gap = scan.spacing_mm[0] if scan.spacing_mm and math.isfinite(scan.spacing_mm[0]) else math.inf
        thin, many = round(gap, 3), -scan.n_slices
        if rule == "most-slices":
            return many, thin, scan.scan_id
        sharp = rule == "soft-kernel" and not is_soft_kernel(scan.kernel, scan.manufacturer)
        return sharp, thin, many, scan.scan_id

    return {min(same, key=rank) for same in studies.values()}


def _fulfilling(scans: Sequence[Scan], expression: str) -> set[int]:
    """Indices of the rows for which the expression is true. Raises InputError."""
    hint = f"expected {', '.join(RULES)} or a condition such as \"n_slices >= 20 AND kernel = 'B31f'\""
    try:
        answer = plan_table(scans).select(pl.sql_expr(expression).alias("keep"))["keep"]
    except pl.exceptions.ColumnNotFoundError:
        raise InputError(
            f"--select {expression!r}: names a column that the plan lacks; {hint}. Columns: {', '.join(COLUMNS)}"
        ) from None
    except (pl.exceptions.PolarsError, ValueError, TypeError):
        raise InputError(f"--select {expression!r}: cannot be understood; {hint}") from None
    if answer.dtype != pl.Boolean or (len(scans) and len(answer) not in (1, len(scans))):
        raise InputError(f"--select {expression!r}: is not true or false for each series; {hint}")
    keep = answer.to_list() * (len(scans) if len(answer) == 1 else 1)
    return {i for i, kept in enumerate(keep) if kept}
