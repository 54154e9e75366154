"""Export: the card says what made it and whom it saw, and `clear extract` takes it at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clear.backbones import build
from clear.bags import Bags
from clear.card import read_card
from clear.frozen import load_encoder
from clear.phantoms import write_cohort
from clear.training_record import TrainingRecord, seen_in_pretraining
from pretrain.card_export import data_record, export, exported_card, seen_record
from pretrain.initialise import random_network
from pretrain.run_folder import Identity
from pretrain.settings import PretrainSettings
from pretrain.store import SliceStore


def identity(small: ModuleType, store: SliceStore, rows: np.ndarray, **changes: Any) -> Identity:
    asked = PretrainSettings(objective="lecl", model="/home/somebody/model/card.json", epochs=3, batch=8, **changes)
    return Identity(asked.settled(), data_record(store, rows), small.CARD)


def made(small: ModuleType, store: Path, folder: Path, *, half: bool = False, rows: int = 24, **changes: Any) -> Any:
    opened = SliceStore(store)
    chosen = np.arange(rows)
    card = exported_card(
        identity(small, opened, chosen, **changes),
        seen_record(opened, chosen),
        ("axial",),
        {"epoch": 3, "step": 9, "loss": 2.5, "seconds": 1.25, "images_per_s": 10.0},
        "mine",
    )
    return export(card, random_network(small.CARD), folder, half=half)


def test_a_card_says_what_made_it(small: ModuleType, store: Path, tmp_path: Path) -> None:
    card = made(small, store, tmp_path, note="not for clinical conclusions")
    annotated = int((SliceStore(store).table["n_boxes"] > 0).sum())
    assert card.trained_on == (
        f"trained by LeCL on 24 CT slices, {annotated} with a lesion's box, of 6 scans of 6 patients, 3 epochs from "
        "random weights; not for clinical conclusions"
    )
    assert (card.name, card.modalities, card.planes) == ("mine", ("CT",), ("axial",))
    assert card.windows == ("abdomen", "lung", "bone")
    record = read_card(tmp_path).training
    assert record["data"]["digest"] == SliceStore(store).digest
    assert record["settings"]["lr"] == 1.5e-4
    assert record["epoch"] == {"epoch": 3, "step": 9, "loss": 2.5}  # no times: the same run gives the same card
    assert set(record["versions"]) == {"clear", "python", "torch", "timm", "numpy"}


def test_no_path_of_this_machine_and_no_id_leaves_with_a_card(small: ModuleType, store: Path, tmp_path: Path) -> None:
    made(small, store, tmp_path)
    text = (tmp_path / "card.json").read_text()
    assert "/home/somebody" not in text
    assert json.loads(text)["training"]["settings"]["model"] == "card.json"
    table = SliceStore(store).table
    assert not any(
        name in text for column in ("patient_id", "scan_id", "scan_digest") for name in table[column].unique()
    )


def test_whom_it_saw_can_be_asked_and_those_left_out_were_not_seen(
    small: ModuleType, store: Path, tmp_path: Path
) -> None:
    card = made(small, store, tmp_path, rows=16).as_dict()  # four of six patients
    table = SliceStore(store).table
    patients = [f"P-{i}" for i in range(6)]
    assert seen_in_pretraining(card, patients) == set(patients[:4])
    assert seen_in_pretraining(card, table["scan_id"].unique().to_list()) == {f"P-scan-{i}" for i in range(4)}
    digests = dict(table.select("scan_id", "scan_digest").unique().iter_rows())
    assert seen_in_pretraining(card, digests.values()) == {digests[f"P-scan-{i}"] for i in range(4)}
    record = TrainingRecord.from_dict(card["training"]["seen"])
    assert (len(record.patients), len(record.scans), len(record.digests)) == (4, 4, 4)


def test_the_same_data_has_the_same_hashes_and_other_data_others(
    small: ModuleType, store: Path, tmp_path: Path
) -> None:
    rows = np.arange(24)
    assert seen_record(SliceStore(store), rows) == seen_record(SliceStore(store), rows)
    other = SliceStore(small.write_store(tmp_path / "other.zarr", patients=2))
    assert not set(seen_record(other, np.arange(8)).patients) & set(seen_record(SliceStore(store), rows).patients)


@pytest.mark.parametrize("half", [False, True])
def test_the_digest_is_that_of_the_encoder_as_it_is_loaded(
    small: ModuleType, store: Path, tmp_path: Path, half: bool
) -> None:
    card = made(small, store, tmp_path, half=half)
    loaded = load_encoder(str(tmp_path / "card.json"), device="cpu", precision="float32")
    assert card.training["encoder_digest"] == loaded.digest
    assert loaded.card.training["encoder_digest"] == loaded.digest


def test_half_precision_halves_the_file(small: ModuleType, store: Path, tmp_path: Path) -> None:
    made(small, store, tmp_path / "whole")
    made(small, store, tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.7 * sizes[0]  # the header stays


def test_a_folded_stem_is_not_folded_again(small: ModuleType, store: Path, tmp_path: Path) -> None:
    opened = SliceStore(store)
    grey = replace(small.CARD, channels=1, mean=(0.5,), std=(0.5,), stem_mean=(0.4, 0.5, 0.6), stem_std=(1.0, 1.0, 1.0))
    asked = replace(identity(small, opened, np.arange(24)), card=grey)
    card = exported_card(asked, seen_record(opened, np.arange(24)), (), {"epoch": 1, "step": 3}, "grey")
    network = build(grey)
    export(card, network, tmp_path, half=False)
    loaded = load_encoder(str(tmp_path), device="cpu", precision="float32")
    expected = network.state_dict()
    assert all((tensor == expected[name]).all() for name, tensor in loaded.network.state_dict().items())


def test_extraction_takes_a_pretrained_encoder_and_its_bags_know_whom_it_saw(
    small: ModuleType, model: Path, tmp_path: Path
) -> None:
    """The whole line on phantoms: scans, slices, an encoder, bags."""
    import clear

    cohort = write_cohort(tmp_path / "cohort", patients=3, matrix=48, slices=6, workers=1)
    clear.build_slices(cohort.dicom, tmp_path / "slices.zarr", boxes=cohort.boxes, workers=1, progress=False)
    small.train(tmp_path / "slices.zarr", tmp_path / "run", model, epochs=1, half=True)
    clear.extract(cohort.dicom, tmp_path / "feats.h5", model=str(tmp_path / "run" / "card.json"), progress=False)
    with Bags(tmp_path / "feats.h5") as bags:
        assert bags.dim == 24
        assert np.isfinite(bags.features[:]).all()
        patients = bags.scans["patient_id"].unique().to_list()
        assert bags.encoder_digest == bags.encoder_card["training"]["encoder_digest"]
        assert seen_in_pretraining(bags.encoder_card, [*patients, "PHANTOM-9999"]) == set(patients)
        assert "trained by LeCL on" in str(bags.provenance["trained on"])
