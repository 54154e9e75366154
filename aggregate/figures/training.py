"""How training went: the loss of every fold over the epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from aggregate.figures.style import (
    BOTTOM,
    COLOURS,
    DASHES,
    INK,
    TOP,
    Drawing,
    add_axes,
    add_legend,
    legend_height,
    missing_figure,
    name_axes,
    new_figure,
    thinned,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """The history of one fold.

    epoch, train, inner: (n,) with the loss of the training bags and of the inner split, nan where there is none.
    best: the epoch whose weights were kept.
    """

    epoch: Floats
    train: Floats
    inner: Floats
    best: float | None = None


def training_figure(folds: Mapping[str, Training], *, title: str = "Training") -> Drawing:
    """Loss over epochs, two lines a fold, with a dot where the weights were kept."""
    there = [fold for fold in folds.values() if len(fold.epoch)]
    if not there:
        return missing_figure(title, "nothing to draw: no epoch is recorded")
    note = "a line of each kind for each fold" if len(there) > 1 else ""
    legend = legend_height(3, note)
    figure = new_figure(f"{title}: losses of {len(there)} folds", height=TOP + 190 + BOTTOM + legend)
    axes = add_axes(figure, bottom=BOTTOM + legend)
    faint = 0.85 if len(there) <= 3 else 0.7
    for fold in there:
        _line(axes, fold.epoch, fold.train, color=COLOURS[1], linestyle=DASHES[1], linewidth=1.1, alpha=faint)
    for fold in there:
        _line(axes, fold.epoch, fold.inner, color=COLOURS[0], linewidth=1.3, alpha=faint)
        loss = fold.inner if np.isfinite(fold.inner).any() else fold.train
        here = np.flatnonzero(fold.epoch == (np.nan if fold.best is None else fold.best))
        if len(here):
            axes.plot(fold.epoch[here[:1]], loss[here[:1]], "o", markersize=4.5, color=COLOURS[0], markeredgecolor=INK)
    axes.margins(x=0.02)
    axes.locator_params(axis="x", integer=True)
    name_axes(axes, x="epoch", y="loss", title=title)
    handles = [
        Line2D([], [], color=COLOURS[1], linestyle=DASHES[1], linewidth=0.9),
        Line2D([], [], color=COLOURS[0], linewidth=1.3),
        Line2D([], [], color=COLOURS[0], marker="o", linestyle="none", markersize=4.5, markeredgecolor=INK),
    ]
    add_legend(
        figure, handles, ["training", "inner split, which ends the training", "weights that were kept"], note=note
    )
    return figure


def _line(axes: Axes, x: Floats, y: Floats, **style: Any) -> None:
    rows = np.flatnonzero(np.isfinite(y))
    rows = rows[thinned(len(rows))]
    axes.plot(x[rows], y[rows], **style)
