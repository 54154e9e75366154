"""Cases: which scans a finding is marked in, and whether the run may be asked about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from aggregate.explain.boxes import Boxes
from aggregate.explain.masks import Masks
from aggregate.explain.models import pairs_for, siblings_of
from aggregate.explain.target import Target, targets_of
from aggregate.predictions import scans_of
from aggregate.run import Run
from clear.bags import Bags
from clear.errors import InputError
from clear.tables import some

Marks = Boxes | Masks


@dataclass(frozen=True)
class Cases:
    """The scans that have one finding. target: what the run says of it; labels: what the marks call it.

    patients: scan id -> patient, of the scans that count
    """

    target: Target
    labels: tuple[str, ...]
    patients: Mapping[str, str]


def find_cases(run: Run, bags: Bags, marks: Marks) -> tuple[list[Cases], list[str]]:
    """(the findings that are both marked and predicted, in the run's order, remarks on what is left out).

    A label belongs to the binary endpoint of its name, to the class of its name of a multi-class one or to the highest
    class of an ordinal one (capitals, blanks, `-` and `_` do not matter: labels that differ in them are one finding);
    marks without a label belong to a run's only binary endpoint. A scan counts where the run scored it out of fold and
    its label says that it has the finding; one that the run does not know counts by its marks alone, unless every model
    was fitted on its patient. Raises InputError when no label belongs to an endpoint, or no scan counts.
    """
    targets = [target for target in targets_of(run.endpoints) if target.class_name and target.has_maps]
    matched = [
        (target, labels)
        for target in targets
        if (labels := tuple(label for label in marks.labels if _is_of(label, target, targets)))
    ]
    if not targets:
        raise InputError(
            f"{run.path}: its endpoints {some([e.name for e in run.endpoints])} have no classes, so no finding can be "
            "pointed at. Explanations are judged for binary, multi-class and ordinal endpoints"
        )
    if not matched:
        marked, asked = ([label or "no label" for label in marks.labels], [target.finding for target in targets])
        raise InputError(
            f"{marks.path}: marks {some(marked)}; the run {run.path} predicts {some(asked)}. Give the marks the names "
            "of endpoints (the column label of a table of boxes, the folders of masks)"
        )
    remarks = list(marks.remarks)
    left = sorted(set(marks.labels) - {label for _, labels in matched for label in labels})
    if left:
        remarks.append(f"{some(left)}: marked, but no answer of this run has maps that speak for it")
    found = []
    for target, labels in matched:
        cases, noted = _cases_of(run, bags, marks, target, labels)
        remarks += noted
        if cases.patients:
            found.append(cases)
    if not found:
        raise InputError(
            f"{run.path}: no scan that has a finding is both marked and scored by models that did not train on it: "
            f"{'; '.join(remarks)}"
        )
    return found, remarks


def _cases_of(run: Run, bags: Bags, marks: Marks, target: Target, labels: tuple[str, ...]) -> tuple[Cases, list[str]]:
    scored = run.predictions.filter(
        (pl.col("split") == "test")
        & (pl.col("endpoint") == target.endpoint.name)
        & (pl.col("class") == target.class_name)
        & (pl.col("y_true") == 1)
    )
    known = set(run.folds["scan_id"].to_list())
    positive = {
        scan: patient
        for name, patient in scored.select("scan_id", "patient_id").unique(maintain_order=True).iter_rows()
        for scan in scans_of(name, known)
    }
    answered = scored.filter(pl.col("y_score").is_finite())["scan_id"].unique()
    dumb = positive.keys() - {scan for name in answered for scan in scans_of(name, known)}
    marked = {scan for scan in marks.scans_with(labels) if scan in bags}
    patients = {scan: positive[scan] for scan in (marked & positive.keys()) - dumb}
    fitted = nameless = 0
    for scan in marked - known:
        row = bags.row(scan)
        siblings = siblings_of(bags, row)
        if not pairs_for(run, scan, digest=row.digest, patient_id=row.patient_id, siblings=siblings):
            fitted += 1
            continue
        nameless += row.patient_id is None
        patients[scan] = row.patient_id or scan
    remarks = []
    if fitted:
        remarks.append(
            f"{target.finding}: {fitted} marked scans that the run does not know are left out: every model was fitted "
            "on another scan of their patient"
        )
    if nameless:
        remarks.append(
            f"{target.finding}: {nameless} marked scans that the run does not know have no patient id in the bag file: "
            "whether a model was fitted on their patient cannot be told"
        )
    if unlearnt := len(marked & dumb):
        remarks.append(
            f"{target.finding}: {unlearnt} marked scans are left out: the models of their fold had nothing to learn it "
            "from"
        )
    if unlike := len((marked & known) - positive.keys()):
        remarks.append(
            f"{target.finding}: {unlike} marked scans are left out: their label says that they do not "
            "have it, is unknown, or no model may explain them"
        )
    if unmarked := len({scan for scan in positive if scan in bags} - marked):
        remarks.append(f"{target.finding}: {unmarked} scans that have it have no mark, and are left out")
    return Cases(target, labels, dict(sorted(patients.items()))), remarks


def _is_of(label: str, target: Target, targets: Sequence[Target]) -> bool:
    if not label:
        return len(targets) == 1
    own = target.endpoint.name if target.endpoint.kind == "binary" else target.class_name
    return _plain(label) == _plain(own)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
