"""Joining labels to scans: on ids, never on row order, and nothing falls out of sight.

Rows of the label table meet scans of the bag file by the table's id. What joins on neither side is counted and named.
Patients are known before any fold is made: from a table given for it, from the scans' own headers, from the label
table, or from a pattern over the scan ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_keys import matching_key, without_endings
from clear.labels import Labels, find_id_column, known_ids
from clear.tables import need_column, read_table, some
from clear.tasks import JOIN_RULES, JoinRule


@dataclass(frozen=True)
class Joined:
    """Labelled scans.

    frame: one row a scan, ordered by scan_id: `scan_id`, `patient_id`, one column an endpoint (as in `Labels.frame`,
    null = masked) and what else the labels carry: the event of a survival endpoint, and `split` (train, val, test or
    null) where there is an official one. Scans without any known label are left out. `flow`: counts from found to
    used. remarks: what did not join and why, as sentences. rule: the join rule that applied.
    """

    frame: pl.DataFrame
    endpoints: tuple[Endpoint, ...]
    rule: JoinRule | None
    flow: dict[str, Any]
    remarks: tuple[str, ...]


def join_labels(
    labels: Labels,
    scans: pl.DataFrame,
    *,
    rule: JoinRule | None = None,
    patients: Path | str | None = None,
    patient_pattern: str | None = None,
    source: str = "the bag file",
) -> Joined:
    """Labels of scans.

    scans: `Bags.scans`. rule: what a label row that matches several scans means: `all` of them carry the label,
    `first` by scan_id, `earliest` by days_since_first, or `pool`, one bag a patient. patients: a table of an id column
    and patient_id. patient_pattern: a regular expression whose first group, in the scan id, is the patient.

    A label of a patient belongs to the patient's first study. A later scan gets it by the rules `all`, `first` and
    `pool` alone, which are remarked upon: `earliest` leaves a follow-up out also where the first study is not in the
    bag file, and without a rule it stops.
    Raises InputError when nothing joins, when a rule is needed, when patients are unknown or contradict each other.
    """
    if rule is not None and rule not in JOIN_RULES:
        raise InputError(f"--join {rule}: expected one of {', '.join(JOIN_RULES)}")
    remarks = list(labels.remarks)
    labels = without_endings(labels, scans)
    key, ids = matching_key(labels, scans, source)
    table = pl.DataFrame({"scan_id": scans["scan_id"], "id": ids})
    joined = table.join(labels.frame, on="id", how="inner").sort("scan_id")
    remarks += _unmatched(labels, table, joined, key)
    flow: dict[str, Any] = {
        "scans_in_file": scans.height,
        "label_rows": labels.frame.height,
        "joined_by": key,
        "scans_joined": joined.height,
        "label_rows_without_scan": labels.frame.height - joined["id"].n_unique(),
        "scans_without_label_row": scans.height - joined.height,
    }
    joined, noted = _one_version(joined)
    remarks += noted
    several = joined.filter(pl.col("id").is_duplicated())
    if several.height and rule is None:
        one = several["id"][0]
        names = several.filter(pl.col("id") == one)["scan_id"].to_list()
        raise InputError(
            f"{labels.source}: {several['id'].n_unique()} of its rows match several scans, first {key} {one!r} with "
            f"{len(names)} ({some(names, 3)}). Say what the label means with --join: all (every scan has it), first "
            "(by scan_id), earliest (by date) or pool (one bag a patient)"
        )
    if rule in ("first", "earliest") and several.height:
        before = joined.height
        joined = _choose(joined, scans, rule)
        remarks.append(f"--join {rule}: {joined.height} of {before} joined scans are used")
    if key == "patient_id":
        joined, noted = _follow_ups(joined, scans, rule, labels.source)
        remarks += noted
    joined = joined.with_columns(patient_id=_patients(joined, scans, labels, patients, patient_pattern))
    names = [endpoint.name for endpoint in labels.endpoints]
    known = joined.filter(pl.any_horizontal(pl.col(name).is_not_null() for name in names))
    if known.height < joined.height:
        remarks.append(f"{joined.height - known.height} joined scans have no known label and are left out")
    if not known.height:
        raise InputError(f"{labels.source}: {joined.height} scans join, but none of them has a known label")
    _no_scan_twice(known, scans)
    flow |= {"scans_used": known.height, "patients_used": known["patient_id"].n_unique()}
    beside = [name for name in labels.frame.columns if name not in ("id", "patient_id", "one_of", *names)]
    frame = known.select("scan_id", "patient_id", *names, *beside)
    applied = rule if several.height or rule == "pool" else None
    return Joined(frame, labels.endpoints, applied, flow, tuple(remarks))


def _one_version(joined: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Of scans that are versions of one (reconstructions: `one_of` of the labels) the first by scan_id."""
    if "one_of" not in joined.columns:
        return joined, []
    alone = joined.filter(pl.col("one_of").is_null())
    chosen = joined.drop_nulls("one_of").unique("one_of", keep="first", maintain_order=True)
    kept = pl.concat([alone, chosen]).sort("scan_id")
    left = joined.height - kept.height
    return kept, [f"{left} scans are other reconstructions of one that is used, and left out"] if left else []


def _follow_ups(
    joined: pl.DataFrame, scans: pl.DataFrame, rule: JoinRule | None, source: str
) -> tuple[pl.DataFrame, list[str]]:
    """A patient's label must not pass to a later study unseen. Raises InputError without a rule."""
    days = dict(zip(scans["scan_id"], scans["days_since_first"], strict=True))
    late = [scan for scan in joined["scan_id"].to_list() if (days[scan] or 0) > 0]
    if not late:
        return joined, []
    if rule is None:
        raise InputError(
            f"{source}: the labels are of patients, and {len(late)} scans that they match are follow-ups whose "
            f"patient was scanned before, first {late[0]!r} (day {days[late[0]]}). Say what the label means with "
            "--join: earliest (the first study has it, these scans are left out) or all (every scan has it)"
        )
    if rule == "earliest":
        kept = joined.filter(~pl.col("scan_id").is_in(late))
        return kept, [f"--join earliest: {len(late)} follow-ups without their first study are left out: {some(late)}"]
    return joined, [f"--join {rule}: {len(late)} follow-ups have the label of their patient: {some(late)}"]


def _unmatched(labels: Labels, table: pl.DataFrame, joined: pl.DataFrame, key: str) -> list[str]:
    remarks = []
    absent = labels.frame.filter(~pl.col("id").is_in(joined["id"].unique().to_list()))["id"].to_list()
    if absent:
        remarks.append(f"{len(absent)} of {labels.frame.height} label rows have no scan, by {key}: {some(absent, 5)}")
    unlabelled = table.filter(~pl.col("scan_id").is_in(joined["scan_id"].to_list()))["scan_id"].to_list()
    if unlabelled:
        remarks.append(f"{len(unlabelled)} of {table.height} scans have no label row: {some(unlabelled, 5)}")
    return remarks


def _choose(joined: pl.DataFrame, scans: pl.DataFrame, rule: str) -> pl.DataFrame:
    if rule == "first":
        return joined.unique("id", keep="first", maintain_order=True)
    days = scans.select("scan_id", "days_since_first")
    dated = joined.join(days, on="scan_id", how="left")
    several = dated.filter(pl.col("id").is_duplicated())
    undated = several.filter(pl.col("days_since_first").is_null())
    if undated.height:
        raise InputError(
            f"--join earliest: {undated.height} scans have no known date, first {undated['scan_id'][0]!r}. "
            "Choose another rule (all, first, pool)"
        )
    tied = several.filter(pl.col("days_since_first") == pl.col("days_since_first").min().over("id"))
    tied = tied.filter(pl.col("id").is_duplicated())
    if tied.height:
        raise InputError(
            f"--join earliest: {tied['id'].n_unique()} label rows have several scans on their earliest day, first "
            f"{tied['id'][0]!r}. Select one series a study when extracting (--select), or choose another rule"
        )
    return dated.sort("days_since_first").unique("id", keep="first").sort("scan_id").drop("days_since_first")


def _patients(
    joined: pl.DataFrame,
    scans: pl.DataFrame,
    labels: Labels,
    table: Path | str | None,
    pattern: str | None,
) -> pl.Series:
    """The patient of each joined scan; a table given for it first, then headers, label table, pattern."""
    from_scan = dict(zip(scans["scan_id"], scans["patient_id"], strict=True))
    from_label = dict(zip(joined["scan_id"], joined["patient_id"], strict=True))
    if labels.key == "patient_id":
        from_label = dict(zip(joined["scan_id"], joined["id"], strict=True))
    from_table = _patient_table(scans, table) if table is not None else {}
    found: list[str | None] = []
    for scan_id in joined["scan_id"].to_list():
        patient = from_table.get(scan_id) or from_scan.get(scan_id) or from_label.get(scan_id)
        if not patient and pattern is not None:
            patient = _patient_of(scan_id, pattern)
        found.append(patient or None)
    _no_patient_half_renamed(joined, from_scan, from_table)
    without = [scan_id for scan_id, patient in zip(joined["scan_id"], found, strict=True) if patient is None]
    if without:
        raise InputError(
            f"{len(without)} of {joined.height} scans have no patient id, first {some(without, 3)}. Folds must keep a "
            "patient together: give --patients TABLE (an id column and patient_id), a patient_id column in the label "
            "table, or --patient-pattern REGEX whose first group is the patient in the scan id"
        )
    chosen = pl.Series("patient_id", found, dtype=pl.String)
    both = pl.DataFrame({"label": pl.Series(list(from_label.values()), dtype=pl.String), "chosen": chosen}).drop_nulls()
    split = both.group_by("label", maintain_order=True).agg(pl.col("chosen").unique(maintain_order=True))
    split = split.filter(pl.col("chosen").list.len() > 1)
    if split.height:
        raise InputError(
            f"{labels.source}: its patient {split['label'][0]!r} has scans of several patients of the bag file "
            f"({some(split['chosen'][0], 3)}); {split.height} patients are split in this way and could cross folds. "
            "Settle it with --patients TABLE"
        )
    return chosen


def _no_patient_half_renamed(
    joined: pl.DataFrame, from_scan: dict[str, str | None], from_table: dict[str, str]
) -> None:
    """A patient of the headers of whom the table names only some scans would be two, and could cross folds."""
    if not from_table:
        return
    renamed = {from_scan[scan] for scan in joined["scan_id"] if scan in from_table} - {None}
    left = [scan for scan in joined["scan_id"] if scan not in from_table and from_scan[scan] in renamed]
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


def _patient_of(scan_id: str, pattern: str) -> str | None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--patient-pattern {pattern}: not a regular expression ({error})") from error
    if compiled.groups < 1:
        raise InputError(f"--patient-pattern {pattern}: expected a group in brackets, such as '^([^_/]+)'")
    match = compiled.search(scan_id)
    return match.group(1) if match else None


def _no_scan_twice(known: pl.DataFrame, scans: pl.DataFrame) -> None:
    """Equal voxels under two patients would put one scan into two folds."""
    digests = known.select("scan_id", "patient_id").join(scans.select("scan_id", "digest"), on="scan_id")
    twice = digests.drop_nulls("digest").group_by("digest", maintain_order=True).agg("scan_id", "patient_id")
    twice = twice.filter(pl.col("patient_id").list.n_unique() > 1)
    if twice.height:
        names: Sequence[str] = twice["scan_id"][0].to_list()
        raise InputError(
            f"{twice.height} scans appear under two patients with the same voxels, first {some(names, 3)}. One of them "
            "is misfiled; leave it out or correct the patient with --patients TABLE"
        )
