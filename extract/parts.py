"""Parts: one file for each finished scan, and how they become the bag file.

`feats.h5.parts/` holds everything unfinished: a bag file of one scan for each scan (its name is a hash of the scan_id),
the lock, what shards report, and files still being written. A part appears by rename when it is complete and synced, so
a process may die at any moment. `finish` writes the whole file inside the folder, renames it into place and removes
the folder; done again after any interruption it comes to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from clear.atomic import output_errors, rename_into_place, sync_folder
from clear.bag_format import Bag, BagHeader, ScanRow, joined_provenance
from clear.bags import ZARR_ENDING, Bags, write_bags
from clear.bags_hdf5 import write_hdf5
from clear.errors import BagFileError, InputError
from extract.locking import LOCK_FILE, FolderLock
from extract.quality import QualityRow, quality_path, read_quality

PART_ENDING = ".part.h5"
SHARD_ENDING = ".shard.csv"
_RELEASE_EVERY = 256 << 20  # bytes copied between two releases of mapped memory


@dataclass(frozen=True)
class Known:
    """A scan that is already encoded: in a part, or (part None) in the finished file."""

    row: ScanRow
    part: Path | None = None
    fingerprint: str = ""
    read_seconds: float | None = None
    encode_seconds: float | None = None


class Parts:
    """The parts of one output; a context manager that holds the output's lock.

    header: of this run; None takes that of what is there already (merging). shared: others may add parts meanwhile
    (shards); only the parts of `wanted` scans are looked at then.
    overwrite: parts and a file of another identity are dropped instead of refused.
    Raises InputError for another identity, BagFileError for a damaged file, OutputError when nothing can be written.
    """

    def __init__(
        self,
        output: Path,
        header: BagHeader | None,
        *,
        overwrite: bool = False,
        shared: bool = False,
        wanted: Iterable[str] = (),
    ) -> None:
        self.output, self.folder = output, parts_folder(output)
        self.known: dict[str, Known] = {}
        self.provenances: list[dict[str, object]] = []
        self.existing: Bags | None = None
        self._header, self._shared = header, shared
        self._lock = FolderLock(self.folder, output, shared=shared)
        try:
            if not shared:
                self._sweep()
                if output.suffix == ZARR_ENDING:
                    from clear.bags_zarr import recover_zarr

                    recover_zarr(output)
            merging = header is None  # then the parts decide, and overwrite speaks of the file alone
            places = [self._part_path(scan_id) for scan_id in wanted] if shared else self._all_parts()
            if merging:
                self._open_parts(places, overwrite=False)
            self._open_existing(overwrite)
            if not merging:
                self._open_parts(places, overwrite)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    @property
    def header(self) -> BagHeader:
        """The header of the file to be; its provenance joins those of all runs that made its parts."""
        if self._header is None:
            raise InputError(f"{self.folder}: holds no finished scans, and there is no {self.output} to add to.")
        return replace(self._header, provenance=joined_provenance(self.provenances or [self._header.provenance]))

    def commit(
        self, row: ScanRow, bag: Bag, *, fingerprint: str, read_seconds: float | None, encode_seconds: float | None
    ) -> None:
        """The scan is finished: when this returns its part is on disk. Raises OutputError."""
        assert self._header is not None
        known = Known(row, self._part_path(row.scan_id), fingerprint, read_seconds, encode_seconds)
        self._write(known, self._header, bag)
        self.known[row.scan_id] = known
        self._remember(self._header)

    def keep(self, row: ScanRow, fingerprint: str) -> None:
        """The scan's bag stands; what the plan says of it (patient, source, ...) or its files' times may differ."""
        old = self.known[row.scan_id]
        new = replace(old, row=row, fingerprint=fingerprint)
        if old.part is not None and new != old:
            with Bags(old.part) as bags:
                self._write(new, bags.header, bags[row.scan_id])
        elif self._shared and row != old.row:  # whoever merges sees parts only
            assert self.existing is not None
            new = replace(new, part=self._part_path(row.scan_id))
            self._write(new, self.existing.header, self.existing[row.scan_id])
        self.known[row.scan_id] = new

    def quality_row(self, scan_id: str) -> QualityRow:
        """The quality record's row of a scan that is encoded."""
        known = self.known[scan_id]
        row = known.row
        return QualityRow(
            scan_id=scan_id,
            patient_id=row.patient_id or "",
            source=row.source or "",
            modality=row.modality,
            n_slices=row.n_slices,
            instances=row.length,
            status="done",
            remarks="; ".join(row.remarks),
            read_seconds=known.read_seconds,
            encode_seconds=known.encode_seconds,
            digest=row.digest,
            fingerprint=known.fingerprint,
        )

    def finish(self, check: Callable[[], None] = lambda: None) -> bool:
        """Parts and what the file held become the file; False when it was complete already. The folder is removed.

        check: called between scans; may raise to stop, and nothing is lost.
        """
        changed = bool(self.known) and not self._is_complete()
        if changed:
            copied = 0

            def load(row: ScanRow) -> Bag:
                nonlocal copied
                check()
                part = self.known[row.scan_id].part
                if part is not None:
                    with Bags(part) as bags:
                        return bags[row.scan_id]
                assert self.existing is not None
                bag = self.existing[row.scan_id]
                copied += bag.features.nbytes
                if copied > _RELEASE_EVERY:
                    self.existing.release()
                    copied = 0
                return bag

            rows = [known.row for known in self.known.values()]
            write_bags(self.output, self.header, rows, load, aside=self.folder / f"whole.tmp{self.output.suffix}")
        self.remove_folder()
        return changed

    def remove_folder(self) -> None:
        """Everything unfinished goes; the lock last."""
        with output_errors(self.folder):
            for path in self.folder.iterdir():
                if path.name != LOCK_FILE:
                    _remove(path)
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # the next run may be in it already
                self.folder.rmdir()
            sync_folder(self.folder.parent)

    def _remove_if_empty(self) -> None:
        """Leaves no empty folder behind when nothing was finished."""
        with suppress(OSError):
            if {path.name for path in self.folder.iterdir()} <= {LOCK_FILE}:
                (self.folder / LOCK_FILE).unlink(missing_ok=True)
                self.folder.rmdir()

    def close(self) -> None:
        """Lets go of the lock and the file."""
        if self.existing is not None:
            self.existing.close()
        self._lock.release()

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._shared:
            self._remove_if_empty()
        self.close()

    def _remember(self, header: BagHeader) -> None:
        if dict(header.provenance) not in self.provenances:
            self.provenances.append(dict(header.provenance))

    def _write(self, known: Known, header: BagHeader, bag: Bag) -> None:
        assert known.part is not None
        note = {key: getattr(known, key) for key in ("fingerprint", "read_seconds", "encode_seconds")}
        aside = known.part.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            write_hdf5(aside, header, [known.row], lambda row: bag, name=known.part, note=json.dumps(note))
            with output_errors(known.part):
                rename_into_place(aside, known.part)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise

    def _part_path(self, scan_id: str) -> Path:
        return self.folder / f"{hashlib.sha256(scan_id.encode()).hexdigest()[:32]}{PART_ENDING}"

    def _sweep(self) -> None:
        """Removes what a killed run was in the middle of writing; called only while nobody else can be writing."""
        for path in self.folder.iterdir():
            if path.name != LOCK_FILE and not path.name.endswith((PART_ENDING, SHARD_ENDING)):
                _remove(path)

    def _open_existing(self, overwrite: bool) -> None:
        if not self.output.exists():
            return
        try:
            existing = Bags(self.output)
        except BagFileError as error:
            if overwrite:
                return
            raise BagFileError(f"{error} To replace the file: --overwrite.") from error
        if not self._accept(existing, self.output, overwrite):
            existing.close()
            return
        self.existing = existing
        recorded = _quality_of(self.output)
        for scan_id in existing:
            if scan_id in self.known:  # a part is newer
                continue
            row = existing.row(scan_id)
            quality = recorded.get(scan_id)
            if quality is None or quality.digest != row.digest:  # a record of another file tells nothing
                self.known[scan_id] = Known(row)
            else:
                self.known[scan_id] = Known(
                    row, None, quality.fingerprint, quality.read_seconds, quality.encode_seconds
                )

    def _all_parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{PART_ENDING}"))

    def _open_parts(self, paths: list[Path], overwrite: bool) -> None:
        for path in paths:
            if not path.exists():
                continue
            try:
                bags = Bags(path)
                (scan_id,) = bags
            except (BagFileError, ValueError):  # a disk error: parts are complete when they appear
                path.unlink()
                continue
            with bags:
                if not self._accept(bags, path, overwrite):
                    path.unlink()
                    continue
                note = _note(bags.contents.note)
                self.known[scan_id] = Known(bags.row(scan_id), path, *note)

    def _accept(self, bags: Bags, path: Path, overwrite: bool) -> bool:
        """Whether scans of this file may stay; with `overwrite` those of another identity may not."""
        if self._header is None:
            self._header = bags.header
        differences = bags.header.differences(self._header)
        if not differences:
            self._remember(bags.header)
            return True
        if overwrite:
            return False
        where = f"{self.output}" if path == self.output else f"{self.folder}, left by an unfinished run,"
        raise InputError(
            f"{where} holds embeddings that differ from those asked for: {'; '.join(differences)}. "
            "Name another output, or replace it with --overwrite."
        )

    def _is_complete(self) -> bool:
        """Whether the file holds everything known already, as after a death between the last rename and cleaning up."""
        if self.existing is None or not all(self._holds(known.row) for known in self.known.values()):
            return False
        if all(known.part is None for known in self.known.values()):
            return True
        return self.existing.header.attributes() == self.header.attributes()

    def _holds(self, row: ScanRow) -> bool:
        assert self.existing is not None
        return row.scan_id in self.existing and self.existing.row(row.scan_id) == row


def parts_folder(output: Path) -> Path:
    """`feats.h5.parts` for `feats.h5`."""
    return output.with_name(f"{output.name}.parts")


def _quality_of(output: Path) -> dict[str, QualityRow]:
    try:
        return read_quality(quality_path(output))
    except InputError:  # somebody's own file of that name only means that scans are looked at again
        return {}


def _note(text: str) -> tuple[str, float | None, float | None]:
    try:
        data = json.loads(text)
        return str(data["fingerprint"]), data["read_seconds"], data["encode_seconds"]
    except (ValueError, KeyError, TypeError):
        return "", None, None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
