"""How objects show themselves in a notebook: a small card of facts and a table, in the notebook's own colours.

Ids, paths and class names come from outside; everything is escaped, nothing is loaded, no style leaves the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clear.bags import Bags
    from clear.scans import Scan

_CARD = "border:1px solid currentColor;border-radius:6px;padding:0.5em 0.8em;display:inline-block;max-width:100%"
_CELL = "text-align:left;padding:0.1em 0.8em 0.1em 0;border:0;background:none;vertical-align:top"
_LONGEST = 200  # characters of a cell
_SCANS = 5  # of a bag file


def card(
    title: str,
    facts: Sequence[tuple[str, object]],
    *,
    header: Sequence[str] = (),
    rows: Sequence[Sequence[object]] = (),
    notes: Sequence[str] = (),
) -> str:
    """HTML of a title, facts (name, value), a table and notes. A value of None or "" leaves its fact out.

    >>> "<img" in card("scan", [("id", "<img src=x>")])
    False
    """
    parts = [f'<div style="{_CARD}"><div style="font-weight:bold">{_text(title)}</div>']
    lines = [_row("td", name, value) for name, value in facts if value is not None and value != ""]
    if lines:
        parts.append(_table(lines))
    if rows:
        parts.append(_table([_row("th", *header), *(_row("td", *row) for row in rows)]))
    parts += [f'<div style="opacity:0.8">{_text(note)}</div>' for note in notes]
    return "".join([*parts, "</div>"])


def scan_card(scan: Scan) -> str:
    """A scan: what it is, whether it is used, and what was remarked."""
    spacing = None if scan.spacing_mm is None else " × ".join(f"{v:.3g}" for v in scan.spacing_mm) + " mm (z, y, x)"
    facts = [
        ("patient", scan.patient_id),
        ("study", scan.study_uid),
        ("what", _joined(scan.modality, scan.plane, f"({scan.format})" if scan.format else "")),
        ("size", f"{scan.n_slices} slices" + (f" of {scan.shape[0]} × {scan.shape[1]}" if scan.shape else "")),
        ("spacing", spacing),
        ("scanner", _joined(scan.manufacturer, scan.kernel)),
        ("verdict", f"{scan.verdict}: {scan.reason}" if scan.reason else scan.verdict),
        ("source", scan.source),
    ]
    return card(f"Scan {scan.scan_id}", facts, notes=[*filter(None, [scan.message]), *scan.remarks])


def bags_card(bags: Bags) -> str:
    """A bag file: how many scans and patients, which encoder and windows, and its first scans."""
    if bags.closed:
        return card(f"Bags {bags.path}", [], notes=["this bag file was closed"])
    scans = bags.scans
    unknown = scans["patient_id"].null_count()
    facts = [
        ("scans", f"{len(bags)}, {bags.features.shape[0]} instances"),
        ("patients", f"{scans['patient_id'].drop_nulls().n_unique()}" + (f", {unknown} unknown" if unknown else "")),
        ("encoder", f"{bags.encoder}, d = {bags.dim}, digest {bags.encoder_digest[:12]}"),
        ("trained on", bags.provenance.get("trained on")),
        ("windows", ", ".join(f"{w.name} ({w.low:g} to {w.high:g})" for w in bags.windows)),
        ("digest", bags.digest[:12]),
    ]
    columns = ["scan_id", "patient_id", "modality", "plane", "n_slices", "length"]
    rows = scans.head(_SCANS).select(columns).rows()
    more = [f"and {len(bags) - _SCANS} more scans in .scans"] if len(bags) > _SCANS else []
    return card(f"Bags {bags.path}", facts, header=columns, rows=rows, notes=more)


def _joined(*parts: str | None) -> str:
    return " ".join(filter(None, parts))


def _table(rows: Sequence[str]) -> str:
    return (
        f'<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:0.4em 0">{"".join(rows)}'
        "</table></div>"
    )


def _row(tag: str, *cells: object) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{_text(cell)}</{tag}>' for cell in cells) + "</tr>"


def _text(value: object) -> str:
    text = "" if value is None else str(value)
    return escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…", quote=True)
