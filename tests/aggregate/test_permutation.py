"""Without a signal there is nothing to find: permuted labels give chance, on average, in every protocol."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from aggregate.aggregators import build_aggregator, predict
from aggregate.cohort import Cohort
from aggregate.crossval import fit_fold
from aggregate.fit import fit
from aggregate.folds import Folds, folds_table
from aggregate.metrics import auroc, plain
from aggregate.packed import PackedRows
from aggregate.protocols import candidates, plan_folds, search
from aggregate.targets import Targets, predicted
from clear.endpoints import Endpoint
from clear.tasks import Preset

SMALL = Preset("small", lr=1e-3, batch=16, epochs=3, patience=2)
BINARY = (Endpoint("y", "binary", ("0", "1")),)
PROTOCOLS = ("cv", "cv-test", "nested-cv", "group")


def permuted_aurocs(
    protocol: str, permutations: int, *, patients: int = 32, scans: int = 2, folds: int = 4, seed: int = 0
) -> np.ndarray:
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
        cohort = Cohort(names, of_scan, Targets(BINARY, labels[:, None].astype(float)), (), (), ())
        values.append(np.mean(list(fold_values(protocol, cohort, rows, folds, permutation))))
    return np.array(values)


def fold_values(protocol: str, cohort: Cohort, rows: PackedRows, folds: int, seed: int) -> Iterator[float]:
    """The AUROC within each fold; of cv-test that of every model on the test set."""
    owner = [int(patient[1:]) for patient in cohort.patient_ids]
    groups = [f"site {p // 2 % folds}" for p in owner] if protocol == "group" else None  # both classes at every site
    splits = ["test" if p // 2 % 3 == 0 else "train" for p in owner] if protocol == "cv-test" else None
    name = "cv" if protocol == "group" else protocol
    table, _ = plan_folds(cohort, name, folds=folds, seed=seed, groups=groups, splits=splits)
    chosen = choices(cohort, rows, table, seed) if protocol == "nested-cv" else {}
    for pair in table.pairs:
        preset = chosen.get(pair, SMALL)
        result = fit_fold(cohort, rows, table, *pair, aggregator="abmil", preset=preset, seed=seed)
        truth = cohort.targets.codes[result.scored, 0] == 1
        value = plain(auroc, truth, result.scores[:, 0])
        if np.isfinite(value):
            yield value


def choices(cohort: Cohort, rows: PackedRows, table: Folds, seed: int) -> dict[tuple[int, int], Preset]:
    """The preset that nested cross-validation chooses for each fold."""
    grid = candidates({"lr": (1e-4, 3e-3)}, "abmil", SMALL)

    def score(train, inner, scored, candidate, of_fit):
        fitted = fit(
            rows, cohort.targets, train, inner, lambda *a: build_aggregator("abmil", *a), candidate.preset, of_fit
        )
        return predicted(predict(fitted.model, rows, scored)[0], cohort.targets, fitted.scale)

    return {pair: one.preset for pair, one in search(cohort, table, grid, score, seed=seed).chosen.items()}


def within_three_standard_errors(values: np.ndarray) -> bool:
    return bool(abs(values.mean() - 0.5) <= 3 * values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_few_permutations_stay_near_chance(protocol: str) -> None:
    assert within_three_standard_errors(permuted_aurocs(protocol, 6 if protocol == "nested-cv" else 12))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_hundred_permutations_stay_near_chance(protocol: str) -> None:
    values = permuted_aurocs(protocol, 200)
    assert within_three_standard_errors(values)
    assert values.std(ddof=1) / np.sqrt(200) < 0.02  # the test is sharp enough to see a leak of a few percent


def test_early_stopping_sees_no_scored_patient() -> None:
    """The scored patients' labels run against the signal: stopping by them would end every fit at once."""
    rng = np.random.default_rng(0)
    truth = np.arange(40) % 2
    rows = PackedRows.of([(rng.standard_normal((3, 6)) + 1.5 * y).astype(np.float32) for y in truth])
    codes = np.where(np.arange(40) < 30, truth, 1 - truth)[:, None].astype(float)
    names = tuple((f"s{i:02d}",) for i in range(40))
    cohort = Cohort(names, tuple(f"p{i:02d}" for i in range(40)), Targets(BINARY, codes), (), (), ())
    honest = ["train"] * 20 + ["inner"] * 10 + ["test"] * 10
    leaking = ["train"] * 20 + ["test"] * 10 + ["inner"] * 10
    preset = Preset("p", lr=1e-3, batch=8, epochs=12, patience=12, dropout=0.0)
    best = []
    for parts in (honest, leaking):
        rows_of = [(0, 0, part, p, s[0]) for part, p, s in zip(parts, cohort.patient_ids, names, strict=True)]
        fold = fit_fold(cohort, rows, Folds(folds_table(rows_of)), 0, 0, aggregator="abmil", preset=preset)
        best.append(fold.fitted.best_epoch)
    assert best[0] >= 6
    assert best[1] <= 2  # a stop that saw the scored labels would show
