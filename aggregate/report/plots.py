"""The figures of a run as SVG: its scores and folds here, its attention in `aggregate.report.attention_summary`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.figures import (
    Curve,
    Spread,
    Training,
    calibration_bars,
    calibration_figure,
    confusion_figure,
    pr_curve,
    pr_figure,
    roc_curve,
    roc_figure,
    spread_figure,
    svg,
    training_figure,
)
from aggregate.report.cases import called_codes
from aggregate.report.material import Material
from aggregate.report.quantity import quantity_figure
from aggregate.report.results import CHANCE, ResultRow, fold_values, main_rows, row_name
from aggregate.run import fold_name
from aggregate.scored import Scored
from aggregate.summary import METRIC_NAMES
from clear.endpoints import Endpoint

DRAWN = 8  # endpoints that get figures of their own
CLASSES = 6  # curves in one figure
SPREADS = 30  # lines of the figure of folds
MATRIX = 24  # classes of a confusion matrix


@dataclass(frozen=True)
class Panel:
    """The figures of one endpoint, as SVG; note: what is left out, or "" ."""

    name: str
    figures: tuple[str, ...]
    note: str = ""


def endpoint_panels(material: Material, mark: str, drawn: int = DRAWN) -> list[Panel]:
    """ROC, precision-recall and calibration curves and confusion matrices of the first `drawn` endpoints.

    mark: begins the ids inside the figures. Without predictions the curves are those of curves.csv, without bands.
    """
    shown = [endpoint for endpoint in material.endpoints if endpoint.name in _drawable(material)][:drawn]
    panels = []
    for number, endpoint in enumerate(shown):
        here = material.scored.get(endpoint.name)
        if here is not None and len(here):
            panels.append(_panel(here, f"{mark}-e{number}"))
        else:
            panels.append(_recorded(material, endpoint, f"{mark}-e{number}"))
    return [panel for panel in panels if panel.figures or panel.note]


def left_undrawn(material: Material, drawn: int = DRAWN) -> int:
    """How many endpoints have no figures for lack of room."""
    return max(0, len(_drawable(material)) - drawn)


def folds_svg(material: Material, rows: list[ResultRow], mark: str) -> tuple[str, str]:
    """(each fold's main figures beside the estimate of all, as SVG; what is left out): "" without predictions."""
    main = [row for row in main_rows(material, rows) if row.endpoint != "macro" and row.endpoint in material.scored]
    metrics = [row.metric for row in main]
    if not main:
        return "", ""
    metric = max(dict.fromkeys(metrics), key=metrics.count)
    chosen = [row for row in main if row.metric == metric]
    spreads = [spread for row in chosen[:SPREADS] if (spread := _spread(material, row)) is not None]
    if not spreads:
        return "", ""
    name = METRIC_NAMES.get(metric, metric)
    figure = spread_figure(spreads, title=f"{name} of each fold", x=name, reference=CHANCE.get(metric))
    left, other = len(chosen) - len(spreads), len(main) - len(chosen)
    notes = [f"{left} more endpoints are in the table."] if left else []
    notes += [f"Not drawn, but in the table: {other} with another main figure than {name}."] if other else []
    return svg(figure, name=f"{mark}-folds"), " ".join(notes)


def training_svg(material: Material, mark: str) -> str:
    """Losses over epochs of every fold; "" without a history."""
    if material.history is None:
        return ""
    best = {(fit.get("repeat"), fit.get("fold")): fit.get("best_epoch") for fit in material.fits}
    folds = {}
    for (repeat, fold), rows in material.history.sort("epoch").group_by("repeat", "fold", maintain_order=True):
        epoch, train, inner = (_floats(rows[name]) for name in ("epoch", "train_loss", "inner_loss"))
        folds[fold_name(int(str(repeat)), int(str(fold)))] = Training(epoch, train, inner, best.get((repeat, fold)))
    return svg(training_figure(folds), name=f"{mark}-training")


def roc_of_runs(materials: list[Material], mark: str) -> list[Panel]:
    """The ROC curves of several runs in one figure, for each binary endpoint that all of them scored."""
    panels = []
    shared = [e for e in materials[0].endpoints if e.kind == "binary" and all(e.name in m.scored for m in materials)]
    for number, endpoint in enumerate(shared[:DRAWN]):
        curves = {}
        for material in materials:
            here = material.scored[endpoint.name]
            curves[material.name] = roc_curve(here.truth == 1, _column(here, 0), here.patients, material.name)
        figure = roc_figure(curves, title=f"ROC, {endpoint.name}")
        panels.append(Panel(endpoint.name, (svg(figure, name=f"{mark}-roc{number}"),)))
    return panels


def _drawable(material: Material) -> list[str]:
    recorded = set() if material.curves is None else set(material.curves["endpoint"].to_list())
    kinds = {endpoint.name: endpoint.kind for endpoint in material.endpoints}
    return [
        name
        for name, kind in kinds.items()
        if kind != "survival" and (len(material.scored.get(name, ())) or name in recorded)
    ]


def _panel(scored: Scored, mark: str) -> Panel:
    endpoint = scored.endpoint
    if endpoint.kind == "regression":
        figure = quantity_figure(scored.truth, _column(scored, 0), title=endpoint.name)
        return Panel(endpoint.name, (svg(figure, name=f"{mark}-q"),))
    names = endpoint.score_classes
    shown = _largest(scored) if len(names) > CLASSES else list(range(len(names)))
    roc, pr, bars = {}, {}, {}
    for position in shown:
        truth = scored.truth == endpoint.classes.index(names[position])
        arguments = truth, _column(scored, position), scored.patients, names[position]
        roc[names[position]], pr[names[position]] = roc_curve(*arguments), pr_curve(*arguments)
        bars[names[position]] = calibration_bars(*arguments)
    prevalence = float((scored.truth == 1).mean()) if endpoint.kind == "binary" else None
    drawn = [
        svg(roc_figure(roc), name=f"{mark}-roc"),
        svg(pr_figure(pr, prevalence=prevalence), name=f"{mark}-pr"),
        svg(calibration_figure(bars), name=f"{mark}-cal"),
    ]
    if len(endpoint.classes) <= MATRIX:
        table = np.zeros((len(endpoint.classes),) * 2)
        np.add.at(table, (scored.truth.astype(np.int64), called_codes(scored)), 1)
        drawn.append(svg(confusion_figure(table, endpoint.classes), name=f"{mark}-confusion"))
    notes = [f"Curves of the {CLASSES} largest of {len(names)} classes."] if len(names) > CLASSES else []
    notes += [f"No confusion matrix: {len(endpoint.classes)} classes."] if len(endpoint.classes) > MATRIX else []
    return Panel(endpoint.name, tuple(drawn), " ".join(notes))


def _recorded(material: Material, endpoint: Endpoint, mark: str) -> Panel:
    """The curves of curves.csv, where there are no predictions to make bands of."""
    assert material.curves is not None
    rows = material.curves.filter(pl.col("endpoint") == endpoint.name)
    curves: dict[str, dict[str, Curve]] = {"roc": {}, "pr": {}}
    for (name, kind), points in rows.group_by("class", "curve", maintain_order=True):
        if kind in curves and len(curves[kind]) < CLASSES:
            x, y = (points[column].cast(pl.Float64).to_numpy() for column in ("x", "y"))
            curves[str(kind)][str(name)] = Curve(x, y, None, None, str(name) or endpoint.name)
    drawn = [
        svg(draw(curves[kind]), name=f"{mark}-{kind}")
        for kind, draw in (("roc", roc_figure), ("pr", pr_figure))
        if curves[kind]
    ]
    return Panel(endpoint.name, tuple(drawn), "From curves.csv, without bands." if drawn else "")


def _spread(material: Material, row: ResultRow) -> Spread | None:
    best, values = row.best, fold_values(material, row)
    if best is None or not len(values):
        return None
    return Spread(row_name(material, row), _nan(best.value), _nan(best.low), _nan(best.high), folds=values)


def _largest(scored: Scored) -> list[int]:
    counts = np.bincount(scored.truth.astype(np.int64), minlength=len(scored.endpoint.classes))
    return sorted(np.argsort(-counts, kind="stable")[:CLASSES].tolist())


def _floats(column: pl.Series) -> NDArray[np.float64]:
    # what is no number is nan here, and counted by `Material.differences`
    return np.asarray(column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy())


def _column(scored: Scored, position: int) -> NDArray[np.float64]:
    return np.asarray(scored.mean_scores[:, position])


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
