"""How much each slice raised the answer, where an aggregator weighs no slice: gradient times input.

Mean pooling and its like give every slice the same say, so what tells slices apart is what they bring. With the
gradient of the bag's answer y by the embedding e_k of a slice in a window, and the mean m_w of the bag's embeddings in
that window,

    c_k = dy/de_k . (e_k - m_w)

is how far the answer would fall, to first order, if the slice were like the scan's mean slice; where y is linear in the
slices (`linear`) it falls by just that (gradient times the difference from a baseline: Shrikumar et al. 2017, section
2). What lowered the answer counts as 0, and the rest is scaled to sum to 1. Each window has a mean of its own, since
embeddings of two windows differ everywhere, which says nothing of a slice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aggregate.aggregators import Aggregator
from aggregate.explain.endpoint_gradient import embedding_gradient


def contributions(
    model: Aggregator, rows: NDArray[np.floating], windows: NDArray[np.integer], output: int
) -> NDArray[np.float64]:
    """(K,) >= 0, summing to 1: the share of each instance of a bag (K, d) in what raised output number `output`.

    windows: (K,) which window an instance is in. All alike where no instance raised it.
    """
    gradient = embedding_gradient(model, rows, output).double().cpu().numpy()
    apart = np.asarray(rows, dtype=np.float64)
    for window in np.unique(windows):
        own = windows == window
        apart = np.where(own[:, None], apart - apart[own].mean(axis=0), apart)
    raised = np.einsum("kd,kd->k", gradient, apart).clip(min=0)
    total = float(raised.sum())
    return raised / total if total > 0 else np.full(len(rows), 1 / len(rows))
