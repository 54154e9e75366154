"""Whom an encoder's pretraining saw: keyed hashes of patients, scans and voxels in its card.

A card's `training` field says what made the weights. Its part `seen` lists, for every patient and scan whose slices
were used, the first 12 hex digits of HMAC-SHA256 (RFC 2104) of the id, under a key that stands beside them. So anybody
who holds the encoder can ask whether a patient of theirs was seen, and nobody can read the ids off the card. The key
is no secret: who can guess ids (small numbers, say) can test the guesses. Voxel digests are listed too, so that a
scan is known again under another name. Where a training went on from pretrained weights, their own record and those
before it stand in `earlier`: whoever was seen once stays seen.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clear.errors import InputError

KINDS = ("patients", "scans", "digests")
LENGTH = 12  # hex digits: among a million hashes a foreign id meets one with probability 4e-9


@dataclass(frozen=True)
class TrainingRecord:
    """Keyed hashes of those whom a pretraining saw.

    key: text, the same for all; patients, scans, digests: sorted hashes of patient ids, scan ids and voxel digests.

    >>> record = TrainingRecord.of(["p1", "p2"], ["s1"], key="of this data")
    >>> record.seen(["p2", "p3", "s1"]) == {"p2", "s1"}
    True
    """

    key: str
    patients: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        patients: Iterable[str | None],
        scans: Iterable[str | None],
        digests: Iterable[str | None] = (),
        *,
        key: str,
    ) -> TrainingRecord:
        """The record of these ids; what is empty or None is no id. key: any text, best one that only this data has."""

        def hashed(ids: Iterable[str | None]) -> tuple[str, ...]:
            return tuple(sorted({keyed_hash(key, name) for name in ids if name}))

        return cls(key, hashed(patients), hashed(scans), hashed(digests))

    def seen(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids (of patients, scans or voxels) that are in the record."""
        known = {*self.patients, *self.scans, *self.digests}
        return {name for name in ids if keyed_hash(self.key, name) in known}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the part `seen` of a card's `training`."""
        return {
            "hash": f"hmac-sha256, {LENGTH} hex digits",
            "key": self.key,
            **{k: list(getattr(self, k)) for k in KINDS},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: str = "card") -> TrainingRecord:
        """The inverse of `as_dict`. Raises InputError naming `origin` where a part is of another kind."""
        if not isinstance(data, Mapping):
            raise InputError(f"{origin}: the training record of who was seen is no table of names and values")
        lists = {kind: data.get(kind, []) for kind in KINDS}
        for kind, values in lists.items():
            if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
                raise InputError(f"{origin}: the training record's {kind} are no list of hashes")
        if not isinstance(data.get("key"), str):
            raise InputError(
                f"{origin}: the training record has no key; expected the text that its hashes were made with"
            )
        return cls(data["key"], **{kind: tuple(values) for kind, values in lists.items()})


def keyed_hash(key: str, name: str) -> str:
    """The first LENGTH hex digits of HMAC-SHA256 of a name.

    >>> keyed_hash("key", "The quick brown fox jumps over the lazy dog")
    'f7bc83f43053'
    """
    return hmac.new(key.encode(), name.encode(), hashlib.sha256).hexdigest()[:LENGTH]


def earlier_trainings(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the card of a training that goes on from this one lists: this one, then those before it, each by itself."""
    own = {name: value for name, value in training.items() if name != "earlier"}
    return [each for each in (own, *_earlier(training)) if each]


def _earlier(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = training.get("earlier", [])
    return [dict(each) for each in listed if isinstance(each, Mapping)] if isinstance(listed, list | tuple) else []


def seen_in_pretraining(card: Mapping[str, Any], ids: Iterable[str]) -> set[str]:
    """Those of the ids that an encoder card (as plain data) says its pretrainings saw; none without a record.

    Reads the record of `clear pretrain`, and lists of ids, or of their sha256, in cards of others: every list in
    `training` whose name speaks of patients, scans, series or digests. Raises InputError for a damaged record.
    """
    names = set(ids)
    training = card.get("training")
    if not isinstance(training, Mapping):
        return set()
    return set().union(*(_seen_in(each, names) for each in (training, *_earlier(training))))


def _seen_in(training: Mapping[str, Any], names: set[str]) -> set[str]:
    """Those of the names that one training saw."""
    found: set[str] = set()
    if isinstance(training.get("seen"), Mapping):
        found |= TrainingRecord.from_dict(training["seen"]).seen(names)
    listed: set[str] = set()
    for name, values in training.items():
        spoken = any(word in str(name) for word in ("patient", "scan", "series", "digest"))
        if spoken and isinstance(values, Sequence) and not isinstance(values, str):
            listed |= {str(value) for value in values}
    if listed:
        found |= {name for name in names if name in listed or hashlib.sha256(name.encode()).hexdigest() in listed}
    return found
