"""Tasks as data: every entry is consistent, and what is wrong is a sentence."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from clear.builtin_tasks import CT_RATE_18, GREY, MERLIN_30, ORGANS_3D, RAD_CHESTCT_84
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_readers import READERS
from clear.plan import select_series
from clear.tasks import (
    KNOWN_METRICS,
    METRICS,
    PRESETS,
    TASKS,
    Preset,
    Task,
    describe,
    load_task,
    rule_of_scans,
    target_task,
    tasks_table,
)
from clear.windows import ABDOMEN, LUNG, PERCENTILE


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_complete_and_turns_into_json(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.labels in READERS
    assert task.preset in PRESETS
    assert set(task.metrics) <= set(KNOWN_METRICS)
    assert task.patients
    assert task.notes
    assert name == "demo" or task.citation
    assert (task.protocol == "nested-cv") == bool(task.grid)
    select_series([], task.select or "modality = 'CT'")  # raises for a condition that cannot be understood
    assert all(task.metrics_of(endpoint) for endpoint in task.endpoints)
    assert all(endpoint.kind != "auto" for endpoint in task.endpoints)
    assert json.loads(json.dumps(task.as_dict()))["endpoints"][0]["name"] == task.endpoints[0].name


def test_the_paper_preset_holds_the_papers_numbers() -> None:
    paper = PRESETS["paper"]
    assert (paper.lr, paper.batch, paper.epochs, paper.patience, paper.dropout) == (1e-4, 128, 32, 8, 0.5)
    assert (paper.min_steps, paper.only_if_short) == (500, True)  # its numbers wherever they make 500 steps
    assert PRESETS["adaptive"].min_steps == 500


def test_the_tasks_of_the_issue_are_there() -> None:
    assert list(TASKS) == [
        *("demo", "deeplesion", "rad-chestct", "rad-chestct-84", "nsclc-radiomics", "nsclc-radiomics-survival"),
        *("lidc-malignancy", "mrnet", "duke-breast", "medmnist3d-organ", "medmnist3d-nodule", "medmnist3d-adrenal"),
        *("medmnist3d-fracture", "medmnist3d-vessel", "medmnist3d-synapse", "ct-rate", "merlin"),
    ]


def test_the_papers_tasks_use_the_papers_windows() -> None:
    assert TASKS["rad-chestct"].windows == TASKS["nsclc-radiomics"].windows == (LUNG,)
    assert TASKS["deeplesion"].windows == TASKS["ct-rate"].windows == TASKS["demo"].windows == (ABDOMEN, LUNG)
    assert TASKS["mrnet"].windows == TASKS["duke-breast"].windows == (PERCENTILE,)
    assert TASKS["medmnist3d-organ"].windows == (GREY,)


def test_the_lists_of_findings_have_their_published_lengths() -> None:
    assert [len(names) for names in (RAD_CHESTCT_84, MERLIN_30, CT_RATE_18, ORGANS_3D)] == [84, 30, 18, 11]
    assert len(set(RAD_CHESTCT_84)) == 84
    assert (ORGANS_3D[0], ORGANS_3D[10]) == ("liver", "pancreas")  # not the codes of the 2D sets
    assert [len(TASKS[name].endpoints) for name in ("deeplesion", "rad-chestct", "rad-chestct-84")] == [8, 8, 84]


def test_what_the_scans_of_a_patient_mean_is_stated() -> None:
    several = {name: (task.join, task.several) for name, task in TASKS.items()}
    assert several["mrnet"] == several["duke-breast"] == several["demo"] == ("pool", "pool")
    assert several["nsclc-radiomics"] == several["nsclc-radiomics-survival"] == ("earliest", None)
    assert several["rad-chestct"] == several["ct-rate"] == (None, None)


def test_one_word_for_pooling_is_enough() -> None:
    for given in ({"join": "pool"}, {"several": "pool"}):
        task = Task("t", "", (Endpoint("a"),), **given)
        assert (task.join, task.several) == ("pool", "pool")
    assert Task("t", "", (Endpoint("a"),), join="all", several="average").join == "all"


def test_each_kind_of_endpoint_has_metrics_that_fit_it() -> None:
    mixed = Task(
        "t",
        "",
        (
            Endpoint("a", "binary", ("x", "y")),
            Endpoint("b", "ordinal", ("x", "y", "z")),
            Endpoint("c", "regression"),
            Endpoint("d", "survival", event="dead"),
        ),
        metrics=("auroc", "kappa", "mae"),
    )
    chosen = [mixed.metrics_of(endpoint) for endpoint in mixed.endpoints]
    assert chosen[0] == ("auroc", "kappa")
    assert chosen[2:] == [("mae",), ("c_index",)]
    plain = Task("t", "", mixed.endpoints)
    assert [plain.metrics_of(endpoint) for endpoint in plain.endpoints][::2] == [METRICS, ("mae", "r2")]


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"no such task. Built in: demo, deeplesion, .*merlin.*clear tasks init.*--target"
    ):
        load_task("rad_chest")


def test_the_list_has_a_line_a_task_and_the_description_every_field() -> None:
    lines = tasks_table().splitlines()
    assert [line.split()[0] for line in lines] == ["task", *TASKS]
    assert "8 binary" in lines[2]
    told = describe("nsclc-radiomics")
    assert told["windows"] == "lung (-1500..500)"
    assert told["grid"] == "lr: 0.0001, 0.0003, 0.001; dropout: 0.25, 0.5"
    assert told["protocol"].startswith("nested-cv: 5 patient-grouped folds")
    assert told["join"] == "earliest"
    survival = describe("nsclc-radiomics-survival")
    assert survival["endpoints"] == "overall_survival: survival from column 'Survival.time', event 'deadstatus.event'"
    assert describe("mrnet")["several"] == "the scans of a patient form one bag"


def test_columns_of_a_table_make_a_task() -> None:
    task = target_task(["a", "b"])
    assert task.name == "a+b"
    assert [endpoint.kind for endpoint in task.endpoints] == ["auto", "auto"]
    assert target_task("a").endpoints[0].source_column == "a"


def test_changing_a_preset_is_recorded_in_its_name() -> None:
    assert PRESETS["paper"].with_changes(lr=None).name == "paper"
    changed = PRESETS["paper"].with_changes(lr=1e-3)
    assert (changed.name, changed.lr) == ("paper+changed", 1e-3)


def nested(**grid: tuple[float, ...]) -> Task:
    return Task("t", "", (Endpoint("a"),), protocol="nested-cv", grid=MappingProxyType(grid))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Endpoint("a", "binary", ("x",)), "binary"),
        (lambda: Endpoint("a", "multiclass", ("x", "y", "y")), "multiclass"),
        (lambda: Task("t", "", (Endpoint("a"), Endpoint("a"))), "different names"),
        (lambda: Task("t", "", (Endpoint("a"),), preset="big"), "preset"),
        (lambda: Task("t", "", (Endpoint("a"),), join="some"), "join"),
        (lambda: Task("t", "", (Endpoint("a"),), folds=1), "folds"),
        (lambda: Task("t", "", (Endpoint("split"),)), "'split' names an id, a split or a mean"),
        (lambda: Task("t", "", (Endpoint("a"),), protocol="loo"), "protocol"),
        (lambda: Task("t", "", (Endpoint("a"),), metrics=("auc",)), "metrics"),
        (lambda: Task("t", "", (Endpoint("a"),), join="pool", several="average"), "several"),
        (lambda: Task("t", "", (Endpoint("a"),), grid=MappingProxyType({"lr": (1.0,)})), "grid"),
        (lambda: nested(lr=(-1.0,)), "lr is -1"),
        (lambda: nested(lr=(1.0, 1.0)), r"grid\.lr"),
        (lambda: nested(rate=(1.0,)), "grid is 'rate'"),
        (lambda: Preset("p", lr=0), "lr"),
        (lambda: Preset("p", inner_fraction=1), "inner_fraction"),
        (lambda: target_task([]), "--target"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(make, says) -> None:
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize(
    ("own", "given", "found"),
    [
        ((None, None), (None, None), (None, None)),
        (("earliest", None), (None, None), ("earliest", None)),
        (("earliest", "average"), (None, None), ("earliest", "average")),
        ((None, "average"), (None, None), ("all", "average")),
        (("earliest", None), (None, "pool"), ("pool", "pool")),
        (("earliest", None), (None, "average"), ("all", "average")),
        (("pool", "pool"), (None, "average"), ("all", "average")),
        (("pool", "pool"), ("first", None), ("first", None)),
        ((None, None), ("pool", None), ("pool", "pool")),
        (("pool", "pool"), ("earliest", "average"), ("earliest", "average")),
    ],
)
def test_what_is_given_decides_over_the_task_what_several_scans_mean(own, given, found) -> None:
    task = Task("t", "", (Endpoint("a"),), join=own[0], several=own[1])
    assert rule_of_scans(task, *given) == found


@pytest.mark.parametrize("given", [("all", "pool"), ("pool", "average")])
def test_two_words_that_contradict_each_other_are_refused(given) -> None:
    task = Task("t", "", (Endpoint("a"),))
    with pytest.raises(InputError, match=f"--join {given[0]} and --several {given[1]} exclude each other"):
        rule_of_scans(task, *given)
    with pytest.raises(InputError, match=f"several is '{given[1]}' but join is '{given[0]}'"):
        Task("t", "", (Endpoint("a"),), join=given[0], several=given[1])
    with pytest.raises(InputError, match="--several best: expected pool"):
        rule_of_scans(task, None, "best")
