"""Judging one scan after another: what a run shows of it, and what knows less, against what is marked in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregate.explain.boxes import Boxes
from aggregate.explain.cases import Cases, Marks
from aggregate.explain.contenders import Contender, ScanContenders, even
from aggregate.explain.correctness import (
    MEASURES,
    brightest,
    centre_prior,
    lesion_correctness,
    random_correctness,
    slice_correctness,
)
from aggregate.explain.hits import Panel, panel_of
from aggregate.explain.judgement import RANKS
from aggregate.explain.pixels import ScanFolder
from aggregate.explain.saliency import saliency
from aggregate.explain.sanity import Destroyed, rank_correlation
from aggregate.run import Run
from clear.bags import Bags
from clear.errors import InputError, ScanRefused
from clear.frozen import Encoder
from clear.thumbnails import shown_window
from clear.volume import Volume

EVEN, ALONE, CENTRE, RANDOM = "even attention", "attention alone", "centre", "random"
PANELS = 4  # hits, and as many misses, on the picture of a finding


class Judge:
    """Judges scan after scan; one volume is held at a time.

    rows: one a scan, finding and method, with every measure; remarks: scans that had to be left out, and why; panels:
    by finding and whether the brightest voxel lies in the lesion, of the first scans of each
    """

    def __init__(
        self,
        run: Run,
        bags: Bags,
        marks: Marks,
        folder: ScanFolder | None,
        encoder: Encoder | None,
        map_name: str,
        destroyed: Sequence[Destroyed],
    ) -> None:
        """folder, encoder: both, or neither where slices alone are judged."""
        self.run, self.bags, self.marks, self.folder = run, bags, marks, folder
        self.encoder, self.map_name, self.destroyed = encoder, map_name, destroyed
        self.rows: list[dict[str, Any]] = []
        self.remarks: list[str] = []
        self.panels: dict[str, dict[bool, list[Panel]]] = {}

    def scan(self, scan_id: str, cases: Sequence[Cases]) -> None:
        """Judges one scan for each finding that it has; one that cannot be used becomes a remark."""
        try:
            volume = None if self.folder is None else self.folder.find(self.bags.row(scan_id))[1]
            contenders = ScanContenders(
                self.run,
                self.bags,
                scan_id,
                encoder=self.encoder,
                volume=volume,
                map_name=self.map_name,
                destroyed=self.destroyed,
            )
        except (InputError, ScanRefused) as error:
            self.remarks.append(f"{scan_id} is left out: {error}")
            return
        for each in cases:
            try:
                self._case(scan_id, each, contenders, volume)
            except (InputError, ScanRefused) as error:
                self.remarks.append(f"{scan_id} is left out of {each.target.finding}: {error}")

    def _case(self, scan_id: str, case: Cases, contenders: ScanContenders, volume: Volume | None) -> None:
        shown = contenders.of(case.target)
        if volume is None or self.encoder is None:
            assert isinstance(self.marks, Boxes)  # masks need pixels
            holds = self.marks.holds(scan_id, case.labels, self.bags.row(scan_id).n_slices)
            judged = {each.method: slice_correctness(each.slices, holds) for each in shown}
            judged[RANDOM] = random_correctness(holds)
        else:
            region = self.marks.region(scan_id, case.labels, volume)
            holds = np.asarray(region.any(axis=(1, 2)))
            judged = self._with_pixels(shown, holds, region, volume, self.encoder)
            self._keep_panel(scan_id, case, shown[0], contenders, volume, region)
        for each in shown[1:]:
            judged[each.method] |= _ranks(shown[0], each)
        facts = {
            "scan_id": scan_id,
            "patient_id": case.patients[scan_id],
            "endpoint": case.target.endpoint.name,
            "class": case.target.class_name,
            "slices": len(holds),
            "slices_with_lesion": int(holds.sum()),
        }
        empty = dict.fromkeys((*MEASURES, *RANKS))
        self.rows += [{**facts, "method": method, **empty, **values} for method, values in judged.items()]

    def _with_pixels(
        self,
        shown: Sequence[Contender],
        holds: NDArray[np.bool_],
        region: NDArray[np.bool_],
        volume: Volume,
        encoder: Encoder,
    ) -> dict[str, dict[str, float]]:
        """Every measure of every method."""
        own = shown[0]
        bright = 0
        judged: dict[str, dict[str, float]] = {}
        for each in (*shown, Contender(EVEN, even(own.weights.shape), own.maps)):
            assert each.maps is not None
            whole = saliency(each.weights, each.maps, volume, encoder.card)
            judged[each.method] = slice_correctness(each.slices, holds) | lesion_correctness(whole, region)
            bright = bright or int(brightest(whole).sum())
        flat = np.broadcast_to(own.slices.astype(np.float32)[:, None, None], region.shape)
        judged[ALONE] = lesion_correctness(flat, region)
        bell = centre_prior(region.shape)
        judged[CENTRE] = slice_correctness(bell.sum(axis=(1, 2)), holds) | lesion_correctness(bell, region)
        judged[RANDOM] = random_correctness(holds, region, bright)
        return judged

    def _keep_panel(
        self,
        scan_id: str,
        case: Cases,
        own: Contender,
        contenders: ScanContenders,
        volume: Volume,
        region: NDArray[np.bool_],
    ) -> None:
        """The slice of the brightest voxel, of the first hits and misses of each finding."""
        assert own.maps is not None
        assert self.encoder is not None
        whole = saliency(own.weights, own.maps, volume, self.encoder.card)
        z, y, x = (int(i) for i in np.unravel_index(int(whole.argmax()), whole.shape))
        hit = bool(region[z, y, x])
        kept = self.panels.setdefault(case.target.finding, {True: [], False: []})[hit]
        if len(kept) < PANELS:
            window = shown_window(contenders.windows[int(own.weights[z].argmax())], self.bags.header, volume.modality)
            short = scan_id if len(scan_id) <= 20 else f"…{scan_id[-18:]}"
            inside = np.flatnonzero(region.any(axis=(1, 2)))
            first, last = int(inside[0]), int(inside[-1])
            lesion = f"slice {first}" if first == last else f"slices {first} to {last}"
            title = (
                f"{short}\nslice {z}, weight {100 * own.slices[z]:.1f} %; lesion in {lesion} of 0 to {len(whole) - 1}"
            )
            kept.append(panel_of(volume, z, window, whole[z], region[z], title))


def _ranks(own: Contender, other: Contender) -> dict[str, float]:
    """How far what the other shows is ordered like the run's own: rank correlation over slices and over places."""
    ranks = {"rank_slices": rank_correlation(own.slices, other.slices)}
    mine, theirs = own.grid, other.grid
    if mine is not None and theirs is not None:
        ranks["rank_saliency"] = rank_correlation(mine, theirs)
    return ranks
