"""Folds beside the figure of all."""

from __future__ import annotations

import numpy as np

from aggregate.figures import Spread, spread_figure, svg


def test_a_row_has_its_folds_its_estimate_and_its_interval() -> None:
    folds = np.array([0.7, 0.9, np.nan])
    figure = spread_figure([Spread("effusion", 0.8, 0.75, 0.86, folds)], x="AUROC")
    drawn = [tuple(np.asarray(line.get_xdata()).tolist()) for line in figure.axes[0].lines]
    assert drawn == [(0.75, 0.86), (0.7, 0.9), (0.8,)]
    assert "0.80 (0.75 to 0.86)" in svg(figure)
    low, high = figure.axes[0].get_xlim()
    assert low < 0.7
    assert high > 0.9


def test_a_difference_is_set_against_zero_and_written_with_a_minus() -> None:
    figure = spread_figure([Spread("effusion", -0.02, -0.05, 0.01)], reference=0.0)
    assert "−0.02 (−0.05 to 0.01)" in svg(figure)
    assert "one fold" not in svg(figure)
    assert [0.0, 0.0] in [list(line.get_xdata()) for line in figure.axes[0].lines]


def test_what_is_not_defined_is_said() -> None:
    nothing = Spread("b", np.nan, np.nan, np.nan)
    assert "not defined" in svg(spread_figure([Spread("a", 0.8, 0.7, 0.9), nothing]))
    assert "no figure is defined" in svg(spread_figure([nothing]))
    assert "no figure is defined" in svg(spread_figure([]))


def test_an_estimate_without_an_interval_has_no_bar() -> None:
    assert "0.80<" in svg(spread_figure([Spread("a", 0.8, np.nan, np.nan)]))
