"""Occlusion: what the answer loses when a part of a slice is covered. No gradient and no attention is believed.

Zeiler and Fergus, ECCV 2014, section 4.2. A square window of `width` cells slides over the prepared slice cell by cell;
what it covers is painted with the slice's own mean, the slice is encoded again, and the fall of the bag's answer (other
slices untouched) is credited to the covered cells. A cell's value is the mean fall over the windows that cover it,
never below 0.

Cost: (cells + width - 1)^2 passes of the encoder a slice and window, 64 by default: about 64 times an extraction of the
slices asked for. `slices` limits it to those that matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregate.aggregators import Aggregator
from aggregate.explain.endpoint_gradient import bag_outputs, embeddings_of
from aggregate.explain.instances import maps_of_instances, to_one
from aggregate.packed import TILE_ROWS
from clear.frozen import DEFAULT_BATCH, Encoder
from clear.volume import Volume
from clear.windows import Window

CELLS, WIDTH = 7, 2


def occlusion(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    models: Sequence[Aggregator],
    target: int,
    *,
    embeddings: NDArray[np.floating] | None = None,
    cells: int = CELLS,
    width: int = WIDTH,
    slices: Sequence[int] | None = None,
    batch: int = DEFAULT_BATCH,
) -> NDArray[np.float32]:
    """(Z, W, cells, cells), each summing to 1 or 0 everywhere: where covering lowers the answer, mean over the models.

    cells: of the grid along a side; width: of the window that covers, in cells; slices: (indices along Z) the only ones
    to do, the others' maps are 0; batch: covered instances at a time.
    embeddings: (Z * W, d) of the scan, the bag in which the covered slice is put.
    """
    if not 1 <= width <= cells <= encoder.card.input_size:
        raise ValueError(f"cells {cells} and width {width}: expected 1 <= width <= cells <= {encoder.card.input_size}")
    rows = torch.as_tensor(np.asarray(embeddings_of(encoder, volume, windows, embeddings), dtype=np.float32))
    wanted = None if slices is None else set(slices)
    per_slice = len(rows) // volume.n_slices
    covers = _covers(encoder.card.input_size, cells, width)
    before = [float(_answers(model, rows[None], target)[0]) for model in models]

    def make(first: int, x: Tensor) -> Tensor:
        maps = torch.zeros(len(x), cells, cells)
        for i, image in enumerate(x):
            if wanted is not None and (first + i) // per_slice not in wanted:
                continue
            covered = _encode_covered(encoder, image, covers, batch)
            found = []
            for model, answer in zip(models, before, strict=True):
                fall = answer - _fall_bags(model, rows, first + i, covered, target)
                found.append(to_one(_credited(fall, cells, width)))
            maps[i] = torch.stack(found).mean(dim=0)
        return to_one(maps)

    return maps_of_instances(encoder, volume, windows, make, batch=per_slice)


def _covers(side: int, cells: int, width: int) -> list[tuple[slice, slice]]:
    """Pixel ranges of each window, row by row; at the border the part that lies inside."""
    bounds = [round(i * side / cells) for i in range(cells + 1)]
    spans = [slice(bounds[max(0, end - width)], bounds[min(end, cells)]) for end in range(1, cells + width)]
    return [(rows, columns) for rows in spans for columns in spans]


def _encode_covered(encoder: Encoder, image: Tensor, covers: Sequence[tuple[slice, slice]], batch: int) -> Tensor:
    """(n, d) embeddings of one prepared instance (C, S, S), covered by each window in turn."""
    neutral = image.mean(dim=(1, 2), keepdim=True)
    found = []
    for start in range(0, len(covers), batch):
        part = covers[start : start + batch]
        many = image.expand(len(part), -1, -1, -1).clone(memory_format=torch.channels_last)
        for one, (rows, columns) in zip(many, part, strict=True):
            one[:, rows, columns] = neutral
        with torch.inference_mode():
            found.append(encoder.forward(many).cpu())
    return torch.cat(found)


def _fall_bags(model: Aggregator, rows: Tensor, instance: int, covered: Tensor, target: int) -> Tensor:
    """(n,) answers of the bag (K, d) with one instance replaced by each of (n, d), some bags at a time."""
    step = max(1, TILE_ROWS // len(rows))
    answers = []
    for start in range(0, len(covered), step):
        part = covered[start : start + step]
        bags = rows.expand(len(part), -1, -1).clone()
        bags[:, instance] = part
        answers.append(_answers(model, bags, target))
    return torch.cat(answers)


def _answers(model: Aggregator, bags: Tensor, target: int) -> Tensor:
    with torch.no_grad():
        return bag_outputs(model.eval(), bags.to(model.mean.device), target).float().cpu()


def _credited(fall: Tensor, cells: int, width: int) -> Tensor:
    """(cells, cells) mean fall over the windows that cover a cell, 0 where the answer rose; fall: of each window."""
    side = cells + width - 1
    table = fall.view(1, 1, side, side)
    return torch.nn.functional.avg_pool2d(table, width, stride=1)[0, 0].clamp_min(0)
