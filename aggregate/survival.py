"""Survival times: the loss that a model of hazards learns from, and how well risks rank the times.

A patient has a time and an event: 1 when it happened at that time, 0 when nothing had happened until then (censored).
A higher risk should mean an earlier event.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
_CHUNK = 1024  # weightings at a time: bounds memory to 1024 x n


def cox_loss(risks: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """Minus the Cox partial log-likelihood, summed over events; tied times after Breslow.

    Cox, JRSS B 1972, 34, 187-220; Breslow, Biometrics 1974, 30, 89-99: every event's risk set holds all whose
    time is the same or later, among the rows given. Nothing else enters: in training the batch is the risk set.

    risks: (b,) log hazards; times: (b,); events: (b,) 1 or 0.
    """
    if not bool((events == 1).any()):
        return risks.sum() * 0
    order = torch.argsort(times, descending=True, stable=True)
    risk, event = risks[order], events[order]
    at_risk = torch.logcumsumexp(risk, dim=0)
    _, counts = torch.unique_consecutive(times[order], return_counts=True)
    last_of_time = torch.repeat_interleave(counts.cumsum(0) - 1, counts)
    terms = at_risk[last_of_time] - risk
    return terms[event == 1].sum()


def c_index(truth: Floats, risks: Floats, weights: Floats) -> Floats:
    """(R,) Harrell's concordance for each of (R, n) weightings; nan where no pair can be compared.

    Harrell, Lee, Mark, Statistics in Medicine 1996, 15, 361-387. A pair can be compared when the earlier time is an
    event, or at equal times when exactly one is (the other outlived it). It is concordant when the earlier has the
    higher risk; equal risks count one half. A pair weighs the product of its weights.

    The pairs are not formed: patients enter a binary indexed tree over the ranks of their risks (Fenwick, Software:
    Practice and Experience 1994, 24, 327-336) from the last time to the first, and each event asks it for the weight
    below its own risk: O(n log n) steps, each for all weightings at once.

    truth: (n, 2) time and event; risks: (n,).
    """
    return np.concatenate(
        [_c_index(truth, risks, weights[start : start + _CHUNK]) for start in range(0, len(weights), _CHUNK)]
    )


def _c_index(truth: Floats, risks: Floats, weights: Floats) -> Floats:
    rows = np.ascontiguousarray(weights.T, dtype=np.float64)  # (n, R)
    distinct, rank = np.unique(risks, return_inverse=True)
    size = len(distinct)
    tree = np.zeros((size + 1, rows.shape[1]))
    below, up_to, above = _paths(size)
    later = np.zeros(rows.shape[1])  # weight of all that outlived the present time
    concordant, compared = np.zeros_like(later), np.zeros_like(later)
    times, event = truth[:, 0], truth[:, 1] == 1

    def enter(row: int) -> None:
        tree[above[rank[row]]] += rows[row]
        np.add(later, rows[row], out=later)

    order = np.argsort(-times, kind="stable")
    bounds = np.flatnonzero(np.diff(times[order])) + 1
    for group in np.split(order, bounds) if len(order) else []:
        for row in group[~event[group]]:  # censored at this time: outlived the events of this time
            enter(int(row))
        for row in group[event[group]]:
            lower = tree[below[rank[row]]].sum(axis=0)
            not_higher = tree[up_to[rank[row]]].sum(axis=0)
            concordant += rows[row] * (lower + not_higher) / 2
            compared += rows[row] * later
        for row in group[event[group]]:
            enter(int(row))
    return np.divide(concordant, compared, out=np.full_like(concordant, np.nan), where=compared > 0)


def _paths(size: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """For each rank 0..size-1 the nodes that sum what is lower, those that sum what is not higher, and its own."""

    def sums(position: int) -> list[int]:
        nodes = []
        while position > 0:
            nodes.append(position)
            position -= position & -position
        return nodes

    def adds(position: int) -> list[int]:
        nodes = []
        while position <= size:
            nodes.append(position)
            position += position & -position
        return nodes

    ranks = range(size)
    return [sums(r) for r in ranks], [sums(r + 1) for r in ranks], [adds(r + 1) for r in ranks]
