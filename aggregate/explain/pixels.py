"""Pixels: the scans behind a bag file, found again on disk and known by their voxels, and the encoder that saw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clear.bag_format import ScanRow
from clear.bags import Bags
from clear.encoders import ENCODERS
from clear.errors import InputError, ScanRefused
from clear.frozen import Encoder, load_encoder
from clear.plan import read_plan
from clear.scans import Scan, find_scans, read_volume
from clear.tables import some
from clear.volume import Volume


class ScanFolder:
    """The scans of a folder (or of a plan that `clear inspect --out` wrote), to be asked for by what a bag file says.

    A folder is listed once for each modality that is asked for, since files without one (NIfTI and its like) are read
    as extraction read them; a scan that was read in a search is known by its digest from then on.
    Raises InputError for a folder without scans.
    """

    def __init__(self, place: Path | str) -> None:
        self.place = Path(place)
        is_plan = self.place.is_file() and self.place.suffix == ".parquet"
        self._plan = read_plan(self.place) if is_plan else None
        self._lists: dict[str, list[Scan]] = {}
        self._digests: dict[tuple[str, int], str] = {}  # of what was read, by list and place in it; "" where refused
        if self._plan is None and not find_scans(self.place):
            raise InputError(f"{self.place}: holds no scan. Name the folder that was extracted")

    def find(self, row: ScanRow) -> tuple[Scan, Volume]:
        """The scan that a bag was made of, and its voxels: by its id, which its digest confirms.

        A scan that goes by another id here (the bag file's are pseudonyms, or come from a table) is known by its
        digest. Raises InputError where it is not there or another scan has its id, ScanRefused where it cannot be read.
        """
        scans = self._scans(row.modality)
        named = [number for number, scan in enumerate(scans) if scan.scan_id == row.scan_id]
        alike = [number for number, scan in enumerate(scans) if scan.verdict != "refused" and _could_be(scan, row)]
        order = [*named, *(number for number in alike if number not in named)]
        order.sort(key=lambda number: self._digests.get((row.modality, number)) != row.digest)  # known ones first
        refused = None
        for number in order:
            key = row.modality, number
            if self._digests.get(key, row.digest) != row.digest:
                continue
            try:
                volume = read_volume(scans[number])
            except ScanRefused as error:
                refused = error if number in named else refused
                self._digests[key] = ""  # it cannot be the one that was encoded
                continue
            self._digests[key] = volume.digest
            if volume.digest == row.digest:
                return scans[number], volume
        if refused is not None:
            raise refused
        if named:
            found = self._digests[row.modality, named[0]]
            raise InputError(
                f"{self.place}: {row.scan_id} holds other voxels ({found[:12] or 'not readable'}) than those that were "
                f"encoded ({row.digest[:12]}). Name the folder that was extracted, or extract this one again"
            )
        raise InputError(
            f"{self.place}: scan {row.scan_id} is not among its {len(scans)} series, by id or by voxels; it has "
            f"{some([scan.scan_id for scan in scans], 3)}. Name the folder that was extracted"
        )

    def _scans(self, modality: str) -> list[Scan]:
        if self._plan is not None:
            return self._plan
        if modality not in self._lists:
            self._lists[modality] = find_scans(self.place, modality=modality or None)
        return self._lists[modality]


def find_encoder(
    bags: Bags, model: str | None = None, weights: Path | str | None = None, device: str = "auto"
) -> Encoder:
    """The encoder that made a bag file, in float32.

    A registered one is found by its name. model: the path of a card of one's own; weights: the checkpoint, where one
    was given to `clear extract`. Raises InputError where what is found makes other features, WeightsError where its
    weights are not here.
    """
    encoder = load_encoder(model or _name_of(bags), weights, device=device, precision="float32")
    if encoder.digest != bags.encoder_digest:
        raise InputError(
            f"encoder {encoder.name} ({encoder.digest[:12]}) is not the one that encoded {bags.path}, {bags.encoder} "
            f"({bags.encoder_digest[:12]}). Name that one with --model (a name, or the path of a card), or its "
            "checkpoint with --weights"
        )
    return encoder


def _name_of(bags: Bags) -> str:
    """What `load_encoder` takes for the encoder of a bag file, which holds no path of this or any machine."""
    if bags.encoder in ENCODERS or bags.encoder.startswith("timm:"):
        return bags.encoder
    raise InputError(
        f"{bags.path}: its encoder {bags.encoder} is a card of one's own, and a bag file does not say where that lies. "
        "Name it with --model PATH"
    )


def _could_be(scan: Scan, row: ScanRow) -> bool:
    """Whether what the header says agrees with the bag file, so that it is worth reading the voxels."""
    if scan.n_slices != row.n_slices or scan.plane not in (None, row.plane):
        return False
    known = scan.spacing_mm is not None and not np.isnan(row.spacing_mm[1:]).any()
    return not known or bool(np.allclose((scan.spacing_mm or ())[1:], row.spacing_mm[1:], rtol=1e-3, atol=0))
