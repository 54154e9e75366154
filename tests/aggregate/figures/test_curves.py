"""Curves as they stand on paper: what is drawn is what was computed, and what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.lines import Line2D

from aggregate.figures import Curve, calibration_bars, calibration_figure, pr_curve, pr_figure, roc_curve, roc_figure
from aggregate.figures.style import DASHES, Drawing, look


def words(figure: Drawing) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def lines(figure: Drawing) -> list[Line2D]:
    return [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]


def scored(n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    return truth, 1 / (1 + np.exp(-rng.normal(size=n) - truth)), np.arange(n) // 3


def test_a_roc_curve_starts_in_the_corner_and_follows_its_points() -> None:
    curve = roc_curve(*scored(), "a", n=50)
    (line,) = lines(roc_figure({"a": curve}))
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert (x[0], y[0]) == (0, 0)
    np.testing.assert_array_equal(x[1:], curve.x)
    np.testing.assert_array_equal(y[1:], curve.y)


def test_the_band_is_drawn_to_its_edges() -> None:
    curve = pr_curve(*scored(), "a", n=50)
    figure = pr_figure({"a": curve})
    (band,) = [each for each in figure.axes[0].collections if isinstance(each, FillBetweenPolyCollection)]
    points = band.get_paths()[0].vertices
    assert curve.low is not None
    assert curve.high is not None
    assert (points[:, 1].min(), points[:, 1].max()) == (curve.low.min(), curve.high.max())


def test_runs_in_one_figure_differ_in_colour_and_in_dashes() -> None:
    looks = [look(i) for i in range(12)]
    assert len({str(each) for each in looks}) == 12
    assert len({str(each["linestyle"]) for each in looks[:6]}) == len(DASHES)
    curves = {f"run {i}": roc_curve(*scored(seed=i), "", n=50) for i in range(3)}
    figure = roc_figure(curves)
    assert len(lines(figure)) == 3
    assert len(figure.axes[0].collections) == 3
    assert all(name in words(figure) for name in curves)


def test_many_curves_leave_their_bands_out_and_say_so() -> None:
    figure = roc_figure({f"run {i}": roc_curve(*scored(seed=i), "", n=20) for i in range(8)})
    assert not figure.axes[0].collections
    assert "bands are left out: 8 curves" in words(figure)


@pytest.mark.parametrize("draw", [roc_figure, pr_figure])
def test_without_curves_the_figure_says_what_is_missing(draw) -> None:
    alone = roc_curve(np.ones(7, bool), np.full(7, 0.5), np.arange(7), "a")
    assert "all 7 scans are positive" in words(draw({"a": alone}))
    assert "there is nothing to draw" in words(draw({}))


def test_a_curve_that_is_missing_is_named_among_the_others() -> None:
    alone = pr_curve(np.zeros(5, bool), np.full(5, 0.5), np.arange(5), "")
    figure = pr_figure({"there": pr_curve(*scored(), "", n=20), "gone": alone})
    assert len(lines(figure)) == 1
    assert "gone: none of 5 scans is positive" in words(figure)


def test_too_few_patients_are_named_and_a_curve_made_without_a_band_is_not_blamed() -> None:
    truth, scores = np.array([True, True, False, False, False]), np.array([0.9, 0.4, 0.5, 0.1, 0.2])
    assert "too few patients" in words(roc_figure({"a": roc_curve(truth, scores, np.array([0, 0, 1, 2, 3]), "a")}))
    plain = Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), None, None, "a")
    assert "band" not in words(roc_figure({"a": plain}))


def test_calibration_shows_bars_and_both_histograms() -> None:
    truth, scores, whose = scored()
    figure = calibration_figure({"a": calibration_bars(truth, scores, whose, "a")})
    upper, lower = figure.axes
    (bars,) = upper.collections
    bins = calibration_bars(truth, scores, whose, "a")
    heights = [[segment[0, 1], segment[1, 1]] for segment in bars.get_segments()]
    np.testing.assert_allclose(heights, np.stack([bins.low, bins.high], axis=1))
    up, down = (patch.get_data().values.sum() for patch in lower.patches)
    assert (up, down) == (truth.sum(), -(~truth).sum())


def test_calibration_of_one_class_is_drawn_and_of_nothing_is_said() -> None:
    none = np.zeros(0)
    alone = calibration_bars(np.zeros(6, bool), np.linspace(0, 1, 6), np.arange(6), "a")
    assert len(calibration_figure({"a": alone}).axes) == 2
    assert "no scan is scored" in words(calibration_figure({"a": calibration_bars(none, none, none, "a")}))
