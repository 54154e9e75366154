"""What an endpoint may be, and what follows from its kind."""

from __future__ import annotations

import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError

ENDPOINTS = (
    Endpoint("a", "binary", ("absent", "present")),
    Endpoint("stage", "multiclass", ("I", "II", "III", "IV"), column="Overall.Stage"),
    Endpoint("grade", "ordinal", ("low", "middle", "high")),
    Endpoint("age", "regression"),
    Endpoint("os", "survival", column="days", event="dead"),
)


def test_each_kind_has_its_outputs_and_its_prediction_rows() -> None:
    assert [endpoint.n_out for endpoint in ENDPOINTS] == [1, 4, 2, 1, 1]
    assert [len(endpoint.score_classes) for endpoint in ENDPOINTS] == [1, 4, 3, 1, 1]
    assert [endpoint.is_classes for endpoint in ENDPOINTS] == [True, True, True, False, False]
    assert ENDPOINTS[0].score_classes == ("present",)
    assert ENDPOINTS[3].score_classes == ("",)


def test_a_survival_endpoint_has_two_columns_of_labels() -> None:
    assert ENDPOINTS[4].label_columns == ("os", "os.event")
    assert ENDPOINTS[4].source_column == "days"
    assert ENDPOINTS[3].label_columns == ("age",)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.kind)
def test_an_endpoint_survives_its_dictionary(endpoint: Endpoint) -> None:
    back = Endpoint.from_dict(endpoint.as_dict())
    assert back.as_dict() == endpoint.as_dict()
    assert (back.kind, back.classes, back.event) == (endpoint.kind, endpoint.classes, endpoint.event)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "number"}, "kind is 'number'; expected auto, binary, multiclass, ordinal, regression, survival"),
        ({"kind": "binary", "classes": ("a",)}, r"a binary endpoint cannot have the classes \['a'\]"),
        ({"kind": "ordinal", "classes": ("a", "b")}, "an? ordinal endpoint cannot have"),
        ({"kind": "multiclass", "classes": ("a", "b", "a")}, "cannot have the classes"),
        ({"kind": "regression", "classes": ("a", "b")}, "cannot have the classes"),
        ({"kind": "survival"}, "needs `event`"),
        ({"kind": "regression", "event": "dead"}, "only a survival endpoint has an event column"),
    ],
)
def test_an_endpoint_that_makes_no_sense_is_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Endpoint("y", **arguments)  # type: ignore[arg-type]
