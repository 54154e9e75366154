"""Which class is called for which: a confusion matrix as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from aggregate.figures.style import (
    COLOURS,
    INK,
    SIZE,
    SMALL,
    TOP,
    WIDTH,
    Drawing,
    add_axes,
    missing_figure,
    name_axes,
    new_figure,
    shown,
    write,
)

_CHARACTER = 5.8  # width of one, in units of a figure
_DARK = 0.85  # share from which a cell is so dark that its text is white


def confusion_figure(table: ArrayLike, classes: Sequence[str], *, title: str = "Confusion matrix") -> Drawing:
    """Counts of (C, C) true (rows) and called (columns) classes; a cell is tinted by its share of the row.

    Raises ValueError when the table is not (C, C).
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"expected ({len(classes)}, {len(classes)}) counts; found {counts.shape}")
    if not counts.sum() > 0:
        return missing_figure(title, "nothing to draw: no scan is scored")
    n = len(classes)
    names = [shown(name, 16) for name in classes]
    longest = max(map(len, names))
    left = 38 + longest * _CHARACTER
    cell = min((WIDTH - left - 12) / n, 78.0)
    slanted = longest * _CHARACTER > cell
    foot = 38 + (longest * _CHARACTER if slanted else 12)
    figure = new_figure(f"{title}: {_said(counts, classes)}", height=TOP + n * cell + foot)
    axes = add_axes(figure, left=left, right=WIDTH - left - n * cell, top=TOP, bottom=foot)
    axes.grid(False)
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    for (row, column), share in np.ndenumerate(shares):
        tint = to_rgba(COLOURS[0], share if np.isfinite(share) else 0.0)
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, edgecolor=INK, linewidth=0.6))
        text = f"{counts[row, column]:g}"
        if cell >= 40 and np.isfinite(share):
            text += f"\n{share:.0%}"
        color = "#ffffff" if share >= _DARK else INK
        size = min(SIZE, max(cell / 2.4, 5.0))
        write(axes, column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=size)
    middle = np.arange(n) + 0.5
    size = min(SMALL, max(cell / 2.2, 5.0))
    axes.set_xticks(middle, names, parse_math=False, fontsize=size, rotation=90 if slanted else 0)
    axes.set_yticks(middle, names, parse_math=False, fontsize=size)
    name_axes(axes, x="called", y="true", title=title)
    return figure


def _said(counts: np.ndarray, classes: Sequence[str]) -> str:
    """For a screen reader: what became of each class."""
    rows = []
    for name, row in zip(classes, counts, strict=True):
        called = ", ".join(f"{n:g} called {other}" for other, n in zip(classes, row, strict=True) if n)
        rows.append(f"{name}: {called or 'none'}")
    return "; ".join(rows)
