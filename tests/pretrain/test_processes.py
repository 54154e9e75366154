"""Processes: one without a launcher, several under torchrun (see test_loop), each known before they meet."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from clear.errors import InputError
from clear.launch import launched, launched_rank
from pretrain.processes import processes


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (launched(), launched_rank()) == (1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some schedulers set it for themselves
    assert (launched(), launched_rank()) == (1, 0)
    with processes("cpu") as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()


def test_a_launcher_says_how_many_there_are_and_which_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert (launched(), launched_rank()) == (4, 2)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="started process 1 of this machine, which has 1 GPUs"), processes("cuda"):
        pass


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="--device cuda:7"), processes("cuda:7"):
        pass
