from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

import clear
from clear.demonstration import _pooled_auroc, demo
from clear.errors import InputError
from clear.phantoms import write_cohort


def test_the_notebook_surface_is_what_it_says() -> None:
    assert set(clear.__all__) <= set(dir(clear))
    assert all(getattr(clear, name) is not None for name in clear.__all__)
    with pytest.raises(AttributeError, match="no attribute 'crossvalidate'"):
        _ = clear.crossvalidate


def test_scans_are_found_read_and_extracted_from_a_notebook(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=2, seed=3, matrix=64, slices=5, workers=1)
    scans = [scan for scan in clear.find_scans(cohort.dicom) if scan.verdict == "use"]
    volume = clear.read_volume(scans[0])
    assert volume.hu.shape == (scans[0].n_slices, 64, 64)
    result = clear.extract(scans, tmp_path / "feats.h5", device="cpu", progress=False)
    assert (result.done, result.exit_status) == (len(scans), 0)
    bags = clear.Bags(tmp_path / "feats.h5")
    assert bags[scans[0].scan_id].features.shape == (2 * volume.n_slices, 288)
    table = clear.inspect(cohort.dicom, out=tmp_path / "plan.parquet")
    assert set(table["scan_id"]) >= set(bags)


def test_weights_go_with_one_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--weights goes with one --model"):
        clear.extract(tmp_path, tmp_path / "{model}.h5", model=["vit-s", "vit-b"], weights="x.pth")


def test_a_demonstration_of_other_numbers_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort.txt").write_text("9 patients\n")
    with pytest.raises(InputError, match="holds another cohort than 3 patients, seed 0"):
        demo(tmp_path, patients=3)


def test_a_run_without_pooled_scores_has_no_pooled_figure() -> None:
    columns = {"endpoint": ["y"], "metric": ["auroc"], "ci_low": [None], "ci_high": [None]}
    fixed = SimpleNamespace(metrics=pl.DataFrame({**columns, "estimator": ["ensemble"], "estimate": [0.8]}))
    assert _pooled_auroc(fixed) == "not defined"
    certain = SimpleNamespace(metrics=pl.DataFrame({**columns, "estimator": ["pooled"], "estimate": [1.0]}))
    assert _pooled_auroc(certain) == "1.000"


@pytest.mark.slow
def test_attention_beats_mean_pooling_on_the_small_focal_findings(tmp_path: Path) -> None:
    runs = demo(tmp_path / "demo").runs

    def auroc(finding: str, aggregator: str) -> float:
        metrics = runs[finding][aggregator].metrics
        return metrics.filter((metrics["metric"] == "auroc") & (metrics["estimator"] == "pooled"))["estimate"][0]

    for finding in ("lung_nodule", "liver_lesion", "bone_lesion"):
        assert auroc(finding, "abmil") > auroc(finding, "mean"), finding
