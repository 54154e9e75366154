"""Training records: who was seen can be asked, and not read."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from clear.errors import InputError
from clear.training_record import TrainingRecord, keyed_hash, seen_in_pretraining

RECORD = TrainingRecord.of(["p1", "p2", None, "p1"], ["s1", ""], ["d" * 64], key="salt")


def test_those_who_were_seen_are_known_again_and_nobody_else() -> None:
    assert RECORD.seen(["p1", "p3", "s1", "S1", "d" * 64, ""]) == {"p1", "s1", "d" * 64}
    assert RECORD.seen([]) == set()


def test_the_hash_is_the_standards_cut_to_twelve_digits() -> None:
    expected = hmac.new(b"salt", b"p1", hashlib.sha256).hexdigest()
    assert keyed_hash("salt", "p1") == expected[:12]
    assert expected[:12] in RECORD.patients


def test_ids_cannot_be_read_off_a_record_and_keys_make_records_incomparable() -> None:
    text = json.dumps(RECORD.as_dict())
    assert not {"p1", "p2", "s1", "d" * 64} & set(json.loads(text)["patients"] + json.loads(text)["scans"])
    assert hashlib.sha256(b"p1").hexdigest()[:12] not in text  # a table of plain hashes does not help
    other = TrainingRecord.of(["p1", "p2"], ["s1"], key="other")
    assert not set(other.patients) & set(RECORD.patients)


def test_nothing_and_repeated_ids_are_counted_once_and_order_tells_nothing() -> None:
    assert len(RECORD.patients) == 2
    assert len(RECORD.scans) == 1
    assert TrainingRecord.of(["p2", "p1"], ["s1"], ["d" * 64], key="salt") == RECORD
    assert list(RECORD.patients) == sorted(RECORD.patients)


def test_a_record_survives_json() -> None:
    assert TrainingRecord.from_dict(json.loads(json.dumps(RECORD.as_dict()))) == RECORD


def test_cards_of_clear_and_of_others_are_asked_alike() -> None:
    ids = ["p1", "s1", "p9"]
    hashed = hashlib.sha256(b"p9").hexdigest()
    assert seen_in_pretraining({"training": {"seen": RECORD.as_dict()}}, ids) == {"p1", "s1"}
    assert seen_in_pretraining({"training": {"patients": ["p1", "x"]}}, ids) == {"p1"}
    assert seen_in_pretraining({"training": {"patient_hashes": [hashed]}}, ids) == {"p9"}
    assert seen_in_pretraining({"training": {"seen": RECORD.as_dict(), "scan_ids": ["p9"]}}, ids) == {"p1", "s1", "p9"}


def test_a_card_without_a_training_record_names_nobody() -> None:
    for card in ({}, {"training": "a lot"}, {"training": {"patients": "p1", "loss": [0.1]}}, {"training": {}}):
        assert seen_in_pretraining(card, ["p1"]) == set()


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({"key": "k", "patients": "p1"}, "patients are no list of hashes"),
        ({"key": "k", "scans": [1]}, "scans are no list of hashes"),
        ({"patients": []}, "has no key"),
    ],
)
def test_a_damaged_record_is_no_silent_no(seen: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        seen_in_pretraining({"training": {"seen": seen}}, ["p1"])
