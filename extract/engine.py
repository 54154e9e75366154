"""The engine: settle everything before the first scan, run, and put the parts together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from clear.bag_format import FEATURE_TYPES, BagHeader
from clear.errors import InputError
from clear.scans import Scan
from clear.stopping import Interrupted, stopping
from clear.volume import Volume
from clear.windows import Window
from extract.parts import Parts
from extract.plan import Encoder, check_outputs, check_shard, choose_windows, header_for, in_shard, with_clean_ids
from extract.result import ExtractionResult
from extract.run import STOPS, Run, Settings
from extract.thumbnails import ThumbnailFolder


def extract(
    source: Path | str,
    output: Path | str,
    encoders: Sequence[Encoder],
    *,
    windows: Sequence[Window] | None = None,
    scans: Sequence[Scan] | None = None,
    select: str | None = None,
    shard: tuple[int, int] | None = None,
    workers: int = 2,
    batch: int = 16,
    overwrite: bool = False,
    dtype: str = "float16",
    thumbnails: bool = False,
    progress: bool | None = None,
    read: Callable[[Scan], Volume] | None = None,
) -> ExtractionResult:
    """Encode every usable scan once with every encoder; run again, it goes on where it stopped.

    source: a folder, or a plan that `clear inspect --out` wrote; not looked at when `scans` are given. output: NAME.h5
    or NAME.zarr, with `{model}` in it for several encoders. windows: None takes the modality's defaults.
    shard: (i, n) encodes the i-th of n parts of the scans (from 1) and leaves the file to `merge`.
    workers: reading threads. batch: instances at a time, within a scan. overwrite: replace a file of another identity
    (encoder, windows, preprocessing, dtype); one of the same identity always carries its scans over.
    thumbnails: keep pictures of every slice beside each output (`clear.thumbnails`), also of scans encoded before.
    progress: a bar on standard error; None shows it in a terminal only. read: how a scan becomes a volume.

    Raises InputError and OutputError before the first scan where that is possible, OutputError when the disk fails
    later, Interrupted after Ctrl-C; a scan that cannot be read or encoded only becomes a row of the quality record.
    """
    started = time.monotonic()
    outputs = check_outputs(output, [encoder.name for encoder in encoders])
    if shard is not None:
        check_shard(shard)
    if dtype not in FEATURE_TYPES:
        raise InputError(f"--dtype {dtype}: expected {' or '.join(FEATURE_TYPES)}")
    if workers < 1 or batch < 1:
        raise InputError(f"workers and batch are at least 1; found {workers} and {batch}")
    found = with_clean_ids(_find(source, select) if scans is None else _select(scans, select))
    usable = [scan for scan in found if scan.verdict == "use"]
    if not usable and not any(scan.verdict == "refused" for scan in found):
        raise InputError(f"{source}: no scan that can be used; {_reasons(found)}")
    theirs = [encoder for encoder in encoders if not encoder.card.own_windows]
    chosen = choose_windows(windows, usable) if usable and theirs else ()
    settings = Settings(chosen, windows is not None, batch)
    headers: list[BagHeader | None] = [None] * len(encoders)  # without a usable scan only the record is written
    if usable:
        headers = [header_for(encoder, chosen, batch=batch, dtype=dtype) for encoder in encoders]
    mine = [scan for scan in found if in_shard(scan.scan_id, shard)]
    with stopping(*STOPS) as stop, ExitStack() as stack:
        run = Run(mine, encoders, settings, stop, _read_volume if read is None else read)
        for path, header in zip(outputs, headers, strict=True):
            wanted = [scan.scan_id for scan in run.usable]
            parts = Parts(path, header, overwrite=overwrite, shared=shard is not None, wanted=wanted)
            run.parts.append(stack.enter_context(parts))
            if thumbnails and header is not None:
                run.thumbnails.append(ThumbnailFolder(path, header, parts.folder))
        try:
            run.encode_all(workers, progress, shard)
            quality = run.write_quality(shard)
            remarks = run.remarks(shard)
            changed = [] if shard is not None else [parts.finish(stop.check) for parts in run.parts]
        except Interrupted as error:
            raise Interrupted(run.farewell(shard)) from error
    counts = run.counts()
    notes = [f"{encoder.name}: {encoder.weights_note}" for encoder in encoders]
    if shard is not None:
        notes.append(f"Shard {shard[0]} of {shard[1]} is finished; after the last one: clear bags merge {outputs[0]}")
    elif not any(changed) and not run.new and not run.pictured:
        notes.append("Nothing was new." if counts["done"] else "No scan could be used; no bag file was written.")
    if run.pictured:
        notes.append(f"Thumbnails were made of {len(run.pictured)} scan(s) that had been encoded before.")
    notes += remarks
    return ExtractionResult(
        outputs=tuple(outputs),
        quality=tuple(quality),
        done=counts["done"],
        new=len(run.new),
        set_aside=counts["set aside"],
        refused=counts["refused"],
        failed=counts["failed"],
        slices=run.slices,
        seconds=time.monotonic() - started,
        notes=tuple(notes),
    )


def _find(source: Path | str, select: str | None) -> list[Scan]:
    from clear.plan import read_plan
    from clear.scans import find_scans

    path = Path(source)
    is_plan = path.is_file() and path.suffix == ".parquet"
    return _select(read_plan(path) if is_plan else find_scans(path), select)


def _select(scans: Sequence[Scan], select: str | None) -> list[Scan]:
    if select is None:
        return list(scans)
    from clear.plan import select_series

    return list(select_series(list(scans), select))


def _read_volume(scan: Scan) -> Volume:
    from clear.scans import read_volume

    return read_volume(scan)


def _reasons(scans: Sequence[Scan]) -> str:
    counts = Counter(scan.reason for scan in scans)
    listed = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
    return f"set aside: {listed}." if listed else "nothing was found."
