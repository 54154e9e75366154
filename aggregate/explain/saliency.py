"""The saliency volume: slice attention times in-slice map, on the scan's own voxels; and the maps by name.

Müller-Franzes et al. (MST, arXiv:2411.15802) multiply the attention of a slice by that of its patches and interpolate
the product to the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aggregate.aggregators import Aggregator
from aggregate.explain.class_attention import attention_gradient, class_token_attention
from aggregate.explain.field import Field
from aggregate.explain.gradcam import gradcam, gradcam_plus_plus, hirescam
from aggregate.explain.instances import check_slices
from aggregate.explain.occlusion import occlusion
from clear.card import EncoderCard
from clear.frozen import Encoder
from clear.volume import Volume
from clear.windows import Window


class MakeMap(Protocol):
    """What makes a map of every slice in every window: (Z, W, h, w) float32, each summing to 1 or 0 everywhere."""

    def __call__(
        self,
        encoder: Encoder,
        volume: Volume,
        windows: Sequence[Window] | None,
        models: Sequence[Aggregator],
        target: int,
        *,
        embeddings: NDArray[np.floating] | None = None,
    ) -> NDArray[np.float32]: ...


def _attention(
    encoder: Encoder,
    volume: Volume,
    windows: Sequence[Window] | None,
    models: Sequence[Aggregator],
    target: int,
    *,
    embeddings: NDArray[np.floating] | None = None,
) -> NDArray[np.float32]:
    """Class-token attention: the encoder's alone, the same for every model and endpoint."""
    return class_token_attention(encoder, volume, windows)


MAPS: Mapping[str, MakeMap] = MappingProxyType(
    {
        "attention": _attention,
        "attention-gradient": attention_gradient,
        "gradcam": gradcam,
        "gradcam++": gradcam_plus_plus,
        "hirescam": hirescam,
        "occlusion": occlusion,
    }
)
ENDPOINT_MAPS = frozenset(MAPS) - {"attention"}  # those that depend on the model and the endpoint asked


def default_map(encoder: Encoder) -> str:
    """The map that suits an encoder: attention where its class token is the embedding, else Grad-CAM, else occlusion.

    Raises InputError for an encoder of whole volumes.
    """
    check_slices(encoder)
    if encoder.reads_class_token:
        return "attention"
    return "gradcam" if encoder.pools_map else "occlusion"


def saliency(
    attention: NDArray[np.floating], maps: NDArray[np.floating], volume: Volume, card: EncoderCard
) -> NDArray[np.float32]:
    """(Z, Y, X) >= 0: at each voxel the sum over windows of slice attention times in-slice map.

    attention: (Z, W), as `SliceAttention.weights`; maps: (Z, W, h, w), as one of MAPS gives them. The map of a slice is
    laid onto its pixels bilinearly (`Field`); nothing is blended between slices, and no value is scaled.
    """
    if attention.shape != maps.shape[:2] or len(attention) != volume.n_slices:
        raise ValueError(f"attention {attention.shape} and maps {maps.shape} of {volume.n_slices} slices do not fit")
    field = Field.of(volume, card)
    out = np.empty(volume.voxels.shape, dtype=np.float32)
    for plane, weights, own in zip(out, attention, maps, strict=True):
        plane[...] = field.onto_scan(np.einsum("w,wij->ij", weights, own.astype(np.float64)))
    return out
