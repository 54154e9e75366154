"""Batches of views: slices read, planned and rendered by worker processes while the network computes.

What a batch holds depends on the seed, the epoch and the step alone. Workers, processes and restarts change nothing, to
the last bit on one type of machine: they only take pieces of a fixed list (`pretrain.order`), and a view depends on
its own key (`pretrain.views`).

Processes, not threads: rendering is many short torch calls, and threads that hand Python's lock to and fro make each
other, and the training loop, slower (two threads gave no more views a second than one). They are spawned, not forked:
zarr, polars and OpenMP hold threads that a fork would lose.
"""

from __future__ import annotations

import atexit
import math
import signal
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clear.errors import ClearError, InputError
from pretrain.augmentation import Augmentation
from pretrain.order import Order
from pretrain.views import ViewKind, Views, plan_views, render

if TYPE_CHECKING:
    from clear.card import EncoderCard
    from pretrain.store import SliceStore

CHUNK = 16  # slices a worker makes at a time, at most
AHEAD = 2  # batches made ahead of the one in use
GRACE_S = 1800  # a worker lives on after SIGTERM: its process finishes the step first, however long that takes

Piece = tuple[list[Tensor], Tensor, Tensor]  # values before mean and std, one tensor a kind; lesion; rows
Job = list[tuple[int, int, int]]  # epoch, repeat, row of each slice


def make_batches(
    store: SliceStore,
    card: EncoderCard,
    kinds: Sequence[ViewKind],
    augmentation: Augmentation,
    *,
    batch: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    annotated_share: float | None = None,
    device: torch.device | str = "cpu",
) -> Batches:
    """Batches of `kinds` for process `rank` of `world`.

    batch: slices a batch of this process; a global batch has world times as many, and this process takes the rank-th
    part of it. workers: processes beside this one; 0 renders here, when a batch is asked for.
    rows: store rows to show; all by default. annotated_share: see `pretrain.order.Order`; as the store is by default.
    device: where the images are wanted; for CUDA they go through pinned memory.

    Raises InputError when they cannot be made: too few slices for one batch, lesion views asked of a store without
    boxes, a row twice or outside the store, an encoder that takes whole volumes.
    """
    if batch < 1 or workers < 0 or not 0 <= rank < world:
        raise InputError(
            f"expected a batch of 1 or more, 0 or more workers and a rank below the number of processes; "
            f"found batch {batch}, workers {workers}, rank {rank} of {world}"
        )
    if seed < 0:
        raise InputError(f"the seed is {seed}; expected 0 or more")
    _check_card(card, kinds, augmentation)
    slices = store.table.height
    chosen = np.arange(slices) if rows is None else np.sort(np.asarray(rows, np.int64))
    if (np.diff(chosen) == 0).any() or (len(chosen) and not 0 <= chosen[0] <= chosen[-1] < slices):
        raise InputError(f"rows of {store.path}: expected each once, of 0..{slices - 1}")
    annotated = store.table["n_boxes"].to_numpy()[chosen] > 0
    if any(kind.lesion or kind.full for kind in kinds) and not annotated.any():
        raise InputError(
            f"{store.path}: none of the {len(chosen)} slices has a lesion's box, and lesion crops need some. "
            "Build the store with --boxes, or train with moco-v3"
        )
    order = Order(chosen, annotated, batch * world, seed, annotated_share)
    pieces = _Pieces(store, card, tuple(kinds), augmentation, seed)
    return Batches(order, pieces, batch, rank, workers, torch.device(device))


def _check_card(card: EncoderCard, kinds: Sequence[ViewKind], augmentation: Augmentation) -> None:
    if not kinds:
        raise InputError("expected at least one view of a slice; found none")
    if card.volume is not None:
        raise InputError(f"encoder {card.name} takes whole volumes; slices train encoders of slices")
    if card.intensity != "window" and augmentation.needs_unit_range:
        raise InputError(
            f"encoder {card.name} standardises slices instead of windowing them; brightness, contrast and solarising "
            "are defined for windowed values. Use the augmentation ct"
        )


class Batches:
    """The batches of one process, epoch by epoch; made by `make_batches`.

    Worker processes start with the first epoch and stay until `close`, the end of a `with` block, or of the process.
    """

    def __init__(
        self, order: Order, pieces: _Pieces, batch: int, rank: int, workers: int, device: torch.device
    ) -> None:
        self.order = order
        self.batch = batch
        self.rank = rank
        self.device = device
        self.steps_per_epoch = order.steps
        self._pieces = pieces
        self._jobs = _Jobs()
        self._turn = 0
        chunk = min(CHUNK, math.ceil(batch / max(workers, 1)))
        self._bounds = [(start, min(start + chunk, batch)) for start in range(0, batch, chunk)]
        parallel: dict[str, Any] = {}
        if workers:
            parallel = {
                "multiprocessing_context": "spawn",
                "persistent_workers": True,
                "prefetch_factor": max(2, math.ceil(AHEAD * len(self._bounds) / workers)),
                "worker_init_fn": _start_worker,
            }
        self._loader: DataLoader[Piece] | None = DataLoader(
            pieces,
            sampler=self._jobs,
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own: the training loop's generator must not depend on loading
            **parallel,
        )
        _OPEN.add(self)

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """(steps, batch) store rows that this process sees in an epoch."""
        return self.order.epoch(epoch)[0][:, self._share]

    @property
    def _share(self) -> slice:
        return slice(self.rank * self.batch, (self.rank + 1) * self.batch)

    def epoch(self, number: int, start_step: int = 0) -> Iterator[Views]:
        """The batches of one epoch from `start_step` on, as an undisturbed epoch gives them.

        One epoch at a time: starting another ends this one.
        """
        if self._loader is None:
            raise InputError("these batches are closed; make new ones")
        if not 0 <= start_step <= self.steps_per_epoch:
            raise InputError(f"step {start_step} is not in an epoch of {self.steps_per_epoch} steps")
        self._turn += 1
        return self._run(number, start_step, self._turn, self._loader)

    def _run(self, number: int, start_step: int, turn: int, loader: DataLoader[Piece]) -> Iterator[Views]:
        if turn != self._turn:
            raise InputError(f"epoch {number} was left for another one; start it again")
        rows, repeats = (values[start_step:, self._share] for values in self.order.epoch(number))
        self._jobs.jobs = [
            [(number, int(repeat), int(row)) for row, repeat in zip(step_rows[a:b], step_repeats[a:b], strict=True)]
            for step_rows, step_repeats in zip(rows, repeats, strict=True)
            for a, b in self._bounds
        ]
        with _without_main():
            made = iter(loader)
        for _ in range(len(rows)):
            views = self._assemble(made)
            yield views
            if turn != self._turn:
                raise InputError(f"epoch {number} was left for another one; start it again")

    def _assemble(self, made: Iterator[Piece | ClearError]) -> Views:
        """The next batch: pieces side by side, on the device, with the card's mean and std."""
        card, kinds = self._pieces.card, self._pieces.kinds
        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (card.mean, card.std))
        images = [
            torch.empty(
                (self.batch, card.channels, kind.size, kind.size),
                device=self.device,
                memory_format=torch.channels_last,
            )
            for kind in kinds
        ]
        lesion, rows = [], []
        for start, end in self._bounds:
            piece = next(made)
            if isinstance(piece, ClearError):
                raise piece from None
            for out, grey in zip(images, piece[0], strict=True):
                part = out[start:end]
                torch.sub(grey.to(self.device, non_blocking=True), mean, out=part).div_(std)
            lesion.append(piece[1])
            rows.append(piece[2])
        return Views(
            images,
            torch.cat(lesion).to(self.device, non_blocking=True),
            torch.cat(rows).to(self.device, non_blocking=True),
        )

    def close(self) -> None:
        """Stop the worker processes."""
        self._turn += 1
        loader, self._loader = self._loader, None
        # the iterator's end would do it, but tracebacks and half-read epochs may still hold it
        if loader is not None and (workers := getattr(loader, "_iterator", None)) is not None:
            workers._shutdown_workers()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Jobs:
    """The loader's sampler: what to make next, one job a piece."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


class _Pieces(Dataset[Any]):
    """Pieces of batches, rendered by whichever process is asked."""

    def __init__(
        self,
        store: SliceStore,
        card: EncoderCard,
        kinds: tuple[ViewKind, ...],
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.store, self.card, self.kinds, self.augmentation, self.seed = store, card, kinds, augmentation, seed

    def __getitem__(self, job: Job) -> Piece | ClearError:
        """Views of the job's slices; an error that the user can act on is handed over as it is, not as a traceback."""
        channels = len(self.card.channel_windows) or 1
        images = [torch.empty((len(job), channels, kind.size, kind.size)) for kind in self.kinds]
        lesion = torch.zeros(len(job), dtype=torch.bool)
        try:
            with _one_thread():
                for i, (epoch, repeat, row) in enumerate(job):
                    stored = self.store.read(row)
                    plans = plan_views(
                        stored, self.kinds, self.augmentation, self.card, seed=self.seed, epoch=epoch, repeat=repeat
                    )
                    for out, plan in zip(images, plans, strict=True):
                        out[i] = render(stored, plan, self.card)
                    lesion[i] = len(stored.boxes) > 0
        except ClearError as error:
            return error
        return images, lesion, torch.tensor([row for _, _, row in job])


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread, as in a worker: sums come out the same, and short calls are faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _without_main() -> Iterator[None]:
    """Workers started in here do not run the user's script again; it needs no main guard, and they need nothing of it.

    multiprocessing.spawn would import it for what was pickled, which is this package's own.
    """
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


def _start_worker(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process; the main one saves what it has, then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


_OPEN: weakref.WeakSet[Batches] = weakref.WeakSet()


@atexit.register  # before the loader's own, which would wait for workers that do not know of the end
def _close_all() -> None:
    for batches in list(_OPEN):
        batches.close()
