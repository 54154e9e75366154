"""Speed and memory as ratios in one run: `make bench`, or `python tests/bench extraction` for a part.

Machines are shared and noisy, so each figure sets two ways of doing the same work against each other in the same run,
in turn, and quotes the median of the ratios.

Not among them are the programs beside this one that measure numbers and not speed, each a command of its own:
`coverage.py` (how often intervals hold the truth) and `mil.py` (real labelled data), both in docs/statistics.md,
`pretraining.py table` (docs/pretraining.md), `explain.py` (docs/explain.md) and `encoders.py` (docs/encoders.md).
"""

from __future__ import annotations

import sys

import extraction
import pretraining
import report
import scan
import training

PARTS = {
    "extraction": extraction.main,
    "scan": scan.main,
    "training": training.main,
    "pretraining": pretraining.main,
    "report": report.main,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
