"""Without a signal there is nothing to find: labels permuted among patients give chance, on average."""

from __future__ import annotations

import numpy as np
import pytest

from aggregate.cohort import Cohort
from aggregate.crossval import fit_fold
from aggregate.folds import make_folds
from aggregate.metrics import auroc, plain
from aggregate.packed import PackedRows
from aggregate.targets import Targets
from clear.endpoints import Endpoint
from clear.tasks import Preset

SMALL = Preset("small", lr=1e-3, batch=16, epochs=3, patience=2)


def permuted_aurocs(permutations: int, *, patients: int = 32, scans: int = 2, folds: int = 4, seed: int = 0):
    """(permutations,) fold-mean AUROC of ABMIL on features with a strong signal whose labels were permuted."""
    rng = np.random.default_rng(seed)
    truth = np.arange(patients) % 2
    numbers = np.repeat(np.arange(patients), scans)
    taste = rng.standard_normal((patients, 8)) * 2  # what the scans of a patient share, and a leak would find
    bags = [rng.standard_normal((int(rng.integers(2, 6)), 8)) + taste[p] + 2 * truth[p] for p in numbers]
    rows = PackedRows.of([bag.astype(np.float32) for bag in bags])
    names = tuple((f"s{i}",) for i in range(len(numbers)))
    of_scan = tuple(f"p{p}" for p in numbers)
    values = []
    for permutation in range(permutations):
        labels = np.random.default_rng([seed, permutation]).permutation(truth)[numbers]
        targets = Targets((Endpoint("y", "binary", ("0", "1")),), labels[:, None].astype(float))
        cohort = Cohort(names, of_scan, targets, (), (), ())
        table = make_folds(*cohort.by_scan(), folds=folds, seed=permutation)
        results = (
            fit_fold(cohort, rows, table, r, f, aggregator="abmil", preset=SMALL, seed=permutation)
            for r, f in table.pairs
        )
        values.append(np.mean([plain(auroc, labels[each.scored] == 1, each.scores[:, 0]) for each in results]))
    return np.array(values)


def within_three_standard_errors(values: np.ndarray) -> bool:
    return bool(abs(values.mean() - 0.5) <= 3 * values.std(ddof=1) / np.sqrt(len(values)))


def test_twenty_permutations_stay_near_chance() -> None:
    assert within_three_standard_errors(permuted_aurocs(20))


@pytest.mark.slow
def test_two_hundred_permutations_stay_near_chance() -> None:
    values = permuted_aurocs(200)
    assert within_three_standard_errors(values)
    assert values.std(ddof=1) / np.sqrt(200) < 0.02  # the test is sharp enough to see a leak of a few percent
