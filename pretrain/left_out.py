"""Patients left out of a slice store, so that an encoder never sees those it will be judged on.

They come from a table or list of the user's, or are the official test patients of a task. A scan whose patient is not
known cannot be told from theirs, so it is refused while anybody is left out. An id that is spelled almost as one of
the scans' is an error: `91` for `000091` would let a test patient through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clear.datasets.assemble import split_name
from clear.errors import ClearError, InputError
from clear.formats import without_ending
from clear.labels import Labels, id_of, known_ids, read_labels
from clear.scans import Scan
from clear.tables import read_table, some
from clear.task import Task
from clear.task_labels import find_labels

OFFICIAL_TEST = "test"
REASON = "left_out"
COPY = "left_out_copy"  # of a scan left out, under another id
UNKNOWN = "unknown_patient"


@dataclass(frozen=True)
class LeftOut:
    """Who is left out, and what the labels of a task know of patients.

    patients: their ids; ids: of scans that are theirs, where the labels name scans
    patient_of: id of every labelled scan -> its patient, None where the labels do not say
    """

    patients: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    patient_of: Mapping[str, str | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.patients or self.ids)

    def takes(self, scan: Scan) -> bool:
        """Whether a scan is that of a patient who is left out."""
        return scan.patient_id in self.patients or any(name in self.ids for name in _names(scan))

    def patient(self, scan: Scan) -> str | None:
        """The scan's patient: of its header, else of the labels."""
        return scan.patient_id or next((p for name in _names(scan) if (p := self.patient_of.get(name))), None)

    def apply(self, scans: Sequence[Scan]) -> list[Scan]:
        """The scans with their patients; those left out set aside, those of nobody known refused.

        Raises InputError when a patient to be left out is spelled in another way than a scan's.
        """
        named = [replace(scan, patient_id=self.patient(scan)) for scan in scans]
        if not self:
            return named
        whole = replace(self, patients=self.patients | {s.patient_id for s in named if s.patient_id and self.takes(s)})
        _check_spelling(whole.patients, named)
        return [whole._judged(scan) for scan in named]

    def _judged(self, scan: Scan) -> Scan:
        if scan.verdict != "use":
            return scan
        if self.takes(scan):
            message = f"{scan.scan_id}: its patient is left out"
            return replace(scan, verdict="set aside", reason=REASON, message=message, remarks=())
        if scan.patient_id is None and not any(name in self.patient_of for name in _names(scan)):
            message = (
                f"{scan.scan_id}: its patient is not known, so it cannot be told whether it is left out. Name patients "
                "with --scans TABLE (scan_id, patient_id)"
            )
            return replace(scan, verdict="refused", reason=UNKNOWN, message=message, remarks=())
        return scan


def read_left_out(
    leave_out: Path | str | Sequence[str] | None,
    task: Task | None,
    folders: Sequence[Path],
    tables: Sequence[Path] = (),
) -> LeftOut:
    """Who is left out; nobody for None.

    leave_out: a table with a patient_id column (where it has a column `split`, only its test rows), a .txt file with an
    id a line, ids, or "test" for the official test patients of the task, whose labels lie in or beside the folders of
    the scans or among the tables. Raises InputError for a file that cannot be used, and where there is no test set.
    """
    wants_test = isinstance(leave_out, str | Path) and str(leave_out) == OFFICIAL_TEST
    labels = [] if task is None else _labels(task, folders, tables, must=wants_test)
    patient_of = {name: patient for one in labels for name, patient in one.frame.select("id", "patient_id").iter_rows()}
    if leave_out is None:
        return LeftOut(patient_of=patient_of)
    if not wants_test:
        ids = _read_ids(Path(leave_out)) if isinstance(leave_out, str | Path) else list(leave_out)
        if not ids:
            raise InputError(f"--leave-out {leave_out}: names no patient")
        return LeftOut(frozenset(ids), frozenset(), patient_of)
    if task is None:
        raise InputError(
            "--leave-out test: whose test patients? Name the task with --task, or give a table of patients"
        )
    tests = [one.frame.filter(split="test") for one in labels if "split" in one.frame.columns]
    names = {name for test in tests for name in test["id"]}
    if not names:
        raise InputError(f"--leave-out test: {task.name} has no official test set; give a table of patients instead")
    patients = {patient for test in tests for patient in test["patient_id"] if patient}
    return LeftOut(frozenset(patients), frozenset(names), patient_of)


def _labels(task: Task, folders: Sequence[Path], tables: Sequence[Path], *, must: bool) -> list[Labels]:
    """The task's labels wherever they lie; without `must`, those that cannot be read are none."""
    places = dict.fromkeys(place for folder in folders if (place := find_labels(task, folder)) is not None)
    found, errors = [], []
    for place in [*places, *tables]:
        try:
            found.append(read_labels(place, task))
        except ClearError as error:  # a table of boxes need not be one of labels
            errors += [error] if place in places else []
    if must and errors:
        raise errors[0]
    if must and not found:
        raise InputError(
            f"--leave-out test: no labels of {task.name} in or beside {some(map(str, folders), 3)}, so its test "
            "patients are not known. Put its tables there, or give a table of patients"
        )
    return found


def _read_ids(path: Path) -> list[str]:
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]
    table = read_table(path)
    column = next((name for name in table.columns if id_of(name) == "patient_id"), None)
    if column is None:
        raise InputError(f"{path}: no column patient_id; the columns are {some(table.columns, 20)}")
    ids = known_ids(table[column])
    if "split" in table.columns:
        return [one for one, word in zip(ids, table["split"], strict=True) if one and split_name(word) == "test"]
    return [one for one in ids if one]


def _names(scan: Scan) -> tuple[str, ...]:
    """The ids by which label tables call a scan."""
    last = scan.scan_id.rpartition("/")[2]
    ids = (scan.scan_id, last, scan.series_uid, scan.study_uid, scan.patient_id)
    return tuple(without_ending(one) for one in ids if one) + tuple(one for one in ids if one)


def _check_spelling(patients: frozenset[str], scans: Sequence[Scan]) -> None:
    present = {scan.patient_id for scan in scans if scan.patient_id}
    plain = {_plain(one): one for one in present}
    for patient in sorted(patients - present):
        near = plain.get(_plain(patient))
        if near is not None and near not in patients:
            raise InputError(
                f"--leave-out: patient {patient!r} is to be left out, and scans are of a patient {near!r}. If they are "
                "one, spell them alike: nobody may be let through by a zero"
            )


def _plain(name: str) -> str:
    """An id without what spreadsheets take away or add."""
    return name.lower().removesuffix(".0").lstrip("0")
