"""Target: what is explained when nobody says, and which output of the models it is."""

from __future__ import annotations

import numpy as np
import pytest

from aggregate.explain.target import choose_target, targets_of
from clear.endpoints import Endpoint
from clear.errors import InputError

NODULE = Endpoint("nodule", "binary", ("absent", "present"))
CYST = Endpoint("cyst", "binary", ("no", "yes"))
SITE = Endpoint("site", "multiclass", ("lung", "liver", "bone"))
STAGE = Endpoint("stage", "ordinal", ("I", "II", "III"))
SIZE = Endpoint("size", "regression")
DEATH = Endpoint("death", "survival", event="died")
EVERY = (NODULE, SITE, STAGE, SIZE, DEATH, CYST)
SCORES = np.array([0.2, 0.1, 0.7, 0.2, 0.1, 0.3, 0.6, 33.0, -0.5, 0.9])


def test_each_answer_has_the_output_that_speaks_for_it() -> None:
    outputs = [(target.endpoint.name, target.class_name, target.output) for target in targets_of(EVERY)]
    assert outputs == [
        ("nodule", "present", 0),
        ("site", "lung", 1),
        ("site", "liver", 2),
        ("site", "bone", 3),
        ("stage", "I", 4),
        ("stage", "II", 4),
        ("stage", "III", 4),
        ("size", "", 6),
        ("death", "", 7),
        ("cyst", "yes", 8),
    ]


@pytest.mark.parametrize(
    ("endpoint", "class_name", "score"),
    [
        ("nodule", "present", 0.2),
        ("site", "liver", 0.7),
        ("stage", "III", 0.6),
        ("size", "", 33.0),
        ("death", "", -0.5),
    ],
)
def test_of_an_endpoint_the_positive_or_the_predicted_class_is_explained(
    endpoint: str, class_name: str, score: float
) -> None:
    target, own, _ = choose_target(EVERY, SCORES, endpoint)
    assert (target.endpoint.name, target.class_name, own) == (endpoint, class_name, score)


def test_of_several_endpoints_the_binary_one_of_the_highest_score_is_explained_and_said() -> None:
    target, score, remarks = choose_target(EVERY, SCORES)
    assert (target.endpoint, score) == (CYST, 0.9)
    assert remarks == ["of 6 endpoints cyst is explained: its score is the highest. --endpoint names another"]
    unknown = SCORES.copy()
    unknown[9] = np.nan  # no model learnt it
    assert choose_target(EVERY, unknown)[0].endpoint == NODULE
    assert choose_target((SITE, SIZE), SCORES[1:5])[0].endpoint == SITE
    assert choose_target((NODULE,), SCORES[:1])[2] == []


def test_a_named_class_is_explained() -> None:
    target, score, _ = choose_target(EVERY, SCORES, "site", "bone")
    assert (target.class_name, target.output, score) == ("bone", 3, 0.2)
    assert target.finding == "site bone"
    assert choose_target(EVERY, SCORES, "nodule", "present")[0].finding == "nodule"


@pytest.mark.parametrize(("endpoint", "word"), [("stage", "higher"), ("size", "larger"), ("death", "earlier")])
def test_what_a_map_of_a_rank_a_quantity_or_a_time_shows_is_said(endpoint: str, word: str) -> None:
    assert word in choose_target(EVERY, SCORES, endpoint)[2][0]


def test_of_ordered_classes_the_highest_is_explained_whichever_is_predicted() -> None:
    scores = np.array([0.7, 0.2, 0.1])
    target, score, remarks = choose_target((STAGE,), scores)
    assert (target.class_name, score) == ("III", 0.1)
    assert remarks == ["maps and contributions show what speaks for higher classes, whichever is predicted"]
    assert choose_target((STAGE,), scores, "stage", "III")[0] == target
    with pytest.raises(InputError, match=r"--class I: maps of stage \(ordinal\) speak for III"):
        choose_target((STAGE,), scores, "stage", "I")
    assert [each.has_maps for each in targets_of((STAGE, SITE))] == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("endpoint", "class_name", "said"),
    [
        ("mass", None, "--endpoint mass: the run has no such endpoint; it has nodule, site"),
        ("site", "brain", "--class brain: maps of site .multiclass. speak for lung, liver, bone"),
        ("nodule", "absent", "--class absent: maps of nodule .binary. speak for present"),
        ("size", "big", "--class big: size .regression. has no classes"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(endpoint: str, class_name: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose_target(EVERY, SCORES, endpoint, class_name)
