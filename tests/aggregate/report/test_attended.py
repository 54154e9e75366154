"""Attention of a run: the scans' own, from the models that never trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aggregate.report.attended import Attended, attention_of, effective_slices, scans_of, top_slices
from aggregate.report.material import Material, open_material
from aggregate.run import Run
from clear.bags import Bags
from clear.windows import ABDOMEN, LUNG


def attended(scan: str, weights: list[list[float]]) -> Attended:
    """Of (slices, 2) weights."""
    table = np.array(weights)
    slices, windows = np.divmod(np.arange(table.size), 2)
    return Attended(scan, "d", "axial", "CT", len(table), table.ravel(), slices, windows, 3.0 * slices, (ABDOMEN, LUNG))


def opened(folder: Path) -> Material:
    return open_material(folder / "run", Bags(folder / "feats.h5"))


def test_effective_slices_are_one_for_a_peak_and_all_for_even_attention() -> None:
    assert effective_slices(np.array([0.0, 1.0, 0.0])) == pytest.approx(1)
    assert effective_slices(np.full(7, 0.2)) == pytest.approx(7)
    assert 1 < effective_slices(np.array([0.9, 0.1])) < 2


def test_top_slices_are_those_of_both_windows_together_shown_in_the_stronger() -> None:
    one = attended("a", [[0.30, 0.05], [0.20, 0.20], [0.0, 0.25]])
    top = [(slice, one.windows[window].name, share) for _, slice, window, share in top_slices((one,), 2)]
    assert top == [(1, "abdomen", pytest.approx(0.4)), (0, "abdomen", pytest.approx(0.35))]


def test_top_slices_of_a_pooled_bag_come_from_all_of_its_scans() -> None:
    a, b = attended("a", [[0.1, 0.0], [0.1, 0.2]]), attended("b", [[0.0, 0.5], [0.1, 0.0]])
    assert [(one.scan, slice) for one, slice, _, _ in top_slices((a, b), 2)] == [("b", 0), ("a", 1)]


def test_a_bag_is_one_scan_or_several_joined_by_a_semicolon() -> None:
    assert scans_of("a;b", {"a": 1, "b": 2}) == ["a", "b"]
    assert scans_of("a;b", {"a;b": 1}) == ["a;b"]


def test_attention_is_the_mean_over_the_models_that_scored_the_scan(runs: dict[str, Path]) -> None:
    material = opened(runs["several"])
    attention = attention_of(material)
    assert attention is not None
    run, bags = Run(runs["several"] / "run"), Bags(runs["several"] / "feats.h5")
    test = run.folds.filter(split="test")
    for scan, fold in test.select("scan_id", "fold").rows()[:5]:
        (one,) = attention.of(scan)
        row = bags.row(scan)
        start = int(bags.scans.filter(scan_id=scan)["start"][0])
        expected = run.attention(0, fold)[start : start + row.length].astype(float)
        np.testing.assert_allclose(one.weights, expected / expected.sum(), rtol=1e-6)
        np.testing.assert_array_equal(one.z_mm, 3.0 * one.slice)
        assert one.weights.sum() == pytest.approx(1)
    assert material.gaps == []


def test_what_weighs_nothing_has_no_attention_and_says_so(runs: dict[str, Path]) -> None:
    material = opened(runs["mean"])
    assert attention_of(material) is None
    assert [gap.what for gap in material.gaps] == ["attention"]
    assert material.gaps[0].why.startswith("The aggregator mean weighs no instance")


def test_a_lost_attention_file_is_a_gap(copied) -> None:  # type: ignore[no-untyped-def]
    folder = copied("several")
    (folder / "run" / "attention.h5").unlink()
    material = opened(folder)
    assert attention_of(material) is None
    assert material.gaps[0].why.startswith("attention.h5 is missing or damaged")
