"""Packed bags: rows back to back and offsets, never a padded batch.

A batch of B bags is `rows` (ΣK, d) and `offsets` (B + 1,): bag b is `rows[offsets[b]:offsets[b + 1]]`. No row is
invented, dropped or sampled, so nothing that a bag yields can depend on the bags beside it.

`RowSource` is all that training asks for; `PackedRows` serves it from memory or from a mapped bag file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE_ROWS = 6144  # rows through a model at a time: products at full speed, activations of a few MB
_MEMORY_SHARE = 0.5  # of the memory that is free when the rows are loaded


class RowSource(Protocol):
    """Bags that can be taken by number, as packed float32 rows."""

    @property
    def dim(self) -> int:
        """d, the width of a row."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(B,) rows of each bag, all above 0."""
        ...

    def take(self, bags: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(rows (ΣK, d), offsets (len(bags) + 1,) int64) of these bags, in this order.

        float32, and no row more, unless `scaled` was told otherwise.
        """
        ...

    def moments(self, bags: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """((d,) mean, (d,) standard deviation) over all rows of these bags, float32."""
        ...

    def bag_means(self) -> RowSource:
        """The same bags, each as one row: its mean."""
        ...

    def scaled(self, mean: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, multiple: int = 1) -> RowSource:
        """The same bags with every row as (row - mean) * scale, computed in float32, taken as `dtype`.

        multiple: rows of 0, which belong to no bag, follow what is taken until their number is a multiple of it.
        """
        ...


class PackedRows:
    """Bags as slices of one array.

    data: (N, d) array or tensor, float16 or float32; a mapped file works, and only what is taken is read.
    parts: for each bag the slices of `data` that make it up, in order.
    affine: (mean, scale) applied to what is taken. device: where taken rows go; where the data are, by default.
    dtype: of taken rows. multiple: that their number is filled up to with rows of 0.
    """

    def __init__(
        self,
        data: Any,
        parts: Sequence[Sequence[slice]],
        affine: tuple[Tensor, Tensor] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        multiple: int = 1,
    ) -> None:
        self.data = data
        self.dtype = dtype
        self.multiple = multiple
        self.device = torch.device(device or (data.device if isinstance(data, Tensor) else "cpu"))
        self.parts = [tuple(part) for part in parts]
        self.affine = affine
        n = len(data)
        self._lengths = np.array([sum(len(range(*s.indices(n))) for s in part) for part in self.parts], dtype=np.int64)
        if len(self._lengths) and self._lengths.min() < 1:
            raise ValueError(f"bag {int(self._lengths.argmin())} has no rows")
        self._sums: tuple[Tensor, Tensor] | None = None
        self._kept: Tensor | None = None  # scaled rows of the bags where `_is_kept`
        self._is_kept = np.zeros(len(self.parts), dtype=bool)

    @classmethod
    def of(cls, bags: Sequence[Any]) -> PackedRows:
        """Bags given as separate (K, d) arrays or tensors."""
        tensors = [_tensor(bag) for bag in bags]
        bounds = np.concatenate([[0], np.cumsum([len(tensor) for tensor in tensors])]).tolist()
        return cls(torch.cat(tensors), [[slice(a, b)] for a, b in pairwise(bounds)])

    @property
    def dim(self) -> int:
        return int(self.data.shape[1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._lengths

    def __len__(self) -> int:
        return len(self.parts)

    def take(self, bags: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        numbers = [int(bag) for bag in bags]
        offsets = np.concatenate([[0], np.cumsum(self._lengths[numbers])])
        pieces = [piece for bag in numbers for piece in self._pieces(bag)]
        filling = -int(offsets[-1]) % self.multiple
        if filling:
            pieces.append(pieces[0].new_zeros((filling, self.dim)))
        rows = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(self.device, self.dtype)
        return rows, torch.as_tensor(offsets, device=rows.device)

    def _pieces(self, bag: int) -> list[Tensor]:
        """The bag's parts; scaled where there is an affine, and kept where there is room."""
        parts = self.parts[bag]
        if self.affine is None:
            return [_tensor(self.data[part]) for part in parts]
        if self._kept is None:
            return [self._scaled(part, *self.affine) for part in parts]
        if not self._is_kept[bag]:  # two threads may both see this; they write the same
            for part in parts:
                self._kept[part] = self._scaled(part, *self.affine)
            self._is_kept[bag] = True
        return [self._kept[part] for part in parts]

    def _scaled(self, part: slice, mean: Tensor, scale: Tensor) -> Tensor:
        return (_tensor(self.data[part]).to(mean.device).float() - mean).mul_(scale).to(self.dtype)

    def moments(self, bags: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        first, second = self._bag_sums()
        chosen = torch.as_tensor(np.asarray(bags, dtype=np.int64))
        count = float(self._lengths[np.asarray(bags)].sum())
        mean = first[chosen].sum(0) / count
        variance = (second[chosen].sum(0) / count - mean**2).clamp_min(0)
        return mean.float(), variance.sqrt().float()

    def _bag_sums(self) -> tuple[Tensor, Tensor]:
        """(B, d) sums and sums of squares of each bag in float64: read once, whatever the number of folds."""
        if self._sums is None:
            first = torch.empty((len(self.parts), self.dim), dtype=torch.float64)
            second = torch.empty_like(first)
            for bag in range(len(self.parts)):
                rows = self.take([bag])[0].double()
                first[bag] = rows.sum(0)
                second[bag] = rows.square_().sum(0)
            self._sums = first, second
        return self._sums

    def not_finite(self) -> list[int]:
        """The bags that hold a value which is not finite."""
        first, _ = self._bag_sums()
        return torch.nonzero(~first.isfinite().all(1)).flatten().tolist()

    def bag_means(self) -> PackedRows:
        first, _ = self._bag_sums()
        means = (first / torch.as_tensor(self._lengths)[:, None]).float()
        return PackedRows(means.to(self.device), [[slice(bag, bag + 1)] for bag in range(len(means))])

    def scaled(self, mean: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, multiple: int = 1) -> PackedRows:
        if self.affine is not None:
            raise ValueError("these rows are scaled already")
        n_bytes = len(self.data) * self.dim * dtype.itemsize
        keep = isinstance(self.data, Tensor) and n_bytes < _MEMORY_SHARE * _free_bytes(self.data.device)
        place = self.data.device if keep else self.device
        scaled = PackedRows(self.data, self.parts, (mean.to(place), scale.to(place)), self.device, dtype, multiple)
        if keep:  # room for each bag, filled when it is first taken: if it is, and by the thread that takes it
            scaled._kept = torch.empty(self.data.shape, dtype=dtype, device=place)
        return scaled

    def in_memory(self, device: str = "cpu") -> PackedRows:
        """The same bags in one tensor on the device, bags back to back, if they fit; else read as before."""
        sample = _tensor(self.data[:1])
        n_rows = int(self._lengths.sum())
        if n_rows * self.dim * sample.element_size() > _MEMORY_SHARE * _free_bytes(torch.device(device)):
            return PackedRows(self.data, self.parts, self.affine, device)
        packed = torch.empty((n_rows, self.dim), dtype=sample.dtype, device=device)
        parts, start = [], 0
        for bag in self.parts:
            first = start
            for part in bag:
                piece = _tensor(self.data[part])
                packed[start : start + len(piece)] = piece.to(device)
                start += len(piece)
            parts.append([slice(first, start)])
        return PackedRows(packed, parts, self.affine)


def tiles(bags: Sequence[int] | NDArray[np.int64], lengths: NDArray[np.int64], limit: int) -> list[list[int]]:
    """The bags in order, in groups of equal work: about as many rows each, and about `limit` at most.

    If there are several groups, their number is a multiple of four, so that two threads or four have as many each.

    >>> tiles([0, 1, 2, 3, 4], np.array([300, 200, 900, 100, 500]), 1000)
    [[0, 1], [2], [3], [4]]
    """
    numbers = np.asarray(bags, dtype=np.int64)
    if len(numbers) == 0:
        return []
    rows = lengths[numbers]
    ends = np.cumsum(rows)
    count = math.ceil(ends[-1] / limit)
    if count > 1:
        count = 4 * math.ceil(count / 4)
    group = (ends - rows / 2) * count // ends[-1]  # where a bag's middle lies
    return [part.tolist() for part in np.split(numbers, np.flatnonzero(np.diff(group)) + 1)]


def segments(rows: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    """The rows of each bag, as views; their gradient is put together once, not bag by bag."""
    return torch.split(rows, offsets.diff().tolist())


def segment_of(offsets: Tensor) -> Tensor:
    """(ΣK,) the number of the bag that each row belongs to."""
    lengths = offsets.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """(ΣK,) softmax of (ΣK,) scores within each bag; the bag's maximum is subtracted first, so it cannot overflow."""
    segment = segment_of(offsets)
    highest = torch.segment_reduce(scores.detach(), "max", offsets=offsets)
    weights = (scores - highest[segment]).exp()
    return weights / torch.segment_reduce(weights, "sum", offsets=offsets)[segment]


def segment_sum(rows: Tensor, offsets: Tensor) -> Tensor:
    """(B, d) sum of (ΣK, d) rows within each bag."""
    return torch.segment_reduce(rows, "sum", offsets=offsets, axis=0)


def _tensor(rows: Any) -> Tensor:
    """Rows as a tensor; those of a mapped file are read, which copies them."""
    return rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not every system says
        return 4 << 30
