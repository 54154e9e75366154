"""Ids on the page: pseudonyms that mean nothing outside it, unless the reader asked for the real ones.

A pseudonym is a hash keyed with random bytes that are thrown away with the page, so that nobody can test a guess
against it; inside one page the same id always has the same one. Sentences of the run may name ids too: they lose them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

_LENGTH = 8  # hexadecimal digits: 1 in 35,000 that two of 500 ids share one, and then they get more
_LISTS = (  # the remarks of a run that end in a list of ids; what stands before it may stay
    re.compile(r"^(?P<kept>.*\d+ of \d+ label rows have no scan, by \w+): .+$", re.DOTALL),
    re.compile(r"^(?P<kept>.*\d+ of \d+ scans have no label row): .+$", re.DOTALL),
    re.compile(r"^(?P<kept>--join \w+: \d+ follow-ups .+?): .+$", re.DOTALL),
    re.compile(r"^(?P<kept>.*\d+ \w+ are not among the labelled ones): .+$", re.DOTALL),
)
_PATH = re.compile(r"(?:[A-Za-z]:)?[^\s,;:()'\"]*[/\\][^\s,;:()'\"]+")


class Ids:
    """What scans and patients are called on one page."""

    def __init__(self, show: bool, salt: bytes | None = None) -> None:
        self.show = show
        self._salt = secrets.token_bytes(16) if salt is None else salt
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, identity: str) -> str:
        """The id itself, or its pseudonym."""
        if self.show:
            return identity
        if identity not in self._names:
            digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), key=self._salt).hexdigest()
            length = _LENGTH
            while digest[:length] in self._taken:
                length += 1
            self._names[identity] = digest[:length]
            self._taken.add(digest[:length])
        return self._names[identity]

    def sentence(self, text: str, known: Iterable[str] = ()) -> str:
        """A sentence of the run without ids and folders, or as it is.

        known: ids that may stand in it; each becomes its pseudonym where it stands as a word of its own.
        """
        if self.show:
            return text
        for pattern in _LISTS:
            if match := pattern.match(text):
                text = match["kept"]
        words = set(re.findall(r"[^\s,;:()'\"]+", text))
        for identity in sorted(set(known), key=len, reverse=True):
            # a number may be a count: an id that is nothing else is cut where lists are
            if identity in words and not re.fullmatch(r"\d{1,4}", identity):
                text = re.sub(rf"(?<!\w){re.escape(identity)}(?!\w)", self(identity), text)
        return _PATH.sub(lambda match: file_name(match[0]), text)


def file_name(path: str) -> str:
    """The last part of a path of any system: folders are named after people.

    >>> file_name("C:\\\\Users\\\\jane\\\\labels.csv"), file_name("/home/jane/feats.h5")
    ('labels.csv', 'feats.h5')
    """
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
