"""How much each slice raised the answer, where an aggregator weighs no slice: gradient times input.

Mean pooling and its like give every slice the same say, so what tells slices apart is what they bring. With the
gradient of the bag's answer y by the embedding e_k, and the mean embedding m of the slices that the model was trained
on, which is what it standardises by,

    c_k = dy/de_k . (e_k - m)

Where y is linear in the slices (`linear`) the c_k add up to the difference between this bag's answer and that of a bag
of mean slices; elsewhere this is the first-order part of it (Simonyan et al. 2014, section 3.1; Shrikumar et al. 2017).
What lowered the answer counts as 0, and the rest is scaled to sum to 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aggregate.aggregators import Aggregator
from aggregate.explain.endpoint_gradient import embedding_gradient


def contributions(model: Aggregator, rows: NDArray[np.floating], output: int) -> NDArray[np.float64]:
    """(K,) >= 0, summing to 1: the share of each instance of a bag (K, d) in what raised output number `output`.

    All alike where no instance raised it.
    """
    gradient = embedding_gradient(model, rows, output).double().cpu().numpy()
    raised = np.einsum("kd,kd->k", gradient, rows - model.mean.double().cpu().numpy()).clip(min=0)
    total = float(raised.sum())
    return raised / total if total > 0 else np.full(len(rows), 1 / len(rows))
