"""How folds differ: their own figures as dots, the figure of all with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from aggregate.figures.style import (
    BOTTOM,
    COLOURS,
    INK,
    TOP,
    Drawing,
    add_axes,
    add_legend,
    legend_height,
    missing_figure,
    name_axes,
    new_figure,
    shortened,
    write,
)

Floats = NDArray[np.float64]
_ROW = 36.0


@dataclass(frozen=True)
class Spread:
    """One line of the figure.

    folds: (F,) the value of each, nan where it is not defined; none for a difference of two runs.
    estimate, low, high: the value of all with its interval; nan where not defined.
    """

    label: str
    estimate: float
    low: float
    high: float
    folds: Floats = field(default_factory=lambda: np.zeros(0))


def spread_figure(
    spreads: Sequence[Spread],
    *,
    title: str = "Folds",
    x: str = "",
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Drawing:
    """A row for each: dots of the folds, a diamond and bar of all.

    reference: a dashed line, chance (0.5) or no difference (0). limits: of the x axis; None fits them.
    """
    values = np.array([v for s in spreads for v in (s.estimate, s.low, s.high, *s.folds)], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return missing_figure(title, "nothing to draw: no figure is defined")
    some_folds = any(len(spread.folds) for spread in spreads)
    legend = legend_height(1 + some_folds)
    said = "; ".join(f"{spread.label} {_number(spread)}" for spread in spreads)
    figure = new_figure(f"{title}: {said}", height=TOP + _ROW * len(spreads) + BOTTOM + legend)
    axes = add_axes(figure, left=14, right=14, bottom=BOTTOM + legend)
    axes.set_ylim(len(spreads), 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.set_xlim(*(limits or _limits(values, reference)))
    for row, spread in enumerate(spreads):
        _row(axes, row, spread, reference)
    name_axes(axes, x=x, title=title)
    handles = [Line2D([], [], color=COLOURS[0], marker="D", markersize=6, linewidth=1.6)]
    labels = ["estimate with its 95 % interval"]
    if some_folds:
        handles.append(Line2D([], [], color=COLOURS[1], marker="o", markersize=5, fillstyle="none", linestyle="none"))
        labels.append("one fold")
    add_legend(figure, handles, labels)
    return figure


def _row(axes: Axes, row: int, spread: Spread, reference: float | None) -> None:
    """Name and number above, dots and bar below."""
    across = axes.get_yaxis_transform()
    write(axes, 0.0, row + 0.28, shortened(spread.label, 34), transform=across, va="center")
    write(axes, 1.0, row + 0.28, _number(spread), transform=across, va="center", ha="right")
    y = row + 0.72
    if reference is not None:
        axes.plot([reference] * 2, [y - 0.2, y + 0.2], color=INK, alpha=0.7, linewidth=1.0, linestyle=(0, (2, 2)))
    if np.isfinite([spread.low, spread.high]).all():
        axes.plot([spread.low, spread.high], [y, y], color=COLOURS[0], linewidth=1.8, solid_capstyle="butt")
    folds = spread.folds[np.isfinite(spread.folds)]
    axes.plot(
        folds, np.full(len(folds), y), "o", color=COLOURS[1], markersize=5.5, fillstyle="none", markeredgewidth=1.2
    )
    if np.isfinite(spread.estimate):
        axes.plot([spread.estimate], [y], "D", color=COLOURS[0], markersize=6.5)


def _number(spread: Spread) -> str:
    if not np.isfinite(spread.estimate):
        return "not defined"
    interval = f" ({spread.low:.2f} to {spread.high:.2f})" if np.isfinite([spread.low, spread.high]).all() else ""
    return f"{spread.estimate:.2f}{interval}".replace("-", "−")


def _limits(values: Floats, reference: float | None) -> tuple[float, float]:
    everything = values if reference is None else np.append(values, reference)
    low, high = float(everything.min()), float(everything.max())
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin
