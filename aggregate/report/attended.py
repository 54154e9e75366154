"""What the models of a run weighed: the out-of-fold attention of each scan, slice by slice and window by window.

A scan's attention is the mean over the models that scored it and never trained on it (attention.h5). Rows of the file
stand where they stand in the bag file, which therefore must be at hand to say which slice a weight belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregate.predictions import scans_of
from aggregate.report.material import Gap, Material
from clear.bags import Bags
from clear.errors import InputError
from clear.volume import CANONICAL_AXES
from clear.windows import Window

Floats = NDArray[np.float64]
_WEIGHS_NONE = "weighs no instance"  # `Run.attention` of an aggregator


@dataclass(frozen=True)
class Attended:
    """The attention of one scan's instances; of a pooled bag one such for each of its scans, which share one sum.

    weights: (K,) that sum to 1 over the bag; slice, window: (K,); z_mm: (K,) patient coordinate along the plane's slice
    axis (`clear.volume.CANONICAL_AXES`, as in `aggregate.explain`); n_slices: of the scan. windows: what `window`
    counts.
    """

    scan: str
    digest: str
    plane: str
    modality: str
    n_slices: int
    weights: Floats
    slice: NDArray[np.int64]
    window: NDArray[np.int64]
    z_mm: Floats
    windows: tuple[Window, ...]

    def by_slice(self) -> tuple[NDArray[np.int64], Floats, Floats]:
        """((S,) slices ascending, (S,) their z in mm, (S,) their weights over all windows)."""
        slices, first, group = np.unique(self.slice, return_index=True, return_inverse=True)
        return slices, self.z_mm[first], np.bincount(group.reshape(-1), self.weights, len(slices)).astype(np.float64)

    def by_window(self) -> tuple[tuple[Window, ...], Floats]:
        """((W,) windows that were used, (S, W) weights of the slices in `by_slice`)."""
        slices, group = np.unique(self.slice, return_inverse=True)
        used, column = np.unique(self.window, return_inverse=True)
        table = np.zeros((len(slices), len(used)))
        np.add.at(table, (group.reshape(-1), column.reshape(-1)), self.weights)
        return tuple(self.windows[i] for i in used), table


class AttentionOfRun:
    """The attention of every bag that a run scored. `of` gives that of one, by its name in predictions.csv."""

    def __init__(self, bags: Bags, weights: Floats) -> None:
        self._bags, self._weights = bags, weights
        scans = bags.scans
        self._rows = {row["scan_id"]: row for row in scans.drop("remarks").iter_rows(named=True)}
        self._slice, self._window, self._position = bags.slice, bags.window, bags.position_mm

    def of(self, name: str) -> tuple[Attended, ...]:
        """Of each scan of the bag; empty where no model that weighs instances scored it."""
        found = [one for one in map(self._one, scans_of(name, self._rows)) if one is not None]
        total = sum(float(one.weights.sum()) for one in found)
        if not found or total <= 0:
            return ()
        return tuple(_scaled(one, total) for one in found)

    def _one(self, scan: str) -> Attended | None:
        row = self._rows.get(scan)
        if row is None:
            return None
        rows = np.arange(row["start"], row["start"] + row["length"])
        rows = rows[np.isfinite(self._weights[rows])]
        if not len(rows) or (self._slice[rows] < 0).any():
            return None
        order = np.lexsort((self._window[rows], self._slice[rows]))
        rows = rows[order]
        axis = np.asarray(CANONICAL_AXES[row["plane"]][0], dtype=np.float64)
        return Attended(
            scan,
            str(row["digest"]),
            str(row["plane"]),
            str(row["modality"]),
            int(row["n_slices"]),
            self._weights[rows].astype(np.float64),
            self._slice[rows].astype(np.int64),
            self._window[rows].astype(np.int64),
            self._position[rows].astype(np.float64) @ axis,
            self._bags.windows,
        )


def attention_of(material: Material) -> AttentionOfRun | None:
    """The attention of a run; None, with a gap that says why, where it cannot be shown."""
    if not material.fits:
        return None
    if material.bags is None:
        place = material.part("bags").get("path")
        where = " at the place that the run remembers" if place else ""
        material.gaps.append(
            Gap(
                "the bag file",
                f"The bag file is not{where}, so it is not known which slice a weight of attention belongs to, and "
                "scanners and sites are not known. Give it with --bags.",
            )
        )
        return None
    total, count, refused = np.zeros(len(material.bags.features)), np.zeros(len(material.bags.features), np.int32), ""
    for fit in material.fits:
        try:
            weights = material.run.attention(fit["repeat"], fit["fold"])
        except (KeyError, TypeError):
            refused = refused or "run.json does not say which fold a model is of"
            continue
        except InputError as error:
            refused = refused or (_WEIGHS_NONE if _WEIGHS_NONE in str(error) else "attention.h5 is missing or damaged")
            continue
        if len(weights) != len(total):
            refused = f"attention.h5 has {len(weights)} rows and the bag file {len(total)}"
            continue
        known = np.isfinite(weights)
        total[known] += weights[known]
        count[known] += 1
    if refused:
        material.gaps.append(Gap("attention", _no_attention(material, refused, bool(count.any()))))
    if not count.any():
        return None
    if (material.bags.slice < 0).all():
        material.gaps.append(
            Gap("attention", "The encoder reads whole volumes: a scan has one embedding and no slices to weigh.")
        )
        return None
    return AttentionOfRun(material.bags, np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))


def top_slices(attended: tuple[Attended, ...], n: int) -> Iterator[tuple[Attended, int, int, float]]:
    """The n slices of a bag with the most attention over all windows: (scan, slice, its window of most attention, share
    of the bag's attention), in descending order."""
    found = []
    for one in attended:
        windows, table = one.by_window()
        slices, _, weights = one.by_slice()
        for place in np.argsort(-weights, kind="stable")[:n]:
            window = one.windows.index(windows[int(table[place].argmax())])
            found.append((one, int(slices[place]), window, float(weights[place])))
    yield from sorted(found, key=lambda each: -each[3])[:n]


def _scaled(one: Attended, total: float) -> Attended:
    return Attended(**{**one.__dict__, "weights": one.weights / total})


def _no_attention(material: Material, refused: str, some: bool) -> str:
    if refused == _WEIGHS_NONE:
        name = material.settings.get("aggregator", "of the run")
        if some:
            return "Some folds chose an aggregator that weighs no instance; attention is that of the other folds."
        return f"The aggregator {name} weighs no instance, so there is no attention to show and no slice stands out."
    lost = "part of the attention is" if some else "attention and the most attended slices are"
    return f"{refused}, so {lost} not shown."
