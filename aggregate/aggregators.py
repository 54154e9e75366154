"""The aggregators by name, and what a fitted one predicts.

| name | what speaks for a scan | attention | options |
| --- | --- | --- | --- |
| abmil | attention-weighted mean of projected slices (Ilse 2018, eq. 8; the CLEAR paper's model) | yes | |
| gated-abmil | the same with a gate on the attention (Ilse 2018, eq. 9) | yes | |
| mean | mean of the slices, then the same head | | |
| linear | mean of the slices' own linear logits | | |
| max | the slice with the highest logit, for each output | the deciding slices | |
| ziller | multi-head attention asked by the mean slice (Ziller 2023) | yes | heads |
| slice-transformer | class token of one transformer layer (MST 2024) | yes | heads, positions |
| transmil | class token of two layers with convolutions between (TransMIL 2021) | yes | |
| dsmil | attention asked by the critical slice, with that slice's own score (DSMIL 2021) | yes | |
| mlp | the scan's only vector | | |

CLAM is not among them: apart from its clustering loss, which wants one class a scan and has no meaning for several
endpoints with unknown labels, its single-branch model is gated attention pooling.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aggregate.abmil import ABMIL, GatedABMIL, from_paper
from aggregate.aggregator import Aggregator
from aggregate.dsmil import DSMIL
from aggregate.packed import RowSource
from aggregate.pooling import MLP, MaxOfLogits, MeanOfLogits, MeanPool
from aggregate.slice_transformer import SliceTransformer, from_mst
from aggregate.transmil import TransMIL
from aggregate.workers import workers
from aggregate.ziller import SliceAttentionPool
from clear.errors import InputError

__all__ = ["ABMIL", "AGGREGATORS", "Aggregator", "aggregator_options", "build_aggregator", "check_aggregator"]
__all__ += ["from_mst", "from_paper", "predict"]

AGGREGATORS: Mapping[str, type[Aggregator]] = MappingProxyType(
    {
        "abmil": ABMIL,
        "gated-abmil": GatedABMIL,
        "mean": MeanPool,
        "linear": MeanOfLogits,
        "max": MaxOfLogits,
        "ziller": SliceAttentionPool,
        "slice-transformer": SliceTransformer,
        "transmil": TransMIL,
        "dsmil": DSMIL,
        "mlp": MLP,
    }
)


def build_aggregator(
    name: str, dim: int, n_out: int, dropout: float, options: Mapping[str, Any] | None = None
) -> Aggregator:
    """A fresh model, its weights drawn from torch's current state.

    options: of this aggregator, see `aggregator_options`. Raises InputError for a name or an option that is not known,
    listing those that are, and for a value that does not fit.
    """
    check_aggregator(name, options)
    build: Any = AGGREGATORS[name]
    model: Aggregator = build(dim, n_out, dropout, **(options or {}))
    return model


def check_aggregator(name: str, options: Mapping[str, Any] | None = None, dim: int | None = None) -> None:
    """Raises InputError for an unknown name or option and, given the features' width, a value that does not fit."""
    if name not in AGGREGATORS:
        raise InputError(f"--aggregator {name}: no such aggregator; expected one of {', '.join(AGGREGATORS)}")
    known = aggregator_options(name)
    unknown = [option for option in options or {} if option not in known]
    if unknown:
        listed = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(f"--aggregator {name}: no option {', '.join(map(repr, unknown))}; {listed}")
    if dim is not None:
        build: Any = AGGREGATORS[name]
        with torch.device("meta"):  # draws nothing and takes no memory
            build(dim, 1, 0.0, **(options or {}))


def aggregator_options(name: str) -> dict[str, Any]:
    """The options of an aggregator and their defaults: the keyword arguments of its class.

    >>> aggregator_options("slice-transformer")
    {'heads': None, 'positions': 'none'}
    """
    parameters = inspect.signature(AGGREGATORS[name]).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def predict(
    model: Aggregator, source: RowSource, bags: Sequence[int] | NDArray[np.int64]
) -> tuple[Tensor, list[NDArray[np.float32]]]:
    """((n, n_out) logits on the CPU, attention (K,) of each bag): one bag at a time, so no bag can touch another."""
    was_training = model.training
    model.eval()

    def of_bag(bag: int) -> tuple[Tensor, NDArray[np.float32]]:
        with torch.no_grad():  # which holds for the thread that asks for it
            logits, attention = model(*source.take([bag]))
        return logits.float().cpu(), attention.float().cpu().numpy()

    with workers(model.mean.device) as pool:
        results = list(pool.map(of_bag, [int(bag) for bag in bags]))
    model.train(was_training)
    return (torch.cat([each[0] for each in results]) if results else torch.empty(0)), [each[1] for each in results]
