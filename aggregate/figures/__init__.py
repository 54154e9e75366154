"""Figures from arrays: every function here returns a matplotlib figure, for a report, a notebook or a paper.

    curve = roc_curve(truth, scores, patients, "effusion")      # points and band over patients
    figure = roc_figure({"effusion": curve})                    # shows itself in a notebook
    svg(figure); figure.savefig("roc.png")

`bands` computes curves with their bands, `attention` summaries of attention; `curves`, `confusion`, `training`,
`spread` and `attention` draw; `style` is how all of them look and `svg` how they stand in a page.
"""

from __future__ import annotations

from aggregate.figures.attention import (
    PLACES,
    SHARES,
    along_z,
    along_z_figure,
    attention_profile_figure,
    by_group,
    concentration_figure,
    effective_slices,
    share_of_top,
)
from aggregate.figures.bands import (
    Calibration,
    Curve,
    calibration_bars,
    mean_curve,
    pr_band,
    pr_curve,
    roc_band,
    roc_curve,
    wilson,
)
from aggregate.figures.confusion import confusion_figure
from aggregate.figures.curves import calibration_figure, pr_figure, roc_figure
from aggregate.figures.spread import Spread, spread_figure
from aggregate.figures.style import missing_figure
from aggregate.figures.svg import svg
from aggregate.figures.training import Training, training_figure

__all__ = [
    "PLACES",
    "SHARES",
    "Calibration",
    "Curve",
    "Spread",
    "Training",
    "along_z",
    "along_z_figure",
    "attention_profile_figure",
    "by_group",
    "calibration_bars",
    "calibration_figure",
    "concentration_figure",
    "confusion_figure",
    "effective_slices",
    "mean_curve",
    "missing_figure",
    "pr_band",
    "pr_curve",
    "pr_figure",
    "roc_band",
    "roc_curve",
    "roc_figure",
    "share_of_top",
    "spread_figure",
    "svg",
    "training_figure",
    "wilson",
]
