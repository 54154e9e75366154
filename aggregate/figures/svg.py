"""A figure as an `<svg>` that stands inside a page.

What matplotlib writes is a file of its own; in a page its ids would clash with those of the next figure, its style
sheet would reach the whole page, and its black text would vanish on a dark ground. So: text stays text in the page's
own font, whatever was drawn in `INK` takes the page's text colour, ids that nothing refers to are dropped and the
others begin with the figure's own name, and coordinates end at a hundredth of a unit.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import xml.etree.ElementTree as ET

import matplotlib
from matplotlib.figure import Figure

INK = "#010203"  # nothing is drawn in it that should not take the page's colour
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SHORTHAND = re.compile(r"(?:(\d{3}|bold) )?([\d.]+px)")  # of matplotlib's `font`, before 3.10
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_COORDINATES = ("d", "x", "y", "width", "height", "transform", "points")


def svg(figure: Figure, *, name: str = "") -> str:
    """`<svg>`, as wide as its place allows and at most as wide as drawn; the same figure gives the same text.

    name: begins the ids inside, `[a-z0-9-]`; without one a digest of the content does, so that only two equal figures
    share their ids. The figure's label (`new_figure`) becomes `<title>`.
    """
    root = ET.fromstring(_UNPRINTABLE.sub("�", _written(figure)))
    for part in root.findall(f"{_SVG}metadata") + root.findall(f"{_SVG}defs"):
        if part.tag.endswith("metadata") or part.find(f"{_SVG}style") is not None:  # it would reach the whole page
            root.remove(part)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.tail = None
        element.text = element.text if element.tag == "text" else None
        _tidy(element)
    label = _UNPRINTABLE.sub("�", str(figure.get_label()))
    prefix = name or "f" + hashlib.sha256(label.encode() + ET.tostring(root)).hexdigest()[:10]
    _rename_ids(root, prefix)
    _flatten(root)
    _set_head(root, label, prefix)
    return ET.tostring(root, encoding="unicode")


def _written(figure: Figure) -> str:
    buffer = io.BytesIO()
    as_text = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "clear"})
    with as_text, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font has it, or shows what it lacks
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none", edgecolor="none")
    return buffer.getvalue().decode("utf-8")


def _tidy(element: ET.Element) -> None:
    """Style as attributes, which a page's style sheet can override; short numbers."""
    for rule in filter(None, element.attrib.pop("style", "").split(";")):
        key, value = (part.strip() for part in rule.split(":", 1))
        if key == "font":
            found = _SHORTHAND.search(value)
            weight, size = found.groups() if found else (None, "10px")
            element.set("font-size", _short(size))
            if weight:
                element.set("font-weight", weight)
        elif key != "font-family":
            element.set(key, _short(value.replace(INK, "currentColor")))
    if element.get("fill") == "currentColor" and element.tag == "text":
        del element.attrib["fill"]  # as the whole has it
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for key in _COORDINATES:
        if key in element.attrib:
            element.set(key, _short(" ".join(element.attrib[key].split())))
    if "d" in element.attrib:
        element.set("d", re.sub(r" ?([A-Za-z]) ?", r"\1", element.attrib["d"]))


def _short(value: str) -> str:
    return _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)


def _flatten(element: ET.Element) -> None:
    """Groups that say nothing are opened, and what cannot be seen is dropped."""
    kept: list[ET.Element] = []
    for child in list(element):
        _flatten(child)
        unseen = child.tag == "path" and child.get("fill") == "none" and "stroke" not in child.attrib
        if (unseen and element.tag == "g") or (child.tag == "g" and not len(child)):
            continue
        kept += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = kept


def _rename_ids(root: ET.Element, prefix: str) -> None:
    """Ids in use are numbered behind the prefix; the others go."""
    new: dict[str, str] = {}
    for element in root.iter():
        inside = [old for value in element.attrib.values() for old in _REFERENCE.findall(value)]
        for old in [*inside, *filter(None, [element.get(_LINK, "")[1:]])]:
            new.setdefault(old, f"{prefix}-{len(new)}")
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in new:
            element.set("id", new[own])
        link = element.attrib.pop(_LINK, None)
        if link is not None:
            element.set("href", "#" + new[link[1:]])
        for key, value in list(element.items()):
            if "url(#" in value:
                element.set(key, _REFERENCE.sub(lambda match: f"url(#{new[match[1]]})", value))


def _set_head(root: ET.Element, label: str, prefix: str) -> None:
    """Size, role, title and the page's colour and font."""
    for side in ("width", "height"):
        root.set(side, root.get(side, "").removesuffix("pt"))
    root.attrib.pop("version", None)
    root.attrib.update(
        {
            "xmlns": _SVG.strip("{}"),
            "role": "img",
            "aria-labelledby": f"{prefix}-title",
            "fill": "currentColor",
            "stroke-linejoin": "round",
            "font-family": "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif",
            "style": "max-width:100%;height:auto",
        }
    )
    title = ET.Element("title", {"id": f"{prefix}-title"})
    title.text = label
    root.insert(0, title)
