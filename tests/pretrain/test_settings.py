"""Settings: wrong ones stop with a sentence, open ones come from the objective's authors, and differences are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clear.errors import InputError
from pretrain.objectives import OBJECTIVES
from pretrain.settings import RECIPES, PretrainSettings, differences, read_settings


def settings(**changes: Any) -> PretrainSettings:
    return PretrainSettings(**{"objective": "lecl", "model": "mambaout-lecl", **changes})


def test_every_objective_has_a_recipe_and_none_is_without_one() -> None:
    assert set(RECIPES) == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "simclr"}, "no such objective; expected one of moco-v3, lecl, dino, dinov2"),
        ({"batch": 1}, "--batch 1: slices are contrasted with each other, so a step needs 2"),
        ({"batch": 0}, "--batch 0: expected a whole number of 1 or more"),
        ({"epochs": 2.5}, "--epochs 2.5: expected a whole number"),
        ({"micro_batch": 0}, "--micro-batch 0"),
        ({"lr": 0}, "--lr 0: nothing would be learnt"),
        ({"lr": -1e-3}, "--lr -0.001: expected a number of 0 or more"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"lr": "1e-4"}, "--lr 1e-4: expected a number"),
        ({"epochs": 5, "warmup_epochs": 6}, "longer than the 5 epochs"),
        ({"optimizer": "sgd"}, "--optimizer sgd: expected adamw or lars"),
        ({"precision": "float16"}, "--precision float16"),
        ({"annotated_share": 1.5}, "--annotated-share 1.5: expected a share of 0 to 1"),
        ({"augmentation": "strong"}, "augmentation 'strong' is unknown"),
        ({"augmentation": {"flip": "both"}}, "unknown flip"),
        ({"judge_labels": "labels.csv"}, "expected --judge"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        settings(**changes)
    assert says in str(error.value)


def test_what_is_left_open_is_what_the_authors_used() -> None:
    moco = settings(objective="moco-v3", epochs=300).settled()
    assert (moco.lr, moco.weight_decay, moco.weight_decay_end, moco.clip) == (1.5e-4, 0.1, None, 0.0)
    assert moco.warmup_epochs == 30
    assert settings(objective="moco-v3", optimizer="lars").settled().lr == 0.3
    dino = settings(objective="dino").settled()
    assert (dino.lr, dino.weight_decay, dino.weight_decay_end, dino.clip) == (5e-4, 0.04, 0.4, 3.0)


def test_what_is_given_stands_before_the_recipe() -> None:
    given = settings(objective="dino", lr=1e-3, weight_decay=0.2, clip=0.0, warmup_epochs=0).settled()
    assert (given.lr, given.weight_decay, given.clip, given.warmup_epochs) == (1e-3, 0.2, 0.0, 0.0)
    assert given.weight_decay_end is None  # a decay of one's own does not grow to that of others
    assert given.settled() == given


def test_a_record_of_the_same_settings_differs_in_nothing() -> None:
    asked = settings(options={"lambda": 3}, augmentation={"flips": "both"}).settled()
    recorded = json.loads(json.dumps(asked.as_dict()))
    assert differences(recorded, asked.as_dict()) == []
    assert differences(recorded, {**asked.as_dict(), "workers": 7, "model": "elsewhere/card.json"}) == []


def test_each_difference_is_named_with_both_values() -> None:
    before = json.loads(json.dumps(settings(options={"lambda": 3}).settled().as_dict()))
    now = settings(options={"lambda": 5}, lr=2e-3, micro_batch=4, augmentation={"flips": "both"}).settled()
    assert differences(before, now.as_dict()) == [
        "lambda was 3 and is 5",
        "micro-batch was not given and is 4",
        "lr was 0.00015 and is 0.002",
        "flips was none and is both",
    ]


def test_a_field_that_a_later_clear_adds_is_no_difference_at_its_default() -> None:
    now = settings().settled().as_dict()
    before = {name: value for name, value in now.items() if name != "half"}
    assert differences(before, now) == []
    assert differences(before, {**now, "half": True}) == ["half was False and is True"]


def test_settings_are_read_from_yaml_and_strange_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("objective: dino\nlr: 1e-3\nepochs: 5\noptions: {local_views: 2}\n")
    assert read_settings(file) == {"objective": "dino", "lr": 1e-3, "epochs": 5, "options": {"local_views": 2}}
    file.write_text("learning_rate: 1\n")
    with pytest.raises(InputError, match=r"settings\.yaml: unknown setting learning_rate; expected some of"):
        read_settings(file)
