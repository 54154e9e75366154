"""Where a run begins: at random by its seed, with the model's own weights, or with a file's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from clear.card import EncoderCard
from clear.errors import InputError, WeightsError
from clear.export import export_encoder
from pretrain.initialise import random_network
from pretrain.objectives.objective import Objective
from pretrain.settings import PretrainSettings
from pretrain.start import starting_objective, starting_point


def begin(model: Path | str, **changes: Any) -> tuple[EncoderCard, Objective]:
    options = {"hidden": 16, "dim": 8}
    asked = PretrainSettings(**{"objective": "moco-v3", "model": str(model), "options": options, **changes}).settled()
    start = starting_point(asked)
    return start.card, starting_objective(asked, start, torch.device("cpu"))


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_random_start_is_the_librarys_own_and_follows_from_the_seed(small: ModuleType, model: Path) -> None:
    before = torch.get_rng_state()
    _, one = begin(model, seed=4)
    assert equal(one.student, random_network(small.CARD, seed=4))
    assert equal(one.student, one.teacher)
    assert equal(one, begin(model, seed=4)[1])
    assert not equal(one.student, begin(model, seed=5)[1].student)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_of_the_model_or_of_a_file_begin_in_student_and_teacher(small: ModuleType, tmp_path: Path) -> None:
    known = random_network(small.CARD, seed=9)
    export_encoder(small.CARD, known, tmp_path / "known")
    for changes in (
        {"model": tmp_path / "known", "init": "own"},
        {"model": tmp_path / "known", "init": str(tmp_path / "known" / "weights.safetensors")},
        {"model": small.write_model(tmp_path / "bare"), "init": str(tmp_path / "known")},
    ):
        _, made = begin(**changes)
        assert equal(made.student, known)
        assert equal(made.teacher, known)


def test_a_name_means_what_extraction_means_by_it() -> None:
    card, made = begin("mambaout-lecl", init="own")
    assert card.architecture == "timm:mambaout_femto"  # what comes with the package
    assert card.dim == 288
    assert not card.any_size
    assert torch.isfinite(made.student(torch.zeros(1, 3, 128, 128))).all()


def test_another_input_size_reaches_the_views_and_the_grid_of_a_vit(small: ModuleType, tmp_path: Path) -> None:
    card, made = begin(small.write_model(tmp_path, small.VIT), input_size=48)
    assert card.settings["img_size"] == 48
    assert {kind.size for kind in made.kinds} == {48}
    assert made.student(torch.zeros(1, 3, 48, 48)).shape == (1, 16)


def test_weights_that_do_not_fit_or_are_not_there_stop(small: ModuleType, model: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        begin(model, init=str(tmp_path / "absent.safetensors"))
    with pytest.raises(WeightsError, match="missing at"):
        begin(model, init="own")
    export_encoder(small.VIT, random_network(small.VIT), tmp_path / "vit")
    with pytest.raises(WeightsError, match="does not fit this encoder"):
        begin(model, init=str(tmp_path / "vit" / "weights.safetensors"))


def test_the_runs_length_is_no_option_and_unknown_options_are_named(model: Path) -> None:
    with pytest.raises(InputError, match="--option epochs: is the run's length; give --epochs"):
        begin(model, options={"epochs": 3})
    with pytest.raises(InputError, match="unknown setting 'heads'"):
        begin(model, options={"heads": 3})
