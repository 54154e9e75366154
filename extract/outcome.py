"""What becomes of one scan: a bag that may be stored, or a problem in one sentence."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.bag_format import Bag, BagHeader
from clear.errors import ClearError, ScanRefused
from clear.scans import Scan
from clear.volume import Volume
from extract.quality import Status

_DEFECT = "This is a defect of clear; please report it."


@dataclass(frozen=True)
class Problem:
    """Why a scan is not in: status, a short stable reason, and the sentence behind it."""

    status: Status
    reason: str
    message: str


class Unstorable(Exception):
    """Embeddings with values that the file must not hold."""


def make_bag(scan_id: str, volume: Volume, features: NDArray[Any], header: BagHeader, length: int) -> Bag:
    """The encoder's output as it is stored; raises Unstorable for a value that is not finite then."""
    if features.shape != (length, header.dim):
        raise ValueError(f"the encoder gave {features.shape}; expected {(length, header.dim)}")
    with np.errstate(over="ignore"):
        stored = features.astype(header.dtype)
    bad = int((~np.isfinite(stored).all(axis=1)).sum())
    if bad:
        cause = "not finite" if not np.isfinite(features).all() else "beyond the range of float16 (use --dtype float32)"
        raise Unstorable(f"{bad} of {length} embeddings have values that are {cause}")
    if header.whole_scans:
        return Bag(
            scan_id=scan_id,
            features=stored,
            slice=np.full(1, -1, dtype=np.int32),
            window=np.zeros(1, dtype=np.uint8),
            position_mm=volume.positions_mm.mean(axis=0, keepdims=True).astype(np.float32),
        )
    n_windows = len(header.windows)
    slices = np.repeat(np.arange(volume.n_slices, dtype=np.int32), n_windows)
    return Bag(
        scan_id=scan_id,
        features=stored,
        slice=slices,
        window=np.tile(np.arange(n_windows, dtype=np.uint8), volume.n_slices),
        position_mm=volume.positions_mm.astype(np.float32)[slices],
    )


def problem_of(error: Exception, scan: Scan, doing: str) -> Problem:
    """What went wrong with one scan, in our words: a library's own text may hold anything."""
    if isinstance(error, ScanRefused):
        return Problem("refused", error.reason, str(error))
    if isinstance(error, ClearError):
        return Problem("failed", "unusable", str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Problem(
            "failed",
            "out_of_memory",
            f"{scan.source}: not enough memory for {doing} {scan.n_slices} slices; "
            "use fewer workers or a smaller batch",
        )
    if isinstance(error, OSError):
        return Problem("failed", "cannot_read", f"{scan.source}: a file could not be read ({type(error).__name__})")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return Problem(
        "failed", "unexpected_error", f"{scan.source}: {type(error).__name__} while {doing}, at {place}. {_DEFECT}"
    )
