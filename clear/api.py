"""The notebook surface: what the command line does, one call does.

Stages are imported where they are used, so that `import clear` costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clear.errors import ClearError, InputError
from clear.windows import Window, parse_window

if TYPE_CHECKING:
    import polars as pl

    from aggregate.explain.explanation import Explanation
    from aggregate.explain.judgement import Evaluation
    from aggregate.matrix import Matrix
    from aggregate.predict import Prediction
    from aggregate.probe import Probe
    from aggregate.run import Run
    from clear.bags import Bags
    from clear.frozen import Encoder
    from clear.scans import Scan
    from clear.task import Task
    from clear.task_labels import Attached
    from clear.volume import Volume
    from extract import ExtractionResult
    from pretrain import BuildResult, PretrainResult

DEFAULT_MODEL = "mambaout-lecl"


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
    task: str | Path | Task | None = None,
    select: str | None = None,
    scans: Path | str | None = None,
    modality: str | None = None,
    shard: tuple[int, int] | None = None,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    batch: int | None = None,
    dtype: str = "float16",
    thumbnails: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
) -> ExtractionResult:
    """Encode every usable scan of a folder once and write the bag file.

    source: a folder, a plan, or the scans themselves. model: one name or several (then `output` holds `{model}`).
    windows: presets or `name=low..high`; the task's, or the modality's defaults, without. task: by name or task file;
    it also names scans whose files do not, and its labels, where they are found in the folder, are written beside the
    bag file. thumbnails: keep small pictures of every slice beside the bag file, for reports (`clear.thumbnails`).
    Arguments, weights and the output's place are checked before the first scan is read.
    """
    from clear.sources import expect_weights, find_card, find_weights
    from extract import check_outputs

    names = [model] if isinstance(model, str) else list(model)
    check_outputs(output, names)
    if weights is not None and len(names) > 1:
        raise InputError("--weights goes with one --model; run the others on their own")
    for name in names:  # before anything heavy is loaded
        expect_weights(name, None if weights is None else Path(weights))
    cards = [find_card(name) for name in names]
    if windows and (own := [card.name for card in cards if card.own_windows]):
        raise InputError(
            f"--window: {', '.join(own)} prepares values in its own way; leave the windows out, or run it apart"
        )
    for card in cards:
        find_weights(card, None if weights is None else Path(weights))
    from clear.frozen import DEFAULT_BATCH
    from extract import extract as run

    chosen = [parse_window(w) if isinstance(w, str) else w for w in windows] if windows else None
    question = None
    if task is not None:
        from clear.tasks import load_task

        question = load_task(task)
        chosen = chosen or list(question.windows) or None
    encoders = [load_encoder(name, weights, device=device, precision=precision) for name in names]
    if isinstance(source, str | Path):
        found = find_scans(
            source,
            select=select or (question.select if question else "") or None,
            scans=scans,
            modality=modality or (question.modality if question else "") or None,
        )
        place = Path(source) if Path(source).is_dir() else found[0].root
    else:
        found = list(source)
        place = found[0].root if found else Path()
    if question is not None:
        from clear.task_scans import name_scans

        found = name_scans(found, question)
    result = run(
        place,
        Path(output),
        encoders,
        scans=found,
        windows=chosen,
        shard=shard,
        workers=workers,
        batch=batch or DEFAULT_BATCH,
        dtype=dtype,
        thumbnails=thumbnails,
        overwrite=overwrite,
        progress=progress,
    )
    if question is not None and shard is None and result.done:
        result = replace(result, notes=(*result.notes, *_attached(result.outputs, question, place)))
    return result


def _attached(outputs: Sequence[Path], task: Task, folder: Path) -> list[str]:
    """Labels found in the folder of the scans go beside each bag file; a sentence for each, or why not."""
    from clear.task_labels import attach_labels, find_labels

    if find_labels(task, folder) is None:
        return [f"No labels of {task.name} were found in {folder}; attach them with: clear labels --task {task.name}"]
    notes = []
    for output in outputs:
        try:
            notes.append(attach_labels(output, task, folder=folder).summary())
        except ClearError as error:  # the features are in; labels can be attached later
            notes.append(f"No labels were attached to {output}: {error}")
    return notes


def attach_labels(
    bags: Path | str | Bags, task: str | Path | Task, labels: Path | str | None = None, **settings: Any
) -> Attached:
    """Attach the labels of a task to a bag file, or replace them; see `clear.task_labels.attach_labels`."""
    from clear import task_labels

    return task_labels.attach_labels(bags, task, labels, **settings)


def init_task(file: Path | str) -> Path:
    """Write a commented task file to fill in. Raises InputError when the file exists, or is no .yaml."""
    from clear.atomic import write_aside
    from clear.task_files import init_text

    path = Path(file)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{path}: a task file ends with .yaml")
    if path.exists():
        raise InputError(f"{path}: exists and is not replaced. Name another file")
    write_aside(path, init_text().encode())
    return path


def train(
    bags: Path | str | Bags,
    *,
    task: str | Path | Task | None = None,
    labels: Path | str | None = None,
    target: str | Sequence[str] | None = None,
    page: bool = True,
    **settings: Any,
) -> Run:
    """Cross-validate an attention model on a bag file and write the run folder; see `aggregate.train`.

    page: write report.html into it, see `report`. The run is whole without: where that fails there is a warning.
    """
    from aggregate import train as run

    made = run(bags, task=task, labels=labels, target=target, **settings)
    if page:
        from aggregate.report import report_beside

        report_beside(made, bags)
    return made


def open_run(path: Path | str) -> Run:
    """The run in this folder. Raises InputError when it is not a finished one."""
    from aggregate import Run as Opened

    return Opened.open(path)


def crossval(matrix: Path | str, **settings: Any) -> Matrix:
    """Run encoders x aggregators x tasks of a matrix file; see `aggregate.matrix.crossval`."""
    from aggregate.matrix import crossval as run

    return run(matrix, **settings)


def probe(bags: Path | str | Bags | Sequence[Path | str | Bags], **settings: Any) -> Probe:
    """Nearest neighbours and a linear model on pooled embeddings, in the same folds; see `aggregate.probe.probe`."""
    from aggregate.probe import probe as run

    return run(bags, **settings)


def predict(run: Run | Path | str, bags: Bags | Path | str, **settings: Any) -> Prediction:
    """Score other scans with all models of a run; see `aggregate.predict.predict`."""
    from aggregate.predict import predict as score

    return score(run, bags, **settings)


def explain(run: Run | Path | str, scan_id: str, **settings: Any) -> Explanation:
    """What a prediction of one scan was made of; see `aggregate.explain.explain.explain`."""
    from aggregate.explain.explain import explain as run_explain

    return run_explain(run, scan_id, **settings)


def evaluate_explanations(run: Run | Path | str, **settings: Any) -> Evaluation:
    """How often a run's explanations point at what is marked; see `aggregate.explain.evaluate`."""
    from aggregate.explain.evaluate import evaluate_explanations as judge

    return judge(run, **settings)


def report(runs: Run | Path | str | Sequence[Run | Path | str], **settings: Any) -> Path:
    """Write a run, or several compared, as one self-contained page; see `aggregate.report.report`."""
    from aggregate.report import report as write

    return write(runs, **settings)


def build_slices(inputs: Path | str | Sequence[Path | str], out: Path | str, **settings: Any) -> BuildResult:
    """Store the slices of all usable CT scans, or add them to a store; see `pretrain.build.build_slices`."""
    from pretrain import build_slices as run

    return run(inputs, out, **settings)


def slices_info(store: Path | str) -> dict[str, str]:
    """What a slice store holds, a line each."""
    from pretrain.store import describe

    return describe(store)


def validate_slices(store: Path | str) -> str:
    """Check every promise of a slice store, the voxels included; one line. Raises InputError."""
    from pretrain.store_validation import validate

    return validate(store)


def pretrain(
    store: Path | str,
    output: Path | str,
    *,
    settings: Path | str | None = None,
    augmentation: str | Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    **changes: Any,
) -> PretrainResult:
    """Train an encoder on a slice store and write its card; see `pretrain.engine.pretrain`.

    objective: `lecl` by default; model: DEFAULT_MODEL by default. settings: a YAML file of settings, before which those
    given here stand. augment: fields of the augmentation that differ from those of `augmentation`.
    """
    from pretrain import pretrain as run
    from pretrain.settings import read_settings

    given = {} if settings is None else read_settings(settings)
    given |= {key: value for key, value in changes.items() if value is not None}
    if augmentation is not None:
        given["augmentation"] = augmentation
    if augment:
        base = given.get("augmentation", "ct")
        given["augmentation"] = {**({"preset": base} if isinstance(base, str) else base), **augment}
    return run(store, output, **{"objective": "lecl", "model": DEFAULT_MODEL, **given})


@dataclass(frozen=True)
class Comparison:
    """Paired tests between two runs. table: a row a figure, see `aggregate.compare`; names: of the runs."""

    table: pl.DataFrame
    names: tuple[str, str]
    remarks: tuple[str, ...] = ()

    def text(self) -> str:
        """What a terminal shows."""
        from aggregate.compare import comparison_text

        lines = [comparison_text(self.table, self.names), *(f"note: {remark}" for remark in self.remarks)]
        return "\n".join(lines)


def compare(
    run_a: Run | Path | str,
    run_b: Run | Path | str,
    *,
    common: bool = False,
    seed: int = 0,
    output: Path | str | None = None,
) -> Comparison:
    """Paired DeLong and bootstrap between two runs of the same scans, Holm-corrected over endpoints.

    common: compare on the scans that both scored. output: a CSV file for the table. Raises InputError when the runs did
    not score the same scans under the same labels.
    """
    from aggregate.compare import compare_runs
    from aggregate.run import write_table

    a, b = (open_run(each) if isinstance(each, Path | str) else each for each in (run_a, run_b))
    keys = ["repeat", "fold", "split", "scan_id"]
    other_folds = not a.folds.select(keys).sort(keys).equals(b.folds.select(keys).sort(keys))
    remarks = ("the runs have other folds, so the split is part of the difference",) if other_folds else ()
    found = Comparison(compare_runs(a, b, common=common, seed=seed), (str(a.path), str(b.path)), remarks)
    if output is not None:
        write_table(Path(output), found.table)
    return found
