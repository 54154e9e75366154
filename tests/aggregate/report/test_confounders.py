"""What goes with the label and is no finding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats.contingency import association

from aggregate.bag_file import find_bags
from aggregate.report.confounders import confounders, cramers_v
from aggregate.report.material import Material, open_material
from clear.errors import InputError


def test_cramers_v_is_scipys_where_the_correction_for_bias_is_undone() -> None:
    table = np.array([[30.0, 10.0, 5.0], [8.0, 25.0, 22.0]])
    corrected, p = cramers_v(table)
    n, r, c = table.sum(), 2, 3
    plain = association(table.astype(int), method="cramer")
    phi2 = max(0.0, plain**2 * min(r - 1, c - 1) - (r - 1) * (c - 1) / (n - 1))
    assert corrected == pytest.approx(
        np.sqrt(phi2 / min(r - (r - 1) ** 2 / (n - 1) - 1, c - (c - 1) ** 2 / (n - 1) - 1))
    )
    assert p < 0.001


def test_cramers_v_is_0_where_nothing_varies_and_near_it_on_chance() -> None:
    assert cramers_v(np.array([[3.0, 4.0]])) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    values = [cramers_v(rng.multinomial(200, [0.25] * 4).reshape(2, 2).astype(float))[0] for _ in range(200)]
    assert np.mean(values) < 0.06


def with_bags(folder: Path) -> Material:
    material = open_material(folder / "run", None)
    material.bags = find_bags(material.run.path, material.part("bags"), folder / "feats.h5")
    return material


def test_scanners_dealt_alike_are_no_confounder(runs: dict[str, Path]) -> None:
    assert confounders(with_bags(runs["mean"])) == []


def test_a_scanner_that_tells_the_label_is_named_with_its_shares(runs: dict[str, Path]) -> None:
    material = with_bags(runs["mean"])
    assert material.bags is not None
    scans = material.bags.scans
    material.bags._scans = scans.with_columns(manufacturer=np.array(["Alpha", "Beta"])[np.arange(len(scans)) % 2])
    found = confounders(material)[0]
    assert (found.column, found.endpoint, found.strong) == ("manufacturer", "sick", True)
    assert "it is '1' in 0 % of 12 patients with Alpha, 100 % of 12 patients with Beta" in found.text


def test_the_bag_file_of_another_run_is_refused(runs: dict[str, Path]) -> None:
    record = open_material(runs["mean"] / "run", None).part("bags")
    with pytest.raises(InputError, match="not the bag file of"):
        find_bags(runs["mean"] / "run", record, runs["pixels"] / "feats.h5")


def test_a_bag_file_that_moved_with_its_run_is_found_and_another_is_not(runs: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "study" / "runs" / "run"
    moved.mkdir(parents=True)
    record = dict(open_material(runs["mean"] / "run", None).part("bags"))
    record["path"] = "gone/feats.h5"
    assert find_bags(moved, record) is None
    (tmp_path / "study" / "feats.h5").write_bytes((runs["pixels"] / "feats.h5").read_bytes())
    assert find_bags(moved, record) is None
    (tmp_path / "study" / "feats.h5").write_bytes((runs["mean"] / "feats.h5").read_bytes())
    found = find_bags(moved, record)
    assert found is not None
    assert found.path.resolve() == (tmp_path / "study" / "feats.h5").resolve()
    found.close()
