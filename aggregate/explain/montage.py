"""The most attended slices of a scan as one picture.

Each panel is a slice in its window, square pixels, as radiologists look at it, and carries what it needs when it is cut
out and mailed around: slice and position, weight and rank, window, scale bar and the letters of its edges. The map is
drawn twice, as heat and as contours, so that it can be read without colour.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from aggregate.explain.overlay import (
    CONTOUR_COLOUR,
    CONTOURS,
    FIRST_SLICE,
    HEAT,
    MARKED_COLOUR,
    checked,
    edge_marks,
    heat,
    most_weighted,
    place_name,
    scale_bar_mm,
    size_mm,
    window_name,
)
from clear.pictures import grey, resized_to_square_pixels, settled
from clear.volume import Volume
from clear.windows import Window

if TYPE_CHECKING:
    from aggregate.explain.boxes import Box

COLUMNS = 3
PANEL_IN = 3.2  # longest side of a panel
DPI = 120
TEXT = 8.5
NARROWEST_IN, STRIP_IN, GAP_IN, EDGE_IN, BAR_IN, LINE_IN = 2.8, 0.23, 0.07, 0.08, 0.75, 0.15
CHARACTERS_PER_IN = 15  # of the footnote
TITLE_IN, TITLE_PER_IN = 0.19, 9.0
OUTLINE = (patheffects.withStroke(linewidth=2.0, foreground="black"),)


class Montage(Figure):
    """A figure that a notebook shows as PNG."""

    def _repr_png_(self) -> bytes:
        return png(self)


def montage_figure(
    volume: Volume,
    window: Window,
    saliency: NDArray[np.float32] | None,
    weights: NDArray[np.float64],
    *,
    n: int = 6,
    title: str = "",
    boxes: Sequence[Box] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> Montage:
    """The `n` slices of the highest weight, the highest first, with heat and contours of the saliency.

    saliency: (Z, Y, X) >= 0 or None for the slices alone; its colour scale and contours are shares of the maximum over
    the whole volume, so that panels can be compared.
    weights: (Z,) shares, printed in percent: slice attention in this window, or summed over windows.
    boxes: marked lesions, dashed; mask: (Z, Y, X) marked voxels, outlined with the same dashes.

    Raises ValueError when shapes do not fit the volume, or n is not positive.
    """
    weights = checked(volume, saliency, weights)
    if mask is not None and mask.shape != volume.voxels.shape:
        raise ValueError(f"mask: expected {volume.voxels.shape}, the volume's shape; found {mask.shape}")
    if n < 1:
        raise ValueError(f"n: expected at least one slice; found {n}")
    chosen = most_weighted(weights, n)
    top = 0.0 if saliency is None else float(saliency.max())
    (shown,) = settled(volume, [window])
    marked = boxes is not None or mask is not None
    note = _footnote(volume, with_map=top > 0, zero=saliency is not None and top == 0, marked=marked)
    figure, panels = _panels(volume, len(chosen), title, note, bar=top > 0)
    for rank, (axes, index) in enumerate(zip(panels, chosen, strict=True), start=1):
        _draw_slice(axes, volume, shown, index)
        if saliency is not None and top > 0:
            _draw_map(axes, volume, saliency[index], top)
        _draw_marked(axes, volume, index, boxes or (), mask)
        _write(axes, volume, window, index, f"weight {100 * weights[index]:.1f} %, rank {rank}")
    if top > 0:
        _colour_bar(figure, panels)
    return figure


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as PNG; the same figure gives the same bytes with one version of matplotlib."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def _panels(volume: Volume, count: int, title: str, note: str, *, bar: bool) -> tuple[Montage, list[Axes]]:
    """An empty figure and its panels, row by row, all in the shape of a slice on a black card; sizes in inches."""
    height_mm, width_mm = size_mm(volume)
    scale = PANEL_IN / max(height_mm, width_mm)
    height, width = height_mm * scale, max(width_mm * scale, NARROWEST_IN)
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    across, down = width + GAP_IN, height + 2 * STRIP_IN + GAP_IN
    size_x = EDGE_IN + columns * across + (BAR_IN if bar else EDGE_IN)
    lines = textwrap.wrap(note, int(size_x * CHARACTERS_PER_IN))
    said = [part for line in title.splitlines() for part in textwrap.wrap(line, int(size_x * TITLE_PER_IN))]
    head = EDGE_IN + (TITLE_IN * len(said) + EDGE_IN if said else 0)
    size_y = head + rows * down + EDGE_IN + LINE_IN * len(lines)
    figure = Montage(figsize=(size_x, size_y), dpi=DPI, facecolor="white")
    panels = []
    for k in range(count):
        row, column = divmod(k, columns)
        x, y = EDGE_IN + column * across, size_y - head - (row + 1) * down + GAP_IN
        card = (x / size_x, y / size_y), width / size_x, (height + 2 * STRIP_IN) / size_y
        figure.add_artist(Rectangle(*card, facecolor="black", transform=figure.transFigure, zorder=-1))
        place = (x / size_x, (y + STRIP_IN) / size_y, width / size_x, height / size_y)
        panels.append(figure.add_axes(place, facecolor="black"))
        panels[-1].set_axis_off()
    place_x, title_y = EDGE_IN / size_x, 1 - EDGE_IN / size_y
    figure.text(place_x, title_y, "\n".join(said), va="top", fontsize=11, fontweight="bold", parse_math=False)
    figure.text(place_x, 0.06 / size_y, "\n".join(lines), va="bottom", fontsize=TEXT - 1, color="#333333")
    return figure, panels


def _draw_slice(axes: Axes, volume: Volume, window: Window, index: int) -> None:
    height, width = size_mm(volume)
    axes.imshow(
        grey(volume, index, window),
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(0, width, height, 0),
        interpolation="lanczos",
        aspect="equal",
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _draw_map(axes: Axes, volume: Volume, plane: NDArray[np.float32], top: float) -> None:
    height, width = size_mm(volume)
    values = resized_to_square_pixels(plane, volume.spacing_mm[1:])
    axes.imshow(heat(values, top), extent=(0, width, height, 0), interpolation="bilinear", aspect="equal")
    for share, style in zip(CONTOURS, ("dotted", "solid"), strict=True):
        if min(values.shape) > 1 and values.min() < share * top <= values.max():
            _outline(axes, values, share * top, (height, width), CONTOUR_COLOUR, style)


def _draw_marked(axes: Axes, volume: Volume, index: int, boxes: Sequence[Box], mask: NDArray[np.bool_] | None) -> None:
    dy, dx = volume.spacing_mm[1:]
    for box in boxes:
        if box.slices[0] <= index < box.slices[1]:
            width, height = (box.x[1] - box.x[0]) * dx, (box.y[1] - box.y[0]) * dy
            patch = Rectangle((box.x[0] * dx, box.y[0] * dy), width, height, fill=False, linewidth=1.2, linestyle="--")
            patch.set_edgecolor(MARKED_COLOUR)
            patch.set_path_effects(list(OUTLINE))
            axes.add_patch(patch)
    if mask is not None and mask[index].any() and not mask[index].all():
        values = resized_to_square_pixels(mask[index].astype(np.float32), (dy, dx))
        _outline(axes, values, 0.5, size_mm(volume), MARKED_COLOUR, "dashed")


def _outline(
    axes: Axes, values: NDArray[np.float32], level: float, size: tuple[float, float], colour: str, style: str
) -> None:
    """A contour through the pixels' centres, on a dark edge. size: (height, width) in millimetres."""
    y, x = ((np.arange(count) + 0.5) * side / count for count, side in zip(values.shape, size, strict=True))
    lines = axes.contour(x, y, values, levels=[level], colors=[colour], linewidths=1.2, linestyles=[style])
    lines.set_path_effects(list(OUTLINE))


def _write(axes: Axes, volume: Volume, window: Window, index: int, weight: str) -> None:
    """What a panel says: above and below the slice, so that no anatomy is hidden, and the letters of its edges."""
    _text(axes, (0, 1), place_name(volume, index), (4, 5), "left", "bottom")
    _text(axes, (1, 1), weight, (-4, 5), "right", "bottom", fontweight="bold")
    _text(axes, (0, 0), window_name(window, volume.modality), (4, -5), "left", "top")
    marks = edge_marks(volume)
    _text(axes, (0, 0.5), marks.left, (4, 0), "left", "center")
    _text(axes, (1, 0.5), marks.right, (-4, 0), "right", "center")
    _text(axes, (0.5, 1), marks.top, (0, -4), "center", "top")
    _text(axes, (0.5, 0), marks.bottom, (0, 4), "center", "bottom")
    width = size_mm(volume)[1]
    bar = scale_bar_mm(width)
    inch = axes.figure.dpi
    end, below = 1 - 4 / 72 * inch / axes.bbox.width, -0.5 * STRIP_IN * inch / axes.bbox.height
    axes.plot(
        [end - bar / width, end],
        [below, below],
        color="white",
        linewidth=2.5,
        solid_capstyle="butt",
        transform=axes.transAxes,
        clip_on=False,
    )
    _text(axes, (end - bar / width, 0), f"{bar} mm", (-4, -5), "right", "top")


def _text(
    axes: Axes, at: tuple[float, float], text: str, points: tuple[float, float], ha: str, va: str, **options: Any
) -> None:
    """White text on a dark edge; at: share of the panel, points: how far from there."""
    settings: dict[str, Any] = {"color": "white", "fontsize": TEXT, "path_effects": list(OUTLINE), **options}
    axes.annotate(
        text,
        at,
        xytext=points,
        xycoords="axes fraction",
        textcoords="offset points",
        ha=ha,
        va=va,
        annotation_clip=False,
        parse_math=False,
        **settings,
    )


def _colour_bar(figure: Figure, panels: Sequence[Axes]) -> None:
    """Beside the panels, from the foot of the last to the head of the first."""
    width = figure.get_figwidth()
    low, high = panels[-1].get_position().y0, panels[0].get_position().y1
    bar = figure.add_axes((1 - 0.66 / width, low, 0.13 / width, high - low))
    colours = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), cax=bar)
    colours.set_label("saliency / maximum", fontsize=TEXT)
    bar.tick_params(labelsize=TEXT - 1)
    for share, style in zip(CONTOURS, ("dotted", "solid"), strict=True):
        (line,) = bar.plot([0, 1], [share, share], color=CONTOUR_COLOUR, linewidth=1.4, linestyle=style)
        line.set_path_effects(list(OUTLINE))


def _footnote(volume: Volume, *, with_map: bool, zero: bool, marked: bool) -> str:
    parts = [f"Slices are counted from 0 {FIRST_SLICE[volume.plane]} and ordered by weight."]
    if with_map:
        low, high = (f"{100 * share:.0f} %" for share in CONTOURS)
        parts.append(f"Contours: {low} (dotted) and {high} of the scan's maximum.")
    if zero:
        parts.append("The map is zero everywhere.")
    if marked:
        parts.append("Dashed: marked lesion.")
    return " ".join(parts)
