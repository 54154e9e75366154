from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clear.bags import Bags
from clear.errors import BagFileError, InputError
from clear.scans import Scan
from extract import extract, merge
from extract.quality import read_quality


@pytest.fixture
def run(scans: list[Scan], reader: Any, encoder: Any) -> Callable[..., Any]:
    def call(output: Path, **changes: Any) -> Any:
        arguments: dict[str, Any] = {"encoders": [encoder], "scans": scans, "read": reader, **changes}
        return extract("cohort", output, **arguments)

    return call


def test_shards_split_the_scans_without_loss_or_overlap(tmp_path: Path, run, scans):
    done = [run(tmp_path / "f.h5", shard=(i, 4)).done for i in range(1, 5)]
    assert sum(done) == len(scans)
    assert merge(tmp_path / "f.h5").scans == len(scans)


def test_merging_waits_for_the_last_shard(tmp_path: Path, run):
    run(tmp_path / "f.h5", shard=(1, 3))
    run(tmp_path / "f.h5", shard=(3, 3))
    with pytest.raises(InputError, match="shard 2/3 is not finished"):
        merge(tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
    run(tmp_path / "f.h5", shard=(2, 3))
    merge(tmp_path / "f.h5")
    assert {path.name for path in tmp_path.iterdir()} == {"cohort", "f.h5", "f.qc.csv"}


def test_a_part_of_the_shards_can_be_asked_for(tmp_path: Path, run):
    done = run(tmp_path / "f.h5", shard=(1, 2)).done
    assert merge(tmp_path / "f.h5", partial=True).scans == done


def test_the_shards_records_become_one(tmp_path: Path, run, scans, reader, truncated):
    reader.problems["scan-002"] = truncated
    aside = replace(scans[0], scan_id="localizer", verdict="set aside", reason="localizer", message="a localizer")
    for i in (1, 2, 3):
        run(tmp_path / "f.h5", scans=[*scans, aside], shard=(i, 3))
    result = merge(tmp_path / "f.h5")
    assert (result.scans, result.refused, result.exit_status) == (5, 1, 3)
    rows = read_quality(tmp_path / "f.qc.csv")
    assert [row.status for row in rows.values()] == ["set aside", "done", "done", "refused", "done", "done", "done"]
    assert rows["scan-002"].message == str(truncated)


def test_shards_add_to_a_file_that_is_there(tmp_path: Path, run, scans):
    run(tmp_path / "f.h5", scans=scans[:4])
    before = Bags(tmp_path / "f.h5")["scan-001"].features.copy()
    news = [run(tmp_path / "f.h5", shard=(i, 2)).new for i in (1, 2)]
    assert sum(news) == 2
    merge(tmp_path / "f.h5")
    assert len(Bags(tmp_path / "f.h5")) == 6
    np.testing.assert_array_equal(Bags(tmp_path / "f.h5")["scan-001"].features, before)


def test_a_scan_in_two_files_is_kept_once(tmp_path: Path, run, scans):
    run(tmp_path / "a.h5", scans=scans[:4])
    run(tmp_path / "b.zarr", scans=scans[2:])
    result = merge(tmp_path / "ab.h5", [tmp_path / "a.h5", tmp_path / "b.zarr"])
    run(tmp_path / "all.h5")
    assert result.scans == 6
    assert (tmp_path / "ab.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()
    assert len(read_quality(tmp_path / "ab.qc.csv")) == 6


def test_one_id_with_two_contents_is_refused(tmp_path: Path, run, scans):
    run(tmp_path / "a.h5", scans=scans[:2])
    np.save(scans[1].paths[0], np.load(scans[1].paths[0]) + 1)
    run(tmp_path / "b.h5", scans=scans[1:])
    with pytest.raises(BagFileError, match=r"scan-001 is in .*a\.h5 and in .*b\.h5, but with other voxels"):
        merge(tmp_path / "ab.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert not (tmp_path / "ab.h5").exists()
    assert not (tmp_path / "ab.h5.parts").exists()


def test_files_of_two_encoders_are_refused(tmp_path: Path, run, encoder_of):
    run(tmp_path / "a.h5")
    run(tmp_path / "b.h5", encoders=[encoder_of("other")])
    with pytest.raises(BagFileError, match=r"cannot stand in one file: encoder moments .* and other"):
        merge(tmp_path / "ab.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])


def test_an_output_that_is_there_gains_scans_or_is_replaced(tmp_path: Path, run, scans, encoder_of):
    run(tmp_path / "out.h5", scans=scans[:2])
    run(tmp_path / "a.h5", scans=scans[3:])
    assert merge(tmp_path / "out.h5", [tmp_path / "a.h5"]).scans == 5
    run(tmp_path / "b.h5", encoders=[encoder_of("other")])
    with pytest.raises(InputError, match="--overwrite"):
        merge(tmp_path / "out.h5", [tmp_path / "b.h5"])
    assert merge(tmp_path / "out.h5", [tmp_path / "b.h5"], overwrite=True).scans == 6
    assert Bags(tmp_path / "out.h5").encoder == "other"


def test_a_finished_file_of_another_encoder_is_replaced_by_shards_only_when_asked(tmp_path: Path, run, encoder_of):
    run(tmp_path / "f.h5")
    with pytest.raises(InputError, match="--overwrite"):
        run(tmp_path / "f.h5", encoders=[encoder_of("other")], shard=(1, 1))
    run(tmp_path / "f.h5", encoders=[encoder_of("other")], shard=(1, 1), overwrite=True)
    with pytest.raises(InputError, match="--overwrite"):
        merge(tmp_path / "f.h5")
    merge(tmp_path / "f.h5", overwrite=True)
    assert Bags(tmp_path / "f.h5").encoder == "other"


def test_nothing_to_merge_is_said(tmp_path: Path):
    with pytest.raises(InputError, match="no finished shards here"):
        merge(tmp_path / "f.h5")
    assert not list(tmp_path.iterdir())
