"""Killed, interrupted, resumed: the file comes out the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clear.bags import Bags
from clear.stopping import Interrupted

CRASH = Path(__file__).with_name("crash.py")
ROOT = CRASH.parents[2]


def start(cohort: Path, output: Path, delay_s: float) -> subprocess.Popen[str]:
    """An extraction in another process, which has begun when this returns."""
    process = subprocess.Popen(
        [sys.executable, str(CRASH), "run", str(cohort), str(output), str(delay_s)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    return process


def kill_at_random_moments(folder: Path, times: int, delay_s: float) -> list[str]:
    """Kills an extraction `times` times, lets it finish, and returns what differs from an undisturbed run.

    One that gets to its end between two kills is compared as well, and begun anew.
    """
    plain, disturbed = folder / "plain", folder / "disturbed"
    plain.mkdir()
    disturbed.mkdir()
    process = start(folder / "cohort", plain / "f.h5", delay_s)
    began = time.monotonic()
    assert process.wait(60) == 0
    usual_s = time.monotonic() - began
    rng = random.Random(0)
    problems: list[str] = []

    def compare() -> None:
        if (plain / "f.h5").read_bytes() != (disturbed / "f.h5").read_bytes():
            problems.append("bytes differ")
        if left := {path.name for path in disturbed.iterdir()} - {"f.h5", "f.qc.csv"}:
            problems.append(f"left behind: {left}")

    killed = 0
    while killed < times:
        process = start(folder / "cohort", disturbed / "f.h5", delay_s)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, usual_s * 0.7))
        process.kill()
        if process.wait(60) == -signal.SIGKILL:
            killed += 1
            continue
        compare()
        for path in list(disturbed.iterdir()):
            path.unlink()
    assert start(folder / "cohort", disturbed / "f.h5", delay_s).wait(60) == 0
    compare()
    return problems


def test_killed_at_random_moments_it_comes_to_the_same_bytes(tmp_path: Path):
    assert kill_at_random_moments(tmp_path, 5, 0.02) == []
    assert len(Bags(tmp_path / "disturbed" / "f.h5")) == 12


@pytest.mark.slow
def test_killed_many_times_it_comes_to_the_same_bytes(tmp_path: Path):
    assert kill_at_random_moments(tmp_path, 30, 0.05) == []


def sweep(folder: Path, suffix: str, every: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(CRASH), "sweep", str(folder), suffix, str(every)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("suffix", "every"), [(".h5", 19), (".zarr", 97)])
def test_dying_before_any_disk_call_loses_and_leaves_nothing(tmp_path: Path, suffix: str, every: int):
    found = sweep(tmp_path, suffix, every)
    assert found["mismatches"] == []
    assert int(str(found["instants"])) > 3


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_dying_before_every_disk_call_loses_and_leaves_nothing(tmp_path: Path, suffix: str):
    assert sweep(tmp_path, suffix, 1)["mismatches"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_within_seconds_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals):
    process = start(tmp_path / "cohort", tmp_path / "f.h5", 0.1)
    parts = tmp_path / "f.h5.parts"
    while not list(parts.glob("*.part.h5")):
        time.sleep(0.02)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - sent < 5
    assert "clear.stopping.Interrupted: Stopped:" in said
    assert "of 12 scans are finished and kept. Run the same command to go on." in said
    kept = len(list(parts.glob("*.part.h5")))
    assert kept > 0
    assert not (tmp_path / "f.h5").exists()
    assert not list(parts.glob("*.tmp"))
    assert start(tmp_path / "cohort", tmp_path / "f.h5", 0.0).wait(30) == 0
    assert len(Bags(tmp_path / "f.h5")) == 12
    assert Interrupted.exit_status == 130
