"""An explanation: what one prediction of one scan was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aggregate.explain.slice_attention import SliceAttention
from clear.volume import Volume
from clear.windows import Window


@dataclass(frozen=True)
class Explanation:
    """What one prediction of one scan was made of.

    source_digest: sha256 of the scan's voxels and geometry, as the bag file has it
    endpoint, class_name: what the score and the map speak for; class_name is "" for a quantity or a survival time
    score: mean over the explaining models of the probability, the value in the label's unit, or the log hazard; nan
    where none of them could learn the endpoint
    map_name: how places inside a slice were weighed, a name of `aggregate.explain.saliency.MAPS`; "" without pixels
    attention: of slices and windows, or what each contributed (its `kind`); shown_window: in which slices are shown,
    that of most attention or, where the encoder makes something else of it, the modality's
    saliency: (Z, Y, X) float32, attention x in-slice map on the scan's own voxels, None without pixels
    volume: the scan itself, None without pixels
    out_of_fold: whether the explaining models never trained on this scan because they are those of its test folds
    remarks: what a reader must know, as sentences; files: what was written
    """

    scan_id: str
    source_digest: str
    endpoint: str
    class_name: str
    score: float
    map_name: str
    attention: SliceAttention
    shown_window: Window
    saliency: NDArray[np.float32] | None
    volume: Volume | None
    out_of_fold: bool
    remarks: tuple[str, ...]
    files: tuple[Path, ...] = ()

    @property
    def slice_weights(self) -> NDArray[np.float64]:
        """(Z,) the attention (contribution) of each slice, summed over windows; sums to 1."""
        return np.asarray(self.attention.weights.sum(axis=1), dtype=np.float64)

    @property
    def answer(self) -> str:
        """What is explained, for people: the endpoint, and the class that the map speaks for."""
        return f"{self.endpoint} = {self.class_name}" if self.class_name else self.endpoint

    def top_slices(self, n: int = 3) -> list[int]:
        """The indices of the n most attended slices, the highest first; of equal ones the lower index."""
        return [int(i) for i in np.argsort(-self.slice_weights, kind="stable")[:n]]

    def summary(self) -> str:
        """What a terminal shows: the score, the most attended slices, what was written and what to know."""
        models = len(self.attention.pairs)
        how = "that did not train on it" if self.out_of_fold else "of the run, which does not know the scan"
        weights, z_mm = self.slice_weights, self.attention.z_mm
        top = ", ".join(f"{i} (z {z_mm[i]:.1f} mm) {100 * weights[i]:.1f} %" for i in self.top_slices())
        lines = [
            f"{self.scan_id}: {self.answer}, score {self.score:.3f}, by {models} model{'s' * (models != 1)} {how}",
            f"slices of highest {self.attention.kind}, of {len(weights)}: {top}",
        ]
        if self.map_name:
            lines.append(f"in-slice map: {self.map_name}")
        if self.files:
            names = ", ".join(file.name for file in self.files)
            lines.append(f"written to {self.files[0].parent}/: {names}")
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])
