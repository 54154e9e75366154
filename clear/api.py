"""The notebook surface: what the command line does, one call does.

Stages are imported where they are used, so that `import clear` costs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
DEMO_PATIENTS, DEMO_MATRIX, DEMO_SLICES = 100, 256, 24


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
    from clear.frozen import DEFAULT_BATCH
    from extract import check_outputs
    from extract import extract as run

    names = [model] if isinstance(model, str) else list(model)
    check_outputs(output, names)
    if weights is not None and len(names) > 1:
        raise InputError("--weights goes with one --model; run the others on their own")
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
    """What the demonstration made: a folder with the cohort, its bag file and two runs.

    runs: by aggregator, attention first.
    """

    folder: Path
    runs: dict[str, Run]

    def table(self) -> str:
        """Both runs' tables, attention first."""
        return "\n\n".join(run.table() for run in self.runs.values())


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
    """Draw the embedded cohort, extract it, and cross-validate attention and mean pooling on it.

    The synthetic patients and their DICOM series are those of `clear.phantoms`; the folder then holds `cohort-*/`,
    `feats-*.h5` and `run-*/`. What an earlier call finished is not done again. report: told each step in a line.
    """
    from aggregate import Run
    from clear.phantoms import DICOM_FOLDER, LABELS_TABLE, write_cohort

    say = report or (lambda _: None)
    place = Path(folder)
    name = f"{patients}-patients-seed-{seed}-{matrix}px-{slices}-slices"
    cohort, bags = place / f"cohort-{name}", place / f"feats-{name}.h5"
    if not cohort.exists():
        say(f"drawing {patients} synthetic patients as DICOM into {cohort}")
        aside = place / f".cohort-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        write_cohort(aside, patients=patients, seed=seed, matrix=matrix, slices=slices)
        aside.rename(cohort)
    say(f"extracting {cohort / DICOM_FOLDER} with {DEFAULT_MODEL} into {bags}")
    result = extract(cohort / DICOM_FOLDER, bags, task="demo", device=device)
    say(result.summary())
    runs = {}
    for aggregator in ("abmil", "mean"):
        output = place / f"run-{aggregator}-{name}"
        if not output.exists():
            say(f"training {aggregator} into {output}")
            train(bags, task="demo", labels=cohort / LABELS_TABLE, aggregator=aggregator, output=output, device=device)
        runs[aggregator] = Run.open(output)
    return Demo(place, runs)
