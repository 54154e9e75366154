"""Pseudonyms: stable in a page, new in the next, and no way for an id into a sentence."""

from __future__ import annotations

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
