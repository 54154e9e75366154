"""A run in a notebook: its figures, and hostile names as text."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from aggregate.run import Run
from clear.windows import ABDOMEN

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as a notebook reads it, with hostile names."""
    settings = {
        "format": "clear-run",
        "version": 1,
        "task": {"name": HOSTILE},
        "endpoints": [{"name": HOSTILE, "kind": "binary", "classes": ["absent", "present"], "column": "a"}],
        "windows": [ABDOMEN.as_dict()],
        "cohort": {"bags": 40, "patients": 30, "scans_used": 41},
        "aggregator": "abmil",
        "fits": [{"repeat": 0, "fold": 0}, {"repeat": 0, "fold": 1}],
        "bags": {"encoder": HOSTILE, "trained_on": "nothing: a fake encoder for tests"},
        "remarks": [HOSTILE],
    }
    (tmp_path / "run.json").write_text(json.dumps(settings))
    columns = ["endpoint", "class", "metric", "estimator", "estimate", "ci_low", "ci_high", "n"]
    rows = [
        (HOSTILE, "present", "auroc", "fold_mean", 0.81, None, None, 40),
        (HOSTILE, "present", "auroc", "pooled", 0.8, 0.7, 0.9, 40),
        (HOSTILE, "present", "f1", "fold_mean", None, None, None, 40),
    ]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(tmp_path / "metrics.csv")
    return tmp_path


def test_a_run_shows_one_row_a_figure_the_pooled_one_where_there_is_one(run: Path) -> None:
    shown = Run(run)._repr_html_()
    assert "40 bags of 30 patients, from 41 scans" in shown
    assert "abmil, 2 fits" in shown
    cells = [row.split("</td>") for row in shown.split("<tr>") if "AUROC" in row]
    assert len(cells) == 1
    assert [cell.rpartition(">")[2] for cell in cells[0][1:5]] == ["AUROC", "0.800", "0.700 to 0.900", "40"]
    assert "not defined" in shown


def test_a_hostile_name_stays_text(run: Path) -> None:
    shown = Run(run)._repr_html_()
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") == 6


@pytest.mark.parametrize(
    ("lost", "gone"),
    [
        ("cohort", "40 bags"),
        ("remarks", "no such text"),
        ("windows", "abdomen"),
        ("endpoints", "(binary)"),
        ("fits", "2 fits"),
        ("bags", "a fake encoder"),
        ("task", "no such text"),
        ("aggregator", "abmil"),
    ],
)
def test_a_damaged_record_shows_what_is_there(run: Path, lost: str, gone: str) -> None:
    settings = json.loads((run / "run.json").read_text())
    del settings[lost]
    (run / "run.json").write_text(json.dumps(settings))
    shown = Run(run)._repr_html_()
    assert f"run.json lacks {lost}<" in shown
    assert gone not in shown
    whole = ("40 bags of 30 patients", "abdomen", "(binary)", "abmil, 2 fits", "a fake encoder", "0.700 to 0.900")
    assert sum(text in shown for text in whole) == len(whole) - (gone != "no such text")
    settings[lost] = 3
    (run / "run.json").write_text(json.dumps(settings))
    assert "0.700 to 0.900" in Run(run)._repr_html_()


def test_a_run_without_its_metrics_says_so(run: Path) -> None:
    (run / "metrics.csv").unlink()
    assert "metrics.csv: missing or damaged" in Run(run)._repr_html_()
