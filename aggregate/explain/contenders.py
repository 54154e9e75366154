"""Contenders: what a run shows of one scan, and what the same run shows with something of it destroyed.

Each is a slice attention and, with pixels, in-slice maps, ready to be judged side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregate.aggregators import Aggregator
from aggregate.cohort import choose_windows
from aggregate.explain.explain import features_of_scan
from aggregate.explain.models import models_for, siblings_of
from aggregate.explain.saliency import ENDPOINT_MAPS, MAPS
from aggregate.explain.sanity import Destroyed, Pair
from aggregate.explain.slice_attention import aggregators_of, instance_weights, slice_attention
from aggregate.explain.target import Target
from aggregate.run import Run
from clear.bags import Bags
from clear.frozen import Encoder
from clear.volume import Volume

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Contender:
    """What one method shows of a scan.

    weights: (Z, W), summing to 1; maps: (Z, W, h, w), None without pixels
    """

    method: str
    weights: NDArray[np.float64]
    maps: NDArray[np.float32] | None

    @property
    def slices(self) -> NDArray[np.float64]:
        """(Z,) the weight of each slice."""
        return np.asarray(self.weights.sum(axis=1))

    @property
    def grid(self) -> NDArray[np.float64] | None:
        """(Z, h, w) weight times map on the encoder's own grid, summed over windows; None without pixels."""
        if self.maps is None:
            return None
        return np.asarray(np.einsum("zw,zwij->zij", self.weights, self.maps.astype(np.float64)))


class ScanContenders:
    """The contenders of one scan. encoder, volume: both or neither; destroyed: see `aggregate.explain.sanity`.

    Raises InputError where no model may explain the scan.
    """

    def __init__(
        self,
        run: Run,
        bags: Bags,
        scan_id: str,
        *,
        encoder: Encoder | None = None,
        volume: Volume | None = None,
        map_name: str = "",
        destroyed: Sequence[Destroyed] = (),
    ) -> None:
        self.run, self.bags, self.scan_id = run, bags, scan_id
        self.encoder, self.volume, self.map_name, self.destroyed = encoder, volume, map_name, destroyed
        self.windows = choose_windows(bags, run.windows, str(bags.path))
        self.embeddings = features_of_scan(run, bags, scan_id)
        row = bags.row(scan_id)
        siblings = siblings_of(bags, row)
        self.found = models_for(run, scan_id, digest=row.digest, patient_id=row.patient_id, siblings=siblings)
        self._maps: dict[tuple[str, str], NDArray[np.float32]] = {}

    def of(self, target: Target) -> list[Contender]:
        """The run's own first, then one for each thing destroyed."""
        endpoint = target.endpoint.name
        trained = {
            pair: model
            for pair, model in zip(self.found.pairs, self.found.models, strict=True)
            if endpoint not in self.run.not_learnt(*pair)
        }
        found = slice_attention(self.run, self.bags, self.scan_id, endpoint=endpoint, output=target.output)
        weights = found.weights
        own = " or ".join(aggregators_of(self.run))
        contenders = [Contender(own, weights, self._map("", self.encoder, list(trained.values()), target))]
        for each in self.destroyed:
            models = list(trained.values()) if each.models is None else _same_folds(each.models, trained)
            encoder, embeddings = self.encoder, self.embeddings
            if each.encoder is not None and self.volume is not None:
                encoder, embeddings = each.encoder, each.encoder.encode(self.volume, self.windows)
            of_windows = np.arange(len(embeddings)) % len(self.windows)
            of_models = instance_weights(models, embeddings, of_windows, found.kind, target.output)
            maps = self._map(each.name, encoder, models, target, embeddings)
            contenders.append(Contender(each.name, of_models.mean(axis=0).reshape(weights.shape), maps))
        return contenders

    def _map(
        self,
        name: str,
        encoder: Encoder | None,
        models: Sequence[Aggregator],
        target: Target,
        embeddings: Array | None = None,
    ) -> NDArray[np.float32] | None:
        """In-slice maps; one that depends on the encoder alone is made once."""
        if encoder is None or self.volume is None:
            return None
        asked = f"{target.finding}" if self.map_name in ENDPOINT_MAPS else ""
        key = (name if asked or encoder is not self.encoder else "", asked)
        if key not in self._maps:
            given = self.embeddings if embeddings is None else embeddings
            make = MAPS[self.map_name]
            self._maps[key] = make(encoder, self.volume, self.windows, models, target.output, embeddings=given)
        return self._maps[key]


def even(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(Z, W) weights that are all alike and sum to 1."""
    return np.full(shape, 1 / np.prod(shape))


def _same_folds(models: Mapping[Pair, Aggregator], trained: Mapping[Pair, Aggregator]) -> list[Aggregator]:
    """Those of the folds that explain the scan; all of them where none is among them (a scan from elsewhere)."""
    return [models[pair] for pair in trained if pair in models] or list(models.values())
