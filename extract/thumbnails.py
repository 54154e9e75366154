"""Thumbnails kept while extracting: made in the reading threads, written when a scan's part is.

Each output has its own folder; outputs whose windows are the same share the pictures, made once and linked. A file
appears by rename before the scan's part does, so a scan that is finished has its thumbnails, and after a kill the same
command makes only what is missing. Scans of an earlier run without thumbnails are read again, but not encoded again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from clear.atomic import OutputError, output_errors, rename_into_place, sync_folder, write_aside
from clear.bag_format import BagHeader, ScanRow
from clear.errors import InputError
from clear.thumbnails import Thumbnails, packed, thumbnail_windows, thumbnails_folder
from clear.volume import Volume
from clear.windows import Window

PICTURE_BYTES = 4_000  # what a picture weighs, generously
Pictures = Mapping[tuple[Window, ...], bytes]


class ThumbnailFolder:
    """The thumbnails of one output while they are written. Raises OutputError when a file has the folder's name.

    aside: a folder on the same file system for what is not complete yet.
    """

    def __init__(self, output: Path, header: BagHeader, aside: Path) -> None:
        self.output = output
        self._header, self._aside = header, aside
        self._thumbnails = Thumbnails(thumbnails_folder(output))
        self._held: set[str] = set()
        folder = self._thumbnails.folder
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file; thumbnails need a folder of this name. Move the file away.")

    def windows(self, modality: str) -> tuple[Window, ...]:
        """In which windows a scan is shown."""
        return thumbnail_windows(self._header, modality)

    def holds(self, digest: str, modality: str) -> bool:
        """Whether the scan's pictures are there, in these windows."""
        if digest not in self._held and self._thumbnails.holds(digest, self.windows(modality)):
            self._held.add(digest)
        return digest in self._held

    def write(self, digest: str, pictures: bytes) -> None:
        """The scan's file is on disk when this returns. Raises OutputError."""
        write_aside(self._place(digest), pictures, aside=self._new_aside(digest))
        self._held.add(digest)

    def adopt(self, source: Path, digest: str) -> None:
        """A scan's file of another folder is in this one too: linked, or copied where links are not to be had."""
        place, aside = self._place(digest), self._new_aside(digest)
        with output_errors(place):
            try:
                os.link(source, aside)
            except OSError:
                write_aside(place, source.read_bytes(), aside=aside)
            else:
                rename_into_place(aside, place)
        self._held.add(digest)

    def path(self, digest: str) -> Path:
        """Where the scan's file is."""
        return self._thumbnails.path(digest)

    def remark(self, rows: Collection[ScanRow]) -> list[str]:
        """A sentence on how many scans have no thumbnails; none when all have."""
        lacking = sum(not self.holds(row.digest, row.modality) for row in rows)
        if not lacking:
            return []
        return [
            f"{self.output}: {lacking} of {len(rows)} scans have no thumbnails. Run `clear extract --thumbnails` on "
            "the folder that holds them; those that cannot be read any more as they were encoded get none."
        ]

    def _new_aside(self, digest: str) -> Path:
        return self._aside / f"{digest[:16]}.{secrets.token_hex(4)}.tmp"

    def _place(self, digest: str) -> Path:
        """The scan's path, its folder made and on disk."""
        path = self._thumbnails.path(digest)
        with output_errors(path):
            for folder in (self._thumbnails.folder, path.parent):
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    sync_folder(folder.parent)
        return path


def make_pictures(volume: Volume, digest: str, folders: Sequence[ThumbnailFolder]) -> Pictures:
    """What these folders lack of a scan, as files by their windows."""
    lacking = {f.windows(volume.modality) for f in folders if not f.holds(digest, volume.modality)}
    with suppress(InputError):  # values without a range (nan), for which the encoder finds the better words
        return {windows: packed(volume, windows) for windows in lacking}
    return {}


def write_pictures(
    pictures: Pictures, digest: str, modality: str, folder: ThumbnailFolder, others: Sequence[ThumbnailFolder]
) -> None:
    """One folder gets the scan's pictures, as a link where one of the others has them. Raises OutputError."""
    windows = folder.windows(modality)
    if windows not in pictures or folder.holds(digest, modality):
        return
    same = [f for f in others if f is not folder and f.windows(modality) == windows and f.holds(digest, modality)]
    if same:
        folder.adopt(same[0].path(digest), digest)
    else:
        folder.write(digest, pictures[windows])


def adopt_all(
    sources: Sequence[Path],
    rows: Collection[ScanRow],
    target: Callable[[], ThumbnailFolder],
    check: Callable[[], None],
) -> list[str]:
    """Merging: the thumbnails of these bag files become those of one. Nothing where they have none; else the remark."""
    found = [each for each in map(Thumbnails.of, sources) if each is not None]
    if not found:
        return []
    folder = target()
    for row in rows:
        check()
        windows = folder.windows(row.modality)
        for source in found:
            if not folder.holds(row.digest, row.modality) and source.holds(row.digest, windows):
                folder.adopt(source.path(row.digest), row.digest)
    return folder.remark(rows)
