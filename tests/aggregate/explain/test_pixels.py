"""Pixels: a scan is found by its id or its voxels and never taken for another; an encoder is the one of the bags."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from aggregate.explain.pixels import ScanFolder, find_encoder
from clear.api import inspect
from clear.bag_format import ScanRow
from clear.bags import Bags
from clear.card import EncoderCard
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.export import export_encoder
from clear.scans import find_scans, read_volume
from pretrain.initialise import random_network

TINY: EncoderCard = replace(
    ENCODERS["mambaout-femto"],
    name="tiny",
    dim=24,
    settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
    input_size=32,
)


@pytest.fixture
def bags(known: Any) -> Bags:
    return Bags(known.folder / "feats.h5")


def test_a_scan_is_found_by_its_id_and_confirmed_by_its_voxels(known: Any, bags: Bags) -> None:
    scan, volume = ScanFolder(known.scans).find(bags.row("scan07"))
    assert scan.scan_id == "scan07"
    assert volume.digest == bags.row("scan07").digest


def test_a_plan_names_the_scans_as_well(known: Any, bags: Bags, tmp_path: Path) -> None:
    inspect(known.scans, out=tmp_path / "plan.parquet")
    assert ScanFolder(tmp_path / "plan.parquet").find(bags.row("scan07"))[0].scan_id == "scan07"


def test_a_scan_that_goes_by_another_name_is_known_by_its_voxels(known: Any, bags: Bags, tmp_path: Path) -> None:
    for name, other in (("scan07", "a"), ("scan08", "b")):
        shutil.copy(known.scans / f"{name}.nii.gz", tmp_path / f"{other}.nii.gz")
    scan, volume = ScanFolder(tmp_path).find(bags.row("scan08"))
    assert scan.scan_id == "b"
    assert volume.digest == bags.row("scan08").digest


def test_another_scan_under_the_same_id_is_refused(known: Any, bags: Bags, tmp_path: Path) -> None:
    shutil.copy(known.scans / "scan08.nii.gz", tmp_path / "scan07.nii.gz")
    with pytest.raises(InputError, match="scan07 holds other voxels"):
        ScanFolder(tmp_path).find(bags.row("scan07"))


def test_scans_that_changed_places_are_known_by_their_voxels(known: Any, bags: Bags, tmp_path: Path) -> None:
    for name, other in (("scan07", "scan08"), ("scan08", "scan07"), ("scan09", "scan09")):
        shutil.copy(known.scans / f"{name}.nii.gz", tmp_path / f"{other}.nii.gz")
    folder = ScanFolder(tmp_path)
    for name, there in (("scan07", "scan08"), ("scan08", "scan07"), ("scan09", "scan09")):
        scan, volume = folder.find(bags.row(name))
        assert scan.scan_id == there
        assert volume.digest == bags.row(name).digest


def test_a_folder_of_other_names_is_searched_once(
    known: Any, bags: Bags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        shutil.copy(known.scans / f"scan{number:02d}.nii.gz", tmp_path / f"x{number:02d}.nii.gz")
    reads: list[str] = []

    def counted(scan: Any) -> Any:
        reads.append(scan.scan_id)
        return read_volume(scan)

    monkeypatch.setattr("aggregate.explain.pixels.read_volume", counted)
    folder = ScanFolder(tmp_path)
    for number in reversed(range(12)):
        assert folder.find(bags.row(f"scan{number:02d}"))[0].scan_id == f"x{number:02d}"
    assert len(reads) == 12 + 11  # each once to be known, and once more when it is asked for


def test_files_without_a_modality_are_read_as_extraction_read_them(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-100, 300, (6, 32, 32))  # without air: by its values no CT
    image = sitk.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing((1.0, 1.0, 5.0))
    sitk.WriteImage(image, str(tmp_path / "s1.nii.gz"))
    digests = {}
    folder = ScanFolder(tmp_path)
    for modality in ("CT", "MR"):
        (scan,) = find_scans(tmp_path, cache=False, workers=1, modality=modality)
        volume = read_volume(scan)
        digests[modality] = volume.digest
        row = ScanRow(
            scan_id="s1",
            digest=volume.digest,
            length=6,
            n_slices=6,
            spacing_mm=volume.spacing_mm,
            plane=volume.plane,
            modality=modality,
        )
        found = folder.find(row)[1]
        assert (found.digest, found.modality) == (volume.digest, modality)
    assert digests["CT"] != digests["MR"]


def test_a_scan_that_is_not_there_is_refused_with_what_is(known: Any, bags: Bags, tmp_path: Path) -> None:
    shutil.copy(known.scans / "scan08.nii.gz", tmp_path / "scan08.nii.gz")
    with pytest.raises(InputError, match=r"scan07 is not among its 1 series, by id or by voxels; it has scan08"):
        ScanFolder(tmp_path).find(bags.row("scan07"))


def test_the_encoder_of_the_bags_is_loaded_and_any_other_refused(bags: Bags, tmp_path: Path) -> None:
    network = random_network(TINY, seed=0)
    card = export_encoder(TINY, network, tmp_path / "card")
    other = export_encoder(TINY, random_network(TINY, seed=1), tmp_path / "other")
    with pytest.raises(InputError, match=r"checks-by-hand is a card of one's own.* Name it with --model PATH"):
        find_encoder(bags)
    with pytest.raises(InputError, match=r"encoder tiny .* is not the one that encoded .*, checks-by-hand"):
        find_encoder(bags, str(card), device="cpu")
    bags.encoder_digest = find_digest(card)
    assert find_encoder(bags, str(card), device="cpu").digest == bags.encoder_digest
    with pytest.raises(InputError, match="is not the one that encoded"):
        find_encoder(bags, str(other), device="cpu")


def find_digest(card: Path) -> str:
    from clear.frozen import load_encoder

    return load_encoder(str(card), device="cpu").digest
