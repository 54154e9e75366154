"""Protocols: who fits, who chooses, who is scored; nothing of a scored patient is ever among the first two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aggregate import train
from aggregate.cohort import Cohort
from aggregate.folds import UNUSED, Folds, folds_table, make_folds, rows_of_fold
from aggregate.protocols import Candidate, candidates, plan_folds, search, skill
from aggregate.targets import Targets
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.tasks import PRESETS, Preset

BINARY = Endpoint("y", "binary", ("0", "1"))
QUICK = {"epochs": 3, "batch": 8, "lr": 1e-3, "progress": False}


def cohort(patients: int = 18, scans: int = 2) -> Cohort:
    """Patients of two scans with alternating labels; no features."""
    numbers = np.repeat(np.arange(patients), scans)
    names = tuple((f"s{i:03d}",) for i in range(len(numbers)))
    codes = (numbers % 2).astype(float)[:, None]
    return Cohort(names, tuple(f"p{p:02d}" for p in numbers), Targets((BINARY,), codes), (), (), ())


@pytest.fixture
def data(make_bags, planted, tmp_path: Path) -> tuple[Path, Path]:
    """(bag file, label table) of 30 patients with a planted signal, a site, and an official split."""
    features, labels = planted(n=30)
    table = tmp_path / "labels.csv"
    names = list(labels)
    pl.DataFrame(
        {
            "patient_id": names,
            "lesion": list(labels.values()),
            "site": ["north", "south", "west"] * 10,
            "split": ["Train"] * 16 + ["validation"] * 4 + ["test"] * 10,
        }
    ).write_csv(table)
    return make_bags(features), table


def test_held_out_sites_are_scored_by_models_that_saw_nothing_of_them(data, tmp_path: Path) -> None:
    run = train(data[0], labels=data[1], target="lesion", group="site", output=tmp_path / "r", **QUICK)
    site = dict(pl.read_csv(data[1]).select("patient_id", "site").iter_rows())
    for (fold,), table in run.folds.group_by("fold"):
        held = {site[p] for p in table.filter(split="test")["patient_id"]}
        assert held == {sorted({"north", "south", "west"})[fold]}
        assert not held & {site[p] for p in table.filter(pl.col("split") != "test")["patient_id"]}
    assert run.settings["group"] == "site"
    assert "0 = north, 1 = south, 2 = west" in " ".join(run.settings["remarks"])


def test_a_patient_of_two_sites_neither_trains_nor_stops_while_one_is_scored() -> None:
    it = cohort(12)
    groups = ["a" if i < 12 else "b" for i in range(24)]
    groups[3] = "b"  # the second scan of p01
    table = plan_folds(it, "cv", folds=2, groups=groups)[0].table
    rows = table.filter(patient_id="p01").sort("fold", "scan_id")
    assert rows["split"].to_list() == ["test", "unused", "unused", "test"]


def test_a_group_of_one_value_or_with_gaps_is_a_sentence(data, tmp_path: Path) -> None:
    it = cohort(6)
    with pytest.raises(InputError, match="expected two groups or more"):
        plan_folds(it, "cv", folds=2, groups=["a"] * 12, group="site")
    with pytest.raises(InputError, match=r"--group site: 1 of 12 labelled scans have no site, first s003"):
        plan_folds(it, "cv", folds=2, groups=["a", "b", "a", None, *"abababab"], group="site")
    with pytest.raises(InputError, match="no column 'town'"):
        train(data[0], labels=data[1], target="lesion", group="town", output=tmp_path / "r", **QUICK)
    with pytest.raises(InputError, match="leave out --folds"):
        train(data[0], labels=data[1], target="lesion", group="site", folds=3, output=tmp_path / "r", **QUICK)


def test_a_fixed_test_set_is_scored_by_every_model_and_taught_by_none(data, tmp_path: Path) -> None:
    run = train(
        data[0], labels=data[1], target="lesion", protocol="cv-test", folds=4, output=tmp_path / "r", **QUICK
    )  # fmt: skip
    test = {f"scan{i:03d}" for i in range(20, 30)}
    for _, table in run.folds.group_by("fold"):
        assert set(table.filter(split="test")["scan_id"]) == test
        assert set(table.filter(pl.col("split") != "test")["scan_id"]) == {f"scan{i:03d}" for i in range(20)}
    ends = run.folds.filter(split="inner").group_by("scan_id").len()
    assert ends.height == 20  # each of the others ends one fit
    assert set(ends["len"]) == {1}
    assert run.predictions.group_by("scan_id").len()["len"].to_list() == [4] * 10
    ensemble = run.predictions.group_by("scan_id").agg(pl.col("y_score").mean(), pl.col("y_true").first())
    truth, score = ensemble["y_true"].to_numpy(), ensemble["y_score"].to_numpy()
    positive, negative = score[truth == 1], score[truth == 0]
    expected = np.mean([(p > n) + (p == n) / 2 for p in positive for n in negative])
    assert run.metrics.filter(metric="auroc", estimator="ensemble")["estimate"][0] == pytest.approx(expected)


def test_a_patient_on_both_sides_of_the_split_stops(data, tmp_path: Path) -> None:
    it = cohort(6)
    splits = ["train"] * 5 + ["test"] + ["train"] * 4 + ["test"] * 2
    with pytest.raises(InputError, match=r"1 patients have scans both for fitting and in the test set, first p02"):
        plan_folds(it, "cv-test", folds=2, splits=splits)
    with pytest.raises(InputError, match="none of the labelled scans is in the test set"):
        plan_folds(it, "cv-test", folds=2, splits=["train"] * 12)
    table = pl.read_csv(data[1]).with_columns(split=pl.lit("somewhere"))
    table.write_csv(tmp_path / "odd.csv")
    with pytest.raises(InputError, match="somewhere"):
        train(
            data[0], labels=tmp_path / "odd.csv", target="lesion", protocol="cv-test", output=tmp_path / "r", **QUICK
        )  # fmt: skip


def test_scans_outside_the_split_take_no_part() -> None:
    it = cohort(8)
    splits = ["train"] * 8 + [None] * 4 + ["test"] * 4
    folds, remarks = plan_folds(it, "cv-test", folds=2, splits=splits)
    assert set(folds.table.filter(split="unused")["patient_id"]) == {"p04", "p05"}
    assert "4 labelled scans are in no part of the split" in remarks[0]


def grid_of(*rates: float) -> list[Candidate]:
    return candidates({"lr": rates}, "mean", PRESETS["adaptive"])


def recorded(it: Cohort, folds: Folds, good: int = 1):
    """(search result, fits made) with a score function that only notes what it is given; one candidate is right."""
    fits = []
    grid = grid_of(1e-4, 1e-3, 1e-2)

    def score(train_bags, inner, scored, candidate, seed):
        fits.append((set(train_bags.tolist()), set(inner.tolist()), set(scored.tolist()), candidate, seed))
        truth = it.targets.codes[scored, 0]
        return (truth if candidate is grid[good] else 0.5 + 0 * truth)[:, None]

    return search(it, folds, grid, score), fits, grid


def test_the_inner_choice_never_sees_a_patient_of_the_scored_fold() -> None:
    it = cohort()
    folds = make_folds(*it.by_scan(), folds=4)
    found, fits, grid = recorded(it, folds)
    test_of = {f: set(it.bags_of(folds.split(0, f)["test"]).tolist()) for f in range(4)}
    owner = np.array(it.patient_ids)
    for train_bags, inner, scored, _, (_, _, a, b) in fits:
        assert scored == test_of[a] | test_of[b]
        assert not train_bags & inner
        assert not {*owner[list(train_bags | inner)]} & {*owner[list(scored)]}
        assert train_bags | inner | scored == set(range(len(it)))
        assert not {*owner[list(train_bags)]} & {*owner[list(inner)]}
    assert len(fits) == 6 * 3  # each pair of folds once a candidate
    for fold in range(4):  # the choice of a fold rests on scores of the other three folds alone
        rows = found.table.filter(fold=fold)
        assert set(rows["inner_fold"]) == set(range(4)) - {fold}
        assert rows.height == 9
    assert all(one is grid[1] for one in found.chosen.values())


def test_changing_the_scored_labels_changes_no_choice_of_their_fold() -> None:
    it = cohort()
    folds = make_folds(*it.by_scan(), folds=3)
    first = recorded(it, folds)[0].table.filter(fold=1)
    codes = it.targets.codes.copy()
    codes[it.bags_of(folds.split(0, 1)["test"])] = 1 - codes[it.bags_of(folds.split(0, 1)["test"])]
    flipped = Cohort(it.scan_ids, it.patient_ids, Targets((BINARY,), codes), (), (), ())
    again = recorded(flipped, folds)[0].table.filter(fold=1)
    assert again.equals(first)


def test_labels_of_patients_who_cross_groups_decide_nothing_of_the_fold_that_scores_them() -> None:
    """Patients with a scan in each of two groups: the other group's scans of those whom a fold scores do not choose."""
    it = cohort(18)
    groups = [["a", "b", "c"][(i // 2 + (i % 2) * (i // 2 % 4 == 1)) % 3] for i in range(36)]
    folds = plan_folds(it, "nested-cv", folds=3, groups=groups)[0]
    assert folds.table.filter(split="unused").height
    noise = np.random.default_rng(0).random(len(it))

    def choose(codes: np.ndarray, fold: int) -> pl.DataFrame:
        here = Cohort(it.scan_ids, it.patient_ids, Targets((BINARY,), codes), (), (), ())
        return search(here, folds, grid_of(1e-4), lambda t, i, s, c, seed: noise[s][:, None]).table.filter(fold=fold)

    for fold in range(3):
        scored = set(folds.table.filter(fold=fold, split="test")["patient_id"])
        codes = it.targets.codes.copy()
        theirs = np.array([patient in scored for patient in it.patient_ids])
        codes[theirs] = 1 - codes[theirs]
        assert choose(codes, fold).equals(choose(it.targets.codes, fold))


def test_what_the_folds_leave_unused_teaches_no_inner_fit_either() -> None:
    it = cohort(15, 1)
    scans, patients, indicators = it.by_scan()
    rows = []
    for fold in range(3):  # the last three in no fold at all; the first, which fold 0 scores, not in fold 1 either
        given = [UNUSED if i >= 12 or (i == 0 and fold == 1) else None for i in range(15)]
        scored = [i % 3 == fold and i < 12 for i in range(15)]
        rows += rows_of_fold(0, fold, scans, patients, scored, indicators, given=given)
    fits = recorded(it, Folds(folds_table(rows)))[1]
    assert {seed[2:] for *_, seed in fits} == {(0, 1), (0, 2), (1, 2)}
    for train_bags, inner, scored, _, (_, _, a, b) in fits:
        assert train_bags | inner == {i for i in range(12) if i % 3 not in (a, b)} - ({0} if 1 in (a, b) else set())
        assert scored == {i for i in range(12) if i % 3 in (a, b)} - ({0} if (a, b) == (0, 1) else set())


def test_the_inner_fits_hold_back_the_preset_s_share_of_patients() -> None:
    it = cohort(20, 1)
    folds = make_folds(*it.by_scan(), folds=4)
    for fraction, held in ((0.2, 2), (0.5, 5)):
        sizes = []
        grid = candidates({"lr": (1e-3,)}, "mean", Preset("p", inner_fraction=fraction))
        search(it, folds, grid, lambda t, i, s, c, seed, n=sizes: n.append((len(t), len(i))) or np.zeros((len(s), 1)))
        assert set(sizes) == {(10 - held, held)}


def test_values_of_the_test_set_change_no_fold() -> None:
    """A quantity is cut into quarters of those who are dealt; those who are scored have no say in it."""
    values = np.random.default_rng(0).normal(size=(40, 1))
    names = tuple((f"s{i:02d}",) for i in range(40))
    patients = tuple(f"p{i:02d}" for i in range(40))
    other = values.copy()
    other[30:] += 100

    def plan(codes: np.ndarray, protocol: str, **kwargs) -> pl.DataFrame:
        it = Cohort(names, patients, Targets((Endpoint("size", "regression"),), codes), (), (), ())
        return plan_folds(it, protocol, folds=3, **kwargs)[0].table

    splits = ["train"] * 24 + ["val"] * 6 + ["test"] * 10
    assert plan(other, "cv-test", splits=splits).equals(plan(values, "cv-test", splits=splits))
    groups = ["a"] * 15 + ["b"] * 15 + ["c"] * 10
    held_out = [plan(codes, "cv", groups=groups).filter(fold=2) for codes in (values, other)]
    assert held_out[0].equals(held_out[1])


def test_values_of_scored_patients_change_no_inner_split_of_theirs() -> None:
    values = np.random.default_rng(1).normal(size=(30, 1))
    names, patients = tuple((f"s{i:02d}",) for i in range(30)), tuple(f"p{i:02d}" for i in range(30))

    def it(codes: np.ndarray) -> Cohort:
        return Cohort(names, patients, Targets((Endpoint("size", "regression"),), codes), (), (), ())

    folds = plan_folds(it(values), "cv", folds=3)[0]
    shifted = values.copy()
    shifted[it(values).bags_of(folds.split(0, 1)["test"])] += 100

    def teaching(codes: np.ndarray) -> list[tuple]:
        seen: list[tuple] = []

        def score(train_bags, inner, scored, candidate, seed):
            if 1 in seed[2:]:
                seen.append((seed, train_bags.tolist(), inner.tolist()))
            return np.zeros((len(scored), 1))

        search(it(codes), folds, grid_of(1e-3), score)
        return seen

    assert teaching(shifted) == teaching(values)


def test_an_official_part_for_fitting_that_teaches_nothing_stops(data, tmp_path: Path) -> None:
    it = cohort(8, 1)
    splits = ["test", "train"] * 4  # every patient who fits is positive
    with pytest.raises(InputError, match=r"fold 0: y: one class only: all 2 known labels are '1'.*nothing to learn"):
        plan_folds(it, "cv-test", folds=2, splits=splits)


def test_folds_whose_inner_split_has_no_event_stop_before_any_fit() -> None:
    events = np.zeros((12, 1))
    events[[0, 1]] = 1
    times = np.arange(1.0, 13)[:, None]
    names = tuple((f"s{i:02d}",) for i in range(12))
    targets = Targets((Endpoint("os", "survival", event="dead"),), times, events)
    it = Cohort(names, tuple(f"p{i:02d}" for i in range(12)), targets, (), (), ())
    with pytest.raises(InputError, match=r"fold 0: none of the \d bags that end the training has an event"):
        plan_folds(it, "cv", folds=2)


def test_where_one_of_several_endpoints_cannot_be_learnt_its_scores_are_not_defined(data, tmp_path: Path) -> None:
    table = pl.read_csv(data[1])
    fits = pl.col("split") != "test"
    table.with_columns(other=pl.when(fits).then(0).otherwise(1 - pl.col("lesion"))).write_csv(tmp_path / "two.csv")
    run = train(
        data[0], labels=tmp_path / "two.csv", target=["lesion", "other"], protocol="cv-test", folds=2,
        output=tmp_path / "r", **QUICK,
    )  # fmt: skip
    assert "fold 0: other: one class only: all 10 known labels are '0'" in " ".join(run.settings["remarks"])
    scores = run.predictions
    assert scores.filter(endpoint="other")["y_score"].is_null().all()
    assert run.not_learnt(fold=0) == ("other",)
    assert scores.filter(endpoint="lesion")["y_score"].is_finite().all()
    assert run.metrics.filter(endpoint="other")["estimate"].is_null().all()
    assert run.metrics.filter(endpoint="lesion", estimator="ensemble")["estimate"].is_finite().all()


def test_ties_go_to_the_earlier_candidate_and_an_undefined_score_never_wins() -> None:
    it = cohort()
    folds = make_folds(*it.by_scan(), folds=3)
    grid = grid_of(1e-4, 1e-3)
    constant = search(it, folds, grid, lambda t, i, s, c, seed: np.full((len(s), 1), 0.5))
    assert all(one is grid[0] for one in constant.chosen.values())
    unknown = Cohort(it.scan_ids, it.patient_ids, Targets((BINARY,), it.targets.codes * 0), (), (), ())
    assert (
        search(unknown, folds, grid, lambda t, i, s, c, seed: np.zeros((len(s), 1))).table["score"].null_count() == 12
    )


def test_nested_cross_validation_chooses_by_inner_scores_and_keeps_them(data, tmp_path: Path) -> None:
    """With a learning rate that cannot learn beside one that can, every fold takes the latter."""
    run = train(
        data[0], labels=data[1], target="lesion", protocol="nested-cv", folds=3, epochs=25, batch=8, patience=25,
        grid={"lr": [1e-9, 1e-3], "aggregator": ["abmil"]}, output=tmp_path / "r", progress=False,
    )  # fmt: skip
    assert [fit["chosen"] for fit in run.settings["fits"]] == [{"lr": 1e-3, "aggregator": "abmil"}] * 3
    grid = run.grid
    assert grid.columns == ["repeat", "fold", "inner_fold", "candidate", "lr", "aggregator", "score", "chosen"]
    assert grid.height == 3 * 2 * 2
    for (_,), rows in grid.group_by("fold"):
        means = rows.group_by("candidate", "chosen").agg(pl.col("score").mean()).sort("score")
        assert means["chosen"].to_list() == [False, True]
    assert run.predictions["scan_id"].n_unique() == 30
    assert run.model(fold=2).training is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"protocol": "loo"}, "expected one of cv, cv-test, nested-cv"),
        ({"protocol": "nested-cv", "folds": 2}, "needs 3 folds or more"),
        ({"protocol": "nested-cv", "grid": {"speed": [1]}}, "--grid speed: expected aggregator or one of"),
        ({"protocol": "nested-cv", "grid": {"lr": []}}, "one value or more"),
        ({"protocol": "nested-cv", "grid": {"aggregator": ["best"]}}, "--aggregator best: no such"),
        ({"protocol": "nested-cv", "grid": {"lr": [None]}}, "one value or more"),
        ({"protocol": "nested-cv", "grid": {"inner_fraction": [0.3]}}, "--grid inner_fraction: expected aggregator"),
        ({"protocol": "nested-cv", "grid": {"lr": [-1.0]}}, "lr is -1"),
        ({"protocol": "nested-cv", "grid": {"lr": ["abc"]}}, "lr is 'abc'; expected a number above 0"),
        ({"protocol": "nested-cv", "grid": {"batch": ["8"]}}, "batch is '8'; expected a whole number"),
        ({"grid": {"lr": [1e-3]}}, "searched by --protocol nested-cv only"),
        ({"protocol": "cv-test", "group": "site"}, "give one of the two"),
        ({"several": "best"}, "expected pool"),
    ],
)
def test_a_protocol_that_cannot_run_is_refused_before_training(data, tmp_path: Path, arguments, says: str) -> None:
    with pytest.raises(InputError, match=says):
        train(data[0], labels=data[1], target="lesion", output=tmp_path / "r", progress=False, **arguments)
    assert not (tmp_path / "r").exists()


def test_a_grid_is_every_combination_in_order_with_the_preset_otherwise_as_it_was() -> None:
    found = candidates({"aggregator": ("mean", "abmil"), "dropout": (0.0, 0.5)}, "max", PRESETS["adaptive"])
    assert [(each.aggregator, each.preset.dropout) for each in found] == [
        ("mean", 0.0),
        ("mean", 0.5),
        ("abmil", 0.0),
        ("abmil", 0.5),
    ]
    assert {each.preset.lr for each in found} == {PRESETS["adaptive"].lr}
    assert [each.preset.lr for each in candidates({}, "mean", Preset("p"))] == [1e-4, 3e-4, 1e-3]
    assert candidates({"epochs": (4,)}, "mean", PRESETS["adaptive"])[0].preset.min_steps == 0
    steps = candidates({"min_steps": (20, 40), "epochs": (4,)}, "mean", PRESETS["adaptive"])
    assert [each.preset.min_steps for each in steps] == [20, 40]
    assert [each.preset.min_steps for each in candidates({"min_steps": (7,)}, "mean", PRESETS["paper"])] == [7]


def test_skill_is_the_mean_over_what_is_defined() -> None:
    quantity = Endpoint("q", "regression")
    time = Endpoint("t", "survival", event="e")
    codes = np.array([[0, 1.0, 5], [1, 2.0, 4], [1, 3.0, 3], [np.nan, 6.0, 2]])
    events = np.array([[np.nan, np.nan, 1.0]] * 4)
    names = tuple((f"s{i}",) for i in range(4))
    it = Cohort(names, tuple("abcd"), Targets((BINARY, quantity, time), codes, events), (), (), ())
    perfect = np.array([[0.1, 1.0, -5], [0.8, 2.0, -4], [0.9, 3.0, -3], [0.0, 6.0, -2]])
    assert skill(it, np.arange(4), perfect) == 1
    constant = np.tile([0.5, 2.5, 0.0], (4, 1))
    assert skill(it, np.arange(4), constant) == pytest.approx((0.5 + 0.0 + 0.5) / 3)


def test_skill_of_survival_counts_a_pair_whose_event_and_censoring_fall_together() -> None:
    """At equal times the censored patient outlived the other (Harrell 1996), here as in the run's own C-index."""
    time = Endpoint("t", "survival", event="e")
    codes, events = np.array([[5.0], [5.0]]), np.array([[1.0], [0.0]])
    it = Cohort((("s0",), ("s1",)), ("a", "b"), Targets((time,), codes, events), (), (), ())
    assert skill(it, np.arange(2), np.array([[1.0], [0.0]])) == 1
    assert skill(it, np.arange(2), np.array([[0.0], [1.0]])) == 0
    censored = Cohort(it.scan_ids, it.patient_ids, Targets((time,), codes, events * 0), (), (), ())
    assert np.isnan(skill(censored, np.arange(2), np.array([[1.0], [0.0]])))
