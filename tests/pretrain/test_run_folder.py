"""The run folder: who may go on with it, and what differs when somebody may not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from clear.errors import InputError
from pretrain.run_folder import Identity, check_folder, check_same, is_finished, locked, write_settings
from pretrain.settings import PretrainSettings

DATA = {"digest": "a" * 64, "rows": "b" * 64, "slices": 24, "patients": 6}


@pytest.fixture
def identity(small: ModuleType) -> Identity:
    asked = PretrainSettings(objective="lecl", model="small", epochs=3, batch=8).settled()
    return Identity(asked, DATA, small.CARD)


def test_a_new_or_empty_folder_is_free(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "new") is None
    assert check_folder(tmp_path) is None


def test_the_same_command_goes_on(identity: Identity, tmp_path: Path) -> None:
    write_settings(tmp_path / "run", identity)
    recorded = check_folder(tmp_path / "run")
    assert recorded is not None
    check_same(tmp_path / "run", recorded, identity)
    check_same(tmp_path / "run", recorded, replace(identity, settings=replace(identity.settings, workers=9)))
    described = replace(identity.card, trained_on="something else", licence="MIT")
    check_same(tmp_path / "run", recorded, replace(identity, card=described))


def test_what_differs_is_named(identity: Identity, tmp_path: Path) -> None:
    write_settings(tmp_path, identity)
    recorded = check_folder(tmp_path)
    assert recorded is not None
    others = {
        "lr was 0.00015 and is 0.01": replace(identity, settings=replace(identity.settings, lr=0.01)),
        "the slices were others (24 slices of 6 patients then, 30 slices of 6 patients now)": replace(
            identity, data={**DATA, "digest": "c" * 64, "slices": 30}
        ),
        "other patients were left out": replace(identity, data={**DATA, "rows": "c" * 64}),
        "the labelled set of --judge was another one": replace(identity, judged="d" * 64),
        "it began with other weights": replace(identity, begun="e" * 64),
        "the card's input_size, mean differ": replace(
            identity, card=replace(identity.card, input_size=64, mean=(0.0, 0.0, 0.0))
        ),
        "trains timm:mambaout_femto (small), and --model small is vmamba:tiny": replace(
            identity, card=replace(identity.card, architecture="vmamba:tiny")
        ),
    }
    for says, other in others.items():
        with pytest.raises(InputError) as error:
            check_same(tmp_path, recorded, other)
        assert says in str(error.value)
        assert "another folder" in str(error.value)


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match=r"is not empty and no pretraining \(no settings.json\)"):
        check_folder(tmp_path)
    with pytest.raises(InputError, match="is a file; expected a folder"):
        check_folder(tmp_path / "thesis.doc")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not the settings of a pretraining, or damaged"),
        ('{"format": "clear-run", "version": 1}', "not the settings of a pretraining"),
        ('{"format": "clear-pretraining", "version": 1, "settings": [], "data": {}, "card": {}}', "damaged"),
        ('{"format": "clear-pretraining", "version": 2}', "version 2, from a newer clear"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=says):
        check_folder(tmp_path)


def test_a_run_is_finished_when_its_card_is_there(identity: Identity, tmp_path: Path) -> None:
    write_settings(tmp_path, identity)
    assert not is_finished(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    assert is_finished(tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["data"] == DATA


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from pretrain.run_folder import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    )
    with locked(tmp_path):
        (tmp_path / "settings.json").write_text("{}")
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another process trains in this folder" in other.stderr
    with locked(tmp_path):  # and afterwards it is free
        pass


def test_whoever_does_not_get_the_folder_leaves_the_others_lock_alone(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    code = f"from pathlib import Path; from pretrain.run_folder import locked\nwith locked(Path({run!r})): pass"
    with locked(tmp_path / "run"):  # before its settings.json is written
        for _ in range(2):
            other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert "another process trains in this folder" in other.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_never_begun_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError), locked(tmp_path / "run"):
        raise InputError("a wrong option")
    assert not (tmp_path / "run").exists()
