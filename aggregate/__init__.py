"""Bags and labels to answers.

    run = train("feats.h5", labels="table.csv", target="lesion")    # a Run: .metrics, .predictions, .table()

A label table meets the scans of a bag file on their ids (`clear.labels`, `clear.label_join`) and becomes a cohort of
labelled bags (`cohort`). Patients are dealt into folds that are written down first (`folds`, `protocols`); all of that
together is a `question`. For each fold a fresh aggregator (`aggregators`) is fitted on packed bags (`packed`,
`targets`, `fit`): rows and offsets, no padding, nothing left out. The bags that it never saw are scored (`crossval`);
from their scores come metrics (`metrics`, `scores`), curves and intervals over patients (`intervals`), beside those of
models that never saw an image (`baselines`). All of it lies in a run folder (`train`, `run`), which is set against
another (`compare`) and scores other cohorts (`predict`). `probe` asks the same question of simple models on pooled
embeddings, `matrix` of many encoders and aggregators at once.
"""

from __future__ import annotations

from aggregate.predict import Prediction, predict
from aggregate.probe import Probe, probe
from aggregate.run import Run
from aggregate.train import train

__all__ = ["Prediction", "Probe", "Run", "predict", "probe", "train"]
