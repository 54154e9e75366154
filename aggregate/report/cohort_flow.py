"""From what lay on disk to what was used: series found, encoded, joined to labels, used.

What extraction found stands in the quality record beside the bag file (`feats.qc.csv`); the rest in run.json.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregate.report.material import Gap, Material

_SHOWN = 6  # reasons of a step; the rest is counted by status


@dataclass(frozen=True)
class Step:
    """One step of the flow. lost: (how many, why) on the way to it, the most frequent first."""

    name: str
    count: int
    lost: tuple[tuple[int, str], ...] = ()


def cohort_flow(material: Material) -> list[Step]:
    """The steps that are known, in order; notes a gap where the quality record is not at hand."""
    found = _found(material)
    cohort = material.part("cohort")
    if not cohort:
        return found
    in_file, joined, used = (_number(cohort, key) for key in ("scans_in_file", "scans_joined", "scans_used"))
    rows_lost = _number(cohort, "label_rows_without_scan")
    steps = [*found, Step("scans in the bag file", in_file)]
    lost = [(in_file - joined, "scans have no label row")] if in_file > joined else []
    lost += [(rows_lost, f"of {_number(cohort, 'label_rows')} label rows have no scan")] if rows_lost else []
    steps.append(Step("joined to a label row", joined, tuple(lost)))
    steps.append(
        Step(
            "used",
            used,
            ((joined - used, "have no known label, or the join rule leaves them out"),) if joined > used else (),
        )
    )
    bags, patients = _number(cohort, "bags"), _number(cohort, "patients")
    if bags != used:
        steps.append(Step("bags", bags, ((used - bags, "are pooled with another scan of their patient"),)))
    steps.append(Step("patients", patients))
    return steps


def lost_in_extraction(steps: list[Step]) -> Step | None:
    """The step that says which series were refused or failed, if any were."""
    return next((step for step in steps if step.name == "encoded"), None)


def _found(material: Material) -> list[Step]:
    """Series found and encoded, from the quality record."""
    if material.bags is None:
        return []
    path = material.bags.path.with_name(f"{material.bags.path.stem}.qc.csv")
    states = _states(path)
    if states is None:
        material.gaps.append(
            Gap(path.name, "No quality record lies beside the bag file: how many series were found is not known.")
        )
        return []
    done = sum(count for (status, _), count in states.items() if status == "done")
    counts = sorted(((count, *state) for state, count in states.items() if state[0] != "done"), reverse=True)
    lost = [(count, f"{status}: {reason}") for count, status, reason in counts[:_SHOWN]]
    others: Counter[str] = Counter()
    for count, status, _ in counts[_SHOWN:]:
        others[status] += count
    lost += [(count, f"{status}: other reasons") for status, count in others.most_common()]
    return [Step("series found", sum(states.values())), Step("encoded", done, tuple(lost))]


def _states(path: Path) -> Counter[tuple[str, str]] | None:
    """(status, reason) of every series; None where there is no record."""
    states: Counter[tuple[str, str]] = Counter()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                states[row["status"] or "", (row["reason"] or "").replace("_", " ")] += 1
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return states or None


def _number(record: Mapping[str, Any], key: str) -> int:
    value = record.get(key)
    return value if isinstance(value, int) else 0
