"""The demonstration: an embedded cohort of synthetic patients, extracted once, asked one question a finding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clear.api import extract, open_run, train
from clear.errors import InputError

if TYPE_CHECKING:
    from aggregate.run import Run

PATIENTS, MATRIX, SLICES = 150, 256, 14
AGGREGATORS = ("abmil", "mean")


@dataclass(frozen=True)
class Demo:
    """What the demonstration made: runs by finding, then by aggregator, all from one bag file."""

    folder: Path
    runs: dict[str, dict[str, Run]]

    def table(self) -> str:
        """A line a finding: pooled AUROC with its interval of attention and of mean pooling; then what to know."""
        rows = [f"{'finding':<16}{'attention (ABMIL)':<26}mean pooling"]
        for finding, runs in self.runs.items():
            rows.append(f"{finding:<16}" + "".join(f"{_pooled_auroc(runs[name]):<26}" for name in AGGREGATORS))
        first = next(iter(self.runs.values()))[AGGREGATORS[0]]
        return "\n".join(
            [
                *(row.rstrip() for row in rows),
                "AUROC of 5-fold cross-validation by patient, out-of-fold scores pooled; 95 % intervals over patients,",
                "conditional on the fitted models. The patients are synthetic: this shows that the software works.",
                f"encoder: {first.settings['bags']['encoder']}, {first.settings['bags']['trained_on']}",
                f"everything is in {self.folder}/",
            ]
        )


def demo(
    folder: Path | str = "demo",
    *,
    patients: int = PATIENTS,
    seed: int = 0,
    matrix: int = MATRIX,
    slices: int = SLICES,
    device: str = "auto",
    report: Callable[[str], None] | None = None,
) -> Demo:
    """Draw the embedded cohort, extract it once, and ask the bag file one question a finding.

    Each finding is cross-validated with attention and with mean pooling. The synthetic patients and their DICOM series
    are those of `clear.phantoms`; `folder` then holds `cohort/`, `feats.h5` and `runs/`. What an earlier call with the
    same numbers finished is not done again. report: told each step in a line.
    Raises InputError when `folder` holds a cohort of other numbers.
    """
    from clear.phantoms import DICOM_FOLDER, LABELS_TABLE, write_cohort
    from clear.tasks import load_task

    say = report or (lambda _: None)
    place = Path(folder)
    cohort, bags, note = place / "cohort", place / "feats.h5", place / "cohort.txt"
    numbers = f"{patients} patients, seed {seed}, {matrix} x {matrix} pixels, {slices} slices\n"
    if cohort.exists() and (not note.exists() or note.read_text(encoding="utf-8") != numbers):
        raise InputError(f"{place} holds another cohort than {numbers.strip()}; name another folder, or remove it")
    if not cohort.exists():
        say(f"drawing {numbers.strip()} as DICOM into {cohort}")
        aside = place / ".cohort"
        shutil.rmtree(aside, ignore_errors=True)
        write_cohort(aside, patients=patients, seed=seed, matrix=matrix, slices=slices)
        note.write_text(numbers, encoding="utf-8")
        aside.rename(cohort)
    say(f"extracting {cohort / DICOM_FOLDER} into {bags}")
    result = extract(cohort / DICOM_FOLDER, bags, task="demo", select="soft-kernel", device=device)
    say(result.summary())
    task = load_task("demo")
    runs: dict[str, dict[str, Run]] = {}
    for endpoint in task.endpoints:
        runs[endpoint.name] = {}
        question = replace(task, name=f"demo-{endpoint.name}", endpoints=(endpoint,))
        for aggregator in AGGREGATORS:
            output = place / "runs" / f"{endpoint.name}-{aggregator}"
            if not output.exists():
                say(f"training {aggregator} for {endpoint.name} into {output}")
                train(
                    bags,
                    task=question,
                    labels=cohort / LABELS_TABLE,
                    aggregator=aggregator,
                    output=output,
                    device=device,
                    page=aggregator != "mean",  # the page of what is shown; the other is there to be compared with
                )
            runs[endpoint.name][aggregator] = open_run(output)
    return Demo(place, runs)


def _pooled_auroc(run: Run) -> str:
    import polars as pl

    rows = run.metrics.filter((pl.col("metric") == "auroc") & (pl.col("estimator") == "pooled")).rows(named=True)
    if not rows or rows[0]["estimate"] is None:
        return "not defined"
    row = rows[0]
    interval = "" if row["ci_low"] is None else f" ({row['ci_low']:.3f}..{row['ci_high']:.3f})"
    return f"{row['estimate']:.3f}{interval}"
