"""Judging: a run that found the lesions is told from one that knows nothing, and destroyed runs fall apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from aggregate.explain.evaluate import evaluate_explanations
from aggregate.explain.judge import ALONE, CENTRE, EVEN, RANDOM
from aggregate.explain.judgement import Evaluation, judged_table
from aggregate.explain.sanity import AGGREGATOR, CHECKS, ENCODER, LABELS
from aggregate.intervals import patient_draws
from clear.bags import Bags, write_bags
from clear.errors import InputError

OWN = "abmil"
SHARE = 1 / 6  # of slices hold the lesion
REGION = 64 / (6 * 32 * 32)  # of voxels are in it


@pytest.fixture(scope="module")
def kept() -> dict[str, Evaluation]:
    return {}


@pytest.fixture
def judged(known: Any, kept: dict[str, Evaluation]) -> Evaluation:
    """With everything: made once, as nothing in it is changed."""
    if "all" not in kept:
        out = known.folder / "judged"
        kept["all"] = evaluate_explanations(known.run, scans=known.scans, boxes=known.boxes, out=out, device="cpu")
    return kept["all"]


def estimate(judged: Evaluation, method: str, measure: str) -> float:
    rows = judged.table.filter((pl.col("method") == method) & (pl.col("measure") == measure))
    return float(rows["estimate"].item())


def test_a_run_that_found_the_lesions_points_at_them(judged: Evaluation) -> None:
    assert estimate(judged, OWN, "slice_top1") >= 0.9
    assert estimate(judged, OWN, "pointing") >= 0.9
    assert estimate(judged, OWN, "slice_energy") > 2 * SHARE
    assert estimate(judged, OWN, "energy") > 10 * REGION
    assert estimate(judged, OWN, "dice") > 0.3


def test_what_knows_nothing_scores_its_expectation(judged: Evaluation) -> None:
    for method in (EVEN, RANDOM):
        assert estimate(judged, method, "slice_top1") == pytest.approx(SHARE)
        assert estimate(judged, method, "slice_top3") == pytest.approx(3 * SHARE)
        assert estimate(judged, method, "slice_energy") == pytest.approx(SHARE)
    for measure in ("pointing", "energy"):
        assert estimate(judged, RANDOM, measure) == pytest.approx(REGION)
    # slices alone: the right slice, and in it one of 16 cells
    assert estimate(judged, ALONE, "pointing") == pytest.approx(estimate(judged, OWN, "slice_top1") / 16)
    assert estimate(judged, CENTRE, "pointing") < 0.5


def test_maps_fall_apart_when_what_they_explain_is_destroyed(judged: Evaluation) -> None:
    for check in CHECKS:
        assert estimate(judged, check, "rank_slices") < 0.5, check
        assert estimate(judged, check, "slice_top1") < estimate(judged, OWN, "slice_top1") - 0.2, check
        assert estimate(judged, check, "energy") < estimate(judged, OWN, "energy") / 2, check
    assert estimate(judged, ENCODER, "rank_saliency") < 0.5
    assert estimate(judged, ENCODER, "pointing") < 0.5


def test_only_scans_with_the_finding_count_and_each_has_a_row_a_method(judged: Evaluation, known: Any) -> None:
    assert set(judged.scans["scan_id"]) == set(known.places)
    methods = [OWN, *CHECKS, EVEN, ALONE, CENTRE, RANDOM]
    assert judged.scans["method"].unique(maintain_order=True).to_list() == methods
    assert judged.scans.height == len(methods) * len(known.places)
    assert set(judged.scans["slices_with_lesion"]) == {1}
    counted = judged.table.filter(~pl.col("measure").str.starts_with("rank"))  # a rank needs a map that varies
    assert set(counted["n"]) == set(counted["n_patients"]) == {len(known.places)}


def test_tables_record_and_pictures_are_written(judged: Evaluation) -> None:
    assert judged.path is not None
    names = {file.name for file in judged.path.iterdir()}
    assert names == {"evaluation.csv", "scans.csv", "evaluation.json", "hits-checks.png"}
    assert pl.read_csv(judged.path / "evaluation.csv").height == judged.table.height
    record = json.loads((judged.path / "evaluation.json").read_text())
    assert (record["format"], record["map"], record["seed"]) == ("clear-evaluation", "gradcam", 0)


def test_the_text_says_how_many_and_what_each_method_scored(judged: Evaluation) -> None:
    text = judged.text()
    assert "checks = 1: 12 scans of 12 patients with it marked" in text
    for method in (OWN, *CHECKS, EVEN, ALONE, CENTRE, RANDOM):
        assert method in text
    assert max(map(len, text.splitlines()[:20])) <= 100


def test_masks_are_judged_like_the_boxes_that_mark_the_same(known: Any, judged: Evaluation) -> None:
    by_mask = evaluate_explanations(known.run, scans=known.scans, masks=known.masks, sanity=False, device="cpu")
    theirs = judged.table.filter(pl.col("method").is_in(by_mask.table["method"].unique().to_list()))
    keys = ["method", "measure"]
    assert by_mask.table.sort(keys).equals(theirs.sort(keys))


def test_without_pixels_the_slices_are_judged(known: Any, judged: Evaluation) -> None:
    slices = evaluate_explanations(known.run, boxes=known.boxes, device="cpu")
    assert slices.map_name == ""
    assert set(slices.table["measure"]) == {"slice_top1", "slice_top3", "slice_energy", "rank_slices"}
    for method in (OWN, AGGREGATOR, LABELS, RANDOM):
        assert estimate(slices, method, "slice_top1") == estimate(judged, method, "slice_top1")
    assert any("the encoder cannot be run with random weights" in remark for remark in slices.remarks)


def test_a_scan_that_is_not_the_one_that_was_encoded_is_left_out_with_its_reason(known: Any, tmp_path: Path) -> None:
    for file in known.scans.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "scan01.nii.gz").write_bytes((tmp_path / "scan03.nii.gz").read_bytes())
    (tmp_path / "scan05.nii.gz").unlink()
    found = evaluate_explanations(known.run, scans=tmp_path, boxes=known.boxes, sanity=False, device="cpu")
    assert set(found.scans["scan_id"]) == set(known.places) - {"scan01", "scan05"}
    assert any("scan01 is left out" in remark and "other voxels" in remark for remark in found.remarks)
    assert any("scan05 is left out" in remark and "by id or by voxels" in remark for remark in found.remarks)


@pytest.mark.parametrize("with_pixels", [True, False])
def test_a_scan_whose_models_learnt_nothing_is_left_out_and_not_judged_as_if_they_had(
    known: Any, tmp_path: Path, with_pixels: bool
) -> None:
    shutil.copytree(known.folder / "run", tmp_path / "run")
    rows = pl.read_csv(tmp_path / "run" / "predictions.csv", infer_schema=False)
    lost = set(rows.filter(pl.col("fold") == "0")["scan_id"]) & set(known.places)
    none = pl.when(pl.col("fold") == "0").then(None).otherwise(pl.col("y_score"))
    rows.with_columns(y_score=none).write_csv(tmp_path / "run" / "predictions.csv")
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    for fit in settings["fits"]:
        fit["not_learnt"] = ["checks"] if fit["fold"] == 0 else []
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    scans = known.scans if with_pixels else None
    found = evaluate_explanations(
        tmp_path / "run", bags=known.folder / "feats.h5", scans=scans, boxes=known.boxes, sanity=False, device="cpu"
    )
    assert lost
    assert set(found.scans["scan_id"]) == set(known.places) - lost
    assert any(f"{len(lost)} marked scans are left out: the models of their fold" in each for each in found.remarks)


def test_the_record_names_the_bag_file_that_was_judged(known: Any, tmp_path: Path) -> None:
    with Bags(known.folder / "feats.h5") as bags:
        rows = [bags.row(scan) for scan in list(bags)[1:]]
        write_bags(tmp_path / "other.h5", bags.header, rows, lambda row: bags[row.scan_id])
    evaluate_explanations(
        known.run, bags=tmp_path / "other.h5", boxes=known.boxes, sanity=False, out=tmp_path / "judged"
    )
    with Bags(tmp_path / "other.h5") as other:
        assert json.loads((tmp_path / "judged" / "evaluation.json").read_text())["bags"] == other.digest


def test_marks_that_do_not_fit_the_labels_are_counted_and_left_out(known: Any, tmp_path: Path) -> None:
    table = pl.read_csv(known.boxes)
    healthy = table.head(1).with_columns(scan_id=pl.lit("scan00"))
    other = table.head(1).with_columns(label=pl.lit("stripes"))
    pl.concat([table.tail(-1), healthy, other]).write_csv(tmp_path / "boxes.csv")
    found = evaluate_explanations(known.run, boxes=tmp_path / "boxes.csv", sanity=False)
    assert set(found.scans["scan_id"]) == set(known.places) - {"scan01"}
    remarks = "; ".join(found.remarks)
    assert "stripes: marked, but no answer of this run has maps that speak for it" in remarks
    assert "checks: 1 marked scans are left out" in remarks
    assert "checks: 1 scans that have it have no mark" in remarks


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "--boxes TABLE or --masks DIR, one of the two"),
        ({"boxes": "b.csv", "masks": "m"}, "one of the two"),
        ({"masks": "m"}, "--masks: needs the scans' pixels"),
        ({"boxes": "b.csv", "map": "gradcam"}, "--map: needs the scans' pixels"),
        ({"boxes": "b.csv", "scans": "s", "map": "magic"}, "--map magic: no such map; expected one of attention"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(known: Any, settings: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate_explanations(known.run, **settings)


def test_what_is_there_is_not_replaced_unasked_and_is_found_before_anything_is_judged(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    monkeypatch.setattr("aggregate.explain.evaluate.read_boxes", None)  # nothing is read
    with pytest.raises(InputError, match="exists and is not empty"):
        evaluate_explanations(known.run, boxes=known.boxes, out=tmp_path)


def test_labels_that_are_no_endpoint_are_refused_with_both_names(known: Any, tmp_path: Path) -> None:
    pl.read_csv(known.boxes).with_columns(label=pl.lit("stripes")).write_csv(tmp_path / "boxes.csv")
    with pytest.raises(InputError, match=r"marks stripes; the run .* predicts checks"):
        evaluate_explanations(known.run, boxes=tmp_path / "boxes.csv")


def test_a_figure_is_the_mean_over_scans_and_its_interval_draws_patients() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 30)
    patients = [f"P{i // 3}" for i in range(30)]  # three scans each
    scans = pl.DataFrame(
        {"endpoint": "a", "class": "x", "method": "m", "patient_id": patients, "dice": values, "energy": [None] * 30}
    )
    (row,) = judged_table(scans, ["dice", "energy"], seed=3).rows(named=True)
    assert (row["measure"], row["n"], row["n_patients"]) == ("dice", 30, 10)
    assert row["estimate"] == pytest.approx(values.mean())
    weights = patient_draws(np.arange(10), 3)[:, np.arange(30) // 3]
    drawn = (weights * values).sum(axis=1) / weights.sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert abs(row["ci_low"] - low) < 0.02
    assert abs(row["ci_high"] - high) < 0.02


def test_a_figure_that_no_draw_moves_has_no_interval() -> None:
    scans = pl.DataFrame({"endpoint": "a", "class": "x", "method": "m", "patient_id": ["1", "2", "3"], "dice": 1.0})
    (row,) = judged_table(scans, ["dice"]).rows(named=True)
    assert (row["estimate"], row["ci_low"], row["ci_high"]) == (1.0, None, None)
