"""History: exact figures, cut where the checkpoint is, and TensorBoard where it is installed."""

from __future__ import annotations

import builtins
import errno
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clear.atomic import OutputError
from clear.errors import InputError, MissingExtra
from pretrain.history import History, TensorBoard, read_history, wants_tensorboard, write_epochs


def row(step: int) -> dict[str, float]:
    return {"step": step, "epoch": 1, "loss": math.pi / step, "lr": 1e-5 * step}


def written(path: Path, steps: range, after: int = 0) -> bytes:
    history = History(path, after)
    for step in steps:
        history.add(row(step))
    history.flush()
    return path.read_bytes()


def test_figures_come_back_to_the_last_bit(tmp_path: Path) -> None:
    written(tmp_path / "history.csv", range(1, 5))
    assert read_history(tmp_path / "history.csv") == [row(step) for step in range(1, 5)]
    assert read_history(tmp_path / "absent.csv") == []


def test_rows_after_the_checkpoint_are_dropped_and_going_on_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.csv", range(1, 9))
    written(tmp_path / "killed.csv", range(1, 7))
    with (tmp_path / "killed.csv").open("a") as file:
        file.write("7,1,0.4")  # a kill in the middle of a line
    assert written(tmp_path / "killed.csv", range(5, 9), after=4) == whole
    assert written(tmp_path / "killed.csv", range(1, 9)) == whole  # from the start: nothing of before is left


def test_a_full_disk_is_a_sentence_and_rows_wait_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path / "history.csv", 0)
    history.add(row(1))

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OutputError, match="the disk is full"):
            history.flush()
    history.flush()
    assert read_history(tmp_path / "history.csv") == [row(1)]


def test_epochs_that_were_not_judged_have_empty_cells(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 2.25, "judged": 0.75}]
    write_epochs(tmp_path / "epochs.csv", rows)
    assert (tmp_path / "epochs.csv").read_text() == "epoch,loss,judged\n1,2.5,\n2,2.25,0.75\n"
    found = read_history(tmp_path / "epochs.csv")
    assert found[1] == rows[1]
    assert math.isnan(found[0]["judged"])


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "epochs.csv").write_text("epoch,loss\n1,two\n")
    with pytest.raises(InputError, match=r"epochs\.csv: damaged"):
        read_history(tmp_path / "epochs.csv")


def test_without_tensorboard_its_absence_is_a_remark_and_asking_for_it_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    asked, remark = wants_tensorboard(None)
    assert not asked
    assert "pip install 'clear-mil[pretrain]'" in remark
    assert wants_tensorboard(False) == (False, "")
    with pytest.raises(MissingExtra, match="A TensorBoard log needs the package 'tensorboard'"):
        wants_tensorboard(True)


def test_tensorboard_gets_the_same_figures_and_drops_those_after_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = TensorBoard(tmp_path, 4)
    board.add({"step": 5, "epoch": 1, "loss": 0.5, "judged": math.nan}, 5, "step")
    board.close()
    assert calls == [(str(tmp_path), 5), ("step/loss", 0.5, 5), "closed"]
    silent = TensorBoard(None, 0)
    silent.add({"loss": 1.0}, 1, "step")
    silent.close()


@pytest.mark.parametrize("broken", ["__init__", "add_scalar", "close"])
def test_a_full_disk_under_tensorboard_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fine(*_: Any, **__: Any) -> None:
        return None

    parts = {name: full if name == broken else fine for name in ("__init__", "add_scalar", "close")}
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = type("Writer", (), parts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)

    def log() -> None:
        board = TensorBoard(tmp_path, 0)
        board.add({"loss": 0.5}, 1, "step")
        board.close()

    with pytest.raises(OutputError, match=f"{tmp_path.name}.*the disk is full"):
        log()
