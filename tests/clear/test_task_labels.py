"""Labels beside a bag file: found in the tree, attached, read again, replaced."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from clear.bags import Bag, BagHeader, Bags, ScanRow, write_bags
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import join_labels
from clear.labels import read_saved_labels
from clear.task import Task
from clear.task_labels import attach_labels, find_labels
from clear.tasks import TASKS
from clear.windows import LUNG

FRACTURE = Task("fracture", "", (Endpoint("fracture", "binary", ("absent", "present")),))


def bag_file(path: Path, scans: dict[str, dict[str, object]]) -> Path:
    """One instance a scan; scans: id -> other fields of its row."""
    header = BagHeader(
        encoder="fake",
        encoder_digest="0" * 64,
        encoder_card={},
        windows=(LUNG,),
        preprocessing={},
        provenance={"trained on": "nothing: a fake encoder for tests"},
        dim=4,
        dtype="float32",
    )
    rows = [
        ScanRow(
            scan_id=scan,
            digest=hashlib.sha256(scan.encode()).hexdigest(),
            length=1,
            n_slices=1,
            spacing_mm=(1.0, 1.0, 1.0),
            plane="axial",
            modality="CT",
            **more,
        )
        for scan, more in sorted(scans.items())
    ]

    def load(row: ScanRow) -> Bag:
        zero = np.zeros((1, 4), np.float32)
        return Bag(row.scan_id, zero, zero[:, 0].astype(np.int32), zero[:, 0].astype(np.uint8), zero[:, :3])

    write_bags(path, header, rows, load)
    return path


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    scans = {"a": {"patient_id": "p0"}, "b": {"patient_id": "p1"}, "c": {"patient_id": "p2"}}
    return bag_file(tmp_path / "feats.h5", scans)


def test_labels_found_beside_the_scans_are_attached_and_suffice(tmp_path: Path, bags: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "labels.csv").write_text("scan_id,fracture,split\na,present,train\nb,absent,test\nz,absent,test\n")
    attached = attach_labels(bags, FRACTURE, folder=tmp_path / "scans")
    assert attached.path == tmp_path / "feats.labels" / "fracture.parquet"
    assert "labels of 2 of 3 scans (2 patients)" in attached.summary()
    assert "official split: train 1, test 1" in attached.summary()
    assert "1 of 3 label rows have no scan, by scan_id: z" in attached.summary()
    with Bags(bags) as opened:
        saved = join_labels(read_saved_labels(bags, FRACTURE), opened.scans)
    columns = ["scan_id", "patient_id", "fracture", "split"]
    assert saved.frame.select(columns).rows() == [("a", "p0", 1, "train"), ("b", "p1", 0, "test")]


def test_labels_attached_later_replace_those_of_the_task(tmp_path: Path, bags: Path) -> None:
    for name, text in (("one.csv", "scan_id,fracture\na,1\nb,0\n"), ("two.csv", "scan_id,fracture\na,0\nc,1\n")):
        (tmp_path / name).write_text(text)
        attach_labels(bags, FRACTURE, tmp_path / name)
    frame = read_saved_labels(bags, FRACTURE).frame
    assert dict(frame.select("id", "fracture").iter_rows()) == {"a": 0, "c": 1}


def test_a_label_that_is_ambiguous_leaves_what_lies_there_alone(tmp_path: Path, bags: Path) -> None:
    (tmp_path / "one.csv").write_text("scan_id,fracture\na,1\nb,0\n")
    attach_labels(bags, FRACTURE, tmp_path / "one.csv")
    before = (tmp_path / "feats.labels" / "fracture.parquet").read_bytes()
    twice = bag_file(tmp_path / "more.h5", {"a": {"patient_id": "p0"}, "a2": {"patient_id": "p0"}})
    (tmp_path / "two.csv").write_text("patient_id,fracture\np0,1\n")
    with pytest.raises(InputError, match="match several scans"):
        attach_labels(twice, FRACTURE, tmp_path / "two.csv")
    assert not (tmp_path / "more.labels").exists()
    assert (tmp_path / "feats.labels" / "fracture.parquet").read_bytes() == before
    assert attach_labels(twice, FRACTURE, tmp_path / "two.csv", rule="all").joined.frame.height == 2


def test_pooled_labels_are_pooled_again_when_they_are_read(tmp_path: Path) -> None:
    exams = {
        f"{split}/{plane}/{exam}": {"study_uid": exam}
        for split, exam in (("train", "0000"), ("train", "0001"), ("valid", "1130"))
        for plane in ("axial", "coronal", "sagittal")
    }
    bags = bag_file(tmp_path / "feats.h5", exams)
    for name in ("abnormal", "acl", "meniscus"):
        (tmp_path / f"train-{name}.csv").write_text("0000,1\n0001,0\n")
        (tmp_path / f"valid-{name}.csv").write_text("1130,1\n")
    attach_labels(bags, "mrnet", folder=tmp_path)
    with Bags(bags) as opened:
        joined = join_labels(read_saved_labels(bags, TASKS["mrnet"]), opened.scans, rule=TASKS["mrnet"].join)
    assert (joined.rule, joined.frame.height, joined.flow["patients_used"]) == ("pool", 9, 3)
    assert joined.frame["split"].value_counts().sort("split").rows() == [("test", 3), ("train", 6)]


def test_survival_is_attached_with_its_events(tmp_path: Path) -> None:
    bags = bag_file(tmp_path / "feats.h5", {f"s{i}": {"patient_id": f"LUNG1-00{i}"} for i in (1, 2)})
    file = tmp_path / "NSCLC-Radiomics-Lung1.clinical-version3-Oct-2019.csv"
    file.write_text("PatientID,Survival.time,deadstatus.event\nLUNG1-001,2165,1\nLUNG1-002,155,0\nLUNG1-003,NA,0\n")
    attach_labels(bags, "nsclc-radiomics-survival", folder=tmp_path)
    task = TASKS["nsclc-radiomics-survival"]
    saved = read_saved_labels(bags, task)
    assert saved.frame.select(saved.endpoints[0].label_columns).rows() == [(2165.0, 1), (155.0, 0)]


def test_nothing_found_says_what_was_looked_for(tmp_path: Path, bags: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert find_labels("ct-rate", tmp_path / "empty") is None
    with pytest.raises(
        InputError, match=r"labels of ct-rate: none found in or beside .*empty; expected the files of CT-RATE"
    ):
        attach_labels(bags, "ct-rate", folder=tmp_path / "empty")
    with pytest.raises(InputError, match=r"labels of fracture: none were given\. Give --labels TABLE") as error:
        attach_labels(bags, FRACTURE)
    assert "expected fracture.csv or labels.csv" in str(error.value)


def test_tables_are_found_below_the_scans_or_right_above_them(tmp_path: Path) -> None:
    (tmp_path / "set" / "Images_png" / "deep").mkdir(parents=True)
    table = tmp_path / "set" / "DL_info.csv"
    table.write_text("x\n")
    assert find_labels("deeplesion", tmp_path / "set") == tmp_path / "set"
    assert find_labels("deeplesion", tmp_path / "set" / "Images_png") == tmp_path / "set"
    assert find_labels("deeplesion", tmp_path / "set" / "Images_png" / "deep") is None
    assert find_labels("deeplesion", tmp_path) == tmp_path


def test_the_name_of_the_task_goes_before_labels_csv(tmp_path: Path) -> None:
    for name in ("labels.csv", "fracture.tsv"):
        (tmp_path / name).write_text("x\n")
    assert find_labels(FRACTURE, tmp_path) == tmp_path / "fracture.tsv"


def test_a_task_that_averages_scans_gives_each_the_label_of_its_patient(tmp_path: Path) -> None:
    task = Task("fracture", "", FRACTURE.endpoints, several="average")
    twice = bag_file(tmp_path / "more.h5", {"a": {"patient_id": "p0"}, "a2": {"patient_id": "p0"}})
    (tmp_path / "two.csv").write_text("patient_id,fracture\np0,1\n")
    assert attach_labels(twice, task, tmp_path / "two.csv").joined.frame["fracture"].to_list() == [1, 1]
