"""The training loop: epochs of steps, a checkpoint after each, and an end at any moment that loses nothing finished.

One process or many run the same code: each encodes its share of the global batch, the objective gathers what it
contrasts with, gradients are averaged, and every decision that must be common (a loss that is no number, a stop) is
made on figures averaged over the processes. Files are written by the first process alone.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from clear.errors import ClearError
from clear.stopping import Interrupted, Stop
from pretrain import collapse
from pretrain.accumulate import Autocast, backward
from pretrain.batches import Batches
from pretrain.checkpoints import CHECKPOINT, Checkpoint, load_states, write_checkpoint
from pretrain.distributed import average_gradients, mean_over_processes, rank, world_size
from pretrain.history import EPOCHS, HISTORY, TENSORBOARD, History, TensorBoard, read_history, write_epochs
from pretrain.objectives.objective import Objective
from pretrain.optimiser import build_optimiser, clip_gradients, set_rates
from pretrain.settings import PretrainSettings
from pretrain.views import Views

Row = dict[str, float]


class Diverged(ClearError):
    """The loss or its gradient is no number any more."""


@dataclass
class Loop:
    """A run between two steps, and how it goes on.

    objective: on its device. settings: settled. judge: figures of an epoch's encoder, called by all processes;
    keep_best: told the row of an epoch that the judge liked best so far, in the first process. report: told one line an
    epoch and every warning. progress: a bar on standard error.
    """

    objective: Objective
    batches: Batches
    settings: PretrainSettings
    folder: Path
    architecture: str
    precision: str
    stop: Stop
    judge: Callable[[], Mapping[str, float]] | None = None
    keep_best: Callable[[Row], None] = lambda row: None
    report: Callable[[str], None] = lambda line: None
    progress: bool = False
    tensorboard: bool = False

    step: int = 0
    epochs: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    images_per_s: float = 0.0
    _start_in_epoch: int = 0
    _sums: Row = field(default_factory=dict)
    _last: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optimiser = build_optimiser(self.objective, self.settings)
        self.device = next(self.objective.student.parameters()).device
        self.steps = self.batches.steps_per_epoch * self.settings.epochs
        self._main = rank() == 0
        self._recent = collapse.RecentEmbeddings()
        self.autocast: Autocast = contextlib.nullcontext
        if self.precision == "bfloat16":
            self.autocast = functools.partial(torch.autocast, self.device.type, torch.bfloat16)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises InputError where it is of another run."""
        origin = self.folder / CHECKPOINT
        load_states(checkpoint, self.objective, self.optimiser, origin, self.architecture)
        self.step, self._start_in_epoch = checkpoint.step, checkpoint.step_in_epoch
        self._sums = dict(checkpoint.sums)
        self._recent = collapse.RecentEmbeddings(checkpoint.embeddings)
        written = read_history(self.folder / EPOCHS)  # has what the judge found after the checkpoint
        judged = {int(row["epoch"]): {k: v for k, v in row.items() if not math.isnan(v)} for row in written}
        self.epochs = [{**row, **judged.get(int(row["epoch"]), {})} for row in checkpoint.epochs]

    def run(self) -> None:
        """Train to the end. Raises Interrupted at a stop, Diverged, OutputError, and what the objective raises."""
        self.objective.train()
        history = History(self.folder / HISTORY, self.step) if self._main else None
        board = TensorBoard(self.folder / TENSORBOARD if self.tensorboard and self._main else None, self.step)
        total = self.steps * self.settings.batch
        bar = tqdm(
            total=total,
            initial=self.step * self.settings.batch,
            unit=" images",
            smoothing=0.05,
            disable=not (self.progress and self._main),
            dynamic_ncols=True,
        )
        with contextlib.closing(board), bar:
            try:
                if self._start_in_epoch == 0 and self.epochs:
                    self._judge_epoch(board)  # a run that was killed just before
                for epoch in range(len(self.epochs), self.settings.epochs):
                    self._run_epoch(epoch, history, board, bar)
                    self._judge_epoch(board)
            finally:
                if history is not None:
                    history.flush()

    def _run_epoch(self, epoch: int, history: History | None, board: TensorBoard, bar: Any) -> None:
        first, started = self._start_in_epoch, time.monotonic()
        bar.set_description(f"epoch {epoch + 1} of {self.settings.epochs}")
        for step_in_epoch, views in enumerate(self.batches.epoch(epoch, first), start=first):
            row, stop = self._take_step(views, epoch)
            if history is not None:
                history.add(row)
            board.add(row, self.step, "step")
            bar.set_postfix_str(
                f"loss {row['loss']:.4f}, lr {row['lr']:.2e}, momentum {row['momentum']:.4f}", refresh=False
            )
            bar.update(self.settings.batch)
            done = step_in_epoch + 1 == self.batches.steps_per_epoch
            if stop and not done:
                self._save(history, epoch, step_in_epoch + 1)
                self._end_stopped()
        seconds = time.monotonic() - started
        images = (self.batches.steps_per_epoch - first) * self.settings.batch
        self.images_per_s = images / max(seconds, 1e-9)
        self._finish_epoch(epoch, history, seconds, bar)
        if self._stop_asked():
            self._end_stopped()

    def _take_step(self, views: Views, epoch: int) -> tuple[Row, bool]:
        """One step of the optimiser; returns its row of history.csv, and whether a stop was asked for anywhere."""
        settings, progress = self.settings, self.step / self.steps
        rate = set_rates(self.optimiser, settings, self.step, self.steps)
        _seed_generators(settings.seed, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        computed = backward(self.objective, views, progress, micro_batch=settings.micro_batch, autocast=self.autocast)
        trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        average_gradients(trained)
        norm = clip_gradients(trained, settings)
        names = list(computed.losses)
        figures = [computed.losses[name].detach().double().reshape(()) for name in names]
        asked = torch.tensor(float(self.stop.requested), dtype=torch.float64, device=self.device)
        *means, gradient, asked_share = _common(torch.stack([*figures, norm.double().to(self.device), asked]))
        if not (math.isfinite(means[names.index("loss")]) and math.isfinite(gradient)):
            raise Diverged(self._diverged(epoch, rate, means[names.index("loss")]))
        self.optimiser.step()
        momentum = self.objective.update_teacher(progress)
        to_come = self.batches.steps_per_epoch - 1 - self.step % self.batches.steps_per_epoch
        if to_come * len(computed.embeddings) < collapse.ROWS:  # earlier ones would not be kept
            self._recent.add(computed.embeddings)
        self.step += 1
        parts = dict(zip(names, means, strict=True))
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        decay = max(group["weight_decay"] for group in self.optimiser.param_groups)
        row = {
            "step": self.step,
            "epoch": epoch + 1,
            **parts,
            "lr": rate,
            "weight_decay": decay,
            "momentum": momentum,
            "grad_norm": gradient,
        }
        self._last = row
        return row, asked_share > 0

    def _finish_epoch(self, epoch: int, history: History | None, seconds: float, bar: Any) -> None:
        row: Row = {"epoch": epoch + 1, "step": self.step}
        row |= {name: value / self.batches.steps_per_epoch for name, value in self._sums.items()}
        row |= {name: self._last[name] for name in ("lr", "momentum")}
        figures = self._recent.figures()
        if figures is not None:
            row["spread"], row["effective_rank"] = figures
        row |= {"seconds": round(seconds, 3), "images_per_s": round(self.images_per_s, 2)}
        self.epochs.append(row)
        self._sums, self._start_in_epoch = {}, 0
        self._recent = collapse.RecentEmbeddings()
        self._save(history, epoch + 1, 0)
        if self._main:
            with tqdm.external_write_mode():
                self.report(epoch_line(row, self.settings.epochs))
                if figures is not None and (text := collapse.warning(*figures)):
                    self.warnings.append(f"epoch {epoch + 1}: {text}")
                    self.report(f"warning: {text}")

    def _judge_epoch(self, board: TensorBoard) -> None:
        """Judge the last finished epoch where it is due, keep it if it is the best, and write epochs.csv."""
        row = self.epochs[-1]
        epoch = int(row["epoch"])
        due = epoch % self.settings.judge_every == 0 or epoch == self.settings.epochs
        if self.judge is not None and due and "judged" not in row:
            try:
                found = dict(self.judge())
            except Interrupted:  # judged again when the run goes on: its checkpoint is written
                self._end_stopped()
            self.objective.train()
            row |= found
            before = [each["judged"] for each in self.epochs[:-1] if not math.isnan(each.get("judged", math.nan))]
            if self._main:
                if row["judged"] > max(before, default=-math.inf):
                    self.keep_best(row)
                with tqdm.external_write_mode():
                    self.report("judged: " + ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in found.items()))
        if self._main:
            write_epochs(self.folder / EPOCHS, self.epochs)
            board.add(row, self.step, "epoch")

    def _save(self, history: History | None, epoch: int, step_in_epoch: int) -> None:
        """History first, so that it never lacks a row of what the checkpoint has done."""
        if history is None:
            return
        history.flush()
        generators = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint = Checkpoint(
            step=self.step,
            epoch=epoch,
            step_in_epoch=step_in_epoch,
            objective=self.objective.state_dict(),
            optimiser=self.optimiser.state_dict(),
            architecture=self.architecture,
            epochs=self.epochs,
            sums=self._sums,
            embeddings=self._recent.tensor,
            generators=generators,
        )
        write_checkpoint(checkpoint, self.folder / CHECKPOINT)

    def _stop_asked(self) -> bool:
        """Whether any process was asked to stop; all get the same answer."""
        asked = torch.tensor([float(self.stop.requested)], dtype=torch.float64, device=self.device)
        return _common(asked)[0] > 0

    def _end_stopped(self) -> NoReturn:
        if world_size() > 1:
            dist.barrier()  # the launcher ends all processes when the first one goes
        raise Interrupted(
            f"{self.folder}: stopped after step {self.step} of {self.steps}; run the same command to go on from there."
        )

    def _diverged(self, epoch: int, rate: float, loss: float) -> str:
        what = "the gradient" if math.isfinite(loss) else "the loss"
        kept = self.folder / CHECKPOINT
        saved = f"The last good checkpoint is kept ({kept})" if kept.is_file() else "No epoch was finished before"
        return (
            f"{self.folder}: {what} is no number at step {self.step + 1} (epoch {epoch + 1}, learning rate "
            f"{rate:.2e}). {saved}. Begin in another folder with a lower --lr, a longer --warmup-epochs or --clip"
        )


def epoch_line(row: Mapping[str, float], epochs: int) -> str:
    """One line an epoch, for terminals and logs."""
    parts = [f"epoch {int(row['epoch'])} of {epochs}: loss {row['loss']:.4f}"]
    if "spread" in row:
        parts.append(f"spread {row['spread']:.3f}, effective rank {row['effective_rank']:.1f}")
    parts.append(f"{row['images_per_s']:.0f} images/s")
    return ", ".join(parts)


def _common(figures: Tensor) -> list[float]:
    """The mean of every process's figures, the same numbers in each."""
    values: list[float] = mean_over_processes(figures).tolist()
    return values


def _seed_generators(seed: int, step: int) -> None:
    """torch's generators for one step: dropout and masks follow from (seed, step, process), resumed or not."""
    state = np.random.SeedSequence([seed, step, rank()]).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))
