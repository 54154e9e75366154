"""Pretraining: settle everything before the first step, train, and leave an encoder card.

Arguments, the store, the labelled set, the network and the run folder are checked before anything is written, so that a
wrong command leaves nothing behind; what can only go wrong later leaves the last checkpoint.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from clear.atomic import write_aside
from clear.card import CARD_FILE, WEIGHTS_FILE, EncoderCard, read_card
from clear.errors import ClearError, InputError
from clear.frozen import has_native_bfloat16
from clear.launch import launched, launched_rank
from clear.stopping import stopping
from pretrain.accumulate import Autocast
from pretrain.augmentation import augmentation
from pretrain.batches import Batches, make_batches
from pretrain.build import build_slices
from pretrain.card_export import data_record, export, exported_card, seen_record
from pretrain.checkpoints import CHECKPOINT, read_checkpoint
from pretrain.distributed import rank, world_size
from pretrain.history import EPOCHS, read_history, wants_tensorboard
from pretrain.judge import LabelledSet, judge, labelled_scans, labelled_slices
from pretrain.loop import Loop, Row
from pretrain.objectives import full_options
from pretrain.objectives.objective import Objective
from pretrain.optimiser import checkpoint_activations, hold_patch_embedding
from pretrain.processes import processes
from pretrain.run_folder import JUDGED, Identity, check_folder, check_same, is_finished, locked, write_settings
from pretrain.settings import PretrainSettings
from pretrain.spacing import check_spacing
from pretrain.start import starting_objective, starting_point
from pretrain.store import SliceStore
from pretrain.store_tables import is_store
from pretrain.training_rows import few_lesions, rows_to_train_on

BEST, LAST = "best", "last"
_STOPS = ("the run is saved after this step", "the last checkpoint is kept")


@dataclass(frozen=True)
class PretrainResult:
    """A finished pretraining.

    path: the run folder; card: the encoder's, which `clear extract --model` takes; encoder: what it says. epochs: the
    rows of epochs.csv. new_steps: taken by this call, in so many seconds; warnings: of collapse.
    """

    path: Path
    card: Path
    encoder: EncoderCard
    epochs: tuple[Row, ...]
    new_steps: int
    seconds: float
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line."""
        last, chosen = self.epochs[-1], best_row(self.epochs)
        objective, network = self.encoder.training.get("objective", ""), self.encoder.architecture.partition(":")[2]
        parts = [
            f"{self.card}: {objective} on {network}",
            f"{len(self.epochs)} epochs, {int(last['step'])} steps" + ("" if self.new_steps else ", done before"),
            f"loss {last['loss']:.4f}",
        ]
        if self.new_steps:
            parts.append(f"{last['images_per_s']:.0f} images/s")
        if "judged" in chosen:
            parts.append(
                f"best of epoch {int(chosen['epoch'])} (kNN AUC {chosen['knn_auc']:.3f}, linear AUC "
                f"{chosen['linear_auc']:.3f})"
            )
        return ", ".join([*parts, f"encoder {str(self.encoder.training.get('encoder_digest', ''))[:12]}"])


def pretrain(
    store: Path | str | SliceStore,
    output: Path | str,
    *,
    objective: str,
    model: str,
    leave_out: Path | str | Sequence[str] | None = None,
    device: str = "auto",
    judge_patients: Path | str | None = None,
    tensorboard: bool | None = None,
    progress: bool | None = None,
    report: Callable[[str], None] | None = None,
    **settings: Any,
) -> PretrainResult:
    """Train an encoder on a slice store; run again, it goes on where it stopped, and a finished run is opened.

    store: a folder that `build_slices` wrote. output: the run folder. objective, model and settings: see
    `pretrain.settings.PretrainSettings`. leave_out: patients (or scans, with their patients) that are not trained on,
    as in `build_slices`. judge_patients: a table of scan_id and patient_id for the labelled scans. tensorboard: None
    writes a log where tensorboard is installed. progress: a bar; None shows it in a terminal only. report: told a line
    an epoch, every remark and every warning.

    Started by `torchrun` it trains in all processes. Raises InputError and MissingExtra before anything is written;
    later Interrupted at a stop, Diverged when the loss is no number, OutputError when the disk fails.
    """
    started = time.monotonic()
    known = {f.name for f in fields(PretrainSettings)}
    if unknown := sorted(set(settings) - known):
        raise InputError(f"pretrain: unknown setting {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    asked = PretrainSettings(objective=objective, model=model, **settings).settled()
    asked = replace(asked, options=full_options(objective, asked.options))
    path = Path(output)
    tell = report if report is not None and launched_rank() == 0 else _nothing
    recorded = check_folder(path)
    with_board, no_board = wants_tensorboard(tensorboard)
    start = starting_point(asked)
    card = start.card
    opened = store if isinstance(store, SliceStore) else SliceStore(store)
    rows, left = rows_to_train_on(opened, leave_out)
    speaks = launched_rank() == 0
    with (
        locked(path) if speaks else nullcontext(),
        stopping(*_STOPS, several=launched() > 1, quiet=not speaks) as stop,
        processes(device) as place,
    ):
        if speaks:
            recorded = check_folder(path)  # once more: another process may have begun or ended in it before the lock
        stop.check()
        labelled = _labelled_set(asked, path, judge_patients, tell)
        precision = _precision(asked, place, recorded)
        judged = labelled.digest if labelled else ""
        identity = Identity(asked, data_record(opened, rows), card, judged, precision, start.digest, start.origin)
        if recorded is not None:
            check_same(path, recorded, identity)
            if is_finished(path):
                return _opened(path, 0, time.monotonic() - started)
        network = starting_objective(asked, start, place)
        remarks = [
            no_board,
            left,
            check_spacing(opened, rows, card, network.kinds, augmentation(asked.augmentation)),
            hold_patch_embedding(network, asked),
            few_lesions(network, opened, rows, asked),
        ]
        if asked.checkpoint_grads:
            checkpoint_activations(network)
        with _batches(opened, card, network, asked, rows, place) as batches:
            loop = Loop(
                objective=network,
                batches=batches,
                settings=asked,
                folder=path,
                architecture=card.architecture,
                precision=precision,
                stop=stop,
                report=tell,
                progress=sys.stderr.isatty() if progress is None else progress,
                tensorboard=with_board,
            )
            if labelled is not None:
                check = stop.check if world_size() == 1 else _nothing
                loop.judge = partial(_judge, network, card, labelled, asked.seed, loop.autocast, check)
                remarks += [labelled.describe(), *labelled.remarks, _shared(labelled, opened, rows)]
                remarks.append(check_spacing(labelled.store, labelled.rows, card))
            checkpoint = read_checkpoint(path / CHECKPOINT) if recorded is not None else None
            if checkpoint is not None:
                loop.resume(checkpoint)
                remarks.append(f"{path}: going on after step {loop.step} of {loop.steps}")
            for remark in filter(None, remarks):
                tell(remark)
            if speaks and recorded is None:
                write_settings(path, identity)
            seen, planes = seen_record(opened, rows), _planes(opened, rows)
            name = asked.name or path.resolve().name

            def save_card(row: Row, folder: Path) -> None:
                made = exported_card(identity, seen, planes, row, name)
                export(made, network.exported(), folder, half=asked.half)

            loop.keep_best = lambda row: save_card(row, path / BEST)
            before = loop.step
            with _memory_errors(path):
                loop.run()
            if speaks:
                _finish(path, save_card, loop.epochs)
            if world_size() > 1:
                dist.barrier()
        return _opened(path, loop.step - before, time.monotonic() - started, tuple(loop.warnings))


def best_row(epochs: Sequence[Row]) -> Row:
    """The epoch that the judge liked best, the first of equals; the last one without a judge."""
    judged = [row for row in epochs if not math.isnan(row.get("judged", math.nan))]
    return max(judged, key=lambda row: row["judged"]) if judged else epochs[-1]


def _batches(
    store: SliceStore,
    card: EncoderCard,
    objective: Objective,
    settings: PretrainSettings,
    rows: NDArray[np.int64],
    device: torch.device,
) -> Batches:
    share, rest = divmod(settings.batch, world_size())
    if rest or not share:
        raise InputError(
            f"--batch {settings.batch}: is shared among {world_size()} processes; give a multiple of {world_size()}"
        )
    return make_batches(
        store,
        card,
        objective.kinds,
        augmentation(settings.augmentation),
        batch=share,
        seed=settings.seed,
        rank=rank(),
        world=world_size(),
        workers=settings.workers,
        rows=rows,
        annotated_share=settings.annotated_share,
        device=device,
    )


def _labelled_set(
    settings: PretrainSettings, path: Path, patients: Path | str | None, tell: Callable[[str], None]
) -> LabelledSet | None:
    """The judge's set; scans of a folder become a store in the run folder first, once."""
    if not settings.judge:
        return None
    place = Path(settings.judge)
    if not is_store(place):
        if not settings.judge_labels:
            raise InputError(
                f"--judge {place}: is no slice store; expected one with boxes, or scans with --judge-labels TABLE and "
                "--judge-target COLUMN"
            )
        if rank() == 0:
            built = build_slices(place, path / JUDGED, workers=max(1, settings.workers))
            if built.refused or built.failed:
                tell(f"--judge: {built.summary()}")
        if world_size() > 1:
            dist.barrier()
        place = path / JUDGED
    store = SliceStore(place)
    if settings.judge_labels:
        return labelled_scans(store, settings.judge_labels, settings.judge_target, patients=patients)
    return labelled_slices(store, settings.judge_target, seed=settings.seed)


def _judge(
    objective: Objective,
    card: EncoderCard,
    labelled: LabelledSet,
    seed: int,
    autocast: Autocast,
    check: Callable[[], None],
) -> dict[str, float]:
    return judge(objective.exported(), card, labelled, seed=seed, autocast=autocast, check=check)


def _shared(labelled: LabelledSet, store: SliceStore, rows: NDArray[np.int64]) -> str:
    """A sentence where the judge scores patients that are trained on."""
    ours, theirs = store.table[rows], labelled.store.table[labelled.rows]
    known = theirs.filter(pl.col("scan_digest").is_in(ours["scan_digest"].unique().to_list()))  # under whatever name
    judged = set(labelled.groups.tolist())
    shared = judged & {*ours["patient_id"].drop_nulls().to_list(), *known["patient_id"].drop_nulls().to_list()}
    if not shared:
        return ""
    return (
        f"{len(shared)} of the {len(judged)} judged patients are trained on too: their figures "
        "say less of new ones (--leave-out keeps them apart)"
    )


def _precision(settings: PretrainSettings, device: torch.device, recorded: Mapping[str, Any] | None) -> str:
    """float32 or bfloat16; what auto meant at the start, it means to the end."""
    if settings.precision != "auto":
        return settings.precision
    if recorded is not None and recorded.get("precision") in ("float32", "bfloat16"):
        return str(recorded["precision"])
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def _finish(path: Path, save_card: Callable[[Row, Path], None], epochs: Sequence[Row]) -> None:
    """The encoder's card in the run folder: the best epoch's where there is a judge, and the last one's beside it."""
    if math.isnan(best_row(epochs).get("judged", math.nan)):
        save_card(epochs[-1], path)
        return
    save_card(epochs[-1], path / LAST)
    for name in (WEIGHTS_FILE, CARD_FILE):  # the card last: it says that the run is done
        write_aside(path / name, (path / BEST / name).read_bytes())


def _opened(path: Path, new_steps: int, seconds: float, warnings: tuple[str, ...] = ()) -> PretrainResult:
    """What a finished run folder holds."""
    epochs = [{k: v for k, v in row.items() if not math.isnan(v)} for row in read_history(path / EPOCHS)]
    if not epochs:
        raise InputError(
            f"{path / EPOCHS}: missing or empty; the run is finished, but what it did is not known any more"
        )
    return PretrainResult(path, path / CARD_FILE, read_card(path), tuple(epochs), new_steps, seconds, warnings)


def _planes(store: SliceStore, rows: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(sorted(store.table[rows]["plane"].drop_nulls().unique().to_list()))


@contextmanager
def _memory_errors(path: Path) -> Iterator[None]:
    """A GPU that is too small becomes a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ClearError(
            f"{path}: the GPU's memory does not hold a step. Give --micro-batch N (fewer slices at a time, the same "
            "gradient), --checkpoint-grads, or more GPUs"
        ) from error


def _nothing(*_: Any) -> None:
    """Told, and silent."""
