"""Checkpoints: whole or not there, opened without running code, and refused where they do not fit."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clear.atomic import OutputError
from clear.errors import InputError
from pretrain.checkpoints import Checkpoint, load_states, read_checkpoint, write_checkpoint


def trained(width: int = 4, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(width)
    network = nn.Linear(width, 3)
    optimiser = torch.optim.AdamW([{"params": [network.weight], "decays": True}, {"params": [network.bias]}], lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        network(torch.ones(2, width)).square().sum().backward()
        optimiser.step()
    return network, optimiser


def checkpoint(network: nn.Module, optimiser: torch.optim.Optimizer, **changes: Any) -> Checkpoint:
    made = Checkpoint(
        step=7,
        epoch=1,
        step_in_epoch=3,
        objective=network.state_dict(),
        optimiser=optimiser.state_dict(),
        architecture="timm:mambaout_femto",
        epochs=[{"epoch": 1, "loss": 0.1 + 0.2}],
        sums={"loss": 1 / 3},
        embeddings=torch.arange(6.0).reshape(2, 3),
        generators={"torch": torch.get_rng_state()},
    )
    return replace(made, **changes)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    network, optimiser = trained()
    before = checkpoint(network, optimiser)
    write_checkpoint(before, tmp_path / "checkpoint.pt")
    after = read_checkpoint(tmp_path / "checkpoint.pt")
    assert after is not None
    assert (after.step, after.epoch, after.step_in_epoch) == (7, 1, 3)
    assert after.epochs == before.epochs
    assert after.sums == before.sums
    assert after.embeddings is not None
    assert torch.equal(after.embeddings, before.embeddings)
    assert torch.equal(after.generators["torch"], before.generators["torch"])
    fresh, other = trained(steps=0)
    load_states(after, fresh, other, tmp_path / "checkpoint.pt", "timm:mambaout_femto")
    assert torch.equal(fresh.weight, network.weight)
    for one, its in ((network, optimiser), (fresh, other)):  # and both go on alike, moments included
        its.zero_grad()
        one(torch.ones(2, 4)).sum().backward()
        its.step()
    assert torch.equal(fresh.weight, network.weight)


def test_there_is_no_checkpoint_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "checkpoint.pt") is None


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of more than 20 kB cannot be written: a full disk that the kernel makes."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path: Path, small_files: None) -> None:
    file = tmp_path / "checkpoint.pt"
    write_checkpoint(checkpoint(*trained(), step=1), file)
    with pytest.raises(OutputError, match=r"checkpoint\.pt: larger than this system allows"):
        write_checkpoint(checkpoint(*trained(20_000), step=2), file)
    kept = read_checkpoint(file)
    assert kept is not None
    assert kept.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_disk_that_fills_up_at_the_end_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "checkpoint.pt"
    write_checkpoint(checkpoint(*trained(), step=1), file)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"checkpoint\.pt: the disk is full .* Free space and run the same command"):
        write_checkpoint(checkpoint(*trained(), step=2), file)
    kept = read_checkpoint(file)
    assert kept is not None
    assert kept.step == 1


def test_a_checkpoint_of_another_architecture_names_both(tmp_path: Path) -> None:
    written = checkpoint(*trained(4))
    network, optimiser = trained(5)
    with pytest.raises(InputError) as error:
        load_states(written, network, optimiser, tmp_path / "checkpoint.pt", "vmamba:tiny")
    assert "of timm:mambaout_femto, and this run trains vmamba:tiny: 1 tensors differ, first weight" in str(error.value)
    with pytest.raises(InputError, match="of other networks or heads"):
        load_states(written, network, optimiser, tmp_path / "checkpoint.pt", "timm:mambaout_femto")


def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    write_checkpoint(checkpoint(*trained()), file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"not a checkpoint of a pretraining, or damaged\. Remove it"):
        read_checkpoint(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(InputError, match="not a checkpoint"):
        read_checkpoint(file)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps({"format": Evil()}, protocol=2))
    with pytest.raises(InputError, match="not a checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "touched").exists()


def test_a_checkpoint_of_a_newer_clear_says_so(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    write_checkpoint(checkpoint(*trained()), file)
    content = torch.load(file, weights_only=True)
    torch.save({**content, "version": 2, "more": 1}, file)
    with pytest.raises(InputError, match="version 2, from a newer clear"):
        read_checkpoint(file)
