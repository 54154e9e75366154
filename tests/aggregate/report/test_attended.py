"""Attention of a run: the scans' own, from the models that never trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aggregate.explain.slice_attention import slice_attention
from aggregate.predictions import scans_of
from aggregate.report.attended import Attended, AttentionOfRun, attention_of, top_slices
from aggregate.report.attention_summary import profile_svg
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


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("sagittal", 0), ("coronal", 1)])
def test_z_is_the_patient_coordinate_that_explain_prints_also_of_a_tilted_stack(
    runs: dict[str, Path], plane: str, axis: int
) -> None:
    class Tilted:
        """Slices 2 mm apart along the axis and sheared by a gantry, from -40 mm on."""

        windows = (ABDOMEN,)
        scans = pl.DataFrame(
            {"scan_id": ["a"], "remarks": [""], "start": [0], "length": [5], "digest": ["d"], "plane": [plane],
             "modality": ["CT"], "n_slices": [5]}
        )  # fmt: skip
        slice, window = np.arange(5), np.zeros(5, int)
        position_mm = np.zeros((5, 3), np.float32)

    Tilted.position_mm[:, axis] = 2.0 * np.arange(5) - 40
    Tilted.position_mm[:, (axis + 1) % 3] = 0.9 * np.arange(5)
    (one,) = AttentionOfRun(Tilted(), np.full(5, 0.2)).of("a")  # type: ignore[arg-type]
    np.testing.assert_allclose(one.z_mm, [-40, -38, -36, -34, -32])
    run = Run(runs["several"] / "run")
    with Bags(runs["several"] / "feats.h5") as bags:
        attention = attention_of(open_material(run, bags))
        assert attention is not None
        scan = run.predictions["scan_id"][0]
        np.testing.assert_allclose(attention.of(scan)[0].by_slice()[1], slice_attention(run, bags, scan).z_mm)


def test_top_slices_are_those_of_both_windows_together_shown_in_the_stronger() -> None:
    one = attended("a", [[0.30, 0.05], [0.20, 0.20], [0.0, 0.25]])
    top = [(slice, one.windows[window].name, share) for _, slice, window, share in top_slices((one,), 2)]
    assert top == [(1, "abdomen", pytest.approx(0.4)), (0, "abdomen", pytest.approx(0.35))]


def test_the_profile_of_a_bag_that_lacks_slices_names_slices_and_not_rows() -> None:
    slices, weights = np.arange(0, 30, 3), np.full(10, 0.05)
    weights[4] = 0.55
    one = Attended("a", "d", "axial", "CT", 30, weights, slices, np.zeros(10, int), 5.0 * slices, (LUNG,))
    (drawn,) = profile_svg((one,), 1, "m")
    assert "most at slice 12, 60.0 mm" in drawn


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
