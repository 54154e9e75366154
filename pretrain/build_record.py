"""What came of a build: counts and one line for the reader, and a row for each scan and box in `NAME.qc.csv`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clear.atomic import write_aside
from clear.bag_format import clean_text
from clear.scans import Scan
from pretrain.boxes import BoxProblem, PlacedBoxes
from pretrain.build_workers import Problem
from pretrain.left_out import COPY
from pretrain.left_out import REASON as LEFT_OUT
from pretrain.spacing import unknown_spacing
from pretrain.store_tables import Tables

COLUMNS = ("what", "name", "status", "reason", "message", "remarks")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


@dataclass(frozen=True)
class BuildResult:
    """What came of a build.

    store, digest: what `SliceStore` opens. scans, slices, patients, boxes: in the store, those of earlier builds too;
    annotated: slices with a box. new: scans read and stored in this build.
    left_out: scans of patients who are left out; left_out_copies: those that share voxels with them, see
    `pretrain.copies`; set_aside, refused, failed: other scans of the inputs
    box_problems: rows of the tables of which no box, or another than they say, is stored; lost: how many of them miss
    unknown_patients: scans in the store whose patient is not known; copies: scans with the very voxels of another;
    doubtful_hu: scans whose values may not be HU, as their remarks say; unknown_spacing: scans in the store whose
    pixels' size is not known
    """

    store: Path
    digest: str
    scans: int
    slices: int
    patients: int
    boxes: int
    annotated: int
    new: int
    left_out: int
    left_out_copies: int
    set_aside: int
    refused: int
    failed: int
    unknown_patients: int
    copies: int
    doubtful_hu: int
    unknown_spacing: int
    problems: Mapping[str, Problem]
    box_problems: tuple[BoxProblem, ...]
    seconds: float

    @classmethod
    def of(
        cls,
        store: Path,
        tables: Tables,
        found: Sequence[Scan],
        problems: Mapping[str, Problem],
        placed: PlacedBoxes,
        new: int,
        copies: int,
        seconds: float,
    ) -> BuildResult:
        """The result of a committed build. problems: by scan_id, of scans that were to be used. copies: scans that are
        left out since they share voxels with others left out, of the inputs and of the store."""
        wrong = dict(problems)
        for scan in found:
            if scan.verdict == "refused":
                wrong[scan.scan_id] = Problem("refused", scan.reason, scan.message)
        by_status = Counter(problem.status for problem in problems.values())
        left_out = sum(scan.reason == LEFT_OUT for scan in found)
        aside = sum(scan.verdict == "set aside" and scan.reason not in (LEFT_OUT, COPY) for scan in found)
        return cls(
            store=store,
            digest=tables.digest,
            scans=tables.scans.height,
            slices=tables.slices.height,
            patients=tables.scans["patient_id"].drop_nulls().n_unique(),
            boxes=tables.boxes.height,
            annotated=tables.boxes["row"].n_unique(),
            new=new,
            left_out=left_out,
            left_out_copies=copies,
            set_aside=aside,
            refused=sum(scan.verdict == "refused" for scan in found) + by_status["refused"],
            failed=by_status["failed"],
            unknown_patients=tables.scans["patient_id"].null_count(),
            copies=tables.scans.height - tables.scans["scan_digest"].n_unique(),
            doubtful_hu=sum(any(r.startswith("not HU") for r in remarks) for remarks in tables.scans["remarks"]),
            unknown_spacing=unknown_spacing(tables.scans).height,
            problems=wrong,
            box_problems=placed.problems,
            seconds=seconds,
        )

    @property
    def lost_boxes(self) -> int:
        """Rows of the tables of which a box is missing that one would expect."""
        return sum(problem.lost for problem in self.box_problems)

    @property
    def exit_status(self) -> int:
        """0 when all usable scans and all boxes are in, 3 when some are missing."""
        return 3 if self.refused or self.failed or self.lost_boxes else 0

    def summary(self) -> str:
        """One line, and one more for each note."""
        speed = f"; {self.new / self.seconds:.1f} scans/s" if self.new and self.seconds > 0 else ""
        lines = [
            f"{self.store}: {self.slices} slices of {self.scans} scans ({self.new} new) and {self.patients} patients, "
            f"{self.boxes} boxes in {self.annotated} slices; {self.set_aside} set aside, {self.refused} refused, "
            f"{self.failed} failed; {self.seconds:.1f} s{speed}"
        ]
        if self.left_out:
            lines.append(f"{self.left_out} scans are of patients who are left out")
        if self.left_out_copies:
            lines.append(
                f"{self.left_out_copies} more scans are left out, since they or others of their patients have the very "
                "voxels of scans that are: one person may have several ids"
            )
        for problem in list(self.problems.values())[:1]:
            lines.append(f"{len(self.problems)} scans could not be used, the first: {problem.message}")
        by_reason: dict[str, list[BoxProblem]] = {}
        for one in self.box_problems:
            by_reason.setdefault(one.reason, []).append(one)
        lines += [
            f"{len(same)} rows of boxes ({reason}), the first: {same[0].message}" for reason, same in by_reason.items()
        ]
        if self.unknown_patients:
            lines.append(f"the patients of {self.unknown_patients} scans are not known")
        if self.copies:
            lines.append(f"{self.copies} scans have the very voxels of another one")
        if self.unknown_spacing:
            lines.append(
                f"the pixel spacing of {self.unknown_spacing} scans is not known, so crops in mm cannot be cut from "
                "them; DeepLesion's is in DL_info.csv (--boxes)"
            )
        if self.doubtful_hu:
            lines.append(f"the values of {self.doubtful_hu} scans may not be HU, as their remarks say")
        if self.problems or self.box_problems or self.doubtful_hu or self.left_out_copies:
            lines.append(f"Reasons are in {record_path(self.store)}")
        return "\n".join(lines)


def record_path(store: Path) -> Path:
    """`slices.qc.csv` for `slices.zarr`."""
    return store.with_name(f"{store.stem}.qc.csv")


def write_record(store: Path, found: Sequence[Scan], problems: Mapping[str, Problem], placed: PlacedBoxes) -> None:
    """A row for every scan found and every row of boxes that is not as it was; replaced at once. Raises OutputError.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    rows: list[tuple[str, ...]] = []
    for scan in found:
        problem = problems.get(scan.scan_id) if scan.verdict == "use" else None
        status = problem.status if problem else "done" if scan.verdict == "use" else scan.verdict
        reason, message = (problem.reason, problem.message) if problem else (scan.reason, scan.message)
        rows.append(("scan", scan.scan_id, status, reason, message, "; ".join(scan.remarks)))
    for one in placed.problems:
        rows.append(("box", one.place, "lost" if one.lost else "noted", one.reason, one.message, ""))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(value) for value in row] for row in rows)
    path = record_path(store)
    write_aside(path, text.getvalue().encode(), aside=path.with_name(f".{path.name}.tmp"))


def _cell(value: str) -> str:
    text = clean_text(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
