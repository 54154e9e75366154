"""Pseudonyms: stable in a page, new in the next, and no way for an id into a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aggregate.report import _names
from aggregate.report.ids import Ids, file_name


def test_an_id_has_one_pseudonym_on_a_page_and_another_on_the_next() -> None:
    page, other = Ids(show=False), Ids(show=False)
    assert page("jane-doe") == page("jane-doe")
    assert page("jane-doe") != page("john-doe")
    assert page("jane-doe") != other("jane-doe")
    assert "jane" not in page("jane-doe")


def test_ids_never_share_a_pseudonym() -> None:
    ids = Ids(show=False, salt=b"fixed")
    names = [f"scan{i}" for i in range(20_000)]
    ids._taken |= {ids("scan0")[:4]}  # also where a shorter one is taken
    assert len({ids(name) for name in names}) == len(names)


def test_ids_are_shown_when_asked_for() -> None:
    ids = Ids(show=True)
    assert ids("jane-doe") == "jane-doe"
    assert ids.sentence("2 of 9 scans have no label row: jane-doe, b", ["jane-doe"]) == (
        "2 of 9 scans have no label row: jane-doe, b"
    )


def test_lists_of_ids_are_cut_from_the_remarks_that_end_in_them() -> None:
    ids = Ids(show=False)
    for remark, kept in (
        (
            "3 of 9 label rows have no scan, by patient_id: Ann, Bea, Cy",
            "3 of 9 label rows have no scan, by patient_id",
        ),
        ("2 of 9 scans have no label row: ct/Ann, ct/Bea", "2 of 9 scans have no label row"),
        (
            "--join all: 2 follow-ups have the label of their patient: Ann-2, Bea-2",
            "--join all: 2 follow-ups have the label of their patient",
        ),
        (
            "--join earliest: 1 follow-ups without their first study are left out: Ann-2",
            "--join earliest: 1 follow-ups without their first study are left out",
        ),
        (
            "/home/ann/folds.csv: 2 scan_ids are not among the labelled ones: Ann, Bea",
            "folds.csv: 2 scan_ids are not among the labelled ones",
        ),
    ):
        assert ids.sentence(remark) == kept


def test_an_id_inside_a_sentence_becomes_its_pseudonym_and_counts_stay() -> None:
    ids = Ids(show=False)
    text = ids.sentence("scan Ann-1 has two rows; 12 of 30 patients", ["Ann-1", "12", "Ann"])
    assert text == f"scan {ids('Ann-1')} has two rows; 12 of 30 patients"


def test_folders_are_named_after_people_and_stay_off_the_page() -> None:
    assert (
        Ids(show=False).sentence("/home/jane/study/labels.csv: 2 rows repeat an id")
        == "labels.csv: 2 rows repeat an id"
    )
    assert file_name("C:\\Users\\jane\\labels.csv") == "labels.csv"


@pytest.mark.parametrize(
    ("known", "text", "kept"),
    [
        ("DOE JANE 1960", "scan DOE JANE 1960 has no instance", "scan {} has no instance"),
        ("Doe^Jane", "the patient Doe^Jane.", "the patient {}."),
        ("scan_017", "left out scan_017.", "left out {}."),
        ("scan_017", "scan_017_ct.mha is gone", "{}_ct.mha is gone"),
        ("1234", "patient 1234 is in two sites", "patient {} is in two sites"),
        ("1234", "1234 has two labels", "{} has two labels"),
        ("12", "12 label rows of 12.5 mm, 112 scans, first '12'", "12 label rows of 12.5 mm, 112 scans, first '{}'"),
        ("a b/c d", "x: scan a b/c d is gone", "x: scan {} is gone"),
        ("MRN-77", "[MRN-77] (MRN-77)", "[{0}] ({0})"),
        ("/data/Doe J/ct 1", "source /data/Doe J/ct 1: gone", "source {}: gone"),
        ("2.25.123456789012345678", "series 2.25.123456789012345678.", "series {}."),
    ],
)
def test_an_id_goes_wherever_it_stands(known: str, text: str, kept: str) -> None:
    ids = Ids(show=False)
    assert ids.sentence(text, [known]) == kept.format(ids(known))


def test_parts_of_ids_and_unknown_uids_go() -> None:
    ids = Ids(show=False)
    said = ids.sentence("Jane Doe and ct/Ann in 1.2.840.10008.5.1.4", ["site/Jane Doe", "ct/Ann.nii.gz"])
    assert not re.search("Jane|Doe|Ann|840", said)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/Jane Doe/runs/x: attention.h5 is missing", "x: attention.h5 is missing"),
        ("wrote '/home/Jane Doe/my run/x.csv' twice", "wrote 'x.csv' twice"),
        ("C:\\Users\\Jane Doe\\x.csv: no rows", "x.csv: no rows"),
        ("~/Jane Doe/x.csv", "x.csv"),
        ("Jane Doe/runs/x: no rows", "x: no rows"),
    ],
)
def test_folders_stay_off_the_page(text: str, kept: str) -> None:
    assert Ids(show=False).sentence(text) == kept


def test_runs_of_one_name_are_numbered() -> None:
    paths = [Path("/jane/run"), Path("/john/run"), Path("/john/other")]
    assert _names(paths, False) == ["run (1)", "run (2)", "other"]
    assert _names(paths, True) == ["jane/run", "john/run", "john/other"]
