"""One extraction under way: decode ahead, encode, commit, and remember what became of every scan."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clear.errors import ClearError, ScanRefused
from clear.scans import Scan
from clear.stopping import Stop
from clear.volume import Volume
from clear.windows import Window, default_windows
from extract.outcome import Problem, Unstorable, make_bag, problem_of
from extract.parts import SHARD_ENDING, Parts
from extract.plan import (
    PART_BYTES,
    Encoder,
    bag_bytes,
    check_space,
    fingerprint,
    row_for,
    volume_bytes,
    with_plan,
)
from extract.quality import QualityRow, Status, quality_path, write_quality
from extract.readahead import ReadAhead
from extract.thumbnails import PICTURE_BYTES, Pictures, ThumbnailFolder, make_pictures, write_pictures

MAX_READ_AHEAD_BYTES = 2 << 30
STOPS = ("finished scans are kept", "finished scans are kept")  # what comes of a stop, and of one at once
_SEVERITY = {"done": 0, "set aside": 0, "refused": 1, "failed": 2}


@dataclass(frozen=True)
class Decoded:
    """A volume ready to encode. pictures: thumbnails that some output lacks."""

    volume: Volume
    digest: str
    fingerprint: str
    seconds: float
    pictures: Pictures = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A scan to read, which outputs need its embeddings, and which have these and lack its thumbnails alone."""

    scan: Scan
    needs: tuple[int, ...]
    unpictured: tuple[int, ...] = ()

    @property
    def n_slices(self) -> int:
        """Slices to go through, for all outputs."""
        return self.scan.n_slices * max(1, len(self.needs))


@dataclass(frozen=True)
class Settings:
    """What is the same for every scan. given: windows were named, so that any modality is encoded in them."""

    windows: tuple[Window, ...]
    given: bool
    batch: int


class Run:
    """One extraction under way: what is to do, and what became of every scan for every output."""

    def __init__(
        self,
        scans: Sequence[Scan],
        encoders: Sequence[Encoder],
        settings: Settings,
        stop: Stop,
        read: Callable[[Scan], Volume],
    ) -> None:
        self.scans = scans
        self.usable = [scan for scan in scans if scan.verdict == "use"]
        self.encoders, self.settings, self.stop, self.read = encoders, settings, stop, read
        self.parts: list[Parts] = []
        self.thumbnails: list[ThumbnailFolder] = []  # one an output, or none at all
        self.problems: list[dict[str, Problem]] = [{} for _ in encoders]
        self.new: set[str] = set()
        self.pictured: set[str] = set()  # encoded before, thumbnails made in this run
        self.slices = 0

    def encode_all(self, workers: int, progress: bool | None, shard: tuple[int, int] | None) -> None:
        """Reads and encodes what is not finished yet; each scan is decoded once, whatever the number of encoders."""
        jobs = self._jobs()
        self._check_space(jobs, shard)
        total = sum(job.n_slices for job in jobs)
        ahead = ReadAhead(
            jobs,
            self._decode,
            lambda job: volume_bytes(job.scan),
            workers=workers,
            max_items=workers + 1,
            max_bytes=MAX_READ_AHEAD_BYTES,
            check=self.stop.check,
        )
        with _progress_bar(total, len(jobs), progress) as bar, ahead as results:
            finished = 0
            for job, result in results:
                before = bar.n
                for i in job.needs:
                    self._encode(i, job.scan, result, bar)
                for i in job.unpictured:
                    if isinstance(result, Decoded):  # else its embeddings stand, and a remark says what is missing
                        self._write_pictures(i, result)
                        self.pictured.add(job.scan.scan_id)
                del result  # its memory counts as free when the next result is asked for
                bar.update(job.n_slices - (bar.n - before))
                finished += 1  # noqa: SIM113  # enumerate would hold on to the volume before
                bar.set_postfix_str(f"scan {finished}/{len(jobs)}")

    def _jobs(self) -> list[Job]:
        """Scans that some output lacks, or whose files changed since; what stands is kept."""
        jobs = []
        for scan in self.usable:
            self.stop.check()
            known = [parts.known.get(scan.scan_id) for parts in self.parts]
            now = fingerprint(scan) if any(known) else ""
            needs = [i for i, k in enumerate(known) if k is None or not now or k.fingerprint != now]
            for parts, k in zip(self.parts, known, strict=True):
                if k is not None and now and k.fingerprint == now:
                    parts.keep(with_plan(k.row, scan), now)
            unpictured = [
                i
                for i, (folder, k) in enumerate(zip(self.thumbnails, known, strict=False))  # no folder, no pictures
                if k is not None and i not in needs and not folder.holds(k.row.digest, k.row.modality)
            ]
            if needs or unpictured:
                jobs.append(Job(scan, tuple(needs), tuple(unpictured)))
        return jobs

    def _check_space(self, jobs: Sequence[Job], shard: tuple[int, int] | None) -> None:
        if not jobs and not any(known.part for parts in self.parts for known in parts.known.values()):
            return
        needs = {}
        for i, parts in enumerate(self.parts):
            header = parts.header
            todo = [job.scan for job in jobs if i in job.needs and job.scan.scan_id not in parts.known]
            new = sum(bag_bytes(scan.n_slices, header) + PART_BYTES for scan in todo)
            old = sum(bag_bytes(known.row.n_slices, header) for known in parts.known.values())
            unfinished = bool(todo) or any(known.part for known in parts.known.values())
            needs[parts.output] = new + (new + old if shard is None and unfinished else 0)
            if self.thumbnails:
                shown = [job.scan for job in jobs if i in job.unpictured] + todo
                per_slice = PICTURE_BYTES * len(self.parts[i].header.windows)
                needs[parts.output] += sum(scan.n_slices for scan in shown) * per_slice
        check_space(needs)

    def _decode(self, job: Job) -> Decoded | Problem:
        """Reads a scan, in a thread; whatever goes wrong is that scan's problem alone."""
        started = time.monotonic()
        try:
            before = fingerprint(job.scan)
            volume = self.read(job.scan)
            digest, seconds = volume.digest, time.monotonic() - started
            folders = [self.thumbnails[i] for i in (*job.needs, *job.unpictured)] if self.thumbnails else []
            return Decoded(volume, digest, before, seconds, make_pictures(volume, digest, folders))
        except Exception as error:  # the barrier: one bad scan costs one scan
            return problem_of(error, job.scan, "reading")

    def _encode(self, i: int, scan: Scan, result: Decoded | Problem, bar: Any) -> None:
        self.stop.check()
        if isinstance(result, Decoded):
            result = self._encode_volume(i, scan, result, bar) or result
        if isinstance(result, Problem):
            self.problems[i][scan.scan_id] = result

    def _encode_volume(self, i: int, scan: Scan, decoded: Decoded, bar: Any) -> Problem | None:
        """Encodes and commits, or says why not. InputError and OutputError pass: they concern every scan."""
        volume, parts, settings = decoded.volume, self.parts[i], self.settings

        def on_batch(n_instances: int) -> None:
            bar.update(volume.n_slices * n_instances / row.length)
            self.stop.check()

        try:
            own = bool(self.encoders[i].card.own_windows)
            if not own and not settings.given and default_windows(volume.modality) != settings.windows:
                raise ScanRefused(
                    "modality",
                    f"{volume.modality or 'unknown'} scan among scans that have other windows; extract it apart",
                )
            row = row_for(scan, volume, decoded.digest, parts.header)
            known = parts.known.get(scan.scan_id)
            if known is not None and (known.row.digest, known.row.length) == (row.digest, row.length):
                self._write_pictures(i, decoded)
                parts.keep(row, decoded.fingerprint)  # only names or times of its files changed
                return None
            started = time.monotonic()
            features = self.encoders[i].encode(volume, settings.windows, batch=settings.batch, on_batch=on_batch)
            seconds = time.monotonic() - started
            bag = make_bag(scan.scan_id, volume, features, parts.header, row.length)
        except ScanRefused as error:
            return Problem("refused", error.reason, str(error))
        except Unstorable as error:
            return Problem("failed", "not_finite", str(error))
        except ClearError:
            raise
        except Exception as error:  # the barrier: one bad scan costs one scan
            return problem_of(error, scan, "encoding")
        self._write_pictures(i, decoded)
        parts.commit(row, bag, fingerprint=decoded.fingerprint, read_seconds=decoded.seconds, encode_seconds=seconds)
        self.new.add(scan.scan_id)
        self.slices += volume.n_slices
        return None

    def _write_pictures(self, i: int, decoded: Decoded) -> None:
        if decoded.pictures:
            digest, modality = decoded.digest, decoded.volume.modality
            write_pictures(decoded.pictures, digest, modality, self.thumbnails[i], self.thumbnails)

    def status_of(self, i: int, scan: Scan) -> Problem | Status:
        """What became of a scan in output i."""
        if scan.verdict != "use":
            return Problem("set aside" if scan.verdict == "set aside" else "refused", scan.reason, scan.message)
        return self.problems[i].get(scan.scan_id, "done")

    def counts(self) -> Counter[str]:
        """Scans by the worst status among the outputs."""
        counts: Counter[str] = Counter()
        for scan in self.scans:
            found = [self.status_of(i, scan) for i in range(len(self.parts))]
            statuses = [status.status if isinstance(status, Problem) else status for status in found]
            counts[max(statuses, key=_SEVERITY.__getitem__)] += 1
        return counts

    def write_quality(self, shard: tuple[int, int] | None) -> list[Path]:
        """`feats.qc.csv`, or the shard's record among the parts, which `merge` puts together."""
        paths = []
        for i, parts in enumerate(self.parts):
            rows = [self._quality_row(i, scan) for scan in self.scans]
            if shard is not None:
                path = parts.folder / f"{shard[0]}-of-{shard[1]}{SHARD_ENDING}"
            else:
                path = quality_path(parts.output)
                elsewhere = parts.known.keys() - {row.scan_id for row in rows}  # in the file from another folder
                rows += [parts.quality_row(scan_id) for scan_id in elsewhere]
            write_quality(path, rows, aside=parts.folder / f"{path.name}.tmp")
            paths.append(path)
        return paths

    def _quality_row(self, i: int, scan: Scan) -> QualityRow:
        status = self.status_of(i, scan)
        if not isinstance(status, Problem):
            return self.parts[i].quality_row(scan.scan_id)
        message = status.message
        if scan.scan_id in self.parts[i].known:
            message = f"{message} (The bag of an earlier run stays in the file.)"
        return QualityRow(
            scan_id=scan.scan_id,
            patient_id=scan.patient_id or "",
            source=scan.source,
            modality=scan.modality,
            n_slices=scan.n_slices,
            status=status.status,
            reason=status.reason,
            message=message,
            remarks="; ".join(scan.remarks),
        )

    def remarks(self, shard: tuple[int, int] | None) -> list[str]:
        """How many scans lack thumbnails, of each output; of a shard, among its own scans."""
        mine = {scan.scan_id for scan in self.usable}
        remarks = []
        for folder, parts in zip(self.thumbnails, self.parts, strict=False):  # none where none are kept
            known = [known.row for scan_id, known in parts.known.items() if shard is None or scan_id in mine]
            remarks += folder.remark(known)
        return remarks

    def farewell(self, shard: tuple[int, int] | None) -> str:
        """What is kept and how to go on."""
        finished = [sum(scan.scan_id in parts.known for scan in self.usable) for parts in self.parts]
        done = min(finished, default=0)
        part = "" if shard is None else f" of shard {shard[0]}/{shard[1]}"
        return (
            f"Stopped: {done} of {len(self.usable)} scans{part} are finished and kept. Run the same command to go on."
        )


def _progress_bar(n_slices: int, n_scans: int, progress: bool | None) -> Any:
    """Slices/s, scans done and time left, on standard error; seldom redrawn where that is no terminal."""
    in_terminal = sys.stderr.isatty()
    hidden = (progress is None and not in_terminal) or progress is False or not n_scans
    return tqdm(
        total=n_slices,
        unit=" slices",
        disable=hidden,
        mininterval=0.2 if in_terminal else 30.0,
        bar_format="{percentage:3.0f}% |{bar:24}| {n:.0f}/{total:.0f}{unit}, {rate_fmt}{postfix}, {remaining} left",
    )
