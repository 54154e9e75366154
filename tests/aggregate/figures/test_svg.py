"""A figure in a page: safe, small, in the page's colours, and out of its neighbours' way."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from PIL import Image

from aggregate.figures import roc_curve, roc_figure, svg
from aggregate.figures.style import INK, Drawing, shortened

Draw = Callable[[str], Drawing]
HOSTILE = (f'<img src=x onerror=alert(1)> "><script> fill: {INK}', "$x_{", "_nul\x00 bell\x07 肺結節", "")


def texts(drawn: str) -> str:
    return " ".join("".join(element.itertext()) for element in ET.fromstring(drawn).iter() if "text" in element.tag)


def test_every_figure_is_an_svg_that_loads_nothing_and_styles_nothing_else(draw: Draw) -> None:
    root = ET.fromstring(svg(draw("lesion")))
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "title", "g", "defs", "clipPath", "rect", "path", "use", "text", "tspan"}
    links = [value for element in root.iter() for key, value in element.items() if "href" in key]
    assert all(link.startswith("#") for link in links)
    assert [element for element in root.iter() if "style" in element.attrib] == [root]


def test_ids_are_the_figures_own_and_every_reference_is_met(draw: Draw) -> None:
    one, other = draw("lesion"), draw("another lesion")
    found = []
    for drawn in (svg(one), svg(other), svg(one, name="case-7")):
        ids = re.findall(r' id="([^"]+)"', drawn)
        assert len(set(ids)) == len(ids)
        assert set(re.findall(r'(?:url\(#|href="#|labelledby=")([^")]+)', drawn)) == set(ids)
        found.append(set(ids))
    assert not found[0] & found[1]
    assert all(name.startswith("case-7-") for name in found[2])
    assert not found[0] & found[2]


def test_text_and_axes_take_the_colour_of_the_page(draw: Draw) -> None:
    drawn = svg(draw("lesion"))
    root = ET.fromstring(drawn)
    assert root.get("fill") == "currentColor"
    assert INK not in drawn
    assert {element.get("fill") for element in root.iter() if element.tag.endswith("text")} <= {None, "#ffffff"}
    colours = set(re.findall(r'(?:stroke|fill)="([^"]+)"', drawn))
    assert "#000000" not in colours


def test_text_stays_text_and_the_figure_has_a_title(draw: Draw) -> None:
    drawn = svg(draw("lesion"))
    assert "lesion" in texts(drawn)
    root = ET.fromstring(drawn)
    title = root[0]
    assert title.tag.endswith("title")
    assert root.get("aria-labelledby") == title.get("id")
    assert title.text
    assert "DejaVu" not in drawn


def test_a_figure_is_small_and_its_lines_are_thin(draw: Draw) -> None:
    drawn = svg(draw("lesion"))
    assert len(drawn) < 40_000
    lines = [element for element in ET.fromstring(drawn).iter() if element.get("fill") == "none"]
    assert max((element.get("d", "").count("L") for element in lines), default=0) <= 200
    assert ET.fromstring(drawn).get("width") == "360"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_text(draw: Draw, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = svg(draw(name))
    assert "<img" not in drawn
    assert "<script" not in drawn
    assert "\x00" not in drawn
    if name == "$x_{":
        assert name in texts(drawn)


def test_names_that_matplotlib_would_drop_are_in_the_legend() -> None:
    truth, scores = np.arange(20) % 2 == 0, np.linspace(0, 1, 20)
    curves = {name: roc_curve(truth, scores, np.arange(20), "", n=20) for name in ("_a", "_b")}
    assert "_a" in texts(svg(roc_figure(curves)))


def test_the_same_arrays_give_the_same_text(draw: Draw) -> None:
    assert svg(draw("lesion")) == svg(draw("lesion"))


def test_drawing_leaves_no_trace(draw: Draw) -> None:
    before = dict(matplotlib.rcParams)
    svg(draw("lesion"))
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs


def test_a_figure_is_a_picture_too_and_shows_itself_in_a_notebook(draw: Draw) -> None:
    figure, buffer = draw("lesion"), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=72)
    assert Image.open(buffer).size[0] == 360
    assert svg(figure) in figure._repr_html_()


def test_a_long_name_keeps_both_ends() -> None:
    assert shortened("a" * 50 + " 0.87", 20) == "a" * 10 + "…" + "aaaa 0.87"
    assert shortened("short", 20) == "short"
