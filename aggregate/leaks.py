"""Leaks: columns that tell a label by themselves, as a column does that the label was made of."""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from clear.endpoints import Endpoint

CHANCE = 1e-3  # how often at most shuffled labels would be told as well
FEW = 20  # different numbers that are taken as names


def tells(values: Sequence[float | str | None], endpoint: Endpoint, codes: NDArray[np.float64]) -> bool:
    """Whether a column alone tells the label of every bag that has both, and chance does not explain it.

    values: one a bag, None = unknown. codes: (B,) as in `aggregate.targets.Targets`, nan = unknown. A class is told
    where each value goes with one class, or, of many numbers, where each class has a range of its own; under shuffled
    labels that has at most the probability (ways to give values or ranges a class) / (orders of the labels), by the
    union bound. A quantity or a time is told where it rises or falls with the column throughout (ranks).
    """
    both = [(v, c) for v, c in zip(values, codes.tolist(), strict=True) if v is not None and np.isfinite(c)]
    if len(both) < 3:
        return False
    known, labels = [value for value, _ in both], np.array([code for _, code in both])
    numeric = not any(isinstance(value, str) for value in known)
    if not endpoint.is_classes:
        return numeric and _same_order(np.array(known, dtype=np.float64), labels)
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2:
        return False
    groups: dict[Any, set[float]] = {}
    for value, code in both:
        groups.setdefault(value, set()).add(code)
    if any(len(found) > 1 for found in groups.values()):
        return False
    orders = lgamma(len(labels) + 1) - sum(lgamma(count + 1) for count in counts.tolist())
    if numeric and len(groups) > FEW:
        by_value = labels[np.argsort(np.array(known, dtype=np.float64), kind="stable")]
        ways = lgamma(len(counts) + 1)
        return int((np.diff(by_value) != 0).sum()) == len(counts) - 1 and ways - orders < log(CHANCE)
    return len(groups) * log(len(counts)) - orders < log(CHANCE)


def _same_order(values: NDArray[np.float64], labels: NDArray[np.float64]) -> bool:
    """Whether two quantities rise together, or one falls as the other rises; both vary."""
    if len(np.unique(values)) < 2 or len(np.unique(labels)) < 2 or lgamma(len(values) + 1) < -log(CHANCE / 2):
        return False
    return bool(abs(np.corrcoef(rankdata(values), rankdata(labels))[0, 1]) > 1 - 1e-9)
