"""Dealing rows into parts that have equal shares of every class, several classes a row allowed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratify(indicators: NDArray[np.bool_], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(n,) the part that each row of (n, C) goes to, by iterative stratification.

    Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011, algorithm 1: the class
    with the fewest rows left is dealt first, each row to the part that lacks that class most; ties go to the part that
    lacks rows most, then by lot. Rows of no class fill up at the end. shares: (parts,), summing to 1.
    """
    n = len(indicators)
    part = np.full(n, -1, dtype=np.int64)
    lacking = np.outer(shares, indicators.sum(axis=0))
    lacking_rows = shares * n
    order = rng.permutation(n)
    while (part < 0).any():
        left = order[part[order] < 0]
        counts = indicators[left].sum(axis=0)
        if counts.any():
            column = int(np.flatnonzero(counts == counts[counts > 0].min())[0])
            rows, wanted = left[indicators[left, column]], lacking[:, column]
        else:
            rows, wanted = left, lacking_rows
        for row in rows:
            best = np.flatnonzero(np.isclose(wanted, wanted.max()))
            best = best[np.isclose(lacking_rows[best], lacking_rows[best].max())]
            chosen = int(rng.choice(best))
            part[row] = chosen
            lacking[chosen, indicators[row]] -= 1
            lacking_rows[chosen] -= 1
    return part


def draw_inner(indicators: NDArray[np.bool_], fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) True for the rows held back for early stopping: at least one, never all."""
    inner = np.asarray(stratify(indicators, np.array([1 - fraction, fraction]), rng) == 1)
    if not inner.any():
        inner[rng.integers(len(inner))] = True
    if inner.all():
        inner[rng.integers(len(inner))] = False
    return inner
