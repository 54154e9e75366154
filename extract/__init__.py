"""Scans to bags: every usable scan of a folder encoded once, into one file.

`plan` turns the series found into jobs: windows, output names, which scans of an earlier run still stand. `readahead`
decodes a few volumes ahead in threads while `engine` encodes one scan after another in the main thread. Each finished
scan is one file in `feats.h5.parts/` (`parts`), so that an extraction may be killed at any moment and run again; when
all are done the parts become `feats.h5` at once. `merge` does that for shards, and joins bag files. `quality` writes
`feats.qc.csv`, a row for every series found. Ctrl-C ends a run within seconds and loses no scan (`clear.stopping`).
The same inputs give the same bytes, whatever the number of workers, shards or restarts.
"""

from __future__ import annotations

from clear.stopping import Interrupted
from extract.engine import extract
from extract.merge import MergeResult, merge
from extract.plan import check_outputs
from extract.result import ExtractionResult

__all__ = ["ExtractionResult", "Interrupted", "MergeResult", "check_outputs", "extract", "merge"]
