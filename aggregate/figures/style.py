"""One look for every figure, and the SVG that goes into a page.

Figures are made with matplotlib's objects alone (no pyplot, no global state). Lines differ in colour (Okabe and Ito,
Color Universal Design, 2008) and in their dashes, so that they can be told apart on a grey print. Text and axes are
drawn in `INK`, which `svg` turns into the text colour of the page, light or dark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from aggregate.figures.svg import INK, svg

__all__ = [
    "INK",
    "Drawing",
    "add_axes",
    "add_legend",
    "dress",
    "legend_height",
    "look",
    "missing_figure",
    "name_axes",
    "new_figure",
    "shortened",
    "shown",
    "svg",
    "thinned",
    "write",
]

WIDTH = 360.0  # units of a figure: points on paper, pixels on a narrow screen
SIZE = 12.0  # of text, in the same units
SMALL = 10.5
LINE = 15.5  # height of a line of a legend
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.4, 1.2, 1.4)), (0, (8, 3)), (0, (2.5, 2.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 28.0, 44.0  # margins of axes with a label on both sides
TITLE: dict[str, Any] = {"fontsize": SIZE, "color": INK, "fontweight": "bold", "parse_math": False}
POINTS = 200  # of a line, at most
_LONGEST = 52  # characters of a name


class Drawing(Figure):
    """A figure that a notebook shows as SVG in its own text colour."""

    def _repr_html_(self) -> str:
        return f'<div style="max-width:40em">{svg(self)}</div>'


def new_figure(description: str, *, height: float = 300.0, width: float = WIDTH) -> Drawing:
    """An empty figure of this size in units of 1/72 inch. description: what a screen reader says."""
    figure = Drawing(figsize=(width / 72, height / 72), dpi=144)
    figure.set_label(description)
    figure.patch.set_alpha(0.0)
    return figure


def add_axes(
    figure: Figure,
    *,
    left: float = LEFT,
    right: float = RIGHT,
    top: float = TOP,
    bottom: float = BOTTOM,
    **options: Any,
) -> Axes:
    """Axes with these margins, in units of the figure, without a box around them."""
    width, height = figure.get_size_inches() * 72
    place = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(place, **options)
    dress(axes)
    return axes


def dress(axes: Axes) -> None:
    """Ink, thin lines, a faint grid and no box."""
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)
    axes.grid(True, color=INK, alpha=0.13, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=SMALL, width=0.7, length=3)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_linewidth(0.7)
        spine.set_visible(name in ("left", "bottom"))


def name_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Labels in ink; none of them is read as mathematics."""
    axes.set_xlabel(shown(x), fontsize=SIZE, color=INK, parse_math=False)
    axes.set_ylabel(shown(y), fontsize=SIZE, color=INK, parse_math=False)
    axes.set_title(shown(title), loc="left", **TITLE)


def write(axes: Axes, x: float, y: float, text: str, *, long: int = _LONGEST, **options: Any) -> Text:
    """Text in ink, in the units of the data unless `transform` says otherwise."""
    settings: dict[str, Any] = {"fontsize": SMALL, "color": INK, "parse_math": False, **options}
    return axes.text(x, y, shown(text, long), **settings)


def shown(text: str, long: int = 120) -> str:
    """A text from outside as a figure can hold it: no control characters, not longer than `long`.

    >>> shown("a\\x00b", 60), shown("abcdef", 4)
    ('a�b', 'abc…')
    """
    clean = "".join(c if c.isprintable() or c == "\n" else "�" for c in str(text))
    return clean if len(clean) <= long else clean[: long - 1] + "…"


def shortened(text: str, long: int = _LONGEST) -> str:
    """As `shown`, but with its middle left out: names differ at their ends.

    >>> shortened("lesion-abmil-2: 0.87", 11)
    'lesio… 0.87'
    """
    clean = shown(text, 10_000)
    return clean if len(clean) <= long else f"{clean[: long // 2]}…{clean[len(clean) - (long - 1 - long // 2) :]}"


def thinned(n: int, points: int = POINTS) -> NDArray[np.int64]:
    """Places of at most `points` of n points, evenly spread, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, points)).round().astype(np.int64)) if n else np.zeros(0, np.int64)


def look(position: int) -> dict[str, Any]:
    """Colour and dashes of the line at this position; all differ within 36 lines."""
    return {
        "color": COLOURS[position % len(COLOURS)],
        "linestyle": DASHES[(position + position // len(COLOURS)) % len(DASHES)],
    }


def add_legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], *, note: str = "") -> None:
    """A legend at the foot of the figure, a line for each label, and a note below; `legend_height` is its room.

    Labels are set after it is made: matplotlib leaves out those that begin with `_`.
    """
    width, height = figure.get_size_inches() * 72
    place = (8.0 / width, (legend_height(len(labels), note) - 2.0) / height)
    legend = figure.legend(
        handles,
        [str(i) for i in range(len(labels))],
        loc="upper left",
        bbox_to_anchor=place,
        frameon=False,
        fontsize=SMALL,
        handlelength=2.6,
        borderaxespad=0.0,
        borderpad=0.0,
        labelspacing=LINE / SMALL - 1.0,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_color(INK)
        text.set_text(shortened(label))
    if note:
        figure.text(8.0 / width, 6.0 / height, note, fontsize=SMALL - 1, color=INK, alpha=0.75, parse_math=False)


def legend_height(lines: int, note: str = "") -> float:
    """Room of a legend of so many lines at the foot of a figure."""
    return LINE * (lines + bool(note)) + 6.0


def missing_figure(title: str, reason: str) -> Drawing:
    """A figure that says what cannot be drawn, and why."""
    text = _wrapped(reason, 54)
    figure = new_figure(f"{title}: {reason}", height=TOP + LINE * (text.count("\n") + 1) + 20)
    axes = add_axes(figure, left=12, right=12, bottom=4)
    axes.set_axis_off()
    name_axes(axes, title=title)
    write(axes, 0.0, 0.95, text, long=500, va="top", transform=axes.transAxes, fontsize=SIZE)
    return figure


def _wrapped(text: str, width: int) -> str:
    return "\n".join(re.findall(rf"\S.{{0,{width - 2}}}\S(?=\s|$)|\S+", shown(text, 400)))
