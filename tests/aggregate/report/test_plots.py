"""The figures of a run: what is left out of one is said under it."""

from __future__ import annotations

from pathlib import Path

import pytest

import aggregate.report.plots as module
from aggregate.report.material import open_material
from aggregate.report.plots import folds_svg
from aggregate.report.results import result_rows


def test_endpoints_that_the_figure_of_folds_leaves_out_are_counted(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    material = open_material(runs["several"] / "run", None)
    rows = result_rows(material)
    assert folds_svg(material, rows, "m")[1] == ""
    rows = [row for row in rows if (row.endpoint, row.metric) != ("rare", "auroc")]
    other = "Not drawn, but in the table: 1 with another main figure than AUROC."
    assert folds_svg(material, rows, "m")[1] == other
    monkeypatch.setattr(module, "SPREADS", 1)
    assert folds_svg(material, rows, "m")[1] == f"1 more endpoints are in the table. {other}"
