"""Pixels: a scan is found by its id or its voxels and never taken for another; an encoder is the one of the bags."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregate.explain.pixels import ScanFolder, find_encoder
from clear.api import inspect
from clear.bags import Bags
from clear.card import EncoderCard
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.export import export_encoder
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
