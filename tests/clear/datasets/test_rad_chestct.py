"""RAD-ChestCT labels from files in the exact form of the download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from clear.errors import InputError
from clear.label_join import join_labels
from clear.labels import read_labels
from clear.tasks import TASKS

FINDINGS = ["emphysema", "bronchiectasis", "pleural_effusion", "atelectasis", "fibrosis", "calcification", "opacity"]
FINDINGS += ["nodule", "nodulegr1cm", "mass"]
PLACES = ["lung", "right_lower", "heart"]


def write_download(folder: Path, *, metadata: bool = True) -> None:
    def table(name: str, rows: dict[str, set[str]]) -> None:
        columns = [f"{finding}*{place}" for finding in FINDINGS for place in PLACES]
        lines = [",".join(["NoteAcc_DEID", *columns])]
        lines += [
            ",".join([note, *("1" if column in ones else "0" for column in columns)]) for note, ones in rows.items()
        ]
        (folder / f"{name}_Abnormality_and_Location_Labels.csv").write_text("\n".join(lines) + "\n")

    table("imgtrain", {"trn00001": {"emphysema*right_lower", "nodule*lung"}, "trn00002": {"nodulegr1cm*lung"}})
    table("imgvalid", {"val00001": {"opacity*heart", "nodule*heart", "mass*lung"}})
    table("imgtest", {"tst00001": {"opacity*lung", "calcification*heart"}, "tst00002": set()})
    if metadata:
        (folder / "CT_Scan_Metadata_Complete_35747.csv").write_text(
            "VolumeAcc_DEID,NoteAcc_DEID,MRN_DEID,Set_Assigned\n"
            + "".join(
                f"{note}.npz,{note},{mrn},x\n"
                for note, mrn in [
                    ("trn00001", "m1"),
                    ("trn00002", "m1"),
                    ("val00001", "m2"),
                    ("tst00001", "m3"),
                    ("tst00002", "m4"),
                    ("trn99999", "m5"),
                ]
            )
        )


def test_the_eight_findings_follow_the_rule_of_the_task(tmp_path: Path) -> None:
    write_download(tmp_path)
    labels = read_labels(tmp_path, TASKS["rad-chestct"])
    rows = {row["id"]: row for row in labels.frame.iter_rows(named=True)}
    positive = {note: {name for name, value in row.items() if value == 1} for note, row in rows.items()}
    assert positive == {
        "trn00001": {"emphysema", "lung_nodule"},
        "trn00002": {"lung_nodule"},
        "val00001": set(),
        "tst00001": {"opacity", "calcification"},
        "tst00002": set(),
    }
    assert rows["trn00002"]["patient_id"] == "m1"
    assert all(value == 0 for value in (rows["val00001"][e.name] for e in TASKS["rad-chestct"].endpoints))


def test_the_official_split_is_that_of_the_files(tmp_path: Path) -> None:
    write_download(tmp_path)
    frame = read_labels(tmp_path, TASKS["rad-chestct"]).frame
    assert dict(frame.select("id", "split").iter_rows()) == {
        "trn00001": "train",
        "trn00002": "train",
        "val00001": "val",
        "tst00001": "test",
        "tst00002": "test",
    }


def test_all_84_abnormalities_count_at_any_location(tmp_path: Path) -> None:
    names = TASKS["rad-chestct-84"].endpoints
    columns = [f"{endpoint.name}*{place}" for endpoint in names for place in ("lung", "right_lower")]
    cells = ["1" if column in ("nodulegr1cm*right_lower", "tuberculosis*lung") else "0" for column in columns]
    (tmp_path / "imgtrain_Abnormality_and_Location_Labels.csv").write_text(
        ",".join(["NoteAcc_DEID", *columns]) + "\n" + ",".join(["trn00001", *cells]) + "\n"
    )
    labels = read_labels(tmp_path, TASKS["rad-chestct-84"])
    assert len(labels.endpoints) == 84
    row = labels.frame.row(0, named=True)
    assert {endpoint.name for endpoint in names if row[endpoint.name] == 1} == {"nodulegr1cm", "tuberculosis"}


def test_volumes_join_by_the_name_of_their_file(tmp_path: Path, joined_of) -> None:
    write_download(tmp_path)
    for note in ("trn00001", "trn00002", "tst00001"):
        values = np.random.default_rng(int(note[-1])).integers(-1000, 500, (4, 5, 6)).astype(np.int16)
        np.savez_compressed(tmp_path / f"{note}.npz", ct=values)
    joined = joined_of(tmp_path, "rad-chestct")
    columns = ["scan_id", "patient_id", "lung_nodule", "split"]
    assert joined.frame.select(columns).rows() == [
        ("trn00001", "m1", 1, "train"),
        ("trn00002", "m1", 1, "train"),
        ("tst00001", "m3", 0, "test"),
    ]
    assert joined.flow["label_rows_without_scan"] == 2


def test_a_prepared_table_serves_in_their_place(tmp_path: Path) -> None:
    names = [endpoint.name for endpoint in TASKS["rad-chestct"].endpoints]
    (tmp_path / "mine.csv").write_text(",".join(["scan_id", *names]) + "\ntrn1" + ",1" * len(names) + "\n")
    labels = read_labels(tmp_path / "mine.csv", TASKS["rad-chestct"])
    assert labels.frame.select(names).row(0) == (1,) * len(names)


def test_values_other_than_0_and_1_are_refused(tmp_path: Path) -> None:
    write_download(tmp_path)
    file = tmp_path / "imgtrain_Abnormality_and_Location_Labels.csv"
    file.write_text(file.read_text().replace(",1,", ",2,", 1))
    with pytest.raises(InputError, match="expected only 0 and 1"):
        read_labels(tmp_path, TASKS["rad-chestct"])


def test_the_scans_of_a_patient_are_kept_together_by_the_metadata(tmp_path: Path) -> None:
    write_download(tmp_path)
    scans = pl.DataFrame(
        {
            "scan_id": ["part1/trn00001", "part1/trn00002", "part2/val00001"],
            "patient_id": [None] * 3,
            "digest": ["a", "b", "c"],
            "days_since_first": [None] * 3,
        },
        schema={"scan_id": pl.String, "patient_id": pl.String, "digest": pl.String, "days_since_first": pl.Int32},
    )
    joined = join_labels(read_labels(tmp_path, TASKS["rad-chestct"]), scans)
    assert joined.frame["patient_id"].to_list() == ["m1", "m1", "m2"]


def test_one_file_of_the_download_is_enough_for_its_scans(tmp_path: Path) -> None:
    write_download(tmp_path)
    labels = read_labels(tmp_path / "imgtrain_Abnormality_and_Location_Labels.csv", TASKS["rad-chestct"])
    assert labels.frame["id"].to_list() == ["trn00001", "trn00002"]


def test_a_folder_without_the_files_and_a_file_without_a_finding_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file named"):
        read_labels(tmp_path, TASKS["rad-chestct"])
    (tmp_path / "imgtrain_Abnormality_and_Location_Labels.csv").write_text("NoteAcc_DEID,mass*lung\ntrn1,1\n")
    with pytest.raises(InputError, match="no column for 'emphysema'"):
        read_labels(tmp_path, TASKS["rad-chestct"])
