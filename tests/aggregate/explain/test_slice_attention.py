"""Slice attention: the numbers of attention.h5, on slices and windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest

from aggregate import Run, train
from aggregate.explain.contribution import contributions
from aggregate.explain.slice_attention import slice_attention
from aggregate.run import fold_name
from clear.bags import Bag, BagHeader, Bags, write_bags
from clear.errors import InputError
from clear.windows import ABDOMEN, LUNG

QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "lr": 1e-3, "progress": False, "folds": 3}


@pytest.fixture
def cohort(make_bags, planted, tmp_path: Path) -> tuple[Path, Path]:
    features, labels = planted(n=24)
    table = tmp_path / "labels.csv"
    pl.DataFrame({"patient_id": list(labels), "lesion": list(labels.values())}).write_csv(table)
    return make_bags(features), table


def trained(cohort: tuple[Path, Path], output: Path, **options: Any) -> Run:
    return train(cohort[0], labels=cohort[1], target="lesion", output=output, **QUICK, **options)


def stored(run: Run, bags: Bags, scan: str, pair: tuple[int, int]) -> np.ndarray:
    start, length = bags.scans.filter(pl.col("scan_id") == scan).select("start", "length").row(0)
    with h5py.File(run.path / "attention.h5") as file:
        return np.asarray(file[fold_name(*pair)][start : start + length])


@pytest.mark.parametrize("aggregator", ["abmil", "slice-transformer", "transmil"])
def test_for_scans_of_the_run_it_is_what_the_run_recorded(
    aggregator: str, cohort: tuple[Path, Path], tmp_path: Path
) -> None:
    run = trained(cohort, tmp_path / "run", aggregator=aggregator, repeats=2)
    with Bags(cohort[0]) as bags:
        for scan in list(bags)[::7]:
            found = slice_attention(run, bags, scan)
            recorded = np.stack([stored(run, bags, scan, pair) for pair in found.pairs])
            assert found.by_model.shape == (2, bags.row(scan).n_slices, 2)
            np.testing.assert_allclose(found.by_model.reshape(2, -1), recorded, atol=1e-6)
            np.testing.assert_allclose(found.weights, found.by_model.mean(0))
            assert found.weights.sum() == pytest.approx(1, abs=1e-6)
            assert found.share == pytest.approx(1, abs=1e-6)
            assert found.out_of_fold
            assert found.windows == (ABDOMEN, LUNG)
            assert found.z_mm.tolist() == list(range(len(found.z_mm)))
            assert found.position_mm[:, 2].tolist() == found.z_mm.tolist()


def test_a_run_on_one_window_weighs_that_window(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    run = trained(cohort, tmp_path / "run", windows=["lung"])
    with Bags(cohort[0]) as bags:
        found = slice_attention(run, bags, "scan001")
        recorded = stored(run, bags, "scan001", found.pairs[0])
    assert found.windows == (LUNG,)
    assert np.isnan(recorded[0::2]).all()
    np.testing.assert_allclose(found.weights[:, 0], recorded[1::2], atol=1e-6)


def test_windows_asked_for_in_another_order_keep_their_places(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    run = trained(cohort, tmp_path / "run", windows=["lung", "abdomen"])
    with Bags(cohort[0]) as bags:
        found = slice_attention(run, bags, "scan001")
        recorded = stored(run, bags, "scan001", found.pairs[0])
    assert found.windows == (LUNG, ABDOMEN)
    np.testing.assert_allclose(found.weights[:, 0], recorded[1::2], atol=1e-6)
    np.testing.assert_allclose(found.weights[:, 1], recorded[0::2], atol=1e-6)


def test_an_unknown_scan_has_the_mean_of_all_models(cohort: tuple[Path, Path], make_bags, tmp_path: Path) -> None:
    run = trained(cohort, tmp_path / "run")
    other = make_bags({"new": np.random.default_rng(9).standard_normal((10, 16)).astype(np.float32)}, name="other.h5")
    found = slice_attention(run, other, "new")
    assert found.pairs == tuple(run.pairs)
    assert not found.out_of_fold
    np.testing.assert_allclose(found.by_model.sum((1, 2)), 1, atol=1e-6)
    with pytest.raises(InputError, match="no scan 'scan000'"):
        slice_attention(run, other, "scan000")


def test_scans_pooled_into_one_bag_share_its_attention(make_bags, planted, tmp_path: Path) -> None:
    features, _ = planted(n=24)
    patients = {scan: f"p{i // 2:02d}" for i, scan in enumerate(features)}
    table = tmp_path / "labels.csv"
    pl.DataFrame({"patient_id": [f"p{i:02d}" for i in range(12)], "lesion": [i % 2 for i in range(12)]}).write_csv(
        table
    )
    bags_file = make_bags(features, patients=patients)
    run = trained((bags_file, table), tmp_path / "run", join_rule="pool")
    with Bags(bags_file) as bags:
        pair = [slice_attention(run, bags, scan) for scan in ("scan004", "scan005")]
        for one in pair:
            recorded = stored(run, bags, one.scan_id, one.pairs[0])
            np.testing.assert_allclose(one.weights.ravel() * one.share, recorded, atol=1e-6)
            assert one.weights.sum() == pytest.approx(1, abs=1e-6)
            assert 0 < one.share < 1
    assert pair[0].share + pair[1].share == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("aggregator", ["mean", "linear"])
def test_an_aggregator_that_weighs_nothing_has_contributions_to_an_output_and_is_refused_without(
    aggregator: str, cohort: tuple[Path, Path], tmp_path: Path
) -> None:
    run = trained(cohort, tmp_path / "run", aggregator=aggregator)
    with pytest.raises(InputError, match=f"{aggregator} weighs no instance.*name an endpoint's output"):
        slice_attention(run, cohort[0], "scan000")
    found = slice_attention(run, cohort[0], "scan000", output=0)
    assert found.kind == "contribution"
    assert found.weights.sum() == pytest.approx(1)
    with Bags(cohort[0]) as bags:
        bag = bags["scan000"]
    expected = contributions(run.model(*found.pairs[0]), np.asarray(bag.features), bag.window, 0)
    np.testing.assert_allclose(found.weights.ravel(), expected, atol=1e-6)


def test_a_scan_on_which_nothing_of_its_bag_fell_has_slices_that_are_alike(make_bags, planted, tmp_path: Path) -> None:
    features, _ = planted(n=24)
    patients = {scan: f"p{i // 2:02d}" for i, scan in enumerate(features)}
    table = tmp_path / "labels.csv"
    pl.DataFrame({"patient_id": [f"p{i:02d}" for i in range(12)], "lesion": [i % 2 for i in range(12)]}).write_csv(
        table
    )
    bags_file = make_bags(features, patients=patients)
    run = trained((bags_file, table), tmp_path / "run", join_rule="pool", aggregator="max")
    with Bags(bags_file) as bags:
        found = [slice_attention(run, bags, scan) for scan in bags]
    none = [each for each in found if each.share == 0]
    assert none
    for each in none:
        np.testing.assert_allclose(each.weights, 1 / each.weights.size)
    assert all(each.weights.sum() == pytest.approx(1) for each in found)


def rewritten(path: Path, out: Path, **changes: object) -> Path:
    """The same bags under another header."""
    with Bags(path) as bags:
        header: BagHeader = replace(bags.header, **changes)  # type: ignore[arg-type]
        write_bags(out, header, [bags.row(scan) for scan in bags], lambda row: bags[row.scan_id])
    return out


def test_bags_that_do_not_fit_the_run_are_refused(
    cohort: tuple[Path, Path], make_bags, planted, tmp_path: Path
) -> None:
    run = trained(cohort, tmp_path / "run")
    with pytest.raises(InputError, match="encoded by fake"):
        slice_attention(run, rewritten(cohort[0], tmp_path / "a.h5", encoder_digest="1" * 64), "scan000")
    features, _ = planted(n=24)
    with pytest.raises(InputError, match="no window lung"):
        slice_attention(run, make_bags(features, name="b.h5", windows=(ABDOMEN,)), "scan000")
    with pytest.raises(InputError, match="are not those that the run"):
        slice_attention(run, make_bags(features, name="c.h5", digests={"scan000": "f" * 64}), "scan000")


def test_one_row_for_the_whole_volume_has_no_slices(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    run = trained(cohort, tmp_path / "run")
    with Bags(cohort[0]) as bags:
        rows = [replace(bags.row(scan), length=1) for scan in list(bags)[:2]]

        def load(row: Any) -> Bag:
            one = bags[row.scan_id]
            return Bag(row.scan_id, one.features[:1], np.full(1, -1, np.int32), one.window[:1], one.position_mm[:1])

        header = replace(bags.header, windows=(replace(ABDOMEN, kind="encoder"),))
        write_bags(tmp_path / "whole.h5", header, rows, load)
    with pytest.raises(InputError, match="one embedding of the whole volume"):
        slice_attention(run, tmp_path / "whole.h5", "scan000")
