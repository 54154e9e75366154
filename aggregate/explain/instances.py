"""Working through a scan's instances in batches, slice by slice with the windows inside a slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clear.errors import InputError
from clear.frozen import Encoder
from clear.volume import Volume
from clear.windows import Window

BATCH = 8  # instances at a time: half of what extraction takes, since gradients and attention need room


def maps_of_instances(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    make: Callable[[int, Tensor], Tensor],
    *,
    batch: int = BATCH,
) -> NDArray[np.float32]:
    """(Z, W, ...) float32 of what `make(first, x)` gives, (n, ...), of each batch of prepared instances.

    first: the number of the batch's first instance; x: (n, C, S, S).
    Raises InputError for an encoder of whole volumes, ScanRefused when it is not for this modality or plane.
    """
    check_slices(encoder)
    chosen = encoder.windows_for(volume, windows)
    parts = [make(first, x).float().cpu() for first, x in encoder.prepared(volume, chosen, batch=batch)]
    found = torch.cat(parts).numpy()
    return np.ascontiguousarray(found.reshape(volume.n_slices, len(chosen), *found.shape[1:]), dtype=np.float32)


def check_slices(encoder: Encoder) -> None:
    """Raises InputError for an encoder of whole volumes, and for one whose patches leave a border of the slice out."""
    if encoder.card.volume is not None:
        raise InputError(
            f"encoder {encoder.name} takes whole volumes, so there is no map of a slice; explain a run on a slice "
            "encoder"
        )
    side, patch = encoder.card.input_size, encoder.patch_size
    if patch and side % patch:
        raise InputError(
            f"encoder {encoder.name}: patches of {patch} pixels do not tile slices of {side}, so no map of them can be "
            f"put in its place; expected an input_size that is a multiple of {patch}"
        )


def to_one(maps: Tensor, dims: int = 2) -> Tensor:
    """Maps >= 0, each divided by its sum over the last `dims` axes; one that is 0 everywhere stays so."""
    axes = tuple(range(-dims, 0))
    total = maps.sum(axes, keepdim=True)
    return maps / torch.where(total > 0, total, 1.0)
