"""A question put to a bag file: which bags, labels, windows and folds, settled before anything is fitted.

Training, probing and baselines ask in the same way: the same arguments mean the same patients in the same folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregate.cohort import Cohort, build_cohort, choose_windows
from aggregate.columns import official_split, scan_column
from aggregate.folds import Folds
from aggregate.protocols import PROTOCOLS, plan_folds
from aggregate.record import encoder_remarks
from clear.atomic import OutputError
from clear.bags import Bags
from clear.errors import InputError
from clear.label_join import Joined, join_labels
from clear.labels import Labels, read_labels, read_saved_labels, write_labels
from clear.tasks import PRESETS, JoinRule, Preset, Task, load_task, rule_of_scans, target_task
from clear.windows import Window


@dataclass(frozen=True)
class Question:
    """Everything that is settled before the first fit.

    protocol: one of PROTOCOLS; group: the column whose values are the folds, "" for none; grid: of nested-cv.
    several: `average` where the scans' predictions are averaged by patient before they are judged.
    remarks: on labels, cohort and folds, as sentences.
    """

    task: Task
    labels: Labels
    joined: Joined
    windows: tuple[Window, ...]
    cohort: Cohort
    folds: Folds
    preset: Preset
    protocol: str
    group: str
    grid: Mapping[str, tuple[Any, ...]]
    several: str | None
    remarks: tuple[str, ...]


def ask(
    bags: Bags,
    *,
    task: str | Path | Task | None = None,
    labels: Path | str | None = None,
    target: str | Sequence[str] | None = None,
    protocol: str | None = None,
    folds: int | None = None,
    folds_file: Path | str | None = None,
    repeats: int = 1,
    seed: int = 0,
    group: str | None = None,
    split: str | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    several: str | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    windows: Sequence[Window | str] | None = None,
    join_rule: JoinRule | None = None,
    id_column: str | None = None,
    patients: Path | str | None = None,
    patient_pattern: str | None = None,
) -> Question:
    """Labels joined, windows chosen, patients dealt into folds; see `aggregate.train` for the arguments.

    settings: fields of the preset to replace. Raises InputErrors.
    """
    chosen = read_task(task, labels, target)
    preset_used = with_settings(preset or chosen.preset, settings or {})
    _check_numbers(folds, folds_file, repeats, seed, group)
    protocol, grid = _protocol(chosen, protocol, grid, group)
    rule, several = rule_of_scans(chosen, join_rule, several)
    if windows and all(window.kind == "encoder" for window in bags.windows):
        raise InputError(
            f"{bags.path}: its encoder prepares values in its own way ({bags.windows[0].name}), so there is no window "
            "to choose; leave --window out"
        )
    used = choose_windows(bags, windows or chosen.windows, str(bags.path))
    known = (
        read_labels(labels, chosen, id_column=id_column) if labels is not None else read_saved_labels(bags.path, chosen)
    )
    joined = join_labels(
        known,
        bags.scans,
        rule=rule,
        patients=patients,
        patient_pattern=patient_pattern,
        source=str(bags.path),
    )
    kept = _keep_labels(bags, task, labels, joined, chosen)
    n_folds = chosen.folds if folds is None else folds
    needed = 2 if folds_file is not None or group is not None or protocol == "cv-test" else n_folds
    cohort = build_cohort(bags, joined, used, needed, several == "average")
    scans = cohort.by_scan()[0]
    groups = scan_column(group, bags.scans, labels, id_column) if group is not None else None
    splits = _splits(bags, joined, labels, id_column, split) if protocol == "cv-test" and folds_file is None else None
    table, noted = plan_folds(
        cohort,
        protocol,
        folds=n_folds,
        repeats=repeats,
        seed=seed,
        inner_fraction=preset_used.inner_fraction,
        file=folds_file,
        groups=None if groups is None else [groups.get(scan) for scan in scans],
        group=group or "",
        splits=None if splits is None else [splits.get(scan) for scan in scans],
    )
    return Question(
        task=chosen,
        labels=known,
        joined=joined,
        windows=used,
        cohort=cohort,
        folds=table,
        preset=preset_used,
        protocol=protocol,
        group=group or "",
        grid=grid,
        several=several,
        remarks=(*joined.remarks, *cohort.remarks, *kept, *noted, *encoder_remarks(bags, cohort)),
    )


def read_task(task: str | Path | Task | None, labels: Path | str | None, target: str | Sequence[str] | None) -> Task:
    """The task by name, or one made of columns of a table; raises InputError when neither or both are given."""
    if task is not None and target:
        raise InputError("--task and --target exclude each other: a task names its own endpoints")
    if task is not None:
        return load_task(task)
    if not target:
        raise InputError("expected --task NAME, or --labels TABLE with --target COLUMN")
    if labels is None:
        raise InputError("--target names a column of a table: give it with --labels TABLE")
    return target_task(target)


def with_settings(name: str, changes: Mapping[str, Any]) -> Preset:
    """A preset with fields replaced; epochs or batch given switch its adaptation to small cohorts off."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: no such preset; expected one of {', '.join(PRESETS)}")
    fixed = changes.get("epochs") is not None or changes.get("batch") is not None
    return PRESETS[name].with_changes(**changes, min_steps=0 if fixed else None)


def _protocol(
    task: Task,
    protocol: str | None,
    grid: Mapping[str, Sequence[Any]] | None,
    group: str | None,
) -> tuple[str, Mapping[str, tuple[Any, ...]]]:
    """(protocol, grid), the task's where nothing else is asked for."""
    chosen = protocol or task.protocol
    if chosen not in PROTOCOLS:
        raise InputError(f"--protocol {chosen}: expected one of {', '.join(PROTOCOLS)}")
    if group is not None and chosen == "cv-test":
        if protocol is not None:
            raise InputError(
                "--group makes the folds and --protocol cv-test takes the task's split; give one of the two"
            )
        chosen = "cv"
    if grid is not None and chosen != "nested-cv":
        raise InputError("--grid is searched by --protocol nested-cv only")
    wanted = grid if grid is not None else task.grid
    return chosen, {name: tuple(values) for name, values in wanted.items()}


def _splits(
    bags: Bags, joined: Joined, labels: Path | str | None, id_column: str | None, split: str | None
) -> dict[str, str | None]:
    """scan_id -> train, val, test or None: from the column that is named, else from the task's reader."""
    if split is None and "split" in joined.frame.columns:
        values = dict(joined.frame.select("scan_id", "split").iter_rows())
        source = "the task's labels"
    else:
        values = scan_column(split or "split", bags.scans, labels, id_column, "--split")
        source = f"column {split or 'split'}"
    return dict(zip(values, official_split(list(values.values()), source), strict=True))


def _check_numbers(
    folds: int | None, folds_file: Path | str | None, repeats: int, seed: int, group: str | None
) -> None:
    if folds_file is not None and (folds is not None or repeats != 1):
        raise InputError("--folds-file says how many folds and repeats there are; leave out --folds and --repeats")
    if group is not None and (folds is not None or folds_file is not None):
        raise InputError("--group makes one fold of each group; leave out --folds and --folds-file")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")


def _keep_labels(
    bags: Bags, task: str | Path | Task | None, labels: Path | str | None, joined: Joined, chosen: Task
) -> list[str]:
    """Joined labels of a task go beside the bag file, so that the next run needs none; a remark where they cannot."""
    if task is None or labels is None:
        return []
    try:
        write_labels(bags.path, chosen.name, joined.frame, joined.endpoints)
    except OutputError as error:
        return [f"the labels could not be kept beside the bag file, so give --labels again next time: {error}"]
    return []
