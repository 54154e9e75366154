"""Cases: which marks belong to which answer of a run, and which scans count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from aggregate.explain.boxes import Box, Boxes
from aggregate.explain.cases import find_cases
from clear.endpoints import Endpoint
from clear.errors import InputError

NODULE = Endpoint("lung nodule", "binary", ("absent", "present"))
SITE = Endpoint("site", "multiclass", ("Lung", "Liver", "Bone"))
AGE = Endpoint("age", "regression")
SCHEMA = ["scan_id", "patient_id", "endpoint", "class", "split", "y_true", "y_score"]


class FakeBags(dict[str, Any]):
    def row(self, scan: str) -> Any:
        return self[scan]

    @property
    def scans(self) -> pl.DataFrame:
        schema = {"scan_id": pl.String, "patient_id": pl.String}
        return pl.DataFrame([(scan, one.patient_id) for scan, one in self.items()], schema=schema, orient="row")


def run_of(
    endpoints: tuple[Endpoint, ...], rows: list[tuple[Any, ...]], folds: list[str], fitted: tuple[str, ...] = ()
) -> Any:
    """A run of one model; fitted: the patients that it was fitted on, each by one scan."""
    whole = [row if len(row) == len(SCHEMA) else (*row, 0.5) for row in rows]
    predictions = pl.DataFrame(whole, schema=SCHEMA, orient="row")
    table = [(0, 0, "test", None, scan) for scan in folds]
    table += [(0, 0, "train", patient, f"of {patient}") for patient in fitted]
    columns = {"repeat": pl.Int64, "fold": pl.Int64, "split": pl.String, "patient_id": pl.String, "scan_id": pl.String}
    return SimpleNamespace(
        path=Path("runs/r"),
        endpoints=endpoints,
        predictions=predictions,
        folds=pl.DataFrame(table, schema=columns, orient="row"),
        pairs=[(0, 0)],
        settings={},
    )


def marks(**labels: list[str]) -> Boxes:
    found = {scan: tuple(Box((0, 1), (0, 1), (0, 1), name) for name in names) for scan, names in labels.items()}
    return Boxes(Path("boxes.csv"), found)


def bags(**patients: str | None) -> Any:
    return FakeBags(
        {
            scan: SimpleNamespace(scan_id=scan, patient_id=patient, digest=scan * 64)
            for scan, patient in patients.items()
        }
    )


def test_a_label_belongs_to_the_binary_endpoint_or_the_class_of_its_name() -> None:
    rows = [
        ("a", "P1", "lung nodule", "present", "test", 1.0),
        ("b", "P2", "lung nodule", "present", "test", 0.0),
        ("a", "P1", "site", "Liver", "test", 0.0),
        ("b", "P2", "site", "Liver", "test", 1.0),
        ("b", "P2", "site", "Bone", "test", 0.0),
    ]
    run = run_of((NODULE, SITE, AGE), rows, ["a", "b"])
    cases, remarks = find_cases(run, bags(a="P1", b="P2"), marks(a=["Lung_Nodule", "rib"], b=["liver"]))
    assert [(each.target.finding, each.labels, dict(each.patients)) for each in cases] == [
        ("lung nodule", ("Lung_Nodule",), {"a": "P1"}),
        ("site Liver", ("liver",), {"b": "P2"}),
    ]
    assert remarks == ["rib: marked, but no answer of this run has maps that speak for it"]


def test_marks_without_a_label_belong_to_the_only_binary_endpoint() -> None:
    run = run_of((NODULE,), [("a", "P1", "lung nodule", "present", "test", 1.0)], ["a"])
    cases, _ = find_cases(run, bags(a="P1"), marks(a=[""]))
    assert cases[0].target.endpoint == NODULE
    with pytest.raises(InputError, match="marks no label; the run runs/r predicts lung nodule, site Lung"):
        find_cases(run_of((NODULE, SITE), [], ["a"]), bags(a="P1"), marks(a=[""]))


def test_scans_of_a_pooled_patient_count_each_and_strangers_by_their_marks() -> None:
    rows = [("a;b", "P1", "lung nodule", "present", "test", 1.0), ("c", "P2", "lung nodule", "present", "test", 0.0)]
    run = run_of((NODULE,), rows, ["a", "b", "c", "d"])
    marked = marks(b=["lung nodule"], c=["lung nodule"], d=["lung nodule"], x=["lung nodule"], y=["lung nodule"])
    (case,), remarks = find_cases(run, bags(a="P1", b="P1", c="P2", d="P4", x=None, y="P9"), marked)
    assert dict(case.patients) == {"b": "P1", "x": "x", "y": "P9"}
    assert any("lung nodule: 2 marked scans are left out" in each for each in remarks)  # c is negative, d not scored
    assert any("lung nodule: 1 scans that have it have no mark" in each for each in remarks)  # a


def test_a_stranger_is_left_out_where_every_model_was_fitted_on_its_patient() -> None:
    run = run_of((NODULE,), [], [], fitted=("P9",))
    marked = marks(x=["lung nodule"], y=["lung nodule"], z=["lung nodule"])
    (case,), remarks = find_cases(run, bags(x="P8", y="P9", z=None), marked)
    assert dict(case.patients) == {"x": "P8", "z": "z"}
    assert "1 marked scans that the run does not know are left out: every model was fitted" in remarks[0]
    assert "1 marked scans that the run does not know have no patient id" in remarks[1]


def test_a_run_without_classes_or_without_a_marked_positive_is_refused() -> None:
    with pytest.raises(InputError, match="its endpoints age have no classes"):
        find_cases(run_of((AGE,), [], ["a"]), bags(a="P1"), marks(a=["age"]))
    rows = [("a", "P1", "lung nodule", "present", "test", 0.0)]
    with pytest.raises(InputError, match="no scan that has a finding is both marked and scored"):
        find_cases(run_of((NODULE,), rows, ["a"]), bags(a="P1"), marks(a=["lung nodule"]))


def test_labels_that_differ_in_spelling_are_one_finding() -> None:
    rows = [(scan, scan.upper(), "lung nodule", "present", "test", 1.0) for scan in "ab"]
    marked = marks(a=["Lung_Nodule", "lung nodule"], b=["lung-nodule"])
    (case,), remarks = find_cases(run_of((NODULE,), rows, ["a", "b"]), bags(a="A", b="B"), marked)
    assert sorted(case.labels) == ["Lung_Nodule", "lung nodule", "lung-nodule"]
    assert dict(case.patients) == {"a": "A", "b": "B"}
    assert remarks == []


def test_a_scan_that_no_model_could_score_is_left_out_and_said() -> None:
    rows = [
        ("a", "A", "lung nodule", "present", "test", 1.0, None),
        ("b", "B", "lung nodule", "present", "test", 1.0, 0.7),
        ("c", "C", "lung nodule", "present", "test", 1.0, None),  # in one repeat, but scored in another
        ("c", "C", "lung nodule", "present", "test", 1.0, 0.4),
    ]
    marked = marks(a=["lung nodule"], b=["lung nodule"], c=["lung nodule"])
    (case,), remarks = find_cases(run_of((NODULE,), rows, ["a", "b", "c"]), bags(a="A", b="B", c="C"), marked)
    assert set(case.patients) == {"b", "c"}
    assert remarks == [
        "lung nodule: 1 marked scans are left out: the models of their fold had nothing to learn it from"
    ]


def test_an_ordinal_endpoint_is_judged_for_its_highest_class_alone() -> None:
    stage = Endpoint("stage", "ordinal", ("I", "II", "III"))
    rows = [("a", "A", "stage", name, "test", float(name == "I")) for name in ("I", "II", "III")]
    rows += [("b", "B", "stage", name, "test", float(name == "III")) for name in ("I", "II", "III")]
    run, held = run_of((stage,), rows, ["a", "b"]), bags(a="A", b="B")
    (case,), remarks = find_cases(run, held, marks(a=["I"], b=["III"]))
    assert (case.target.class_name, dict(case.patients)) == ("III", {"b": "B"})
    assert remarks == ["I: marked, but no answer of this run has maps that speak for it"]
    with pytest.raises(InputError, match="marks I; the run runs/r predicts stage III"):
        find_cases(run, held, marks(a=["I"]))


def test_an_id_that_holds_a_semicolon_is_one_scan() -> None:
    run = run_of((NODULE,), [("a;b", "P1", "lung nodule", "present", "test", 1.0)], ["a;b"])
    marked = Boxes(Path("boxes.csv"), {"a;b": (Box((0, 1), (0, 1), (0, 1), "lung nodule"),)})
    held = FakeBags({"a;b": SimpleNamespace(scan_id="a;b", patient_id="P1", digest="d")})
    (case,), remarks = find_cases(run, held, marked)
    assert dict(case.patients) == {"a;b": "P1"}
    assert remarks == []
