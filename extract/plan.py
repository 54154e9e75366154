"""The plan of an extraction: output names, windows, headers, shards and space, all settled before the first scan."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import clear
from clear.atomic import OutputError, as_size, free_bytes
from clear.bag_format import BagHeader, ScanRow, clean_text, plain
from clear.bags import ZARR_ENDING, check_bag_path
from clear.bags_zarr import is_bag_folder
from clear.errors import InputError
from clear.scans import Scan
from clear.volume import Volume
from clear.windows import Window, check_windows, default_windows

INSTANCE_BYTES = 4 + 1 + 12  # slice, window, position_mm
PART_BYTES = 24_000  # what a part weighs beside its instances
_UNKNOWN_SHAPE = (512, 512)


class Encoder(Protocol):
    """What extraction asks of an encoder; `clear.load_encoder` gives one."""

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def card(self) -> Any: ...
    @property
    def digest(self) -> str: ...
    @property
    def weights_note(self) -> str: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    def encode(
        self,
        volume: Volume,
        windows: Sequence[Window] | None = None,
        *,
        batch: int = ...,
        on_batch: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]: ...


def check_outputs(output: Path | str, models: Sequence[str]) -> list[Path]:
    """Where each model's bags go. Raises InputError or OutputError before anything is read or written.

    `{model}` in the name stands for the model's, and is required for several.
    """
    text = str(output)
    if not models:
        raise InputError("expected at least one encoder (--model)")
    if len(models) > 1 and "{model}" not in text:
        raise InputError(
            f"{text}: {len(models)} models need a file each. Put {{model}} in the output name, as in feats-{{model}}.h5"
        )
    paths = [check_bag_path(text.replace("{model}", name.replace("/", "_"))) for name in models]
    if len(set(paths)) != len(paths):
        raise InputError(f"two models have the same name: {', '.join(sorted(models))}. Run them one after the other.")
    for path in paths:
        _check_place(path)
    return paths


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist. Make it first, or name another output.")
    is_zarr = path.suffix == ZARR_ENDING
    if path.is_dir() and not is_zarr:
        raise OutputError(f"{path}: is a folder; expected the name of a file to write. Name another output.")
    if path.exists() and not path.is_dir() and is_zarr:
        raise OutputError(f"{path}: is a file; a .zarr output is a folder. Name another output.")
    if path.is_dir() and any(path.iterdir()) and not is_bag_folder(path):
        raise OutputError(f"{path}: exists and is no bag file, so it is not replaced. Name another output.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {path.parent} is read-only for you. Choose another output folder.")


def choose_windows(windows: Sequence[Window] | None, scans: Sequence[Scan]) -> tuple[Window, ...]:
    """The windows of every scan: those named, else the defaults of the one kind of scan there is.

    Raises InputError when the defaults differ between the scans, or no modality is known.
    """
    if windows is not None:
        return check_windows(windows)
    modalities = Counter(scan.modality for scan in scans)
    known = {modality for modality in modalities if modality}
    choices = {default_windows(modality) for modality in known}
    if len(choices) == 1:
        return choices.pop()
    if not known:
        raise InputError(f"the modality of none of the {len(scans)} scans is known. Name the windows with --window.")
    counts = ", ".join(f"{n} {modality or 'unknown'}" for modality, n in sorted(modalities.items()))
    raise InputError(
        f"the scans are of several modalities ({counts}), which are encoded in different windows. Extract them into "
        "one file each, as in --select \"modality = 'CT'\"; name the windows with --window; or, where a modality was "
        "inferred wrongly, say it with --modality."
    )


def header_for(encoder: Encoder, windows: tuple[Window, ...], *, batch: int, dtype: str) -> BagHeader:
    """What the file says of its embeddings, in these windows or the encoder's own.

    Nothing in it depends on the clock, the workers or this machine's paths.
    """
    card = plain(encoder.card.as_dict())
    source = card.get("source")
    if isinstance(source, dict) and source.get("kind") == "file" and isinstance(source.get("place"), str):
        source["place"] = Path(source["place"]).name
    return BagHeader(
        encoder=encoder.name,
        encoder_digest=encoder.digest,
        encoder_card=card,
        windows=encoder.card.own_windows or windows,
        preprocessing=encoder.card.preprocessing,
        provenance={
            "clear": clear.__version__,
            "numpy": np.__version__,
            "trained on": encoder.weights_note,
            **encoder.provenance,
            "batch": batch,
        },
        dim=encoder.dim,
        dtype=dtype,
    )


def check_shard(shard: tuple[int, int]) -> None:
    """Raises InputError unless shard is (i, n) with 1 <= i <= n."""
    i, n = shard
    if not 1 <= i <= n:
        raise InputError(f"--shard {i}/{n}: expected i/n with i from 1 to n, as in 1/3, 2/3 and 3/3")


def in_shard(scan_id: str, shard: tuple[int, int] | None) -> bool:
    """Whether a scan belongs to shard (i, n): by a hash of its id, so that no other scan matters."""
    if shard is None:
        return True
    i, n = shard
    return int.from_bytes(hashlib.sha256(scan_id.encode()).digest()[:8], "big") % n == i - 1


def with_clean_ids(scans: Sequence[Scan]) -> list[Scan]:
    """The scans with ids that can be stored, sorted; raises InputError when two usable ones share an id."""
    cleaned = [scan if clean_text(scan.scan_id) == scan.scan_id else _cleaned(scan) for scan in scans]
    cleaned.sort(key=lambda scan: scan.scan_id)
    counts = Counter(scan.scan_id for scan in cleaned if scan.verdict == "use")
    twice = [scan_id for scan_id, n in counts.items() if n > 1]
    if twice:
        raise InputError(
            f"{len(twice)} scan id(s) stand for several scans, such as {twice[0]!r}. Give each its own "
            "(--scans TABLE), or leave copies out of the input."
        )
    return cleaned


def _cleaned(scan: Scan) -> Scan:
    return replace(scan, scan_id=clean_text(scan.scan_id))


def row_for(scan: Scan, volume: Volume, digest: str, header: BagHeader) -> ScanRow:
    """The scan's row in the bag file: geometry from the volume as read, the rest from the plan.

    Raises ScanRefused `oversized_text` when a header holds a text of thousands of characters.
    """
    row = ScanRow(
        scan_id=scan.scan_id,
        digest=digest,
        length=header.instances(volume.n_slices),
        n_slices=volume.n_slices,
        spacing_mm=(math.nan,) * 3 if scan.spacing_mm is None else volume.spacing_mm,  # the volume's is nominal then
        plane=volume.plane,
        modality=volume.modality,
        remarks=tuple(dict.fromkeys([*scan.remarks, *volume.remarks])),
    )
    return with_plan(row, scan)


def with_plan(row: ScanRow, scan: Scan) -> ScanRow:
    """The row with what the plan says now, which may have changed while the voxels did not (a table of patients)."""
    return replace(
        row,
        patient_id=scan.patient_id or None,
        study_uid=scan.study_uid or None,
        series_uid=scan.series_uid or None,
        source=scan.source or None,
        manufacturer=scan.manufacturer or None,
        kernel=scan.kernel or None,
        thickness_mm=scan.thickness_mm,
        contrast=scan.contrast or None,
        days_since_first=scan.days_since_first,
    )


def fingerprint(scan: Scan) -> str:
    """Names, sizes and times of a scan's files as one short hash; "" when one of them cannot be looked at.

    Equal fingerprints mean that nothing was touched; a copied folder has new ones, and is then compared by digest.
    """
    sha = hashlib.sha256(scan.source.encode("utf-8", "backslashreplace"))
    try:
        for name in scan.files or (scan.source,):
            path = scan.root / name
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in files:
                stat = file.stat()
                line = f"\n{file.relative_to(scan.root)} {stat.st_size} {stat.st_mtime_ns}"
                sha.update(line.encode("utf-8", "backslashreplace"))
    except (OSError, ValueError):
        return ""
    return sha.hexdigest()[:32]


def volume_bytes(scan: Scan) -> int:
    """Memory of the scan's voxels, from its headers."""
    rows, columns = scan.shape or _UNKNOWN_SHAPE
    return max(1, scan.n_slices) * rows * columns * (2 if scan.modality == "CT" else 4)


def bag_bytes(n_slices: int, header: BagHeader) -> int:
    """Disk space of a scan's instances."""
    row = header.dim * np.dtype(header.dtype).itemsize + INSTANCE_BYTES
    return header.instances(n_slices) * row


def check_space(needs: Mapping[Path, int]) -> None:
    """Raises OutputError when the outputs (path: bytes still to be written) do not fit on their disks together."""
    folders: dict[int, tuple[Path, int]] = {}
    for path, n_bytes in needs.items():
        device = path.parent.stat().st_dev
        folders[device] = path, folders.get(device, (path, 0))[1] + n_bytes
    for path, n_bytes in folders.values():
        free = free_bytes(path.parent)
        if free is not None and n_bytes > free:
            raise OutputError(
                f"{path}: needs about {as_size(n_bytes)} until it is finished, but {as_size(free)} are free in "
                f"{path.parent}. Free space, or choose another output folder."
            )
