"""The page: what was gathered of each run, through a template that escapes every text.

One file: style and script are inlined, figures are SVG, pictures are data. A Content-Security-Policy forbids it to load
or send anything, and allows no script but this one, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from aggregate.report.attended import attention_of
from aggregate.report.attention_summary import AttentionPanel, attention_panels, ends_of
from aggregate.report.case_list import CaseList, case_list
from aggregate.report.cautions import Caution, cautions, remarks
from aggregate.report.cohort_flow import Step, cohort_flow
from aggregate.report.comparison import compared, verdict
from aggregate.report.confounders import scan_table_summary
from aggregate.report.facts import Asked, asked, encoder_facts, protocol, question_facts, training_facts
from aggregate.report.ids import Ids
from aggregate.report.material import Gap, Material
from aggregate.report.plots import DRAWN, Panel, endpoint_panels, folds_svg, left_undrawn, roc_of_runs, training_svg
from aggregate.report.results import ResultRow, beside, headline, main_rows, result_rows, row_name
from aggregate.summary import METRIC_NAMES

HERE = Path(__file__).parent


@dataclass(frozen=True)
class RunView:
    """One run as the template takes it. mark: begins its ids in the page."""

    mark: str
    name: str
    title: str
    subtitle: str
    unit: str
    headline: str
    beside: str
    tiles: tuple[tuple[str, str, str], ...]
    cautions: tuple[Caution, ...]
    remarks: tuple[str, ...]
    gaps: tuple[Gap, ...]
    flow: tuple[Step, ...]
    asked: tuple[Asked, ...]
    question: tuple[tuple[str, str], ...]
    encoder: tuple[tuple[str, str], ...]
    training: tuple[tuple[str, str], ...]
    scanners: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    main: tuple[ResultRow, ...]
    results: tuple[ResultRow, ...]
    row_names: dict[tuple[str, str], str]
    panels: tuple[Panel, ...]
    undrawn: int
    folds_svg: str
    folds_note: str
    fold_rows: tuple[dict[str, Any], ...]
    training_svg: str
    attention: tuple[AttentionPanel, ...]
    ends: tuple[str, str]
    cases: CaseList


def render(
    materials: Sequence[Material], *, scans: Path | str | None = None, show_ids: bool = False, salt: bytes | None = None
) -> str:
    """The HTML of a report of these runs. scans: the folder that pictures are made from.

    salt: of the pseudonyms, random without; the same salt gives the same page.
    """
    ids = Ids(show_ids, salt)
    several = len(materials) > 1
    views = [_view(each, f"r{i}", ids, scans, len(materials)) for i, each in enumerate(materials, start=1)]
    pairs = compared(list(materials)) if several else []
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_function"] = _cells
    environment.filters |= {"svg": Markup, "metric": lambda name: METRIC_NAMES.get(name, name), "verdict": verdict}
    return environment.get_template("report.html.j2").render(
        views=views,
        pairs=pairs,
        rocs=roc_of_runs(list(materials), "c") if several else [],
        title=" and ".join(view.name for view in views) if several else views[0].title,
        show_ids=show_ids,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=next((str(m.part("versions").get("clear", "")) for m in materials if m.part("versions")), ""),
    )


def _view(material: Material, mark: str, ids: Ids, scans: Path | str | None, runs: int) -> RunView:
    rows, drawn = result_rows(material), max(1, DRAWN // runs)
    main = main_rows(material, rows)
    flow = cohort_flow(material)
    attention = attention_of(material)
    listed = case_list(material, attention, ids, mark, scans=scans, runs=runs)
    panels = endpoint_panels(material, mark, drawn)
    folds, folds_note = folds_svg(material, rows, mark)
    training = training_svg(material, mark)
    found = cautions(material, rows, flow)
    known, differences = material.ids, material.differences
    settings = material.settings
    bag_scans = None if material.bags is None else material.bags.scans
    return RunView(
        mark=mark,
        name=material.name,
        title=str(material.part("task").get("name", "") or material.name),
        subtitle=_subtitle(material),
        unit=material.unit,
        headline=headline(material, rows),
        beside=beside(rows, main[0]) if main else "",
        tiles=tuple(_tiles(material, main)),
        cautions=tuple(found),
        remarks=tuple(remarks(material, ids)),
        gaps=tuple(Gap(gap.what, ids.sentence(gap.why, known)) for gap in (*material.gaps, *differences)),
        flow=tuple(flow),
        asked=tuple(asked(material)),
        question=tuple(question_facts(material, ids)),
        encoder=tuple(encoder_facts(material, ids)),
        training=tuple(training_facts(material, ids)),
        scanners=() if bag_scans is None else tuple((n, tuple(v)) for n, v in scan_table_summary(bag_scans)),
        main=tuple(main),
        results=tuple(rows),
        row_names={(row.endpoint, row.name): row_name(material, row) for row in rows},
        panels=tuple(panels),
        undrawn=left_undrawn(material, drawn),
        folds_svg=folds,
        folds_note=folds_note,
        fold_rows=tuple(_fold_rows(material, settings)),
        training_svg=training,
        attention=() if attention is None else tuple(attention_panels(material, attention, mark)),
        ends=ends_of([] if bag_scans is None else bag_scans["plane"].unique().to_list()),
        cases=listed,
    )


def _subtitle(material: Material) -> str:
    settings = material.settings
    parts = [str(settings.get("aggregator", "")), str(material.part("bags").get("encoder", "")), protocol(settings)]
    return " · ".join(part for part in parts if part)


def _tiles(material: Material, main: list[ResultRow]) -> list[tuple[str, str, str]]:
    """(number, what it is, its interval or part) of the head of the page."""
    tiles = []
    if main and main[0].best is not None:
        row, best = main[0], main[0].best
        name = METRIC_NAMES.get(row.metric, row.metric)
        interval = "" if best.low is None or best.high is None else f"{best.low:.2f} to {best.high:.2f}, 95 %"
        tiles.append(("n/a" if best.value is None else f"{best.value:.2f}", name, interval))
    cohort = material.part("cohort")
    if cohort:
        tiles.append(
            (f"{cohort.get('scans_used', 0)}", "scans", f"of {cohort.get('scans_in_file', 0)} in the bag file")
        )
        tiles.append((f"{cohort.get('patients', 0)}", "patients", ""))
    if main and main[0].n_positive is not None and main[0].n:
        what = "events" if main[0].metric == "c_index" else "positive"
        tiles.append(
            (f"{main[0].n_positive}", what, f"{100 * main[0].n_positive / main[0].n:.0f} % of {material.unit}")
        )
    if material.fits:
        tiles.append((f"{len(material.fits)}", "models" if len(material.fits) > 1 else "model", ""))
    return tiles


def _fold_rows(material: Material, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each model how many scans it saw and when it stopped."""
    counts: dict[tuple[Any, Any], dict[str, int]] = {}
    if material.folds is not None:
        for repeat, fold, split, n in material.folds.group_by("repeat", "fold", "split").agg(pl.len()).iter_rows():
            counts.setdefault((repeat, fold), {})[split] = n
    fits = {(fit.get("repeat"), fit.get("fold")): fit for fit in material.fits}
    rows = []
    for pair in sorted({*counts, *fits}, key=str):
        n, fit = counts.get(pair, {}), fits.get(pair, {})
        rows.append(
            {
                "repeat": pair[0],
                "fold": pair[1],
                **{split: n.get(split) for split in ("train", "inner", "test")},
                "best": fit.get("best_epoch"),
                "steps": fit.get("steps"),
                "chosen": ", ".join(f"{key} {value}" for key, value in fit.get("chosen", {}).items()),
            }
        )
    return rows


def _cells(values: Sequence[Any], **options: Any) -> str:
    """Cells of a table as JSON: it has no NaN, and a script that meets one stops."""
    known = [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]
    return json.dumps(known, **options)
