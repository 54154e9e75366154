"""Which slices make which batch: one permutation an epoch, the same for every number of processes and workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear.errors import InputError

ORDER = 0x0DE5  # keeps these generators apart from those of the views


@dataclass(frozen=True)
class Order:
    """The batches of every epoch, a function of the seed alone.

    rows: store rows to show, each once an epoch; what does not fill a last batch is left out of that epoch.
    annotated: for each row, whether the slice has a box.
    batch: slices in a global batch, that of all processes together.
    annotated_share: share of annotated slices in every batch; None takes them as they come. With a share an epoch has
    as many batches as without one, so slices of one kind are seen more than once in it and some of the other kind not
    at all; no batch holds a slice twice.
    """

    rows: NDArray[np.int64]
    annotated: NDArray[np.bool_]
    batch: int
    seed: int
    annotated_share: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(
                f"{len(self.rows)} slices do not fill one batch of {self.batch} (over all processes); "
                "lower --batch or add slices"
            )
        if self.annotated_share is None:
            return
        if not 0 <= self.annotated_share <= 1:
            raise InputError(f"the share of annotated slices in a batch is {self.annotated_share}; expected 0..1")
        for name, wanted, there in zip(("annotated", "other"), self._wanted, self._counts, strict=True):
            if wanted > there:
                raise InputError(
                    f"a batch of {self.batch} needs {wanted} {name} slices, but only {there} are there; "
                    "change the share of annotated slices or lower --batch"
                )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.rows) // self.batch

    @property
    def _wanted(self) -> tuple[int, int]:
        annotated = round((self.annotated_share or 0.0) * self.batch)
        return annotated, self.batch - annotated

    @property
    def _counts(self) -> tuple[int, int]:
        annotated = int(self.annotated.sum())
        return annotated, len(self.rows) - annotated

    def epoch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows (steps, batch) of one epoch and how often it has shown each of them before."""
        if self.annotated_share is None:
            picked = self._passes(self.rows, self.batch, number, 0)
        else:
            annotated, other = self._wanted
            parts = [
                self._passes(self.rows[self.annotated], annotated, number, 1),
                self._passes(self.rows[~self.annotated], other, number, 2),
            ]
            # mixed, so that every process gets annotated slices
            rng = np.random.default_rng([ORDER, self.seed, number, 3])
            places = rng.permuted(np.tile(np.arange(self.batch), (self.steps, 1)), axis=1)
            picked = np.take_along_axis(np.concatenate(parts, axis=1), places[..., None], axis=1)
        return picked[..., 0], picked[..., 1]

    def _passes(self, rows: NDArray[np.int64], wanted: int, number: int, which: int) -> NDArray[np.int64]:
        """(steps, wanted, 2): rows in random order, pass after pass, and the number of the pass."""
        if not wanted:
            return np.empty((self.steps, 0, 2), np.int64)
        whole = len(rows) // wanted  # batches a pass fills without showing a slice twice in one
        passes = []
        for turn in range(-(-self.steps // whole)):
            shuffled = np.random.default_rng([ORDER, self.seed, number, which, turn]).permutation(rows)
            taken = shuffled[: whole * wanted].reshape(whole, wanted)
            passes.append(np.stack([taken, np.full_like(taken, turn)], axis=-1))
        return np.concatenate(passes)[: self.steps]
