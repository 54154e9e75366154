"""The weights that come with the package: what they are, who made them, and whom they have not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import clear
from clear.card import EncoderCard, read_card
from clear.demonstration import PATIENTS
from clear.frozen import load_encoder
from clear.phantoms import write_cohort
from clear.training_record import seen_in_pretraining
from pretrain import shipped
from pretrain.initialise import write_untrained


@pytest.fixture(scope="module")
def card() -> EncoderCard:
    return read_card(shipped.INSTALLED)


def test_the_package_holds_what_shipped_says_it_trains(card: EncoderCard) -> None:
    settings = card.training["settings"]
    assert card.training["objective"] == "lecl"
    assert {name: settings[name] for name in ("batch", "lr", "weight_decay", "annotated_share")} == {
        name: shipped.SETTINGS[name] for name in ("batch", "lr", "weight_decay", "annotated_share")
    }
    assert settings["options"]["lambda_"] == shipped.OBJECTIVES["lecl"]["lambda_"]
    assert card.training["epoch"]["epoch"] == settings["epochs"] == shipped.EPOCHS
    assert card.training["data"]["patients"] == shipped.PATIENTS
    assert card.bfloat16 is shipped.BFLOAT16


def test_the_card_says_what_it_was_trained_on_and_that_it_is_no_clinical_model(card: EncoderCard) -> None:
    assert card.trained_on.startswith("trained by LeCL on 6,680 CT slices")
    assert card.trained_on.endswith(f"; {shipped.NOTE}")
    assert "all of them synthetic" in shipped.NOTE
    assert "not for clinical conclusions" in shipped.NOTE
    assert card.licence == "Apache-2.0"


def test_the_weights_are_half_precision_and_small(card: EncoderCard) -> None:
    file = shipped.INSTALLED / "weights.safetensors"
    assert file.stat().st_size < 12_000_000
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


def test_the_card_and_the_registered_name_are_the_encoder_that_was_trained(card: EncoderCard) -> None:
    named = load_encoder("mambaout-lecl", device="cpu", precision="float32")
    own = load_encoder(str(shipped.INSTALLED), device="cpu", precision="float32")
    assert named.digest == own.digest == card.training["encoder_digest"]
    assert named.weights_note == card.trained_on


def test_training_has_moved_the_weights_away_from_their_start(tmp_path: Path) -> None:
    write_untrained(tmp_path)
    start, now = load_file(tmp_path / "weights.safetensors"), load_file(shipped.INSTALLED / "weights.safetensors")
    assert start.keys() == now.keys()
    moved = [float((now[n].float() - start[n].float()).norm() / start[n].float().norm().clamp_min(1e-6)) for n in now]
    assert np.median(moved) > 0.02


def test_no_patient_of_the_demonstration_was_trained_on(card: EncoderCard, tmp_path: Path) -> None:
    assert shipped.FIRST >= PATIENTS
    write_cohort(tmp_path / "scored", patients=2, seed=0, matrix=32, slices=4, workers=1)
    write_cohort(tmp_path / "seen", patients=2, seed=0, first=shipped.FIRST, matrix=32, slices=4, workers=1)
    for name, expected in (("scored", False), ("seen", True)):
        patients = [scan.patient_id or "" for scan in clear.find_scans(tmp_path / name / "dicom")]
        assert patients
        seen = seen_in_pretraining(card.as_dict(), patients)
        assert seen == (set(patients) if expected else set())


def test_a_short_run_of_the_recipe_is_opened_and_not_trained_again(tmp_path: Path) -> None:
    store = shipped.training_store(tmp_path, patients=4, matrix=40, slices=4, workers=1)
    small = {"batch": 8, "options": {"hidden": 16, "dim": 8}, "epochs": 1, "workers": 0, "precision": "float32"}
    first = shipped.train(tmp_path, "lecl", store=store, tensorboard=False, device="cpu", **small)
    assert first.new_steps > 0
    again = shipped.train(tmp_path, "lecl", store=store, tensorboard=False, device="cpu", **small)
    assert again.new_steps == 0
    installed = read_card(shipped.install(again, tmp_path / "installed").parent)
    assert (installed.name, installed.licence) == ("mambaout-lecl", "Apache-2.0")
    assert installed.training == first.encoder.training


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr(shipped, "train", lambda folder, name, **_: trained.append(name) or Result(folder / name))
    monkeypatch.setattr(shipped, "install", lambda result: trained.append(f"installed {result.path.name}"))
    shipped.main([str(tmp_path)])
    assert trained == ["lecl", "moco-v3"]
    shipped.main([str(tmp_path), "--install"])
    assert trained[2:] == ["lecl", "moco-v3", "installed lecl"]


class Result:
    """As much of a pretraining's result as the command looks at."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def summary(self) -> str:
        return self.path.name
