"""Predicted against true, of a quantity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aggregate.figures.style import COLOURS, INK, WIDTH, Drawing, add_axes, missing_figure, name_axes, new_figure

POINTS = 1000  # drawn at most, evenly over the true values


def quantity_figure(truth: NDArray[np.float64], predicted: NDArray[np.float64], *, title: str) -> Drawing:
    """(n,) true values along x and predictions along y, on one scale; the line is where both agree."""
    known = np.isfinite(truth) & np.isfinite(predicted)
    if not known.any():
        return missing_figure(title, "nothing to draw: no value is known")
    order = np.argsort(truth[known], kind="stable")
    x, y = truth[known][order], predicted[known][order]
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(np.int64))
    figure = new_figure(f"{title}: predicted against true of {len(x)} scans", height=26 + WIDTH - 58 + 42)
    axes = add_axes(figure)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.04 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.plot([low, high], [low, high], color=INK, alpha=0.55, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.plot(
        x[chosen], y[chosen], "o", color=COLOURS[0], markersize=4.5, fillstyle="none", markeredgewidth=1.0, alpha=0.8
    )
    name_axes(axes, x="true", y="predicted", title=title)
    return figure
