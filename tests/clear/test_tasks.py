"""Tasks as data: every entry is consistent, and what is wrong is a sentence."""

from __future__ import annotations

import json

import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_readers import READERS
from clear.tasks import METRICS, PRESETS, TASKS, Preset, Task, load_task, target_task
from clear.windows import ABDOMEN, LUNG


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_complete_and_turns_into_json(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.labels in READERS
    assert task.preset in PRESETS
    assert set(task.metrics) <= set(METRICS)
    assert all(endpoint.kind != "auto" for endpoint in task.endpoints)
    assert json.loads(json.dumps(task.as_dict()))["endpoints"][0]["name"] == task.endpoints[0].name


def test_the_paper_preset_holds_the_papers_numbers() -> None:
    paper = PRESETS["paper"]
    assert (paper.lr, paper.batch, paper.epochs, paper.patience, paper.dropout) == (1e-4, 128, 32, 8, 0.5)
    assert (paper.min_steps, paper.only_if_short) == (500, True)  # its numbers wherever they make 500 steps
    assert PRESETS["adaptive"].min_steps == 500


def test_rad_chestct_uses_the_lung_window_and_the_demo_both() -> None:
    assert TASKS["rad-chestct"].windows == (LUNG,)
    assert len(TASKS["rad-chestct"].endpoints) == 8
    assert TASKS["demo"].windows == (ABDOMEN, LUNG)
    assert TASKS["demo"].join == "pool"


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no such task. Built in: demo, rad-chestct.*--target"):
        load_task("rad_chest")


def test_columns_of_a_table_make_a_task() -> None:
    task = target_task(["a", "b"])
    assert task.name == "a+b"
    assert [endpoint.kind for endpoint in task.endpoints] == ["auto", "auto"]
    assert target_task("a").endpoints[0].source_column == "a"


def test_changing_a_preset_is_recorded_in_its_name() -> None:
    assert PRESETS["paper"].with_changes(lr=None).name == "paper"
    changed = PRESETS["paper"].with_changes(lr=1e-3)
    assert (changed.name, changed.lr) == ("paper+changed", 1e-3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Endpoint("a", "binary", ("x",)), "binary"),
        (lambda: Endpoint("a", "multiclass", ("x", "y", "y")), "multiclass"),
        (lambda: Task("t", "", (Endpoint("a"), Endpoint("a"))), "different names"),
        (lambda: Task("t", "", (Endpoint("a"),), preset="big"), "preset"),
        (lambda: Task("t", "", (Endpoint("a"),), join="some"), "join"),
        (lambda: Task("t", "", (Endpoint("a"),), folds=1), "folds"),
        (lambda: Preset("p", lr=0), "lr"),
        (lambda: Preset("p", inner_fraction=1), "inner_fraction"),
        (lambda: target_task([]), "--target"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(make, says) -> None:
    with pytest.raises(InputError, match=says):
        make()
