"""What of a run folder can be read: everything, or as much as is there, and a note on each thing that is not.

A page must also come of a run whose training was stopped, whose bag file has moved, or whose aggregator weighs no
slices. So nothing here is taken for granted: a table that is absent, damaged or lacks a column is None and stands in
`gaps`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from aggregate.predictions import average_scans
from aggregate.run import Run
from aggregate.scored import Scored, numbered_patients, read_scored
from clear.bags import Bags
from clear.endpoints import Endpoint
from clear.errors import ClearError, InputError

NEEDED = {
    "metrics": ("endpoint", "class", "metric", "estimator", "estimate", "fold_sd", "ci_low", "ci_high", "n"),
    "predictions": ("scan_id", "patient_id", "endpoint", "class", "repeat", "fold", "split", "y_true", "y_score"),
    "curves": ("endpoint", "class", "curve", "x", "y"),
    "history": ("repeat", "fold", "epoch", "train_loss", "inner_loss"),
    "folds": ("repeat", "fold", "split", "patient_id", "scan_id"),
    "baselines": ("baseline", "endpoint", "class", "metric", "estimator", "estimate"),
}
SIGNS = ("folds.csv", "history.csv", "predictions.csv", "metrics.csv")


class Unfinished(Run):
    """What a training that was stopped left behind: tables, perhaps, and no record of the settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = {"fits": []}


@dataclass(frozen=True)
class Gap:
    """A thing that is not there. what: in a word or two; why: a sentence."""

    what: str
    why: str


@dataclass
class Material:
    """A run as a report needs it.

    name: what the page calls it. bags: the open bag file of the run, None when it is not at hand.
    """

    run: Run
    name: str
    bags: Bags | None
    gaps: list[Gap] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        return self.run.settings

    @property
    def finished(self) -> bool:
        return not isinstance(self.run, Unfinished)

    def part(self, *keys: str) -> dict[str, Any]:
        """A nested record of run.json, empty where there is none."""
        here: Any = self.settings
        for key in keys:
            here = here.get(key) if isinstance(here, dict) else None
        return here if isinstance(here, dict) else {}

    @property
    def fits(self) -> list[dict[str, Any]]:
        fits = self.settings.get("fits")
        return [fit for fit in fits if isinstance(fit, dict)] if isinstance(fits, list) else []

    @cached_property
    def metrics(self) -> pl.DataFrame | None:
        return self._table("metrics", "the table of metrics and all that is said of them")

    @cached_property
    def predictions(self) -> pl.DataFrame | None:
        return self._table("predictions", "curves with bands, confusion matrices, per-fold spread and the case list")

    @cached_property
    def curves(self) -> pl.DataFrame | None:
        return self._table("curves", "the points of the curves as the run recorded them")

    @cached_property
    def history(self) -> pl.DataFrame | None:
        return self._table("history", "the training curves")

    @cached_property
    def folds(self) -> pl.DataFrame | None:
        return self._table("folds", "how many scans each fold trained on")

    @cached_property
    def baselines(self) -> pl.DataFrame | None:
        """None, without a gap, when the run has none."""
        if not (self.run.path / "baselines.csv").is_file():
            return None
        return self._table("baselines", "what models without images reach")

    @cached_property
    def judged(self) -> pl.DataFrame | None:
        """The predictions that the run was judged by: of each scan, or averaged by patient."""
        if self.predictions is None or self.settings.get("several") != "average":
            return self.predictions
        try:
            return average_scans(self.predictions)
        except InputError as error:
            self.gaps.append(Gap("scores by patient", str(error)))
            return None

    @cached_property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Of run.json; where that is not to be had, guessed from the predictions."""
        try:
            return self.run.endpoints
        except (KeyError, TypeError, ClearError):
            return () if self.predictions is None else guessed_endpoints(self.predictions)

    @cached_property
    def scored(self) -> dict[str, Scored]:
        """Endpoint name -> the scored bags whose label is known; empty without predictions."""
        return self._scored(self.judged)

    @cached_property
    def scored_scans(self) -> dict[str, Scored]:
        """As `scored`, of single bags also where the run was judged by patient."""
        return self.scored if self.judged is self.predictions else self._scored(self.predictions)

    @cached_property
    def ids(self) -> set[str]:
        """Every id of a scan, patient, study or series that a sentence of this run might name."""
        known = set(self.part("scan_digests"))
        for table in (self.folds, self.predictions):
            if table is not None:
                columns = [table[name].drop_nulls().unique() for name in ("scan_id", "patient_id")]
                known |= {str(value) for column in columns for value in column}
        if self.bags is not None:
            for name in ("scan_id", "patient_id", "study_uid", "series_uid", "source"):
                known |= {str(value) for value in self.bags.scans[name].drop_nulls().unique()}
        return known

    def _scored(self, predictions: pl.DataFrame | None) -> dict[str, Scored]:
        if predictions is None:
            return {}
        patients = numbered_patients(predictions.filter(pl.col("split") == "test"))
        try:
            return read_scored(predictions, self.endpoints, patients)
        except InputError as error:
            self.gaps.append(Gap("predictions.csv", f"{error}; so nothing is shown that comes of the scores."))
            return {}

    def _table(self, name: str, brings: str) -> pl.DataFrame | None:
        file = f"{name}.csv"
        try:
            table: pl.DataFrame = getattr(self.run, name)
        except InputError:
            state = "cannot be read" if (self.run.path / file).is_file() else "is not there"
            self.gaps.append(Gap(file, f"The file {state}, so the page lacks {brings}."))
            return None
        lacking = [column for column in NEEDED[name] if column not in table.columns]
        if lacking or not table.height:
            state = f"has no column {lacking[0]}" if lacking else "has no rows"
            self.gaps.append(Gap(file, f"The file {state}, so the page lacks {brings}."))
            return None
        return table.with_columns(pl.col("class").fill_null("")) if "class" in table.columns else table


def open_material(run: Run | Path | str, bags: Bags | None, name: str = "") -> Material:
    """The run to report. Raises InputError for a place that holds nothing of a run."""
    gaps: list[Gap] = []
    if not isinstance(run, Run):
        path = Path(run)
        try:
            run = Run(path)
        except InputError as error:
            if not any((path / sign).is_file() for sign in SIGNS):
                raise
            gaps.append(Gap("run.json", _unfinished(path, error)))
            run = Unfinished(path)
    return Material(run, name or run.path.resolve().name, bags, gaps)


def guessed_endpoints(predictions: pl.DataFrame) -> tuple[Endpoint, ...]:
    """The endpoints that these rows can be of: one class is binary, several are multi-class, no class is a number."""
    found = []
    for name in predictions["endpoint"].unique(maintain_order=True):
        rows = predictions.filter(pl.col("endpoint") == name)
        classes = [str(each) for each in rows["class"].unique(maintain_order=True)]
        if classes == [""]:
            survival = "event" in rows.columns and rows["event"].is_not_null().any()
            found.append(Endpoint(name, "survival", event="event") if survival else Endpoint(name, "regression"))
        elif len(classes) == 1:
            found.append(Endpoint(name, "binary", (f"not {classes[0]}", classes[0])))
        elif len(classes) > 2:
            found.append(Endpoint(name, "multiclass", tuple(classes)))
    return tuple(found)


def _unfinished(path: Path, error: InputError) -> str:
    if (path / "run.json").is_file():
        state = "The run's record cannot be read" if "newer clear" not in str(error) else "A newer clear wrote this run"
    else:
        state = "The training did not finish, or its record was lost"
    return f"{state}: task, cohort, encoder and settings are unknown, and the kinds of endpoints are guessed."
