"""Joining labels to scans: on ids, never on row order, and nothing falls out of sight.

Rows of the label table meet scans of the bag file by the table's id. What joins on neither side is counted and named.
Patients are known before any fold is made: from a table given for it, from the scans' own headers, from the label
table, or from a pattern over the scan ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_keys import matching_key, without_endings
from clear.labels import Labels
from clear.patients import patients_of_scans
from clear.tables import some
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
    """The patient of each joined scan, see `clear.patients.patients_of_scans`; each must have one."""
    named = "id" if labels.key == "patient_id" else "patient_id"
    from_label = dict(zip(joined["scan_id"], joined[named], strict=True))
    owner = patients_of_scans(scans, table, pattern, from_label)
    found = [owner[scan_id] for scan_id in joined["scan_id"]]
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
