"""What a bag's answer asks of each slice: one of its logits, and the gradient of it through the aggregator.

A bag's answer is y = f(e_1, ..., e_K): embeddings e_k, and of the aggregator's outputs the one that is asked, such as a
class's logit. A map of slice k needs dy/dA_k for something A_k inside the encoder. Slices meet in the aggregator alone:

    dy/dA_k = (dy/de_k) (de_k/dA_k)

where dy/de_k is taken at the embeddings of the whole bag, and de_k/dA_k belongs to slice k alone. The first factor is
computed once, for all slices together; the second batch by batch, as the gradient of the scalar product of e_k with the
constant dy/de_k. The result is that of one graph over all slices (the other embeddings held at their values, as the
partial derivative means), and memory does not grow with the scan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregate.aggregators import Aggregator
from clear.frozen import Encoder
from clear.volume import Volume
from clear.windows import Window


def bag_outputs(model: Aggregator, bags: Tensor, target: int) -> Tensor:
    """(B,) output number `target` for bags (B, K, d) of equally many rows, as the bag file has them; differentiable."""
    count, rows = bags.shape[:2]
    offsets = torch.arange(count + 1, device=bags.device) * rows
    logits: Tensor = model(bags.flatten(0, 1), offsets)[0]
    return logits[:, target]


def embedding_gradient(model: Aggregator, embeddings: NDArray[np.floating], target: int) -> Tensor:
    """(K, d) float32, dy/de_k of every instance of a bag (K, d), on the model's device."""
    rows = torch.tensor(np.asarray(embeddings, dtype=np.float32), device=model.mean.device)
    rows.requires_grad_(True)
    with torch.enable_grad():
        (answer,) = bag_outputs(model.eval(), rows[None], target)
        (gradient,) = torch.autograd.grad(answer, rows)
    return gradient


def embeddings_of(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    embeddings: NDArray[np.floating] | None,
) -> NDArray[np.floating]:
    """(Z * W, d) the scan's embeddings: those given, else encoded anew. Raises ValueError when they do not fit."""
    if embeddings is None:
        return encoder.encode(volume, windows)
    expected = (volume.n_slices * len(encoder.windows_for(volume, windows)), encoder.dim)
    if embeddings.shape != expected:
        raise ValueError(f"embeddings {embeddings.shape}; expected {expected}, slice by slice, windows inside a slice")
    return embeddings
