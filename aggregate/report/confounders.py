"""What goes with the label and is no finding: scanner, kernel, contrast, thickness.

Of each column of the scan table the strength of its association with each endpoint is Cramér's V with the correction
for bias of Bergsma (Journal of the Korean Statistical Society 2013, 42, 323-328), which is 0 on average where there is
none; numbers are cut at their quartiles first. One patient counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from aggregate.predictions import scans_of
from aggregate.report.material import Material
from aggregate.scored import Scored

COLUMNS: Mapping[str, str] = {
    "manufacturer": "manufacturer",
    "kernel": "reconstruction kernel",
    "contrast": "contrast agent",
    "modality": "modality",
    "plane": "plane",
    "thickness_mm": "slice thickness",
    "n_slices": "number of slices",
}
WEAK, STRONG = 0.3, 0.5  # Cohen's medium and large effect for tables with a side of two
LEVEL = 0.01
LARGEST = 12  # values of a column


@dataclass(frozen=True)
class Confounder:
    """A column that goes with an endpoint. v: 0 no association, 1 each tells the other."""

    column: str
    endpoint: str
    v: float
    text: str

    @property
    def strong(self) -> bool:
        return self.v >= STRONG


def confounders(material: Material) -> list[Confounder]:
    """Columns that go with an endpoint of classes, strongest first; none where the bag file is not at hand."""
    if material.bags is None:
        return []
    of_scan = {row["scan_id"]: row for row in material.bags.scans.select("scan_id", *COLUMNS).iter_rows(named=True)}
    found = []
    for name, scored in material.scored_scans.items():
        if scored.endpoint.is_classes:
            for column in COLUMNS:
                one = _of_column(column, name, scored, of_scan)
                if one is not None:
                    found.append(one)
    return sorted(found, key=lambda each: -each.v)


def cramers_v(table: NDArray[np.float64]) -> tuple[float, float]:
    """(V, p) of (R, C) counts: bias-corrected Cramér's V and the p-value of the test of independence.

    >>> cramers_v(np.array([[20.0, 0.0], [0.0, 20.0]]))[0] > 0.9
    True
    """
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    rows, columns = table.shape
    n = table.sum()
    if min(rows, columns) < 2 or n < 2:
        return 0.0, 1.0
    chi2, p, _, _ = chi2_contingency(table, correction=False)
    phi2 = max(0.0, chi2 / n - (rows - 1) * (columns - 1) / (n - 1))
    r, c = rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)
    return (float(np.sqrt(phi2 / min(r - 1, c - 1))) if min(r, c) > 1 else 0.0), float(p)


def _of_column(
    column: str, endpoint: str, scored: Scored, of_scan: Mapping[str, Mapping[str, object]]
) -> Confounder | None:
    _, first = np.unique(scored.patients, return_index=True)
    values = [_value(of_scan, scored.scans[i], column) for i in first]
    known = [i for i, value in enumerate(values) if value is not None]
    labels, groups = _groups([values[i] for i in known])
    if not 2 <= len(labels) <= LARGEST:
        return None
    truth = scored.truth[first][known].astype(np.int64)
    table = np.zeros((len(labels), len(scored.endpoint.classes)))
    np.add.at(table, (groups, truth), 1)
    v, p = cramers_v(table)
    if v < WEAK or p >= LEVEL:
        return None
    return Confounder(column, endpoint, v, _sentence(COLUMNS[column], endpoint, v, labels, table, scored))


def _value(of_scan: Mapping[str, Mapping[str, object]], name: str, column: str) -> object | None:
    """Of a pooled bag that of its first scan."""
    row = of_scan.get(scans_of(name, of_scan)[0])
    value = None if row is None else row[column]
    return value if value not in ("", None) else None


def _groups(values: Sequence[object]) -> tuple[list[str], NDArray[np.int64]]:
    """(names of groups, group of each value): texts as they are, numbers by quartile when there are many."""
    if not values:
        return [], np.zeros(0, dtype=np.int64)
    if all(isinstance(value, int | float) for value in values):
        numbers = np.array(values, dtype=np.float64)
        if len(np.unique(numbers)) > 4:
            cuts = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75]))
            between = [f"above {low:g} to {high:g}" for low, high in pairwise(cuts)]
            names = [f"up to {cuts[0]:g}", *between, f"above {cuts[-1]:g}"]
            return names, np.searchsorted(cuts, numbers, side="left").astype(np.int64)
        values = [f"{value:g}" for value in numbers]
    texts, groups = np.unique([str(value) for value in values], return_inverse=True)
    return texts.tolist(), groups.reshape(-1).astype(np.int64)


def _sentence(
    column: str, endpoint: str, v: float, labels: Sequence[str], table: NDArray[np.float64], scored: Scored
) -> str:
    """`effusion goes with the manufacturer (V 0.62): it is 'present' in 90 % of 40 patients with GE, 12 % of ...`."""
    totals = table.sum(axis=1)
    order = np.argsort(-totals)[:4]
    last = scored.endpoint.classes[-1]
    shares = ", ".join(
        f"{100 * table[i, -1] / totals[i]:.0f} % of {totals[i]:.0f} patients with {labels[i]}" for i in order
    )
    return (
        f"{endpoint} goes with the {column} (Cramér's V {v:.2f}): it is {last!r} in {shares}. The model may recognise "
        f"the {column} in place of the finding."
    )


def scan_table_summary(bags_scans: pl.DataFrame) -> list[tuple[str, list[tuple[str, int]]]]:
    """(column, its values with how many scans have each) of texts, the most frequent first; unknown as its own."""
    out = []
    for column in ("modality", "plane", "manufacturer", "kernel", "contrast"):
        counts = bags_scans[column].fill_null("not known").value_counts(sort=True).rows()
        if len(counts) > 1 or (counts and counts[0][0] != "not known"):
            out.append((COLUMNS[column], [(str(name), int(n)) for name, n in counts[:LARGEST]]))
    return out
