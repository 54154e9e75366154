"""Merging: shards into their file, and bag files of one encoder into one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from clear.bag_format import Bag, ScanRow, joined_provenance
from clear.bags import Bags, write_bags
from clear.errors import BagFileError, InputError
from clear.stopping import Interrupted, stopping
from extract.parts import SHARD_ENDING, Parts, parts_folder
from extract.plan import bag_bytes, check_outputs, check_space
from extract.quality import QualityRow, quality_path, quality_rows, read_quality, write_quality
from extract.run import STOPS
from extract.thumbnails import ThumbnailFolder, adopt_all


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote. refused, failed: as the shards recorded them."""

    output: Path
    scans: int
    instances: int
    refused: int = 0
    failed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 when all usable scans are in, 3 when shards recorded some as refused or failed."""
        return 3 if self.refused or self.failed else 0

    def summary(self) -> str:
        """One line, and one more for each note."""
        problems = f", {self.refused} refused, {self.failed} failed" if self.exit_status else ""
        return "\n".join([f"{self.output}: {self.scans} scans, {self.instances} instances{problems}", *self.notes])


def merge(
    output: Path | str, sources: Sequence[Path | str] = (), *, overwrite: bool = False, partial: bool = False
) -> MergeResult:
    """Make one bag file of what shards left in `output.parts`, or of several bag files.

    sources: bag files of equal identity; without them, the parts. An `output` of equal identity that exists keeps its
    scans and gains the others; overwrite replaces one of another identity. partial: do not insist on all shards.
    A scan that occurs twice with equal digests is kept once, from the first file that has it.
    Raises InputError when there is nothing to merge or a shard is unfinished, BagFileError when files do not fit
    together, OutputError when the file cannot be written.
    """
    (path,) = check_outputs(output, ["merge"])
    with stopping(*STOPS) as stop:
        try:
            if sources:
                return _merge_files(path, [Path(source) for source in sources], overwrite, stop.check)
            return _merge_parts(path, overwrite, partial, stop.check)
        except Interrupted as error:
            raise Interrupted(f"Stopped: {path} is as it was. Run the same command to go on.") from error


def _merge_parts(path: Path, overwrite: bool, partial: bool, check: Callable[[], None]) -> MergeResult:
    folder = parts_folder(path)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no finished shards here. Run `clear extract --shard i/n` first, or name bag files."
        )
    with Parts(path, None, overwrite=overwrite) as parts:
        rows = [row for record in _shard_records(folder, partial) for row in quality_rows(record)]
        if parts.existing is not None:
            newer = {row.scan_id for row in rows}
            rows += [row for row in quality_rows(quality_path(path)) if row.scan_id not in newer]
        rows = list({(row.scan_id, row.source): row for row in rows if row.scan_id not in parts.known}.values())
        rows += [parts.quality_row(scan_id) for scan_id in parts.known]
        if not parts.known:
            raise InputError(f"{folder}: the shards hold no finished scan, so there is no file to write.")
        instances = sum(known.row.length for known in parts.known.values())
        old = path.stat().st_size if path.is_file() else 0
        check_space({path: old + sum(file.stat().st_size for file in folder.iterdir())})
        write_quality(quality_path(path), rows, aside=folder / "quality.tmp")
        parts.finish(check)
        statuses = [row.status for row in rows]
        return MergeResult(path, len(parts.known), instances, statuses.count("refused"), statuses.count("failed"))


def _merge_files(path: Path, sources: Sequence[Path], overwrite: bool, check: Callable[[], None]) -> MergeResult:
    with ExitStack() as stack:
        files = [stack.enter_context(Bags(source)) for source in sources]
        first = files[0]
        parts = stack.enter_context(Parts(path, first.header, overwrite=overwrite))
        if any(known.part for known in parts.known.values()):
            raise InputError(
                f"{parts.folder}: holds scans of an unfinished run. Finish it first, or name another output."
            )
        if parts.existing is not None and path.resolve() not in [source.resolve() for source in sources]:
            files.insert(0, parts.existing)
        owner: dict[str, Bags] = {}
        rows: dict[str, ScanRow] = {}
        quality: dict[str, QualityRow] = {}
        for bags in files:
            _check_identity(first, bags)
            recorded = read_quality(quality_path(bags.path))
            for scan_id in bags:
                row = bags.row(scan_id)
                if scan_id not in owner:
                    owner[scan_id], rows[scan_id] = bags, row
                elif rows[scan_id].digest != row.digest:
                    raise BagFileError(
                        f"scan {scan_id} is in {owner[scan_id].path} and in {bags.path}, but with other voxels. "
                        "Leave one of them out."
                    )
            for scan_id, entry in recorded.items():
                if scan_id not in quality or entry.status == "done":
                    quality[scan_id] = entry
        header = replace(first.header, provenance=joined_provenance([bags.provenance for bags in files]))
        instances = sum(row.length for row in rows.values())
        check_space({path: sum(bag_bytes(row.n_slices, header) for row in rows.values())})
        done = 0

        def load(row: ScanRow) -> Bag:
            nonlocal done
            check()
            done += 1
            if done % 64 == 0:
                for bags in files:
                    bags.release()
            return owner[row.scan_id][row.scan_id]

        if quality:
            write_quality(quality_path(path), quality.values(), aside=parts.folder / "quality.tmp")
        places = [bags.path for bags in files]
        notes = adopt_all(places, rows.values(), lambda: ThumbnailFolder(path, header, parts.folder), check)
        write_bags(path, header, list(rows.values()), load, aside=parts.folder / f"whole.tmp{path.suffix}")
        several = [name for name, value in header.provenance.items() if isinstance(value, dict) and "several" in value]
        if several:
            notes.insert(0, f"The files were made in runs that differ in {', '.join(several)}.")
        return MergeResult(path, len(rows), instances, notes=tuple(notes))


def _check_identity(first: Bags, other: Bags) -> None:
    differences = first.header.differences(other.header)
    if differences:
        raise BagFileError(
            f"{first.path} and {other.path} cannot stand in one file: {'; '.join(differences)}. Merge files of one "
            "encoder, windows and preprocessing only."
        )


def _shard_records(folder: Path, partial: bool) -> list[Path]:
    """The records of the newest complete set of shards; all there are without one, which `partial` must allow."""
    sets: dict[int, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.glob(f"*{SHARD_ENDING}")):
        i, _, n = path.name.removesuffix(SHARD_ENDING).partition("-of-")
        if i.isdigit() and n.isdigit():
            sets[int(n)][int(i)] = path
    complete = [records for n, records in sets.items() if len(records) == n]
    if complete:
        return list(max(complete, key=lambda records: max(p.stat().st_mtime for p in records.values())).values())
    if sets and not partial:
        of, found = max(sets.items(), key=lambda records: len(records[1]))
        missing = ", ".join(f"{k}/{of}" for k in range(1, of + 1) if k not in found)
        raise InputError(f"{folder}: shard {missing} is not finished. Run it (`clear extract --shard`) before merging.")
    return [path for records in sets.values() for path in records.values()]
