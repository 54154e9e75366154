"""Pictures of the slices that a page shows: from the scans themselves, or from thumbnails kept by extraction.

A scan is matched by its id or series and counts only when the digest of its voxels is the one that was extracted. For
scans that are not there by name, or have other voxels under it, those of the same geometry are read once, until all
digests are found. Else only scans that are shown are read (`clear.picture_reader`), of each nothing but its pictures is
kept, and all of these together stay within a budget of bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from clear.bags import Bags
from clear.errors import ClearError, InputError
from clear.picture_reader import NOT_THERE, OTHER_VOXELS, REFUSED, Job, find_voxels, read_pictures
from clear.pictures import data_uri
from clear.plan import read_plan
from clear.scans import Scan, find_scans
from clear.thumbnails import Thumbnails
from clear.windows import Window

Pair = tuple[str, str]  # scan and digest
BUDGET = 3_400_000  # bytes of all pictures of a page; as text in it they are a third longer


@dataclass(frozen=True)
class Wanted:
    """One slice of one scan in one window."""

    scan: str
    digest: str
    slice: int
    window: Window


@dataclass(frozen=True)
class Pictures:
    """found: wanted slice -> the picture as text for `src`. notes: what could not be shown and why, as sentences."""

    found: Mapping[Wanted, str]
    notes: tuple[str, ...]


def find_pictures(
    wanted: Sequence[Wanted], bags: Bags, *, scans: Path | str | None = None, budget: int = BUDGET
) -> Pictures:
    """The pictures that can be had: from the folder (or plan) `scans`, else from the thumbnails beside the bag file.

    Raises InputError when `scans` is no folder with scans.
    """
    room = budget // max(1, len(wanted))
    notes: list[str] = []
    found: dict[Wanted, bytes] = {}
    if scans is not None and wanted:
        found, notes = _from_scans(wanted, bags, Path(scans), room)
    rest = [each for each in wanted if each not in found]
    thumbnails = Thumbnails.of(bags.path)
    if rest and thumbnails is not None:
        kept, damaged = _from_thumbnails(rest, thumbnails, room)
        found |= kept
        notes += [f"{damaged} thumbnails are damaged."] if damaged else []
    lacking = sum(each not in found for each in wanted)
    if lacking == len(wanted) and wanted and scans is None:
        notes.append(
            "No pictures: give the folder of the scans with --scans, or extract with --thumbnails. Attention is shown "
            "without them."
        )
    elif lacking:
        notes.append(f"{lacking} of {len(wanted)} slices have no picture.")
    return Pictures({each: data_uri(picture) for each, picture in found.items()}, tuple(notes))


def _from_scans(wanted: Sequence[Wanted], bags: Bags, place: Path, room: int) -> tuple[dict[Wanted, bytes], list[str]]:
    of_scan: dict[Pair, list[Wanted]] = defaultdict(list)
    for each in wanted:
        of_scan[each.scan, each.digest].append(each)
    known = _listed(place, bags.scans)
    named = _named(list(of_scan), bags.scans, known)
    outcomes = dict.fromkeys(of_scan, NOT_THERE)
    found: dict[Wanted, bytes] = {}

    def read(sources: Mapping[Pair, tuple[Scan, ...]]) -> None:
        jobs = [
            Job(scans, pair[1], tuple((each.slice, each.window) for each in of_scan[pair]), room)
            for pair, scans in sources.items()
        ]
        for pair, answer in zip(sources, read_pictures(jobs), strict=True):
            outcomes[pair] = answer.outcome
            pictures = zip(of_scan[pair], answer.pictures, strict=True)
            found.update({each: picture for each, picture in pictures if picture is not None})

    read({pair: scans for pair, scans in named.items() if scans})
    moved, unread = _by_voxels(outcomes, named, bags.scans, known)
    read(moved)
    said = {
        NOT_THERE: "are not in the folder of the scans",
        OTHER_VOXELS: "have other voxels there than those that were extracted",
        REFUSED: "could not be read",
    }
    counts = Counter(outcomes.values())
    notes = [f"{n} scans {said[outcome]}." for outcome, n in counts.items() if outcome in said]
    if unread and counts.keys() & {NOT_THERE, OTHER_VOXELS}:
        notes.append(f"{unread} scans of the folder that look like those could not be read.")
    return found, notes


def _listed(place: Path, scans: pl.DataFrame) -> list[Scan]:
    if place.is_file() and place.suffix == ".parquet":
        return read_plan(place)
    modalities = scans["modality"].unique().to_list()
    return find_scans(place, modality=modalities[0] if len(modalities) == 1 else None)


def _named(asked: Sequence[Pair], scans: pl.DataFrame, known: Sequence[Scan]) -> dict[Pair, tuple[Scan, ...]]:
    """The scans of the folder that have the id or the series of those that are asked for."""
    series = dict(scans.select("scan_id", "series_uid").iter_rows())
    by_name: dict[str, list[Scan]] = defaultdict(list)
    for each in known:
        for name in {each.scan_id, each.series_uid} - {None}:
            by_name[str(name)].append(each)
    sources: dict[Pair, tuple[Scan, ...]] = {}
    for scan, digest in asked:
        names = dict.fromkeys(name for name in (scan, series[scan]) if name)
        sources[scan, digest] = tuple({id(each): each for name in names for each in by_name[name]}.values())
    return sources


def _by_voxels(
    outcomes: Mapping[Pair, str], named: Mapping[Pair, tuple[Scan, ...]], scans: pl.DataFrame, known: Sequence[Scan]
) -> tuple[dict[Pair, tuple[Scan, ...]], int]:
    """((scan, digest) -> where in the folder the lost ones are, how many that they might have been cannot be read).

    What has an id of the bag file is taken for that scan, unless such an id has other voxels: then ids changed places.
    """
    rows = {row["scan_id"]: row for row in scans.iter_rows(named=True)}
    lost = [pair for pair, outcome in outcomes.items() if outcome in (NOT_THERE, OTHER_VOXELS)]
    swapped = {id(each) for pair in lost for each in named[pair]}
    sure = {id(each) for pair in outcomes.keys() - set(lost) for each in named[pair]}
    free = [
        each
        for each in known
        if each.verdict == "use" and (each.scan_id not in rows or (swapped and id(each) not in sure))
    ]
    alike = [each for each in free if any(_alike(each, rows[scan]) for scan, _ in lost)]
    alike.sort(key=lambda each: id(each) not in swapped)  # two scans that changed places are found first
    found, unread = find_voxels(alike, {digest for _, digest in lost})
    return {(scan, digest): (found[digest],) for scan, digest in lost if digest in found}, unread


def _alike(scan: Scan, row: Mapping[str, object]) -> bool:
    """Whether a scan under another id has the geometry of this one."""
    spacing = row["spacing_mm"]
    if (scan.n_slices, scan.plane) != (row["n_slices"], row["plane"]) or not isinstance(spacing, Sequence):
        return False
    pairs = zip(scan.spacing_mm or (), spacing, strict=False)  # unknown: the voxels' digest decides later
    return all(b is None or abs(a - b) < 1e-3 for a, b in pairs)


def _from_thumbnails(wanted: Sequence[Wanted], thumbnails: Thumbnails, room: int) -> tuple[dict[Wanted, bytes], int]:
    found, damaged = {}, 0
    for each, picture in _thumbnails(wanted, thumbnails):
        if isinstance(picture, ClearError):
            damaged += 1
        elif picture is not None and len(picture) <= room:
            found[each] = picture
    return found, damaged


def _thumbnails(wanted: Sequence[Wanted], thumbnails: Thumbnails) -> Iterator[tuple[Wanted, bytes | ClearError | None]]:
    for each in wanted:
        try:
            yield each, thumbnails.get(each.digest, each.slice, each.window)
        except InputError as error:
            yield each, error
