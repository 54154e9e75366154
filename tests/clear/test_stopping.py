"""Stopping: the first signal ends between two steps, a second Ctrl-C at once, a repeated SIGTERM is no impatience."""

from __future__ import annotations

import os
import signal

import pytest

from clear.stopping import Interrupted, stopping

SAYS = ("it is saved", "the last one is kept")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_said(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    with stopping(*SAYS) as stop:
        assert not stop.requested
        stop.check()
        send(number)
        assert stop.requested
        with pytest.raises(Interrupted):
            stop.check()
    assert "stopping; it is saved (Ctrl-C again stops at once)" in capfd.readouterr().err


def test_a_second_ctrl_c_stops_at_once() -> None:
    def impatient() -> None:
        with stopping(*SAYS):
            send(signal.SIGTERM)
            send(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"Stopped at once; the last one is kept\. Run the same command"):
        impatient()


def test_a_scheduler_may_repeat_itself() -> None:
    with stopping(*SAYS) as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.requested


def test_among_several_processes_no_signal_is_a_second_one_and_one_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    with stopping(*SAYS, several=True, quiet=True) as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.requested
    assert capfd.readouterr().err == ""


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stopping(*SAYS):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
