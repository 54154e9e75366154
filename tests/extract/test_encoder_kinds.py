"""Every architecture on slices of a real CT: slices in windows, windows in channels, standardised slices, volumes.

Weights are random and networks shallow; what they compute is tests/clear's business, what comes into the file ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clear.api import extract as extract_by_name
from clear.backbones import FAMILIES
from clear.bags import Bags, validate
from clear.card import WeightSource
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.export import export_encoder
from clear.frozen import Encoder
from clear.scans import Scan, find_scans, read_volume
from clear.volume import Volume
from clear.windows import CT_DEFAULT
from extract import extract
from pretrain.initialise import random_network

SLICES = 3

# a registered encoder of each kind, and settings of a shallow (for volumes: narrow) network
KINDS: dict[str, dict[str, Any]] = {
    "mambaout-femto": {"depths": (1, 1, 1, 1)},
    "vmamba-lecl": {"depths": (1, 1, 1, 1)},
    "vit-conv-lecl": {"depth": 1},
    "dinov2-s-reg": {"depth": 1},
    "dinov3-s": {"depth": 1},
    "resnet50": {"layers": (1, 1, 1, 1)},
    "biomedclip": {"depth": 1},
    "sam2-t": {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
    "medimageinsight": {"depths": (1, 1, 1, 1), "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)},
    "medsiglip": {"depth": 1},
    "curia": {"depth": 1},
    "merlin": {"layers": (1, 1, 1, 1), "stem": 2, "planes": (2, 4, 8, 512)},
    "ct-clip": {"spatial_depth": 1, "temporal_depth": 1, "dim": 16, "codebook_size": 16},
}


def encoder_of(name: str) -> Encoder:
    card = replace(ENCODERS[name], settings={**ENCODERS[name].settings, **KINDS[name]})
    return Encoder(card, random_network(card), "untrained", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def chest(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Three neighbouring slices of a real scan, as a series of their own."""
    folder = tmp_path_factory.mktemp("chest")
    series = next(
        scan for scan in find_scans(shared_data / "data" / "ct_dicom" / "covidctmd_P002_chest") if scan.verdict == "use"
    )
    middle = series.n_slices // 2
    for path in series.paths[middle : middle + SLICES]:
        (folder / path.name).symlink_to(path)
    scan = find_scans(folder)[0]
    assert (scan.verdict, scan.n_slices) == ("use", SLICES)
    return scan


class CountingReader:
    """Decodes as extraction does, and counts."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()

    def __call__(self, scan: Scan) -> Volume:
        self.reads[scan.scan_id] += 1
        return read_volume(scan)


def test_the_kinds_are_all_families_and_all_ways_to_take_values() -> None:
    cards = [ENCODERS[name] for name in KINDS]
    assert {card.architecture.partition(":")[0] for card in cards} == set(FAMILIES)
    assert {card.pooling for card in cards} == {card.pooling for card in ENCODERS.values()}
    assert any(card.channel_windows for card in cards)
    assert any(card.intensity == "slice_zscore" for card in cards)


@pytest.mark.parametrize("name", KINDS)
def test_a_real_scan_becomes_a_bag_of_the_encoders_kind(name: str, chest: Scan, tmp_path: Path) -> None:
    encoder, card = encoder_of(name), ENCODERS[name]
    result = extract(chest.root, tmp_path / "f.h5", [encoder], scans=[chest], progress=False)
    assert (result.done, result.exit_status) == (1, 0)
    volume = read_volume(chest)
    windows = 1 if card.own_windows else len(CT_DEFAULT)
    with Bags(tmp_path / "f.h5") as bags:
        bag = bags[chest.scan_id]
        assert bags.windows == (card.own_windows or CT_DEFAULT)
        np.testing.assert_array_equal(bag.features, encoder.encode(volume).astype(np.float16))
        if card.volume is not None:
            assert bag.features.shape == (1, card.dim)
            np.testing.assert_array_equal(bag.slice, [-1])
            np.testing.assert_array_equal(bag.window, [0])
            np.testing.assert_allclose(bag.position_mm, volume.positions_mm.mean(axis=0, keepdims=True), atol=1e-3)
        else:
            assert bag.features.shape == (SLICES * windows, card.dim)
            np.testing.assert_array_equal(bag.slice, np.repeat(np.arange(SLICES), windows))
            np.testing.assert_array_equal(bag.window, np.tile(np.arange(windows), SLICES))
            np.testing.assert_allclose(bag.position_mm, np.repeat(volume.positions_mm, windows, axis=0), atol=1e-3)
        assert np.isfinite(bag.features).all()
        assert bag.features.astype(np.float32).std() > 0
    found = validate(tmp_path / "f.h5")
    assert (found.scans, found.instances) == (1, 1 if card.volume is not None else SLICES * windows)


def test_two_encoders_in_one_command_decode_each_scan_once(chest: Scan, tmp_path: Path) -> None:
    reader = CountingReader()
    encoders = [encoder_of("mambaout-femto"), encoder_of("curia"), encoder_of("merlin")]
    extract(chest.root, str(tmp_path / "{model}.h5"), encoders, scans=[chest], read=reader, progress=False)
    assert reader.reads == {chest.scan_id: 1}
    rows = {name: len(Bags(tmp_path / f"{name}.h5")[chest.scan_id].features) for name in ("mambaout-femto", "merlin")}
    assert rows == {"mambaout-femto": 2 * SLICES, "merlin": 1}
    assert validate(tmp_path / "curia.h5").instances == SLICES


def test_a_scan_that_one_of_two_encoders_is_not_for_is_in_the_others_file(chest: Scan, tmp_path: Path) -> None:
    sagittal = replace(ENCODERS["mambaout-femto"], settings=KINDS["mambaout-femto"], planes=("sagittal",), name="knee")
    knee = Encoder(sagittal, random_network(sagittal), "untrained", device="cpu")
    output = str(tmp_path / "{model}.h5")
    result = extract(chest.root, output, [encoder_of("mambaout-femto"), knee], scans=[chest], progress=False)
    assert result.exit_status == 3
    assert list(Bags(tmp_path / "mambaout-femto.h5")) == [chest.scan_id]
    assert "plane" in (tmp_path / "knee.qc.csv").read_text(encoding="utf-8")


def test_windows_are_refused_for_an_encoder_that_brings_its_own(chest: Scan, tmp_path: Path) -> None:
    card = replace(
        ENCODERS["curia"], settings={**ENCODERS["curia"].settings, "depth": 1}, source=WeightSource("file", "-")
    )
    export_encoder(card, random_network(card), tmp_path / "card")
    with pytest.raises(InputError, match="prepares values in its own way; leave the windows out"):
        extract_by_name(chest.root, tmp_path / "f.h5", model=str(tmp_path / "card"), windows=["lung"])
    assert not (tmp_path / "f.h5").exists()
