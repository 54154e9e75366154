"""What to watch out for before believing a run: sentences made of its own figures, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aggregate.report.cohort_flow import Step, lost_in_extraction
from aggregate.report.confounders import confounders
from aggregate.report.ids import Ids
from aggregate.report.material import Material
from aggregate.report.results import (
    CHANCE,
    LESS_IS_BETTER,
    ResultRow,
    beside_chance,
    fold_values,
    main_rows,
    row_name,
)
from aggregate.scored import Scored
from aggregate.summary import METRIC_NAMES

FEW = 20  # patients of the rarer class: an AUROC of 0.75 then has an interval about 0.25 wide
SPREAD = 0.1  # standard deviation over folds
LOST = 0.05  # share of series or labels
SEEN = "were seen in the encoder's training"  # aggregate.record.encoder_remarks
_NO_CONCLUSION = ("untrained", "not for any conclusion", "not for clinical conclusions", "synthetic phantoms")
_NAMED = 5  # endpoints in a sentence

Weight = Literal["grave", "note"]


@dataclass(frozen=True)
class Caution:
    """One thing to know. grave: it can turn the result over; otherwise it limits what may be concluded."""

    weight: Weight
    about: str
    text: str


def cautions(material: Material, rows: list[ResultRow], flow: list[Step]) -> list[Caution]:
    """All that apply, grave ones first."""
    found = [
        *_weights(material),
        *_seen(material),
        *_chance(material, rows),
        *_baselines(material, rows),
        *_few(material),
        *_folds(material, rows),
        *confounded(material),
        *_not_learnt(material),
        *_lost(material, flow),
        *_stopping(material),
    ]
    return sorted(found, key=lambda caution: caution.weight != "grave")


def _weights(material: Material) -> Iterator[Caution]:
    line = str(material.part("bags").get("trained_on", ""))
    if any(words in line for words in _NO_CONCLUSION):
        yield Caution("grave", "encoder", f"The encoder's weights are for demonstration: {line}.")


def _seen(material: Material) -> Iterator[Caution]:
    for remark in _remarks_of(material):
        if SEEN in remark:
            yield Caution("grave", "pretraining", f"{remark[:1].upper()}{remark[1:]}.")


def _chance(material: Material, rows: list[ResultRow]) -> Iterator[Caution]:
    """Of each metric that has a value of guessing, the endpoints whose interval includes it or lies below it."""
    found: dict[tuple[str, bool], list[ResultRow]] = {}
    for row in main_rows(material, rows):
        lies = beside_chance(row)
        if lies in ("below", "at"):
            found.setdefault((row.metric, lies == "below"), []).append(row)
    for (metric, below), here in found.items():
        listed = _some([f"{row_name(material, row)} ({_interval(row)})" for row in here])
        does = "lies wholly below" if below else "includes"
        text = f"The interval of {METRIC_NAMES[metric]} {does} {CHANCE[metric]:g}, what guessing gives: {listed}."
        if below:
            text += " Worse than guessing"
            text += "." if metric == "r2" else ": are labels or scores inverted?"
        yield Caution("grave", "worse than guessing" if below else "chance", text)


def _baselines(material: Material, rows: list[ResultRow]) -> Iterator[Caution]:
    """Baselines that do as well as the model, or lie within its interval."""
    better, within = [], []
    for main in main_rows(material, rows):
        best = main.best
        if best is None or best.value is None:
            continue
        sign = -1.0 if main.metric in LESS_IS_BETTER else 1.0
        limit = best.high if sign < 0 else best.low
        for row in rows:
            same = (row.endpoint, row.name, row.metric) == (main.endpoint, main.name, main.metric)
            if not (same and row.source and row.best and row.best.value is not None):
                continue
            told = f"{row_name(material, main)}: {row.source} {row.best.value:.2f}, model {best.value:.2f}"
            if sign * row.best.value >= sign * best.value:
                better.append(told)
            elif limit is not None and sign * row.best.value > sign * limit and beside_chance(main) in (None, "above"):
                within.append(told)
    if better:
        yield Caution(
            "grave",
            "baseline",
            f"A model that saw no image does as well or better ({_some(better)}): the image model has perhaps learnt "
            "no more than the scanner's settings or the patient's record.",
        )
    if within:
        yield Caution(
            "note", "baseline", f"A model that saw no image lies within the model's interval: {_some(within)}."
        )


def _few(material: Material) -> Iterator[Caution]:
    """Endpoints whose rarer class has few patients; of survival, few with the event."""
    listed = []
    for name, scored in material.scored.items():
        if not len(scored) or scored.endpoint.kind == "regression":
            continue
        counts = _patients_by_class(scored)
        least = min(counts, key=lambda label: counts[label])
        if counts[least] < FEW:
            listed.append((counts[least], f"{name}: {counts[least]} {_patients(counts[least])} {least}"))
    if listed:
        worst = min(n for n, _ in listed)
        yield Caution(
            "grave" if worst < FEW / 2 else "note",
            "few patients",
            f"Few patients carry the result ({_some([text for _, text in sorted(listed)])}): a handful of other "
            "patients could move it, and the interval may be too narrow.",
        )


def _patients_by_class(scored: Scored) -> dict[str, int]:
    endpoint = scored.endpoint
    if endpoint.kind == "survival":
        return {"with the event": len(np.unique(scored.patients[scored.truth[:, 1] == 1]))}
    return {
        f"of {label!r}": len(np.unique(scored.patients[scored.truth == code]))
        for code, label in enumerate(endpoint.classes)
    }


def _folds(material: Material, rows: list[ResultRow]) -> Iterator[Caution]:
    """Main figures that differ much between folds, and folds that define none."""
    models = len(material.fits)
    apart, undefined = [], []
    for row in main_rows(material, rows):
        if row.folds is None or row.endpoint == "macro":
            continue
        if row.metric in CHANCE and row.folds.sd is not None and row.folds.sd >= SPREAD:
            apart.append(f"{row_name(material, row)}: {METRIC_NAMES[row.metric]} {_range(material, row)}")
        if models and row.folds_defined is not None and row.folds_defined < models:
            undefined.append(f"{row_name(material, row)}: {row.folds_defined} of {models}")
    if apart:
        text = f"{_some(apart)}. New patients may fare as those of the worst fold did."
        yield Caution("note", "folds disagree", text)
    if undefined:
        yield Caution("note", "folds without a value", f"The figure is not defined in every fold: {_some(undefined)}.")


def _range(material: Material, row: ResultRow) -> str:
    """From the worst to the best fold, where scores are at hand."""
    sd = "" if row.folds is None or row.folds.sd is None else f"standard deviation {row.folds.sd:.2f}"
    values = fold_values(material, row)
    values = values[np.isfinite(values)]
    return f"from {values.min():.2f} to {values.max():.2f} ({sd})" if len(values) else sd


def confounded(material: Material) -> Iterator[Caution]:
    """Scanner, kernel and the like that go with the label."""
    found = confounders(material)
    for one in found:
        yield Caution("grave" if one.strong else "note", "imbalance", one.text)


def _not_learnt(material: Material) -> Iterator[Caution]:
    names = [name for fit in material.fits for name in fit.get("not_learnt", ())]
    listed = [f"{name} in {names.count(name)} of {len(material.fits)} folds" for name in dict.fromkeys(names)]
    if listed:
        yield Caution(
            "note", "not learnt", f"Training had nothing to learn from: {_some(listed)}; these score nothing."
        )


def _lost(material: Material, flow: list[Step]) -> Iterator[Caution]:
    encoded, series = lost_in_extraction(flow), next((step for step in flow if step.name == "series found"), None)
    if encoded and series:
        lost = [(n, why) for n, why in encoded.lost if why.startswith(("refused", "failed"))]
        total = sum(n for n, _ in lost)
        if total > LOST * series.count:
            listed = _some([f"{n} {why}" for n, why in lost])
            yield Caution(
                "note",
                "refused scans",
                f"{total} of {series.count} series were not encoded ({listed}): is what they show missing at random?",
            )
    cohort = material.part("cohort")
    rows, alone = cohort.get("label_rows") or 0, cohort.get("label_rows_without_scan") or 0
    if rows and alone > LOST * rows:
        yield Caution(
            "note",
            "labels without scans",
            f"{alone} of {rows} label rows have no scan: the cohort may not be the one that was meant.",
        )


def _stopping(material: Material) -> Iterator[Caution]:
    fits = [fit for fit in material.fits if fit.get("best_epoch") and fit.get("epochs_at_most")]
    late = sum(fit["best_epoch"] >= fit["epochs_at_most"] for fit in fits)
    early = sum(fit["best_epoch"] <= 1 for fit in fits)
    if fits and late > len(fits) / 3:
        yield Caution(
            "note",
            "training",
            f"{late} of {len(fits)} models were still improving in their last epoch: longer training may do better.",
        )
    if fits and early > len(fits) / 3:
        yield Caution(
            "note",
            "training",
            f"{early} of {len(fits)} models were best after their first epoch: they may have learnt little.",
        )


def remarks(material: Material, ids: Ids) -> list[str]:
    """What training itself remarked, but for what is a caution already, without ids and folders."""
    return [ids.sentence(remark, material.ids) for remark in _remarks_of(material) if SEEN not in remark]


def _remarks_of(material: Material) -> list[str]:
    remarks = material.settings.get("remarks", [])
    return [str(remark) for remark in remarks] if isinstance(remarks, list) else []


def _interval(row: ResultRow) -> str:
    best = row.best
    return "" if best is None or best.low is None or best.high is None else f"{best.low:.2f} to {best.high:.2f}"


def _patients(n: int) -> str:
    return "patient" if n == 1 else "patients"


def _some(texts: list[str]) -> str:
    more = f"; and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return "; ".join(texts[:_NAMED]) + more
