"""ROC, precision-recall and calibration curves as figures; what they are made of is in `aggregate.figures.bands`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from aggregate.figures.bands import HISTOGRAM, Calibration, Curve
from aggregate.figures.style import (
    BOTTOM,
    INK,
    LEFT,
    MARKERS,
    RIGHT,
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
    shortened,
    thinned,
)

BANDS = 3  # curves in one figure that still have their band
_SIDE = WIDTH - LEFT - RIGHT
_HISTOGRAM_HEIGHT = 76.0
_GAP = 12.0


def roc_figure(curves: Mapping[str, Curve], *, title: str = "ROC") -> Drawing:
    """Sensitivity over 1 - specificity: endpoints of one run, or several runs of one endpoint.

    curves: by name; the legend shows a curve's label, else its name. Up to three have their band drawn.
    """
    lines = {name: _from_origin(curve) for name, curve in curves.items()}
    return _unit_figure(lines, title, "1 − specificity", "sensitivity", chance="diagonal")


def pr_figure(
    curves: Mapping[str, Curve], *, prevalence: float | None = None, title: str = "Precision and recall"
) -> Drawing:
    """Precision over recall, as `roc_figure`. prevalence: share of positives, the precision of calling by chance."""
    return _unit_figure(curves, title, "recall (sensitivity)", "precision", chance=prevalence)


def calibration_figure(bars: Mapping[str, Calibration], *, title: str = "Calibration") -> Drawing:
    """Share of positives over the predicted probability, in bins with their intervals; below, how scores spread.

    bars: by name, as in `roc_figure`. Of one, positives stand up and negatives hang down; of several, all bags stand.
    """
    there = {name: each for name, each in bars.items() if not each.missing}
    if not there:
        return missing_figure(title, _why_nothing([each.missing for each in bars.values()]))
    labels = [_label(name, each) for name, each in bars.items()]
    note = "95 % Wilson intervals over patients"
    if len(there) == 1:
        note += "; below: positives up"
    legend = legend_height(len(labels), note)
    height = TOP + _SIDE + _GAP + _HISTOGRAM_HEIGHT + BOTTOM + legend
    figure = new_figure(f"{title}: {'; '.join(labels)}", height=height)
    upper = add_axes(figure, bottom=BOTTOM + legend + _HISTOGRAM_HEIGHT + _GAP)
    lower = add_axes(figure, top=TOP + _SIDE + _GAP, bottom=BOTTOM + legend)
    _unit_axes(upper)
    upper.tick_params(labelbottom=False)
    name_axes(upper, y="share of positives", title=title)
    upper.plot([0, 1], [0, 1], color=INK, alpha=0.55, linewidth=0.8, linestyle=(0, (4, 4)))
    handles = []
    for position, each in enumerate(there.values()):
        handles.append(_bars(upper, each, position))
    _histograms(lower, list(there.values()))
    lower.set_xlim(-0.02, 1.02)
    name_axes(lower, x="predicted probability", y="scans")
    _legend_below(lower, handles, labels, [each.missing for each in bars.values()], note)
    return figure


def _unit_figure(curves: Mapping[str, Curve], title: str, x: str, y: str, *, chance: str | float | None) -> Drawing:
    there = [curve for curve in curves.values() if not curve.missing]
    if not there:
        return missing_figure(title, _why_nothing([curve.missing for curve in curves.values()]))
    labels = [_label(name, curve) for name, curve in curves.items()]
    with_band = len(there) <= BANDS
    note = _note(there)
    legend = legend_height(len(labels), note)
    figure = new_figure(f"{title}: {'; '.join(labels)}", height=TOP + _SIDE + BOTTOM + legend)
    axes = add_axes(figure, bottom=BOTTOM + legend)
    _unit_axes(axes)
    name_axes(axes, x=x, y=y, title=title)
    if chance == "diagonal":
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.55, linewidth=0.8, linestyle=(0, (4, 4)))
    elif isinstance(chance, float):
        axes.axhline(chance, color=INK, alpha=0.55, linewidth=0.8, linestyle=(0, (4, 4)))
    handles: list[Artist] = []
    for position, curve in enumerate(there):
        style = look(position)
        rows = thinned(len(curve.x))
        if with_band and curve.low is not None and curve.high is not None:
            axes.fill_between(
                curve.x[rows], curve.low[rows], curve.high[rows], color=style["color"], alpha=0.22, linewidth=0
            )
        handles += axes.plot(curve.x[rows], curve.y[rows], linewidth=1.6, solid_joinstyle="round", **style)
    _legend_below(axes, handles, labels, [curve.missing for curve in curves.values()], note)
    return figure


def _unit_axes(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    ticks = np.linspace(0, 1, 6)
    axes.set_xticks(ticks, [f"{v:.1f}" for v in ticks])
    axes.set_yticks(ticks, [f"{v:.1f}" for v in ticks])


def _bars(axes: Axes, each: Calibration, position: int) -> Artist:
    style = look(position)
    errors = np.maximum([each.y - each.low, each.high - each.y], 0.0)
    axes.errorbar(
        each.x, each.y, yerr=errors, fmt="none", ecolor=style["color"], elinewidth=1.0, capsize=2.5, alpha=0.8
    )
    line = axes.plot(
        each.x, each.y, marker=MARKERS[position % len(MARKERS)], markersize=5, linewidth=1.1, clip_on=False, **style
    )
    return line[0]


def _histograms(axes: Axes, bars: list[Calibration]) -> None:
    edges = np.linspace(0, 1, HISTOGRAM + 1)
    if len(bars) == 1:
        color = look(0)["color"]
        axes.stairs(bars[0].positives, edges, color=color, fill=True, alpha=0.75)
        axes.stairs(-bars[0].negatives, edges, color=color, fill=False, linewidth=1.0)
        top, bottom = int(bars[0].positives.max()), int(bars[0].negatives.max())
        axes.set_ylim(-1.2 * max(bottom, 1), 1.2 * max(top, 1))
        axes.axhline(0, color=INK, linewidth=0.7)
        axes.set_yticks([-bottom, top], [str(bottom), str(top)])
    else:
        for position, each in enumerate(bars):
            axes.stairs(each.positives + each.negatives, edges, linewidth=1.1, **look(position))
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=3, integer=True)
    axes.set_xticks(np.linspace(0, 1, 6))


def _legend_below(axes: Axes, handles: list[Artist], labels: list[str], missing: list[str], note: str) -> None:
    """What has no line is named too, with its reason."""
    lines = iter(handles)
    signs = [axes.plot([], [], linestyle="none")[0] if reason else next(lines) for reason in missing]
    texts = [
        f"{shortened(label, 26)}: {reason}" if reason else label for label, reason in zip(labels, missing, strict=True)
    ]
    figure = axes.get_figure(root=True)
    assert figure is not None
    add_legend(figure, signs, texts, note=note)


def _note(curves: list[Curve]) -> str:
    if len(curves) > BANDS:
        return f"bands are left out: {len(curves)} curves"
    lows = [curve.low for curve in curves if curve.low is not None]
    if not lows:
        return ""
    if all(np.isnan(low).all() for low in lows):
        return "no band: too few patients in a class"
    return "band: 95 % of draws of the patients, point by point"


def _from_origin(curve: Curve) -> Curve:
    """The curve with (0, 0) before its first point, where it may already stand high."""
    if curve.missing:
        return curve
    low, high = (None if v is None else np.concatenate([v[:1], v]) for v in (curve.low, curve.high))
    x, y = (np.concatenate([[0.0], v]) for v in (curve.x, curve.y))
    return replace(curve, x=x, y=y, low=low, high=high)


def _label(name: str, each: Curve | Calibration) -> str:
    return each.label or name


def _why_nothing(reasons: list[str]) -> str:
    if not reasons:
        return "there is nothing to draw"
    return "nothing to draw: " + "; ".join(dict.fromkeys(reasons))
