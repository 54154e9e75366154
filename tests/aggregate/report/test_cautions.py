"""Cautions: each on a run that deserves it, none on one that does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from aggregate.record import encoder_remarks
from aggregate.report.cautions import SEEN, Caution, cautions, remarks
from aggregate.report.cohort_flow import Step
from aggregate.report.ids import Ids
from aggregate.report.material import open_material
from aggregate.report.results import Estimate, ResultRow, result_rows

QUIET = [Step("series found", 100), Step("encoded", 98, ((2, "refused: truncated pixel data"),))]


def row(**changes: Any) -> ResultRow:
    """A good result of `sick`."""
    good = ResultRow(
        "sick", "1", "auroc", "", Estimate(0.9, 0.8, 0.95, 0.03), Estimate(0.9, 0.8, 0.95), "pooled", 24, 12, 24, 3
    )
    return dataclasses.replace(good, **changes)


def about(folder: Path, rows: list[ResultRow], flow: list[Step] = QUIET, **record: Any) -> dict[str, Caution]:
    """Cautions by what they are about, of a run whose run.json has these values too."""
    material = open_material(folder / "run", None)
    material.run.settings.update(record)
    return {caution.about: caution for caution in cautions(material, rows, flow)}


@pytest.fixture
def folder(runs: dict[str, Path]) -> Path:
    return runs["mean"]


def test_a_sound_run_has_only_its_size_to_answer_for(folder: Path) -> None:
    assert set(about(folder, [row()])) <= {"few patients", "training"}


def test_weights_for_demonstration_are_the_first_thing_said(runs: dict[str, Path]) -> None:
    material = open_material(runs["pixels"] / "run", None)
    first = cautions(material, result_rows(material), [])[0]
    assert (first.weight, first.about) == ("grave", "encoder")
    assert "untrained" in first.text


def test_patients_seen_in_pretraining_are_grave(folder: Path) -> None:
    found = about(
        folder, [row()], remarks=[f"3 of 24 patients {SEEN} (trained on CT): on new patients it may do less well"]
    )
    assert found["pretraining"].weight == "grave"
    assert SEEN in (encoder_remarks.__doc__ or "") or SEEN in Path(encoder_remarks.__code__.co_filename).read_text()


def test_an_interval_that_reaches_chance_is_grave(folder: Path) -> None:
    assert about(folder, [row(joint=Estimate(0.6, 0.49, 0.7))])["chance"].weight == "grave"
    assert "chance" not in about(folder, [row(joint=Estimate(0.6, 0.51, 0.7))])


def test_an_interval_wholly_below_chance_is_worse_than_guessing(folder: Path) -> None:
    found = about(folder, [row(joint=Estimate(0.2, 0.1, 0.35))])
    assert "chance" not in found
    assert found["worse than guessing"] == Caution(
        "grave",
        "worse than guessing",
        "The interval of AUROC lies wholly below 0.5, what guessing gives: sick (0.10 to 0.35). Worse than guessing: "
        "are labels or scores inverted?",
    )
    text = about(folder, [row(metric="r2", joint=Estimate(-0.5, -0.9, -0.1))])["worse than guessing"].text
    assert text.endswith("(-0.90 to -0.10). Worse than guessing.")


def test_a_baseline_that_does_as_well_is_grave_and_one_in_the_interval_a_note(folder: Path) -> None:
    def beside(value: float) -> dict[str, Caution]:
        return about(folder, [row(), row(source="acquisition", joint=Estimate(value, 0.7, 0.95))])

    assert beside(0.9)["baseline"].weight == "grave"
    assert beside(0.85)["baseline"].weight == "note"
    assert "baseline" not in beside(0.7)


def test_a_baseline_of_an_error_is_better_when_it_is_smaller(folder: Path) -> None:
    def beside(value: float) -> dict[str, Caution]:
        own = row(metric="mae", joint=Estimate(2.0, 1.5, 2.5))
        return about(folder, [own, dataclasses.replace(own, source="clinic", joint=Estimate(value))])

    assert beside(1.9)["baseline"].weight == "grave"
    assert beside(2.2)["baseline"].weight == "note"
    assert "baseline" not in beside(2.6)


def test_folds_that_disagree_are_told_with_their_range(folder: Path) -> None:
    text = about(folder, [row(folds=Estimate(0.8, 0.7, 0.9, 0.14))])["folds disagree"].text
    assert "standard deviation 0.14" in text
    assert "from 0." in text


def test_a_figure_that_some_folds_lack_is_told(folder: Path) -> None:
    assert "2 of 3" in about(folder, [row(folds_defined=2)])["folds without a value"].text


def test_few_patients_of_a_class_are_told_by_patients(runs: dict[str, Path]) -> None:
    found = about(runs["several"], [])["few patients"]
    assert found.weight == "grave"
    assert "rare: 3 patients of '1'" in found.text


def test_lost_scans_and_labels_are_told_above_a_twentieth(folder: Path) -> None:
    flow = [Step("series found", 100), Step("encoded", 90, ((8, "refused: truncated"), (2, "set aside: localizer")))]
    found = about(folder, [row()], flow, cohort={"label_rows": 40, "label_rows_without_scan": 10})
    assert found["refused scans"].text.startswith("8 of 100 series were not encoded")
    assert found["labels without scans"].text.startswith("10 of 40 label rows")


def test_training_that_never_settled_is_told(folder: Path) -> None:
    fits = [{"repeat": 0, "fold": i, "best_epoch": 5, "epochs_at_most": 5} for i in range(3)]
    assert "still improving" in about(folder, [row()], fits=fits)["training"].text


def test_what_a_fold_could_not_learn_is_told(folder: Path) -> None:
    fits = [{"repeat": 0, "fold": i, "not_learnt": ["sick"] if i else []} for i in range(3)]
    assert "sick in 2 of 3 folds" in about(folder, [row()], fits=fits)["not learnt"].text


def test_remarks_of_training_lose_ids_and_what_is_said_already(folder: Path) -> None:
    material = open_material(folder / "run", None)
    material.run.settings["remarks"] = ["2 of 9 scans have no label row: jane, john", f"1 of 9 patients {SEEN} (x)"]
    assert remarks(material, Ids(show=False)) == ["2 of 9 scans have no label row"]
    assert json.dumps(remarks(material, Ids(show=True))).count("jane") == 1
