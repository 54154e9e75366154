from __future__ import annotations

import hashlib
import os
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clear.atomic import OutputError
from clear.bags import Bags, validate
from clear.errors import ClearError, InputError, ScanRefused
from clear.scans import Scan
from clear.windows import ABDOMEN, CT_DEFAULT, LUNG
from extract import extract, merge
from extract.quality import quality_rows, read_quality


def content(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(str(f.relative_to(path)).encode() + f.read_bytes() for f in files)).hexdigest()


@pytest.fixture
def run(scans: list[Scan], reader: Any, encoder: Any) -> Callable[..., Any]:
    """extract() of the small cohort, with any argument replaced."""

    def call(output: Path, **changes: Any) -> Any:
        arguments: dict[str, Any] = {"encoders": [encoder], "scans": scans, "read": reader, **changes}
        return extract("cohort", output, **arguments)

    return call


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"cohort"}


def test_a_bag_holds_every_slice_in_every_window_with_its_position(tmp_path: Path, run, scans, encoder, reader):
    result = run(tmp_path / "f.h5")
    assert (result.done, result.new, result.exit_status, result.slices) == (6, 6, 0, 36)
    with Bags(tmp_path / "f.h5") as bags:
        assert list(bags) == [scan.scan_id for scan in scans]
        for scan in scans:
            volume = reader(scan)
            bag, row = bags[scan.scan_id], bags.row(scan.scan_id)
            expected = encoder.encode(volume, CT_DEFAULT).astype(np.float16)
            np.testing.assert_array_equal(bag.features, expected)
            np.testing.assert_array_equal(bag.slice, np.repeat(np.arange(scan.n_slices), 2))
            np.testing.assert_array_equal(bag.window, np.tile([0, 1], scan.n_slices))
            np.testing.assert_allclose(bag.position_mm, np.repeat(volume.positions_mm, 2, axis=0))
            assert (row.digest, row.patient_id, row.manufacturer) == (volume.digest, scan.patient_id, "Acme")
            assert row.spacing_mm == (2.5, 0.8, 0.8)
        assert bags.row("scan-001").remarks == ("gantry tilt 3.0 degrees",)
        assert bags.provenance["trained on"] == encoder.weights_note
    assert names(tmp_path) == {"f.h5", "f.qc.csv"}
    validate(tmp_path / "f.h5")


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_bytes_do_not_depend_on_workers_order_shards_or_growth(tmp_path: Path, run, scans, suffix: str):
    expected = tmp_path / f"expected{suffix}"
    run(expected, workers=1)

    shuffled = random.Random(0).sample(scans, len(scans))
    run(tmp_path / f"workers{suffix}", workers=5, scans=shuffled)
    assert content(tmp_path / f"workers{suffix}") == content(expected)

    for part in (scans[3:5], scans[:2], scans):
        run(tmp_path / f"grown{suffix}", scans=part)
    assert content(tmp_path / f"grown{suffix}") == content(expected)

    for i in (2, 3, 1):
        result = run(tmp_path / f"shards{suffix}", shard=(i, 3), workers=i)
        assert not (tmp_path / f"shards{suffix}").exists()
        assert result.exit_status == 0
    merge(tmp_path / f"shards{suffix}")
    assert content(tmp_path / f"shards{suffix}") == content(expected)

    run(tmp_path / f"a{suffix}", scans=scans[:4])
    run(tmp_path / f"b{suffix}", scans=scans[2:])
    merge(tmp_path / f"ab{suffix}", [tmp_path / f"b{suffix}", tmp_path / f"a{suffix}"])
    assert content(tmp_path / f"ab{suffix}") == content(expected)
    assert not list(tmp_path.glob("*.parts"))


def test_running_again_reads_and_encodes_nothing(tmp_path: Path, run, reader, encoder):
    run(tmp_path / "f.h5")
    before = content(tmp_path / "f.h5")
    reader.reads.clear()
    encoder.calls.clear()
    result = run(tmp_path / "f.h5")
    assert (result.done, result.new) == (6, 0)
    assert (reader.reads, encoder.calls) == ([], [])
    assert content(tmp_path / "f.h5") == before


def test_touched_files_are_compared_by_their_voxels_and_not_encoded_again(tmp_path: Path, run, scans, reader, encoder):
    run(tmp_path / "f.h5")
    before = content(tmp_path / "f.h5")
    scans[1].paths[0].touch()
    reader.reads.clear()
    encoder.calls.clear()
    run(tmp_path / "f.h5")
    assert (reader.reads, encoder.calls) == (["scan-001"], [])
    assert content(tmp_path / "f.h5") == before
    reader.reads.clear()
    run(tmp_path / "f.h5")
    assert reader.reads == []


def test_a_scan_that_changed_on_disk_is_encoded_again(tmp_path: Path, run, scans, encoder):
    run(tmp_path / "f.h5")
    old = Bags(tmp_path / "f.h5")["scan-003"].features.copy()
    voxels = np.load(scans[3].paths[0])
    np.save(scans[3].paths[0], voxels[::-1])
    encoder.calls.clear()
    assert run(tmp_path / "f.h5").new == 1
    assert len(encoder.calls) == 1
    bags = Bags(tmp_path / "f.h5")
    assert len(bags) == 6
    assert not np.array_equal(bags["scan-003"].features, old)
    run(tmp_path / "fresh.h5")
    assert content(tmp_path / "fresh.h5") == content(tmp_path / "f.h5")


def test_without_its_quality_record_a_file_is_checked_by_voxels(tmp_path: Path, run, reader, encoder):
    run(tmp_path / "f.h5")
    before = content(tmp_path / "f.h5")
    (tmp_path / "f.qc.csv").unlink()
    encoder.calls.clear()
    run(tmp_path / "f.h5")
    assert encoder.calls == []
    assert content(tmp_path / "f.h5") == before


def test_a_new_table_of_patients_reaches_the_file_without_encoding(tmp_path: Path, run, scans, encoder):
    run(tmp_path / "f.h5")
    encoder.calls.clear()
    renamed = [replace(scan, patient_id=f"q{i}") for i, scan in enumerate(scans)]
    run(tmp_path / "f.h5", scans=renamed)
    assert encoder.calls == []
    assert Bags(tmp_path / "f.h5").scans["patient_id"].to_list() == [f"q{i}" for i in range(6)]
    run(tmp_path / "fresh.h5", scans=renamed)
    assert content(tmp_path / "fresh.h5") == content(tmp_path / "f.h5")


def test_scans_of_another_folder_stay_in_the_file_and_in_its_record(tmp_path: Path, run, scans, cohort_of):
    run(tmp_path / "f.h5")
    other = cohort_of(tmp_path / "other", 2, prefix="late")
    result = run(tmp_path / "f.h5", scans=other)
    assert result.done == 2
    assert len(Bags(tmp_path / "f.h5")) == 8
    assert set(read_quality(tmp_path / "f.qc.csv")) == {scan.scan_id for scan in [*scans, *other]}


def test_one_bad_scan_costs_one_scan(tmp_path: Path, run, scans, reader, encoder, truncated):
    reader.problems = {
        "scan-000": truncated,
        "scan-001": ZeroDivisionError("secret detail of a library"),
        "scan-002": MemoryError(),
        "scan-003": FileNotFoundError(2, "No such file"),
    }
    aside = replace(scans[0], scan_id="localizer", verdict="set aside", reason="localizer", message="a localizer")
    result = run(tmp_path / "f.h5", scans=[*scans, aside])
    assert list(Bags(tmp_path / "f.h5")) == ["scan-004", "scan-005"]
    assert (result.done, result.set_aside, result.refused, result.failed) == (2, 1, 1, 3)
    assert result.exit_status == 3
    rows = read_quality(tmp_path / "f.qc.csv")
    assert {scan_id: (row.status, row.reason) for scan_id, row in rows.items()} == {
        "localizer": ("set aside", "localizer"),
        "scan-000": ("refused", "truncated_pixel_data"),
        "scan-001": ("failed", "unexpected_error"),
        "scan-002": ("failed", "out_of_memory"),
        "scan-003": ("failed", "cannot_read"),
        "scan-004": ("done", ""),
        "scan-005": ("done", ""),
    }
    assert rows["scan-000"].message == str(truncated)
    assert "please report it" in rows["scan-001"].message
    assert "secret" not in (tmp_path / "f.qc.csv").read_text()
    assert "f.qc.csv" in result.summary()


def test_what_is_set_aside_is_no_failure(tmp_path: Path, run, scans):
    aside = replace(scans[0], verdict="set aside", reason="localizer", message="a localizer")
    result = run(tmp_path / "f.h5", scans=[aside, *scans[1:]])
    assert (result.exit_status, result.done, result.set_aside) == (0, 5, 1)


def test_an_encoder_that_fails_on_a_scan_fails_that_scan(tmp_path: Path, run, encoder_of):
    def fails_on(volume: Any) -> Exception | None:
        return {6: ScanRefused("plane", "sagittal"), 7: RuntimeError("x")}.get(volume.n_slices)

    result = run(tmp_path / "f.h5", encoders=[encoder_of(fails_on=fails_on)])
    assert (result.done, result.refused, result.failed) == (2, 2, 2)


def test_bad_arguments_found_by_the_encoder_stop_the_run(tmp_path: Path, run, encoder_of):
    with pytest.raises(InputError, match="no such window"):
        run(tmp_path / "f.h5", encoders=[encoder_of(fails_on=lambda volume: InputError("no such window"))])
    assert names(tmp_path) == set()


@pytest.mark.parametrize(("value", "dtype", "said"), [(np.nan, "float16", "not finite"), (1e5, "float16", "float16")])
def test_a_value_that_is_not_finite_fails_its_scan(tmp_path: Path, run, encoder_of, value, dtype, said):
    def spoil(features: np.ndarray) -> np.ndarray:
        if len(features) == 12:
            features[3, 2] = value
        return features

    result = run(tmp_path / "f.h5", encoders=[encoder_of(spoil=spoil)], dtype=dtype)
    assert (result.done, result.failed) == (4, 2)
    row = read_quality(tmp_path / "f.qc.csv")["scan-001"]
    assert row.reason == "not_finite"
    assert said in row.message
    assert "1 of 12" in row.message


def test_float32_holds_what_float16_cannot(tmp_path: Path, run, encoder_of):
    result = run(tmp_path / "f.h5", encoders=[encoder_of(spoil=lambda f: f * 1e6)], dtype="float32")
    assert result.done == 6
    assert Bags(tmp_path / "f.h5").features.dtype == np.float32


def test_several_encoders_decode_each_scan_once(tmp_path: Path, run, reader, encoder_of):
    encoders = [encoder_of("a"), encoder_of("b", dim=3)]
    result = run(tmp_path / "f-{model}.h5", encoders=encoders)
    assert sorted(reader.reads) == [f"scan-{i:03}" for i in range(6)]
    assert [path.name for path in result.outputs] == ["f-a.h5", "f-b.h5"]
    run(tmp_path / "alone.h5", encoders=[encoders[1]])
    assert content(tmp_path / "alone.h5") == content(tmp_path / "f-b.h5")
    assert names(tmp_path) == {"f-a.h5", "f-a.qc.csv", "f-b.h5", "f-b.qc.csv", "alone.h5", "alone.qc.csv"}


def test_an_output_that_lacks_scans_gets_only_those(tmp_path: Path, run, scans, reader, encoder_of):
    encoders = [encoder_of("a"), encoder_of("b")]
    run(tmp_path / "f-a.h5", encoders=encoders[:1], scans=scans[:4])
    reader.reads.clear()
    encoders[0].calls.clear()
    run(tmp_path / "f-{model}.h5", encoders=encoders)
    assert len(reader.reads) == 6
    assert (len(encoders[0].calls), len(encoders[1].calls)) == (2, 6)


def test_another_identity_is_refused_unless_it_may_be_replaced(tmp_path: Path, run, encoder_of):
    run(tmp_path / "f.h5")
    with pytest.raises(InputError, match=r"holds embeddings that differ.*encoder moments .* and other .*--overwrite"):
        run(tmp_path / "f.h5", encoders=[encoder_of("other")])
    with pytest.raises(InputError, match=r"windows .*abdomen -175\.\.275"):
        run(tmp_path / "f.h5", windows=[LUNG])
    with pytest.raises(InputError, match="dtype"):
        run(tmp_path / "f.h5", dtype="float32")
    assert names(tmp_path) == {"f.h5", "f.qc.csv"}
    result = run(tmp_path / "f.h5", windows=[LUNG], overwrite=True)
    assert result.new == 6
    assert Bags(tmp_path / "f.h5").windows == (LUNG,)
    assert run(tmp_path / "f.h5", windows=[LUNG], overwrite=True).new == 0


def test_parts_of_another_identity_are_never_mixed_in(tmp_path: Path, run, encoder_of):
    run(tmp_path / "f.h5", shard=(1, 1))
    with pytest.raises(InputError, match="left by an unfinished run"):
        run(tmp_path / "f.h5", encoders=[encoder_of("other")])
    run(tmp_path / "f.h5", encoders=[encoder_of("other")], overwrite=True)
    run(tmp_path / "fresh.h5", encoders=[encoder_of("other")])
    assert content(tmp_path / "f.h5") == content(tmp_path / "fresh.h5")


def test_runs_with_other_batches_are_joined_and_recorded(tmp_path: Path, run, scans):
    run(tmp_path / "f.h5", scans=scans[:3], batch=4)
    run(tmp_path / "f.h5", batch=8)
    assert Bags(tmp_path / "f.h5").provenance["batch"] == {"several": [4, 8]}
    assert "differ in batch" in validate(tmp_path / "f.h5").notes[0]
    run(tmp_path / "f.h5", batch=2)
    assert Bags(tmp_path / "f.h5").provenance["batch"] == {"several": [4, 8]}


def test_a_damaged_file_is_not_thrown_away_unasked(tmp_path: Path, run):
    run(tmp_path / "f.h5")
    whole = (tmp_path / "f.h5").read_bytes()
    (tmp_path / "f.h5").write_bytes(whole[:-100])
    with pytest.raises(ClearError, match="--overwrite"):
        run(tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_bytes() == whole[:-100]
    run(tmp_path / "f.h5", overwrite=True)
    assert (tmp_path / "f.h5").read_bytes() == whole


def test_a_damaged_part_is_encoded_again(tmp_path: Path, run):
    run(tmp_path / "f.h5", shard=(1, 1))
    part = sorted((tmp_path / "f.h5.parts").glob("*.part.h5"))[2]
    part.write_bytes(part.read_bytes()[:-7])
    assert run(tmp_path / "f.h5").new == 1
    run(tmp_path / "fresh.h5")
    assert content(tmp_path / "f.h5") == content(tmp_path / "fresh.h5")


def test_two_runs_on_one_output_do_not_meet(tmp_path: Path, run, reader):
    said: list[str] = []

    def read(scan: Scan) -> Any:
        if not said:
            said.append("")
            with pytest.raises(InputError, match="another clear is writing it") as caught:
                run(tmp_path / "f.h5", read=reader)
            said.append(str(caught.value))
        return reader(scan)

    run(tmp_path / "f.h5", read=read, workers=1)
    assert "--shard" in said[1]


def test_mixed_modalities_ask_for_a_choice(tmp_path: Path, run, scans, cohort_of):
    mixed = [*scans, *cohort_of(tmp_path / "mr", 2, modality="MR", prefix="mr")]
    with pytest.raises(InputError, match=r"several modalities \(6 CT, 2 MR\).*modality = 'CT'.*--window.*--modality"):
        run(tmp_path / "f.h5", scans=mixed)
    assert run(tmp_path / "f.h5", scans=mixed, windows=[ABDOMEN]).done == 8


def test_a_scan_that_turns_out_to_be_another_modality_is_refused(tmp_path: Path, run, scans, reader, cohort_of):
    unknown = replace(cohort_of(tmp_path / "mr", 1, modality="MR", prefix="mr")[0], modality="")

    def read(scan: Scan) -> Any:
        return reader(replace(scan, modality=scan.modality or "MR"))

    result = run(tmp_path / "f.h5", scans=[*scans, unknown], read=read)
    assert (result.done, result.refused) == (6, 1)
    assert read_quality(tmp_path / "f.qc.csv")["mr-000"].reason == "modality"


def test_nothing_usable_is_said_at_once(tmp_path: Path, run, scans):
    aside = [replace(scan, verdict="set aside", reason="localizer", message="a localizer") for scan in scans]
    with pytest.raises(InputError, match="no scan that can be used; set aside: 6 localizer"):
        run(tmp_path / "f.h5", scans=aside)
    assert names(tmp_path) == set()


def test_a_folder_of_refused_scans_gets_a_record_and_no_bag_file(tmp_path: Path, run, scans):
    refused = [replace(scan, verdict="refused", reason="truncated_pixel_data", message="cut off") for scan in scans]
    result = run(tmp_path / "f.h5", scans=refused)
    assert (result.exit_status, result.refused) == (3, 6)
    assert "no bag file was written" in result.summary()
    assert names(tmp_path) == {"f.qc.csv"}


def test_ids_that_stand_for_two_scans_stop_before_the_first(tmp_path: Path, run, scans, reader):
    with pytest.raises(InputError, match=r"'scan-000'.*--scans TABLE"):
        run(tmp_path / "f.h5", scans=[*scans, replace(scans[0], source="copy.npy")])
    assert reader.reads == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shard": (0, 3)}, "--shard 0/3"),
        ({"shard": (4, 3)}, "--shard 4/3"),
        ({"dtype": "int8"}, "--dtype int8"),
        ({"batch": 0}, "at least 1"),
        ({"encoders": []}, "--model"),
    ],
)
def test_bad_arguments_stop_before_the_first_scan(tmp_path: Path, run, reader, change, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path / "f.h5", **change)
    assert reader.reads == []
    assert names(tmp_path) == set()


def test_memory_is_given_back_after_every_scan(tmp_path: Path, run, scans, reader):
    """Volumes alive at any time stay within the read-ahead, whatever the size of the cohort."""
    alive: set[int] = set()
    most = [0]
    lock = threading.Lock()

    def read(scan: Scan) -> Any:
        volume = reader(scan)
        with lock:
            alive.add(id(volume))
            most[0] = max(most[0], len(alive))
        weakref.finalize(volume, alive.discard, id(volume))
        return volume

    many = [replace(scans[i % 6], scan_id=f"s{i:03}") for i in range(60)]
    assert run(tmp_path / "f.h5", scans=many, read=read, workers=2).done == 60
    assert most[0] <= 4


def test_progress_is_shown_when_asked_for(tmp_path: Path, run, capsys: pytest.CaptureFixture[str]):
    run(tmp_path / "quiet.h5")
    assert capsys.readouterr().err == ""
    run(tmp_path / "f.h5", progress=True)
    shown = capsys.readouterr().err
    assert "36/36 slices" in shown
    assert "scan 6/6" in shown
    assert "slices/s" in shown


# --- disks that refuse ---


def test_too_little_space_is_noticed_before_the_first_scan(tmp_path: Path, run, reader, monkeypatch):
    monkeypatch.setattr("extract.plan.free_bytes", lambda folder: 5000)
    with pytest.raises(OutputError, match=r"needs about .* kB until it is finished, but 5\.0 kB are free"):
        run(tmp_path / "f.h5")
    assert reader.reads == []
    assert names(tmp_path) == set()


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path: Path, run, monkeypatch, reader):
    real, budget = os.pwrite, [60_000]

    def pwrite(fd: int, data: Any, offset: int) -> int:
        budget[0] -= len(data)
        if budget[0] < 0:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match=r"the disk is full.*run the same command again"):
        run(tmp_path / "f.h5", workers=1)
    kept = list((tmp_path / "f.h5.parts").glob("*.part.h5"))
    assert 0 < len(kept) < 6
    assert not list((tmp_path / "f.h5.parts").glob("*.tmp"))
    monkeypatch.undo()
    assert run(tmp_path / "f.h5").new == 6 - len(kept)
    run(tmp_path / "fresh.h5")
    assert content(tmp_path / "fresh.h5") == content(tmp_path / "f.h5")


@pytest.mark.parametrize("failing", ["mkdir", "access"])
def test_a_read_only_folder_is_said_in_one_sentence(tmp_path: Path, run, monkeypatch, reader, failing):
    def refuse(*arguments: Any, **options: Any) -> bool:
        if failing == "access":
            return False
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(OutputError, match=r"read-only.*Choose another output folder"):
        run(tmp_path / "f.h5")
    assert reader.reads == []


def test_an_output_that_cannot_be_one_is_refused(tmp_path: Path, run, encoder_of):
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "file.zarr").write_text("x")
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("x")
    two: Sequence[Any] = [encoder_of("a"), encoder_of("b")]
    for name, change, said in (
        ("folder.h5", {}, "is a folder"),
        ("file.zarr", {}, "is a file"),
        ("mine.zarr", {"overwrite": True}, "no bag file, so it is not replaced"),
        ("missing/f.h5", {}, "does not exist"),
        ("f.txt", {}, r"ends in \.h5"),
        ("f.h5", {"encoders": two}, r"\{model\}"),
    ):
        with pytest.raises(ClearError, match=said):
            run(tmp_path / name, **change)
    assert (tmp_path / "mine.zarr" / "thesis.txt").exists()


def test_spacing_that_the_files_do_not_say_is_stored_as_unknown(tmp_path: Path, run, scans):
    run(tmp_path / "f.h5", scans=[replace(scans[0], spacing_mm=None), *scans[1:]])
    with Bags(tmp_path / "f.h5") as bags:
        assert np.isnan(bags.row("scan-000").spacing_mm).all()  # the volume's own steps are nominal
        assert bags.scans["spacing_mm"].to_list()[:2] == [[None, None, None], [2.5, 0.8, 0.8]]


def test_series_that_claim_one_id_have_a_row_each_in_the_record(tmp_path: Path, run, scans):
    twice = [
        replace(scans[0], scan_id="a", source=name, verdict="refused", reason="ambiguous_scan_id", message="two")
        for name in ("a.nii", "a.nrrd")
    ]
    result = run(tmp_path / "f.h5", scans=[*twice, *scans[1:]])
    assert result.refused == 2
    assert [row.source for row in quality_rows(tmp_path / "f.qc.csv")][:2] == ["a.nii", "a.nrrd"]
    run(tmp_path / "s.h5", scans=[*twice, *scans[1:]], shard=(1, 1))
    assert merge(tmp_path / "s.h5").refused == 2
    assert [row.source for row in quality_rows(tmp_path / "s.qc.csv")][:2] == ["a.nii", "a.nrrd"]
