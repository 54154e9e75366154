"""Grad-CAM through the aggregator: which places of a feature map raise the endpoint's answer for the whole bag.

Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1 and 2: with the activations A^c of channel c at places ij and an answer y,

    alpha_c = mean_ij dy/dA^c_ij            L_ij = ReLU(sum_c alpha_c A^c_ij)

Here A is the encoder's `feature_map` of one slice, and y the target of the bag: A leads through the encoder's own
pooling (`embed_map`) to the slice's embedding, and with the other slices' embeddings through the aggregator to y. How
the gradient is taken exactly and slice by slice is said in `aggregate.explain.endpoint_gradient`.

The last map is coarse: a cell for 32 pixels of most networks. HiResCAM (Draelos and Carin, arXiv:2011.08891) multiplies
place by place instead of by a channel's mean gradient, and is taken here at an inner map with a cell for 8 pixels,

    L_ij = ReLU(sum_c dy/dA^c_ij A^c_ij)

At a last map that is pooled by its mean it is Grad-CAM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregate.aggregators import Aggregator
from aggregate.explain.endpoint_gradient import embedding_gradient, embeddings_of
from aggregate.explain.instances import BATCH, check_slices, maps_of_instances, to_one
from clear.errors import InputError
from clear.frozen import Encoder
from clear.volume import Volume
from clear.windows import Window


def gradcam(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    models: Sequence[Aggregator],
    target: int,
    *,
    embeddings: NDArray[np.floating] | None = None,
    batch: int = BATCH,
) -> NDArray[np.float32]:
    """(Z, W, h, w), each summing to 1 or 0 everywhere: Grad-CAM of every instance, mean over the models.

    embeddings: (Z * W, d) of the scan as the bag file holds them, slice by slice; they save one pass of the encoder.
    batch: instances at a time. Raises InputError for an encoder whose embedding is not pooled from a map.
    """
    return _maps(class_activation, _last_map, encoder, volume, windows, models, target, embeddings, batch)


def gradcam_plus_plus(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    models: Sequence[Aggregator],
    target: int,
    *,
    embeddings: NDArray[np.floating] | None = None,
    batch: int = BATCH,
) -> NDArray[np.float32]:
    """The same by Grad-CAM++ (`class_activation_plus_plus`), which lets several places of one finding count alike."""
    return _maps(class_activation_plus_plus, _last_map, encoder, volume, windows, models, target, embeddings, batch)


def hirescam(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    models: Sequence[Aggregator],
    target: int,
    *,
    embeddings: NDArray[np.floating] | None = None,
    batch: int = BATCH,
) -> NDArray[np.float32]:
    """The same by HiResCAM (`place_activation`) at an inner map of the encoder, with ceil(S / 8) cells a side.

    Raises InputError for an encoder without such a map.
    """
    return _maps(place_activation, _inner_map, encoder, volume, windows, models, target, embeddings, batch)


def class_activation(activation: Tensor, gradient: Tensor) -> Tensor:
    """ReLU of the channel sum of (mean gradient x activation): (N, ..., d) each to (N, ...), places in between."""
    return (_over_places(gradient.mean, gradient) * activation).sum(-1).clamp_min(0)


def class_activation_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM++: (N, ..., d) each to (N, ...).

    Chattopadhay et al., WACV 2018, eq. 19 for y = exp(score): the weight of a channel is the sum over places of
    ReLU(g) g^2 / (2 g^2 + (sum of A) g^3 + 1e-6).
    """
    total = _over_places(activation.sum, activation)
    below = 2 * gradient**2 + total * gradient**3 + 1e-6
    share = gradient.clamp_min(0) * gradient**2 / below
    return (_over_places(share.sum, share) * activation).sum(-1).clamp_min(0)


def place_activation(activation: Tensor, gradient: Tensor) -> Tensor:
    """HiResCAM: ReLU of the channel sum of gradient x activation, place by place: (N, ..., d) each to (N, ...)."""
    return (gradient * activation).sum(-1).clamp_min(0)


def _over_places(reduce: Callable[..., Tensor], values: Tensor) -> Tensor:
    return reduce(dim=tuple(range(1, values.ndim - 1)), keepdim=True)


def _last_map(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """(embeddings (N, d), the map (N, h, w, d') that they are pooled from, a leaf of their graph)."""
    with torch.no_grad():
        activation = encoder.feature_map(x)
    activation.requires_grad_(True)
    return encoder.embed_map(activation), activation


def _inner_map(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    return encoder.through_inner_map(x)


def _maps(
    activate: Callable[[Tensor, Tensor], Tensor],
    through: Callable[[Encoder, Tensor], tuple[Tensor, Tensor]],
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    models: Sequence[Aggregator],
    target: int,
    embeddings: NDArray[np.floating] | None,
    batch: int,
) -> NDArray[np.float32]:
    check_slices(encoder)
    if through is _last_map and not encoder.pools_map:
        raise InputError(
            f"encoder {encoder.name}: its embedding does not come from its last map, so Grad-CAM has no gradient; "
            "use attention, attention-gradient or occlusion"
        )
    rows = embeddings_of(encoder, volume, windows, embeddings)
    gradients = [embedding_gradient(model, rows, target).to(encoder.device) for model in models]

    def make(first: int, x: Tensor) -> Tensor:
        with torch.enable_grad():
            embedding, activation = through(encoder, x)
        maps = []
        for gradient in gradients:
            product = (embedding * gradient[first : first + len(x)]).sum()
            (slope,) = torch.autograd.grad(product, activation, retain_graph=True)
            maps.append(to_one(activate(activation.detach().float(), slope.float())))
        return to_one(torch.stack(maps).mean(dim=0))

    return maps_of_instances(encoder, volume, windows, make, batch=batch)
