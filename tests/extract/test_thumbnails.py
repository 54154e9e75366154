from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clear.thumbnails
from clear.atomic import OutputError
from clear.bags import Bags
from clear.errors import InputError, ScanRefused
from clear.scans import Scan
from clear.thumbnails import Thumbnails, packed
from clear.windows import ABDOMEN, CT_DEFAULT, LUNG, Window
from extract import extract, merge

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def run(scans: list[Scan], reader: Any, encoder: Any) -> Callable[..., Any]:
    """extract() of the small cohort with thumbnails, with any argument replaced."""

    def call(output: Path, **changes: Any) -> Any:
        arguments: dict[str, Any] = {"encoders": [encoder], "scans": scans, "read": reader, "thumbnails": True}
        return extract("cohort", output, **(arguments | changes))

    return call


def files(folder: Path) -> dict[str, bytes]:
    """Every thumbnail file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(output: Path, scans: list[Scan], reader: Any, windows: tuple[Window, ...] = CT_DEFAULT) -> None:
    """Every scan of the bag file has its pictures, whole and its own."""
    thumbnails = Thumbnails.of(output)
    assert thumbnails is not None
    with Bags(output) as bags:
        assert set(bags) >= {scan.scan_id for scan in scans}
        for scan in scans:
            digest = bags.row(scan.scan_id).digest
            assert thumbnails.path(digest).read_bytes() == packed(reader(scan), windows)
            assert thumbnails.get(digest, scan.n_slices - 1, windows[-1]) is not None
    assert not list(thumbnails.folder.rglob("*.tmp"))


def test_every_scan_of_the_file_has_its_pictures(tmp_path: Path, run, scans, reader):
    result = run(tmp_path / "f.h5")
    assert (result.done, result.notes) == (6, ("moments: moments of a slice, no weights",))
    check(tmp_path / "f.h5", scans, reader)
    assert len(files(tmp_path / "f.thumbnails")) == 6


def test_the_bag_file_and_its_record_are_the_same_with_and_without(tmp_path: Path, run):
    run(tmp_path / "a.h5")
    run(tmp_path / "b.h5", thumbnails=False)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert not (tmp_path / "b.thumbnails").exists()
    assert not list(tmp_path.glob("*.parts"))


def test_pictures_are_made_in_the_reading_threads(tmp_path: Path, run, monkeypatch):
    names = []

    def watched(*arguments: Any) -> bytes:
        names.append(threading.current_thread().name)
        return packed(*arguments)

    monkeypatch.setattr("extract.thumbnails.packed", watched)
    run(tmp_path / "f.h5")
    assert len(names) == 6
    assert all(name.startswith("clear-read") for name in names)


def test_running_again_reads_nothing(tmp_path: Path, run, reader):
    run(tmp_path / "f.h5")
    before = files(tmp_path / "f.thumbnails")
    reader.reads.clear()
    result = run(tmp_path / "f.h5")
    assert reader.reads == []
    assert result.notes[-1] == "Nothing was new."
    assert files(tmp_path / "f.thumbnails") == before


def test_scans_encoded_before_get_theirs_without_encoding(tmp_path: Path, run, scans, reader, encoder):
    run(tmp_path / "f.h5", thumbnails=False)
    before = (tmp_path / "f.h5").read_bytes()
    encoder.calls.clear()
    result = run(tmp_path / "f.h5")
    assert encoder.calls == []
    assert (tmp_path / "f.h5").read_bytes() == before
    assert "Nothing was new." not in result.notes
    assert "Thumbnails were made of 6 scan(s) that had been encoded before." in result.notes
    check(tmp_path / "f.h5", scans, reader)


def test_touched_files_get_theirs_without_encoding(tmp_path: Path, run, scans, reader, encoder):
    run(tmp_path / "f.h5", thumbnails=False)
    for scan in scans:
        scan.paths[0].touch()
    encoder.calls.clear()
    run(tmp_path / "f.h5")
    assert encoder.calls == []
    check(tmp_path / "f.h5", scans, reader)


def test_a_scan_that_changed_gets_new_pictures(tmp_path: Path, run, scans, reader):
    run(tmp_path / "f.h5")
    np.save(scans[3].paths[0], np.load(scans[3].paths[0])[::-1])
    run(tmp_path / "f.h5")
    check(tmp_path / "f.h5", scans, reader)


def test_those_that_cannot_be_made_are_counted_and_cost_nothing_else(tmp_path: Path, run, scans, reader, truncated):
    run(tmp_path / "f.h5", thumbnails=False)
    reader.problems = {"scan-002": truncated}
    result = run(tmp_path / "f.h5", scans=scans[:4])
    assert (result.done, result.exit_status) == (4, 0)
    assert "Thumbnails were made of 3 scan(s) that had been encoded before." in result.notes
    assert "f.h5: 3 of 6 scans have no thumbnails." in result.notes[-1]
    check(tmp_path / "f.h5", [scans[0], scans[1], scans[3]], lambda scan: reader(scan))


def test_a_scan_that_is_not_in_the_file_leaves_no_pictures(tmp_path: Path, run, encoder_of):
    def fails_on(volume: Any) -> Exception | None:
        return ScanRefused("plane", "sagittal") if volume.n_slices == 6 else None

    result = run(tmp_path / "f.h5", encoders=[encoder_of(fails_on=fails_on)])
    assert (result.done, result.refused) == (4, 2)
    assert len(files(tmp_path / "f.thumbnails")) == 4
    assert "thumbnails" not in " ".join(result.notes)


def test_values_without_a_range_fail_as_they_do_without_thumbnails(tmp_path: Path, run, cohort_of, reader):
    mr = cohort_of(tmp_path / "mr", 2, modality="MR", prefix="mr")

    def read(scan: Scan) -> Any:
        volume = reader(scan)
        if scan.scan_id == "mr-001":
            volume.voxels[0] = np.nan
        return volume

    for name in ("a", "b"):
        result = run(tmp_path / f"{name}.h5", scans=mr, read=read, thumbnails=name == "a")
        assert (result.done, result.failed) == (1, 1)
    reasons = [(tmp_path / f"{name}.qc.csv").read_text().count("not_finite") for name in ("a", "b")]
    assert reasons == [1, 1]


def test_shards_and_their_merge_come_to_the_same_files(tmp_path: Path, run, scans, reader):
    run(tmp_path / "whole.h5")
    for i in (3, 1, 2):
        run(tmp_path / "f.h5", shard=(i, 3), workers=i)
    merge(tmp_path / "f.h5")
    check(tmp_path / "f.h5", scans, reader)
    assert files(tmp_path / "f.thumbnails") == files(tmp_path / "whole.thumbnails")


def test_merged_files_bring_their_thumbnails(tmp_path: Path, run, scans, reader):
    run(tmp_path / "a.h5", scans=scans[:4])
    run(tmp_path / "b.h5", scans=scans[2:])
    result = merge(tmp_path / "ab.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert result.notes == ()
    check(tmp_path / "ab.h5", scans, reader)


def test_merging_says_how_many_have_none_and_is_silent_where_nobody_has(tmp_path: Path, run, scans):
    run(tmp_path / "a.h5", scans=scans[:4])
    run(tmp_path / "b.h5", scans=scans[4:], thumbnails=False)
    run(tmp_path / "c.h5", scans=scans[:4], thumbnails=False)
    (note,) = merge(tmp_path / "ab.h5", [tmp_path / "a.h5", tmp_path / "b.h5"]).notes
    assert "ab.h5: 2 of 6 scans have no thumbnails." in note
    assert merge(tmp_path / "bc.h5", [tmp_path / "b.h5", tmp_path / "c.h5"]).notes == ()
    assert not (tmp_path / "bc.thumbnails").exists()


def test_merging_copies_where_links_are_not_to_be_had(tmp_path: Path, run, scans, reader, monkeypatch):
    def link(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    run(tmp_path / "a.h5")
    monkeypatch.setattr(os, "link", link)
    merge(tmp_path / "b.h5", [tmp_path / "a.h5"])
    check(tmp_path / "b.h5", scans, reader)


def test_ids_and_patients_do_not_matter(tmp_path: Path, run, scans, reader):
    run(tmp_path / "a.h5")
    renamed = [replace(scan, scan_id=f"x{i}", patient_id="y") for i, scan in enumerate(scans)]
    run(tmp_path / "b.h5", scans=renamed)
    assert files(tmp_path / "a.thumbnails") == files(tmp_path / "b.thumbnails")


def test_several_models_in_one_pass_share_their_pictures(tmp_path: Path, run, scans, reader, encoder_of, monkeypatch):
    made = []
    monkeypatch.setattr("extract.thumbnails.packed", lambda *a: made.append(a) or packed(*a))
    run(tmp_path / "f-{model}.h5", encoders=[encoder_of("a"), encoder_of("b", dim=3)])
    assert len(made) == 6
    for name in ("a", "b"):
        check(tmp_path / f"f-{name}.h5", scans, reader)
    paths = [path for path in (tmp_path / "f-a.thumbnails").rglob("*") if path.is_file()]
    assert [path.stat().st_nlink for path in paths] == [2] * 6


@dataclass
class OwnCard:
    """Of an encoder that takes whole volumes, or stacks windows into channels."""

    preprocessing: dict[str, Any]
    dim: int = 6
    own_windows: tuple[Window, ...] = (Window("own", -1000, 1000, kind="encoder"),)

    def as_dict(self) -> dict[str, Any]:
        return {"dim": self.dim}


@pytest.mark.parametrize(
    ("preprocessing", "windows"),
    [({"volume": {}}, CT_DEFAULT), ({"channel_windows": [LUNG.as_dict(), ABDOMEN.as_dict()]}, (LUNG, ABDOMEN))],
)
def test_an_encoder_with_windows_of_its_own_has_pictures_too(
    tmp_path: Path, run, scans, reader, encoder_of, preprocessing, windows
):
    class Own(encoder_of):  # type: ignore[misc]  # the class comes from a fixture
        card = OwnCard(preprocessing)

        def encode(self, volume: Any, windows: Any = None, **settings: Any) -> np.ndarray:
            n = 1 if "volume" in preprocessing else volume.n_slices
            return np.full((n, 6), volume.voxels.mean() / 1000, np.float32)

    run(tmp_path / "f.h5", encoders=[Own("own")])
    check(tmp_path / "f.h5", scans, reader, windows)


def test_other_windows_replace_the_pictures(tmp_path: Path, run, scans, reader):
    run(tmp_path / "f.h5")
    run(tmp_path / "f.h5", windows=[LUNG], overwrite=True)
    check(tmp_path / "f.h5", scans, reader, (LUNG,))


def test_a_damaged_file_is_made_again(tmp_path: Path, run, scans, reader):
    run(tmp_path / "f.h5")
    path = next(path for path in (tmp_path / "f.thumbnails").rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-9])
    assert "Thumbnails were made of 1 scan(s)" in " ".join(run(tmp_path / "f.h5").notes)
    check(tmp_path / "f.h5", scans, reader)


def test_a_file_in_place_of_the_folder_is_said_at_once(tmp_path: Path, run, reader):
    (tmp_path / "f.thumbnails").write_text("mine")
    with pytest.raises(OutputError, match=r"f\.thumbnails: is a file"):
        run(tmp_path / "f.h5")
    assert reader.reads == []
    assert run(tmp_path / "f.h5", thumbnails=False).done == 6


def test_a_disk_that_refuses_stops_the_run_and_not_just_a_scan(tmp_path: Path, run, monkeypatch):
    def full(*arguments: Any, **options: Any) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("extract.thumbnails.write_aside", full)
        with pytest.raises(OutputError, match="the disk is full"):
            run(tmp_path / "f.h5")
    assert run(tmp_path / "f.h5").done == 6


def test_space_for_thumbnails_is_asked_for_before_the_first_scan(tmp_path: Path, run, reader, monkeypatch):
    run(tmp_path / "f.h5", thumbnails=False)
    reader.reads.clear()
    monkeypatch.setattr("extract.plan.free_bytes", lambda folder: 200_000)  # 36 slices in 2 windows need more
    with pytest.raises(OutputError, match="needs about"):
        run(tmp_path / "f.h5")
    assert reader.reads == []


@pytest.mark.parametrize(("suffix", "every"), [(".h5", 17), (".zarr", 89)])
def test_dying_before_any_disk_call_leaves_whole_files_only(tmp_path: Path, suffix: str, every: int):
    crash = Path(__file__).with_name("crash.py")
    done = subprocess.run(
        [sys.executable, str(crash), "sweep", str(tmp_path), suffix, str(every), "thumbnails"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mismatches"] == []
    assert found["instants"] > 3


def test_no_name_of_a_scan_leads_out_of_the_folder() -> None:
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        clear.thumbnails.Thumbnails("x").path("../" * 20)
