"""Merlin as downloaded: findings with -1 for what was not assessed, and the split in another table."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.builtin_tasks import MERLIN_30
from clear.errors import InputError
from clear.labels import read_labels
from clear.tasks import TASKS

xlsxwriter = pytest.importorskip("xlsxwriter")

STUDIES = {"AC421363e": ("Train", 1), "AC4213640": ("VAL", -1), "AC4213641": ("test", 0), "AC4213642": ("fold 3", 1)}


def write_download(folder: Path, *, reports: bool = True, value: str = "") -> Path:
    root = folder / "merlinabdominalctdataset"
    root.mkdir(parents=True)
    lines = [",".join(["study id", *MERLIN_30])]
    lines += [",".join([study, value or str(ascites), *["0"] * 29]) for study, (_, ascites) in STUDIES.items()]
    (root / "zero_shot_findings_disease_cls.csv").write_text("\n".join(lines) + "\n")
    if reports:
        book = xlsxwriter.Workbook(root / "reports_final.xlsx")
        page = book.add_worksheet()
        rows = [["study id", "Findings", "Split", "Few Shot"]]
        rows += [[study, 'LIVER: normal,\nKIDNEYS: "normal"', split, ""] for study, (split, _) in STUDIES.items()]
        for number, row in enumerate(rows):
            page.write_row(number, 0, row)
        book.close()
    return root


def test_what_was_not_assessed_is_masked_and_the_split_read_in_any_case(tmp_path: Path) -> None:
    labels = read_labels(write_download(tmp_path), TASKS["merlin"])
    assert labels.frame[MERLIN_30[0]].to_list() == [1, None, 0, 1]
    assert labels.frame[MERLIN_30[1]].to_list() == [0, 0, 0, 0]
    assert labels.frame["split"].to_list() == ["train", "val", "test", None]
    assert any("Split holds fold 3, which is no known set" in remark for remark in labels.remarks)
    assert any("every study counts as a patient" in remark for remark in labels.remarks)


def test_without_the_reports_the_split_is_unknown_and_said_to_be(tmp_path: Path) -> None:
    labels = read_labels(write_download(tmp_path, reports=False), TASKS["merlin"])
    assert "split" not in labels.frame.columns
    assert any("the official split is unknown" in remark for remark in labels.remarks)


def test_volumes_join_by_the_study_in_their_name(tmp_path: Path, joined_of, nifti) -> None:
    root = write_download(tmp_path)
    for study in list(STUDIES)[:3]:
        nifti(root / "merlin_data" / f"{study}.nii.gz")
    for place in (root, root / "merlin_data"):
        joined = joined_of(place, "merlin")
        assert joined.frame["patient_id"].to_list() == ["AC421363e", "AC4213640", "AC4213641"]
        assert joined.frame["split"].to_list() == ["train", "val", "test"]


def test_another_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{MERLIN_30[0]} holds 2; expected 1, 0 or -1"):
        read_labels(write_download(tmp_path, value="2"), TASKS["merlin"])
