"""Hits and misses of a finding as one picture: where the map is brightest, and where the lesion is marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect
from numpy.typing import NDArray

from aggregate.explain.overlay import CONTOUR_COLOUR, MARKED_COLOUR, heat
from clear.pictures import grey, resized_to_square_pixels
from clear.volume import Volume
from clear.windows import Window

DARK: list[AbstractPathEffect] = [patheffects.withStroke(linewidth=2.2, foreground="black")]
SIDE = 2.5  # inches of a panel


@dataclass(frozen=True)
class Panel:
    """One slice: picture (H, W) uint8, heat (H, W) as a share of its brightest pixel, marked (H, W), and a title."""

    picture: NDArray[np.uint8]
    heat: NDArray[np.float32]
    marked: NDArray[np.bool_]
    title: str


def panel_of(
    volume: Volume,
    z: int,
    window: Window,
    saliency: NDArray[np.float32],
    region: NDArray[np.bool_],
    title: str,
) -> Panel:
    """The panel of the slice that holds the scan's brightest voxel. saliency, region: (Y, X) of that slice."""
    spacing = volume.spacing_mm[1], volume.spacing_mm[2]
    top = float(saliency.max())
    share = resized_to_square_pixels(saliency / top if top > 0 else saliency, spacing)
    marked = resized_to_square_pixels(region.astype(np.float32), spacing) >= 0.5
    return Panel(grey(volume, z, window), share, np.asarray(marked), title)


def hits_figure(finding: str, hits: Sequence[Panel], misses: Sequence[Panel]) -> Figure:
    """A row of hits above a row of misses of the pointing game; a row without any is left out.

    The marked lesion is outlined, where this slice holds one; so is half of the map's maximum, and its brightest pixel
    has a cross.
    """
    rows = [(word, panels) for word, panels in (("hits", hits), ("misses", misses)) if panels]
    columns = max((len(panels) for _, panels in rows), default=1)
    figure = Figure(figsize=(SIDE * columns + 0.4, (SIDE + 0.55) * max(len(rows), 1) + 0.6), dpi=144)
    figure.set_label(f"{finding}: {len(hits)} hits and {len(misses)} misses of the pointing game")
    axes = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (word, panels) in zip(axes, rows, strict=False):
        for axis, panel in zip(line, panels, strict=False):  # the shorter row leaves axes empty
            _draw(axis, panel)
        line[0].text(-0.05, 0.5, word, rotation=90, ha="right", va="center", transform=line[0].transAxes, fontsize=10)
    figure.suptitle(
        f"{finding}. dashed: the marked lesion; line: half of the map's maximum; cross: its maximum",
        fontsize=9,
        x=0.01,
        ha="left",
        parse_math=False,
    )
    top = 1 - 0.75 / figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.05, right=0.995, bottom=0.01, top=top, wspace=0.05, hspace=0.24)
    return figure


def _draw(axis: Axes, panel: Panel) -> None:
    axis.imshow(panel.picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.imshow(heat(panel.heat, 1.0))
    if panel.heat.min() < 0.5 <= panel.heat.max():
        axis.contour(panel.heat, levels=[0.5], colors=[CONTOUR_COLOUR], linewidths=1.0).set_path_effects(DARK)
    if panel.marked.any() and not panel.marked.all():
        axis.contour(
            panel.marked.astype(float), levels=[0.5], colors=[MARKED_COLOUR], linewidths=1.2, linestyles="dashed"
        ).set_path_effects(DARK)
    y, x = np.unravel_index(int(panel.heat.argmax()), panel.heat.shape)
    axis.plot([x], [y], marker="+", color=CONTOUR_COLOUR, markersize=8, markeredgewidth=1.6, path_effects=DARK)
    axis.set_title(panel.title, fontsize=6.5, parse_math=False)
