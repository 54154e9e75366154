"""Summaries of attention, and the attention of one scan."""

from __future__ import annotations

import numpy as np
import pytest

from aggregate.figures import (
    PLACES,
    SHARES,
    along_z,
    along_z_figure,
    attention_profile_figure,
    by_group,
    concentration_figure,
    effective_slices,
    share_of_top,
    svg,
)
from aggregate.figures.attention import peaks
from clear.windows import ABDOMEN, LUNG


@pytest.mark.parametrize("n", [1, 3, 20, 333])
def test_even_attention_is_a_diagonal_flat_along_z_and_rests_on_every_slice(n: int) -> None:
    even = np.full(n, 0.01)
    np.testing.assert_allclose(share_of_top(even), SHARES, atol=1e-12)
    np.testing.assert_allclose(along_z(even, np.arange(n) * 2.5 - 100), 1, atol=1e-9)
    assert effective_slices(even) == pytest.approx(n)


def test_one_attended_slice_holds_everything() -> None:
    weights = np.zeros(40)
    weights[30] = 1.0
    assert (share_of_top(weights)[2:] == 1).all()
    profile = along_z(weights, np.arange(40.0))
    assert profile.argmax() == 15
    assert profile[15] == pytest.approx(20)
    assert effective_slices(weights) == 1


def test_effective_slices_are_exp_of_the_entropy() -> None:
    assert effective_slices(np.array([0.9, 0.1])) == pytest.approx(np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)))
    assert effective_slices(np.array([0.0, 3.0, 3.0])) == pytest.approx(2)


def test_what_is_held_sums_to_one_and_order_counts_only_along_z() -> None:
    rng = np.random.default_rng(0)
    weights, z_mm = rng.dirichlet(np.ones(57)), np.sort(rng.random(57)) * 300
    assert along_z(weights, z_mm).mean() == pytest.approx(1)
    np.testing.assert_allclose(share_of_top(weights), share_of_top(rng.permutation(weights)))
    np.testing.assert_allclose(along_z(weights[::-1], -z_mm[::-1]), along_z(weights, z_mm)[::-1])


def test_groups_are_means_of_their_scans() -> None:
    values = np.arange(8.0)[:, None] * np.ones(len(PLACES))
    curves = by_group(values, PLACES, ["a", "b"] * 4, np.arange(8))
    assert list(curves) == ["a", "b"]
    assert (curves["a"].y[0], curves["b"].y[0]) == (3, 4)
    assert curves["a"].label == "a (4 scans)"
    alone = by_group(values[:1], PLACES, ["a"], np.arange(1))["a"]
    assert (alone.low, alone.label) == (None, "a (1 scan)")


def test_without_attention_the_figures_say_so() -> None:
    assert "no attention is known" in svg(concentration_figure({}))
    assert "no attention is known" in svg(along_z_figure({}))
    assert "no slice has attention" in svg(attention_profile_figure(np.zeros(0), np.zeros((0, 2)), ["a", "b"]))
    assert "no slice has attention" in svg(attention_profile_figure(np.arange(3.0), np.full((3, 1), np.nan), ["a"]))


def test_a_scans_profile_has_a_line_a_window_and_names_its_marked_slices() -> None:
    attention = np.random.default_rng(0).dirichlet(np.ones(80)).reshape(40, 2)
    figure = attention_profile_figure(np.arange(40) * 5.0, attention, [ABDOMEN, LUNG], [3, 4, 30])
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 40]
    np.testing.assert_array_equal([line.get_ydata() for line in lines], attention.T)
    assert [text.get_text() for text in figure.axes[0].texts] == ["3–4", "30"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["abdomen", "lung"]


def test_rows_that_are_not_every_slice_are_named_by_their_slice() -> None:
    figure = attention_profile_figure(np.arange(10) * 5.0, np.full((10, 1), 0.1), ["a"], [2], slices=range(0, 30, 3))
    assert [text.get_text() for text in figure.axes[0].texts] == ["6"]


def test_a_long_scan_keeps_its_peaks() -> None:
    values = np.random.default_rng(0).random(1500)
    rows = peaks(values)
    assert len(rows) <= 200
    assert values[rows].max() == values.max()
    assert (rows[0], rows[-1]) == (0, 1499)
    assert set(np.argsort(-values)[:5]) & set(rows)
