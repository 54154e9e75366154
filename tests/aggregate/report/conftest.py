"""Runs to report, trained for a few epochs on a handful of scans: as many kinds as there are."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from extract.quality import QualityRow, write_quality

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "=cmd|' /C calc'!A0")
Copy = Callable[[str], Path]


def bench() -> ModuleType:
    """tests/bench/report.py, which writes cohorts and runs."""
    place = Path(__file__).parents[2] / "bench" / "report.py"
    spec = importlib.util.spec_from_file_location("bench_report", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by name, each with feats.h5, labels.csv and the folder `run`. Not to be changed.

    `pixels` has scans and a quality record too, `mean` and `abmil` are runs of one cohort; of `pool` and `average` each
    patient has two scans.
    """
    made, write_run = {}, bench().write_run
    n = 24
    kinds: dict[str, dict[str, object]] = {
        "pixels": {"matrix": 32, "names": HOSTILE, "remark": "untrained: not for any conclusion"},
        "mean": {"training": {"aggregator": "mean"}},
        "abmil": {},
        "survival": {
            "target": "time",
            "labels": {"time": [5 + 3 * i for i in range(n)], "died": [int(i % 3 > 0) for i in range(n)]},
        },
        "quantity": {"target": "size", "labels": {"size": [f"{0.37 * i * i + i % 5:.3f}" for i in range(n)]}},
        "several": {
            "target": ["sick", "grade", "rare"],
            "labels": {"grade": ["low", "mid", "high"] * (n // 3), "rare": [int(i < 3) for i in range(n)]},
        },
        **{several: {"labels": {"sick": [i // 2 % 2 for i in range(n)]}} for several in ("pool", "average")},
    }
    for name, settings in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        if name == "survival":
            task = folder / "survival.yaml"
            task.write_text("name: survival\nendpoints:\n  - {name: time, kind: survival, event: died}\n")
            settings = {**settings, "target": None, "training": {"task": str(task)}}
        if name in ("pool", "average"):
            patients = folder / "patients.csv"
            patients.write_text(
                "scan_id,patient_id\n" + "".join(f"scan{i:04d},patient{i // 2:02d}\n" for i in range(n))
            )
            settings = {**settings, "training": {"patients": patients, "several": name}}
        made[name] = write_run(folder, scans=n, epochs=2, **settings).parent
    done = [QualityRow(scan_id=f"scan{i:04d}", status="done") for i in range(n)]
    write_quality(made["pixels"] / "feats.qc.csv", done)
    return made


@pytest.fixture
def copied(runs: dict[str, Path], tmp_path: Path) -> Copy:
    """A copy of one of `runs` that may be changed."""

    def copy(name: str) -> Path:
        place = tmp_path / name
        shutil.copytree(runs[name], place)
        return place

    return copy


@pytest.fixture(scope="session")
def measure() -> Callable[..., dict[str, float]]:
    """Seconds, size and memory of a report in a process of its own, see tests/bench/report.py."""
    measured: Callable[..., dict[str, float]] = bench().measure
    return measured


@pytest.fixture(scope="session")
def five_hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 500 scans of 60 slices, with the scans beside it."""
    made: Path = bench().write_run(tmp_path_factory.mktemp("many"), scans=500, slices=60, matrix=128)
    return made
