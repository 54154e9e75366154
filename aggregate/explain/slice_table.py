"""Slice attention as a table: a row for each slice and window.

=====================  ==============================================================================
column                 what it says
=====================  ==============================================================================
slice                  index along Z, 0 the first, as in bag files
window                 name of the window
z_mm                   coordinate along the plane's slice axis (axial: feet to head)
position_x_mm, y, z    LPS centre of the slice's first voxel
attention              mean over models; the column sums to 1. `contribution` where that is what is shown
attention_sd           (`contribution_sd`) standard deviation over models (n - 1); empty for one model
models                 how many models
rank                   1 for the highest of the scan; equal values share the better rank
sop_instance_uid       of the DICOM image that the slice came from; empty for other formats
frame                  number of the frame in it, counted from 1; empty for single-frame images
=====================  ==============================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from aggregate.explain.source_instances import source_of
from clear.atomic import write_aside
from clear.errors import InputError
from clear.scans import Scan

if TYPE_CHECKING:
    from aggregate.explain.slice_attention import SliceAttention


def slice_table(attention: SliceAttention, scan: Scan | None = None) -> pl.DataFrame:
    """The table above, slice by slice with the windows inside a slice.

    scan: where the slices came from; if it is DICOM, its files are looked at for `sop_instance_uid` and `frame`. UIDs
    of the source name its patient to whoever has the archive: leave `scan` out for a table that shall not.

    Raises InputError when the scan has another number of slices, or its files changed since they were listed.
    """
    slices, windows = attention.weights.shape
    uids: list[str | None] = [None] * slices
    frames: list[int | None] = [None] * slices
    if scan is not None and scan.n_slices != slices:
        raise InputError(
            f"{scan.source}: {scan.n_slices} slices, but the attention is of {slices}. Give the scan that was encoded"
        )
    if scan is not None and scan.format == "dicom":
        instances = source_of(scan).instances
        uids, frames = [uid or None for uid, _ in instances], [frame for _, frame in instances]
    models = len(attention.by_model)
    spread = attention.by_model.std(axis=0, ddof=1).ravel().tolist() if models > 1 else [None] * (slices * windows)
    at = np.repeat(np.arange(slices), windows)
    table = pl.DataFrame(
        {
            "slice": at,
            "window": [window.name for window in attention.windows] * slices,
            "z_mm": attention.z_mm[at],
            **{f"position_{axis}_mm": attention.position_mm[at, i] for i, axis in enumerate("xyz")},
            attention.kind: attention.weights.ravel(),
            f"{attention.kind}_sd": pl.Series(spread, dtype=pl.Float64),
            "models": np.full(len(at), models),
            "sop_instance_uid": pl.Series([uids[i] for i in at], dtype=pl.String),
            "frame": pl.Series([frames[i] for i in at], dtype=pl.Int64),
        }
    )
    rank = pl.col(attention.kind).rank("min", descending=True).cast(pl.Int64).alias("rank")
    return table.with_columns(rank).select(*table.columns[:9], "rank", "sop_instance_uid", "frame")


def write_slice_table(path: Path | str, table: pl.DataFrame) -> Path:
    """The table as CSV; returns its path. Raises OutputError when it cannot be written."""
    write_aside(Path(path), table.write_csv().encode())
    return Path(path)
