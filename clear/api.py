"""The notebook surface: what the command line does, one call does.

Stages are imported where they are used, so that `import clear` costs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clear.errors import InputError
from clear.windows import Window, parse_window

if TYPE_CHECKING:
    import polars as pl

    from aggregate.run import Run
    from clear.bags import Bags
    from clear.frozen import Encoder
    from clear.scans import Scan
    from clear.tasks import Task
    from clear.volume import Volume
    from extract import ExtractionResult

DEFAULT_MODEL = "mambaout-lecl"
DEMO_PATIENTS, DEMO_MATRIX, DEMO_SLICES = 150, 256, 14
DEMO_AGGREGATORS = ("abmil", "mean")


def find_scans(
    folder: Path | str,
    *,
    select: str | None = None,
    scans: Path | str | None = None,
    modality: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scan]:
    """Every series in a folder (or in a plan that `clear inspect --out` wrote), usable or not, sorted by scan_id.

    select: `thinnest`, `most-slices`, `soft-kernel`, or a condition on the plan's columns: one series a study, or
    those for which it holds. scans: a table that names scans and patients. modality: of files whose format does not
    say it (NIfTI and the like), in place of judging by their values. Raises InputError when nothing is found.
    """
    from clear import plan
    from clear import scans as discovery

    path = Path(folder)
    if path.is_file() and path.suffix == ".parquet":
        found = plan.read_plan(path)
    else:
        found = discovery.find_scans(path, workers=workers, modality=modality, progress=progress)
    if scans is not None:
        found = plan.apply_scans_table(found, Path(scans))
    return plan.select_series(found, select) if select else found


def inspect(
    folder: Path | str,
    *,
    out: Path | str | None = None,
    select: str | None = None,
    scans: Path | str | None = None,
    modality: str | None = None,
) -> pl.DataFrame:
    """The plan as a table: a row a series with verdict, reason and geometry; written to `out` (Parquet) if given."""
    from clear import plan

    found = find_scans(folder, select=select, scans=scans, modality=modality)
    if out is not None:
        plan.write_plan(found, Path(out))
    return plan.plan_table(found)


def read_volume(scan: Scan | Path | str, *, series: str | None = None, modality: str | None = None) -> Volume:
    """One scan in canonical axes. Raises ScanRefused with a reason when it cannot be used.

    scan: a Scan, or a path; series: which scan_id where the path holds several; modality: as in `find_scans`.
    """
    from clear import scans as discovery

    return discovery.read_volume(scan, series=series, modality=modality)


def load_encoder(
    name: str, weights: Path | str | None = None, *, device: str = "auto", precision: str = "auto"
) -> Encoder:
    """A frozen encoder by name or card, with its own weights or those of a checkpoint."""
    from clear import frozen

    return frozen.load_encoder(name, weights, device=device, precision=precision)


def extract(
    source: Path | str | Sequence[Scan],
    output: Path | str,
    *,
    model: str | Sequence[str] = DEFAULT_MODEL,
    weights: Path | str | None = None,
    windows: Sequence[Window | str] | None = None,
    task: str | None = None,
    select: str | None = None,
    scans: Path | str | None = None,
    modality: str | None = None,
    shard: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    batch: int | None = None,
    dtype: str = "float16",
    overwrite: bool = False,
    progress: bool | None = None,
) -> ExtractionResult:
    """Encode every usable scan of a folder once and write the bag file.

    source: a folder, a plan, or the scans themselves. model: one name or several (then `output` holds `{model}`).
    windows: presets or `name=low..high`; the task's, or the modality's defaults, without.
    Arguments, weights and the output's place are checked before the first scan is read.
    """
    from clear.sources import find_card, find_weights
    from extract import check_outputs

    names = [model] if isinstance(model, str) else list(model)
    check_outputs(output, names)
    if weights is not None and len(names) > 1:
        raise InputError("--weights goes with one --model; run the others on their own")
    cards = [find_card(name) for name in names]
    if windows and (own := [card.name for card in cards if card.own_windows]):
        raise InputError(
            f"--window: {', '.join(own)} prepares values in its own way; leave the windows out, or run it apart"
        )
    for card in cards:  # before anything heavy is loaded
        find_weights(card, None if weights is None else Path(weights))
    from clear.frozen import DEFAULT_BATCH
    from extract import extract as run

    chosen = [parse_window(w) if isinstance(w, str) else w for w in windows] if windows else None
    if chosen is None and task is not None:
        from clear.tasks import load_task

        chosen = list(load_task(task).windows)
    encoders = [load_encoder(name, weights, device=device, precision=precision) for name in names]
    if isinstance(source, str | Path):
        found = find_scans(source, select=select, scans=scans, modality=modality)
        place = Path(source)
    else:
        found = list(source)
        place = found[0].root if found else Path()
    return run(
        place,
        Path(output),
        encoders,
        scans=found,
        windows=chosen,
        shard=shard,
        workers=workers,
        batch=batch or DEFAULT_BATCH,
        dtype=dtype,
        overwrite=overwrite,
        progress=progress,
    )


def train(
    bags: Path | str | Bags,
    *,
    task: str | Task | None = None,
    labels: Path | str | None = None,
    target: str | Sequence[str] | None = None,
    **settings: Any,
) -> Run:
    """Cross-validate an attention model on a bag file and write the run folder; see `aggregate.train`."""
    from aggregate import train as run

    return run(bags, task=task, labels=labels, target=target, **settings)


@dataclass(frozen=True)
class Demo:
    """What the demonstration made: runs by finding, then by aggregator, all from one bag file."""

    folder: Path
    runs: dict[str, dict[str, Run]]

    def table(self) -> str:
        """A line a finding: pooled AUROC with its interval of attention and of mean pooling; then what to know."""
        rows = [f"{'finding':<16}{'attention (ABMIL)':<26}mean pooling"]
        for finding, runs in self.runs.items():
            rows.append(f"{finding:<16}" + "".join(f"{_pooled_auroc(runs[name]):<26}" for name in DEMO_AGGREGATORS))
        first = next(iter(self.runs.values()))[DEMO_AGGREGATORS[0]]
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
    patients: int = DEMO_PATIENTS,
    seed: int = 0,
    matrix: int = DEMO_MATRIX,
    slices: int = DEMO_SLICES,
    device: str = "auto",
    report: Callable[[str], None] | None = None,
) -> Demo:
    """Draw the embedded cohort, extract it once, and ask the bag file one question a finding.

    Each finding is cross-validated with attention and with mean pooling. The synthetic patients and their DICOM series
    are those of `clear.phantoms`; `folder` then holds `cohort/`, `feats.h5` and `runs/`. What an earlier call with the
    same numbers finished is not done again. report: told each step in a line.
    Raises InputError when `folder` holds a cohort of other numbers.
    """
    from aggregate import Run
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
        for aggregator in DEMO_AGGREGATORS:
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
                )
            runs[endpoint.name][aggregator] = Run.open(output)
    return Demo(place, runs)


def _pooled_auroc(run: Run) -> str:
    import polars as pl

    row = run.metrics.filter((pl.col("metric") == "auroc") & (pl.col("estimator") == "pooled")).row(0, named=True)
    if row["estimate"] is None:
        return "not defined"
    return f"{row['estimate']:.3f} ({row['ci_low']:.3f}..{row['ci_high']:.3f})"
