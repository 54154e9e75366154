"""What of a run folder can be read: everything, or as much as is there, and a note on each thing that is not.

A page must also come of a run whose training was stopped, whose bag file has moved, or whose aggregator weighs no
slices. So nothing here is taken for granted: a table that is absent, damaged or lacks a column is None and stands in
`gaps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from aggregate.predictions import average_scans, scans_of
from aggregate.run import Run
from aggregate.scored import ENSEMBLE, FOLD_MEAN, NEVER_POOLED, POOLED, Scored, figures, numbered_patients, read_scored
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
RECORD = {  # parts of run.json and what the page takes from them
    "fits": "the models: how many there are, when training stopped and what they attended",
    "cohort": "how many scans and patients there were and which were left out",
    "task": "what was asked",
    "labels": "where the labels came from and how they were joined",
    "bags": "the encoder and the bag file",
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

    @cached_property
    def settings(self) -> dict[str, Any]:
        """run.json without what is null in it or in its task, so that a null reads as an absent value."""
        known = _without_nulls(self.run.settings)
        if not isinstance(known.get("repeats", 1), int):
            del known["repeats"]
        if isinstance(known.get("task"), dict):
            known["task"] = _without_nulls(known["task"])
        return known

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
        return [_without_nulls(fit) for fit in fits if isinstance(fit, dict)] if isinstance(fits, list) else []

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
    def complete(self) -> pl.DataFrame | None:
        """The predictions without the bags to which a model gave some of an endpoint's class scores and not all."""
        if self.predictions is None:
            return None
        classes = {each.name: len(each.score_classes) for each in self.endpoints}
        needed = pl.col("endpoint").replace_strict(classes, default=1, return_dtype=pl.Int64)
        scores = pl.col("y_score").is_finite().sum().over("scan_id", "endpoint", "repeat", "fold", "split")
        return self.predictions.filter((scores == 0) | (scores >= needed))

    @cached_property
    def judged(self) -> pl.DataFrame | None:
        """The complete predictions that the run was judged by: of each scan, or averaged by patient."""
        if self.complete is None or self.settings.get("several") != "average":
            return self.complete
        try:
            return average_scans(self.complete)
        except InputError:
            why = "Patients have scans with different labels, so their scores cannot be averaged."
            self.gaps.append(Gap("scores by patient", why))
            return None

    @property
    def unit(self) -> str:
        """What the run was judged by: scans, patients whose scans' scores were averaged, or bags of pooled scans."""
        several = self.settings.get("several")
        if several == "pool" and self.predictions is not None and self.folds is not None:
            alone = set(self.predictions["scan_id"]) <= set(self.folds["scan_id"])
            return "scans" if alone else "bags"
        return "patients" if several == "average" else "scans"

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
        return self.scored if self.judged is self.complete else self._scored(self.complete)

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

    @cached_property
    def differences(self) -> tuple[Gap, ...]:
        """Where the files of the run contradict each other or end too early, as in a run that was half written."""
        found = [*self._record(), *self._cut(), *self._folds(), *self._rows(), *self._figures(), *self._epochs()]
        return tuple(found)

    def _record(self) -> Iterator[Gap]:
        """Parts that run.json lacks."""
        for key, brings in RECORD.items() if self.finished else ():
            if not (self.fits if key == "fits" else self.part(key)):
                yield Gap(f"{key} of run.json", f"run.json says nothing of it, so the page lacks {brings}.")
        if self.finished and not isinstance(self.run.settings.get("repeats", 1), int):
            yield Gap("repeats of run.json", "run.json does not say how often the folds were repeated.")

    def _cut(self) -> Iterator[Gap]:
        """Tables whose last line does not end."""
        for name in NEEDED:
            try:
                with (self.run.path / f"{name}.csv").open("rb") as file:
                    end = file.seek(0, 2)
                    file.seek(max(0, end - 1))
                    whole = file.read() in (b"", b"\n")
            except OSError:
                continue
            if not whole:
                yield Gap(f"{name}.csv", "The file ends in the middle of a line: its end is lost or damaged.")

    def _folds(self) -> Iterator[Gap]:
        """Folds without a model, models without a fold, and folds that list fewer scans than others."""
        if self.folds is None:
            return
        pairs = {(repeat, fold): n for repeat, fold, n in self.folds.group_by("repeat", "fold").len().iter_rows()}
        yield from self._pairs("folds.csv", set(pairs), "lists")
        short = [n for n in pairs.values() if n < max(pairs.values())]
        if short:
            yield Gap(
                "folds.csv",
                f"{len(short)} of {len(pairs)} folds list fewer scans than the others, down to {min(short)} of "
                f"{max(pairs.values())}: the file is not whole.",
            )

    def _rows(self) -> Iterator[Gap]:
        """Scans that folds.csv has tested and predictions.csv does not have, or the other way round."""
        if self.folds is None or self.predictions is None:
            return
        known = set(self.folds["scan_id"])
        names = self.predictions["scan_id"].drop_nulls().unique()
        pairs = [(name, scan) for name in names for scan in scans_of(name, known)]
        scans_of_bags = pl.DataFrame(pairs, schema={"bag": pl.String, "scan_id": pl.String}, orient="row")
        by_scan = self.predictions.rename({"scan_id": "bag"}).join(scans_of_bags, on="bag", how="left")
        keys = ["repeat", "fold", "scan_id"]
        tested = self.folds.filter(pl.col("split") == "test").select(keys)
        named = [(each.name, name) for each in self.endpoints for name in each.score_classes]
        scores = pl.DataFrame(named, schema={"endpoint": pl.String, "class": pl.String}, orient="row")
        keys = [*keys, "endpoint", "class"]
        try:
            expected = tested.join(scores, how="cross").select(keys)
            have = by_scan.filter(pl.col("split") == "test").select(keys)
            lacking = expected.join(have, on=keys, how="anti", nulls_equal=True)
            surplus = have.join(expected, on=keys, how="anti", nulls_equal=True)
        except pl.exceptions.PolarsError:
            yield Gap("folds.csv", "The file's folds are no numbers, so predictions.csv cannot be held against it.")
            return
        if lacking.height:
            scans = lacking.select("repeat", "fold", "scan_id").unique().height
            yield Gap(
                "predictions.csv",
                f"{lacking.height} of {expected.height} scores are not there ({scans} of {tested.height} tested scans "
                "of folds.csv are not or not wholly scored), so curves, confusion matrices, per-fold spread and the "
                "case list are of fewer scans than were tested.",
            )
        if surplus.height:
            yield Gap(
                "predictions.csv",
                f"{surplus.height} of its {have.height} scores are of scans, folds or classes that folds.csv and the "
                "endpoints do not name: the files do not belong together, or one is not whole.",
            )

    def _figures(self) -> Iterator[Gap]:
        """Metrics that count other scans than predictions.csv scores, and figures that metrics.csv lacks."""
        if self.metrics is None:
            return
        have = set(self.metrics.select("endpoint", "class", "metric", "estimator").iter_rows())
        named = self.part("task").get("metrics")
        if self.scored and isinstance(named, list) and all(isinstance(each, str) for each in named):
            ways = {FOLD_MEAN, ENSEMBLE if ENSEMBLE in self.metrics["estimator"] else POOLED}
            expected = {
                (each.endpoint, each.name, each.metric, way)
                for each in figures(self.scored, self.endpoints, named)
                for way in ways
                if not (way == POOLED and each.metric in NEVER_POOLED)
            }
            if expected - have:
                yield Gap("metrics.csv", f"{len(expected - have)} of {len(expected)} figures are not there.")
        for name, scored in self.scored.items():
            rows = self.metrics.filter(pl.col("endpoint") == name).drop_nulls("n")
            other = [n for n in rows["n"].unique().sort().to_list() if n != len(scored)]
            if other:
                yield Gap(
                    "metrics.csv",
                    f"{name}: its figures are over {', '.join(map(str, other))} {self.unit}, predictions.csv scores "
                    f"{len(scored)}: figures and curves are not of the same {self.unit}.",
                )

    def _epochs(self) -> Iterator[Gap]:
        """Training that history.csv does not have to its end, and what in it is no number."""
        if self.history is None:
            return
        for name in ("epoch", "train_loss", "inner_loss"):
            cells = self.history[name]  # what does not become a number is counted, and left out by `training_svg`
            lost = cells.cast(pl.Float64, strict=False).null_count() - cells.null_count()
            if lost:
                yield Gap(
                    "history.csv",
                    f"{lost} of {len(cells)} values of {name} are no numbers; the training curves are without them.",
                )
        steps = {
            (repeat, fold): last
            for repeat, fold, last in self.history.group_by("repeat", "fold")
            .agg(pl.col("step" if "step" in self.history.columns else "epoch").max())
            .iter_rows()
        }
        yield from self._pairs("history.csv", set(steps), "has the training of")
        if "step" not in self.history.columns:
            return
        made = {(fit.get("repeat"), fit.get("fold")): fit.get("steps") for fit in self.fits}
        short = [pair for pair, last in steps.items() if isinstance(made.get(pair), int) and made[pair] != last]
        if short:
            yield Gap(
                "history.csv",
                f"The training of {len(short)} of {len(made)} models does not end at the step that run.json names: "
                "their training curves are not whole.",
            )

    def _pairs(self, file: str, pairs: set[tuple[Any, Any]], does: str) -> Iterator[Gap]:
        """The models of run.json against the folds that a file has."""
        made = {(fit.get("repeat"), fit.get("fold")) for fit in self.fits}
        if made and made != pairs:
            yield Gap(
                file,
                f"The file {does} {len(pairs & made)} of the {len(made)} models of run.json"
                + (f", and {len(pairs - made)} that run.json does not name." if pairs - made else "."),
            )

    def _scored(self, predictions: pl.DataFrame | None) -> dict[str, Scored]:
        if predictions is None:
            return {}
        patients = numbered_patients(predictions.filter(pl.col("split") == "test"))
        try:
            return read_scored(predictions, self.endpoints, patients)
        except InputError:
            why = (
                "The scores contradict themselves: a bag has two rows of a class for one model, two labels or two "
                "patients, or a class that its endpoint has not; so nothing is shown that comes of the scores."
            )
            self.gaps.append(Gap("predictions.csv", why))
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


def _without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


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
