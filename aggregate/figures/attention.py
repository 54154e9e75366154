"""Where a model looks: how concentrated its attention is, where along the scan it lies, and that of one scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from aggregate.figures.bands import Curve, mean_curve
from aggregate.figures.style import (
    BOTTOM,
    INK,
    POINTS,
    SMALL,
    TITLE,
    TOP,
    WIDTH,
    Drawing,
    add_axes,
    add_legend,
    legend_height,
    look,
    missing_figure,
    name_axes,
    new_figure,
    shown,
    write,
)
from clear.windows import Window

Floats = NDArray[np.float64]
SHARES = np.linspace(0.0, 1.0, 51)  # of a scan's slices
PLACES = (np.arange(20) + 0.5) / 20  # along a scan, 0 its first and 1 its last slice


def share_of_top(weights: Floats) -> Floats:
    """(51,) the share of (Z,) attention that the most attended 0, 2, ..., 100 % of the slices hold.

    >>> share_of_top(np.array([0.0, 1.0, 0.0, 0.0]))[[0, 13, 50]].round(3).tolist()
    [0.0, 1.0, 1.0]
    """
    held = np.concatenate([[0.0], np.cumsum(np.sort(weights)[::-1])]) / weights.sum()
    return np.asarray(np.interp(SHARES, np.arange(len(held)) / len(weights), held))


def along_z(weights: Floats, z_mm: Floats) -> Floats:
    """(20,) attention in twentieths of the scan's length, 1 where it is what even attention would give.

    weights: (Z,) of slices at z_mm (Z,) ascending; a slice reaches half way to its neighbours.
    """
    middle = (z_mm[1:] + z_mm[:-1]) / 2
    half = (z_mm[-1] - z_mm[0]) / max(len(z_mm) - 1, 1) / 2 or 0.5
    edges = np.concatenate([[z_mm[0] - half], middle, [z_mm[-1] + half]])
    held = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
    cuts = np.linspace(edges[0], edges[-1], len(PLACES) + 1)
    return np.asarray(np.diff(np.interp(cuts, edges, held)) * len(PLACES))


def effective_slices(weights: Floats) -> float:
    """exp of the entropy of (Z,) weights: as many slices, evenly attended, would be as concentrated (Hill, Ecology
    1973, 54, 427-432, order 1).

    >>> round(effective_slices(np.array([1.0, 1.0, 0.0, 0.0])), 6)
    2.0
    """
    share = weights[weights > 0] / weights.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def by_group(values: Floats, x: Floats, groups: Sequence[str], patients: NDArray[np.generic]) -> dict[str, Curve]:
    """Mean of (n, g) values at x (g,) by group of the scans (their true class), each with its band over patients."""
    names = np.asarray(groups, dtype=object)
    rows_of = {name: np.flatnonzero(names == name) for name in dict.fromkeys(groups)}
    return {
        name: mean_curve(values[rows], x, patients[rows], f"{name} ({len(rows)} scan{'s' * (len(rows) != 1)})")
        for name, rows in rows_of.items()
    }


def concentration_figure(curves: Mapping[str, Curve], *, title: str = "How concentrated attention is") -> Drawing:
    """Share of attention over share of slices, most attended first: `share_of_top` by true class."""
    figure, axes = _lines(curves, title, "share of slices, most attended first", "share of attention")
    if axes is not None:
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.55, linewidth=0.8, linestyle=(0, (4, 4)))
        axes.set_ylim(-0.02, 1.02)
    return figure


def along_z_figure(
    curves: Mapping[str, Curve],
    *,
    ends: tuple[str, str] = ("first slice", "last slice"),
    title: str = "Where attention lies",
) -> Drawing:
    """Attention along the scan, 1 where it is even: `along_z` by true class. ends: feet and head, in axial CT."""
    figure, axes = _lines(curves, title, f"{ends[0]} to {ends[1]}", "attention (1 = even)")
    if axes is not None:
        axes.axhline(1.0, color=INK, alpha=0.55, linewidth=0.8, linestyle=(0, (4, 4)))
        axes.set_ylim(bottom=0)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], [ends[0], "25 %", "50 %", "75 %", ends[1]], parse_math=False)
        first, *_, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
        axes.set_xlabel("")
    return figure


def attention_profile_figure(
    z_mm: Floats,
    attention: Floats,
    windows: Sequence[Window | str],
    marked: Sequence[int] = (),
    *,
    slices: Sequence[int] | None = None,
    title: str = "Attention along the scan",
    quantity: str = "attention",
) -> Drawing:
    """Attention of each slice of one scan, a line a window.

    z_mm: (Z,) ascending. attention: (Z, W), summing to 1 over both. marked: rows whose slice is named.
    slices: (Z,) index of each row's slice along the scan; None where every slice has a row. quantity: what is shown.
    Longer scans than 200 slices keep their peaks.
    """
    if not len(z_mm) or not np.isfinite(attention).all():
        return missing_figure(title, f"nothing to draw: no slice has {quantity}")
    names = [window.name if isinstance(window, Window) else window for window in windows]
    number = range(len(z_mm)) if slices is None else slices
    top = int(attention.sum(axis=1).argmax())
    said = f"{title}: {len(z_mm)} slices, windows {', '.join(names)}; most at slice {number[top]}, {z_mm[top]:.1f} mm"
    note = f"dashed: even {quantity}, 1 / {attention.size}"
    legend = legend_height(len(names), note)
    figure = new_figure(shown(said, 400), height=TOP + 16 + 170 + BOTTOM + legend)
    axes = add_axes(figure, left=58, top=TOP + 16, bottom=BOTTOM + legend)
    handles = []
    for window, weights in enumerate(attention.T):
        rows = peaks(weights)
        style = look(window)
        axes.fill_between(z_mm[rows], 0, weights[rows], color=style["color"], alpha=0.12, linewidth=0)
        handles += axes.plot(z_mm[rows], weights[rows], linewidth=1.4, **style)
    axes.axhline(1 / attention.size, color=INK, alpha=0.6, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.set_ylim(0, float(attention.max()) * 1.08 or 1.0)
    axes.margins(x=0.01)
    across = axes.get_xaxis_transform()
    for first, last in _runs(marked, z_mm):
        middle = (z_mm[first] + z_mm[last]) / 2
        for index in {first, last}:
            axes.axvline(z_mm[index], color=INK, alpha=0.5, linewidth=0.7, linestyle=(0, (1, 2)))
        text = str(number[first]) if first == last else f"{number[first]}–{number[last]}"
        write(axes, middle, 1.02, text, transform=across, ha="center", va="bottom", fontsize=SMALL - 0.5)
    name_axes(axes, x="position along the scan (mm)", y=quantity, title="")
    figure.text(8 / WIDTH, 1 - 16 / (figure.get_size_inches()[1] * 72), shown(title), **TITLE)
    add_legend(figure, handles, names, note=note)
    return figure


def peaks(values: Floats, points: int = POINTS) -> NDArray[np.int64]:
    """Places of at most `points` values: the highest of each stretch, and both ends."""
    if len(values) <= points:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(len(values)), points - 2)
    highest = [int(rows[values[rows].argmax()]) for rows in stretches]
    return np.unique([0, *highest, len(values) - 1])


def _runs(marked: Sequence[int], z_mm: Floats) -> list[tuple[int, int]]:
    """Marked slices as runs (first, last): those too close for two numbers side by side share one."""
    apart = 0.09 * float(z_mm[-1] - z_mm[0])
    runs: list[tuple[int, int]] = []
    for index in sorted(set(marked)):
        if runs and z_mm[index] - z_mm[runs[-1][1]] < apart:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _lines(curves: Mapping[str, Curve], title: str, x: str, y: str) -> tuple[Drawing, Axes | None]:
    there = [(name, curve) for name, curve in curves.items() if not curve.missing]
    if not there:
        return missing_figure(title, "nothing to draw: no attention is known"), None
    labels = [curve.label or name for name, curve in there]
    note = "band: 95 % of draws of the patients, of the mean"
    legend = legend_height(len(labels), note)
    figure = new_figure(f"{title}: {'; '.join(labels)}", height=TOP + 190 + BOTTOM + legend)
    axes = add_axes(figure, bottom=BOTTOM + legend)
    handles = []
    for position, (_, curve) in enumerate(there):
        style = look(position)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.22, linewidth=0)
        handles += axes.plot(curve.x, curve.y, linewidth=1.6, **style)
    axes.set_xlim(-0.01, 1.01)
    name_axes(axes, x=x, y=y, title=title)
    add_legend(figure, handles, labels, note=note)
    return figure, axes
