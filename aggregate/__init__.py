"""Bags and labels to answers.

    run = train("feats.h5", labels="table.csv", target="lesion")    # a Run: .metrics, .predictions, .table()

A label table meets the scans of a bag file on their ids (`clear.labels`, `clear.label_join`) and becomes a cohort of
labelled bags (`cohort`). Patients are dealt into folds that are written down first (`folds`). For each fold a fresh
aggregator (`aggregators`, `attention`) is fitted on packed bags (`packed`, `targets`, `fit`): rows and offsets, no
padding, nothing left out. The bags that it never saw are scored; from their scores come metrics (`metrics`, `scores`)
and intervals over patients (`intervals`). All of it lies in a run folder (`crossval`, `run`).
"""

from __future__ import annotations

from aggregate.crossval import train
from aggregate.run import Run

__all__ = ["Run", "train"]
