"""Ids on the page: pseudonyms that mean nothing outside it, unless the reader asked for the real ones.

A pseudonym is a hash keyed with random bytes that are thrown away with the page, so that nobody can test a guess
against it; inside one page the same id always has the same one. Sentences of the run may name ids too: they lose them,
and their folders with them. Of caught errors the page quotes nothing: what they say can be anything.
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
_UID = r"(?<![\d.])(?=[\d.]{16})\d+(?:\.\d+){2,}"
_NAMED = re.compile(r"(?:\b(?:patient|scan|study|series|case|subject|id|uid|\w+_id|\w+_uid)s?[ :=]+|['\"\[(<])$", re.I)
_COUNTED = re.compile(  # what stands after a number that is a count
    r"^(?: of \d| ?%| (?:(?:label|labelled|unlabelled|different|other|more|test|training|known) ){0,2}"
    r"(?:scans?|patients?|rows?|series|slices?|follow-ups?|labels?|values?|bags?|folds?"
    r"|models?|columns?|texts|classes|events?|studies|study|voxels|epochs?|times|ids|\w+_(?:id|uid)s|cases?|images?"
    r"|files?|thumbnails?|endpoints?|repeats?|mm|HU)\b)"
)
_COUNTING = re.compile(r"(?:\d of|than|least|most|fold|epoch|repeat|seed) $")
_WORDS = frozenset(  # of the page's own sentences: as a part of an id they name nobody
    re.findall(
        r"\w+",
        "all and are axial case cases class coronal data dataset dcm dicom file files fold folds for from gone has "
        "have image images img label labels left mha missing more negative nifti none not nrrd other out patient "
        "patients positive row rows run runs sagittal scan scans series site sites slice slices studies study test the "
        "train two val validation value values volume volumes with without",
    )
)
_END = re.compile(r"(?:\.(?:nii|mha|mhd|nrrd|dcm|gz|zip|npy|npz|png|h5|csv|parquet|json))+$", re.I)
_START = r"(?:/(?=[^\s/])|~(?=\S)|//+|(?<![A-Za-z])[A-Za-z]:[/\\]|\\\\)"
_QUOTED = re.compile(
    r"(?<!\w)(?P<quote>['\"])(?:(?!(?P=quote)(?!\w))[^\n])*[/\\]"
    r"(?P<name>(?:(?!(?P=quote)(?!\w))[^\n/\\])*)(?P=quote)(?!\w)"
)
_FULL = re.compile(rf"(?<![^\s'\"(\[<=,;:|]){_START}(?:(?!:\s|\s['\"]|\n).)*[/\\]|(?<![^\s'\"(\[<=,;:|])/(?=[^\s/])")
_HEAD = re.compile(r"^[^:'\"\n]*[/\\](?=[^:'\"\n]*: )")
_RELATIVE = re.compile(r"[^\s,;:()\[\]'\"]*[/\\](?=[^\s,;:()\[\]'\"])")


class Ids:
    """What scans and patients are called on one page."""

    def __init__(self, show: bool, salt: bytes | None = None) -> None:
        self.show = show
        self._salt = secrets.token_bytes(16) if salt is None else salt
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._known: dict[str, tuple[str, ...]] = {}

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

        known: ids that may stand in it. They, those of earlier sentences and the parts of path-like ones become
        pseudonyms wherever they stand; a short number stays where it counts something, a common word where no id is
        announced. UIDs always go, known or not.
        """
        if self.show:
            return text
        for identity in known:
            if identity and identity not in self._known:
                self._known[identity] = _forms(identity)
        for pattern in _LISTS:
            if match := pattern.match(text):
                text = match["kept"]
        return _without_folders(self._without_ids(text))

    def _without_ids(self, text: str) -> str:
        """All known ids at once, the longest first, so that no part of one is taken for another."""
        meant: dict[str, str] = {}
        for identity, forms in self._known.items():
            for form in forms:
                if form in text and (form not in meant or form == identity):
                    meant[form] = identity if form == forms[0] or form == repr(identity)[1:-1] else form
        longest = sorted(meant, key=lambda form: (-len(form), form))
        every = re.compile("|".join([_UID, *map(_bounded, longest)]))

        def renamed(match: re.Match[str]) -> str:
            found = match[0]
            before, after = text[: match.start()], text[match.end() :]
            if found in meant and not _is_id(found, before, after):
                return found
            return self(meant.get(found, found))

        return every.sub(renamed, text)


def file_name(path: str) -> str:
    """The last part of a path of any system: folders are named after people.

    >>> file_name("C:\\\\Users\\\\jane\\\\labels.csv"), file_name("/home/jane/feats.h5")
    ('labels.csv', 'feats.h5')
    """
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def _forms(identity: str) -> tuple[str, ...]:
    """How an id may stand in a sentence: itself, as Python quotes it, and its parts where it is a path or a name."""
    forms = [identity, repr(identity)[1:-1]]
    parts = [identity, *re.split(r"[/\\^]", identity)] if re.search(r"[/\\^]", identity) else [identity]
    forms += [short for part in parts for short in (part, _END.sub("", part)) if _names_someone(short)]
    return tuple(dict.fromkeys(forms))


def _names_someone(part: str) -> bool:
    return len(part) > 2 and part.lower() not in _WORDS and not re.fullmatch(r"\d{1,4}", part)


def _bounded(form: str) -> str:
    """A pattern of the id that matches in no longer number or word."""
    escaped = re.escape(form)
    if re.fullmatch(r"\d+", form):
        edge = r"\d" if len(form) > 4 else r"[^\W_]"
        return rf"(?<!{edge})(?<!\d[.,]){escaped}(?!{edge})(?![.,]\d)"
    before, after = _edge(form[0], len(form)), _edge(form[-1], len(form))
    return (f"(?<!{before})" if before else "") + escaped + (f"(?!{after})" if after else "")


def _edge(end: str, length: int) -> str:
    """What may not stand beside this end of an id."""
    if not end.isalnum():
        return ""
    if length < 5:
        return r"[^\W_]"
    return r"\d" if end.isdigit() else r"[^\W\d_]"


def _is_id(found: str, before: str, after: str) -> bool:
    """Whether a short number or a common word is an id here: all else that is known always is one."""
    number = bool(re.fullmatch(r"\d{1,4}", found))
    if not number and len(found) > 1 and found.lower() not in _WORDS:
        return True
    if _NAMED.search(before):
        return True
    return number and not _COUNTED.search(after) and not _COUNTING.search(before)


def _without_folders(text: str) -> str:
    """Paths cut up to their last separator, with the blanks in them."""
    text = _QUOTED.sub(lambda match: f"{match['quote']}{match['name'] or 'a folder'}{match['quote']}", text)
    text = _FULL.sub("", text)
    text = _HEAD.sub("", text)
    return _RELATIVE.sub("", text)
