"""Remembered headers: quicker, never different."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from clear import header_cache
from clear.scans import find_scans


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(header_cache, "CACHE_FROM_S", 0.0)
    place = tmp_path / "in"
    place.mkdir()
    for i in range(5):
        np.savez(place / f"trn{i}.npz", ct=np.full((2 + i, 3, 4), -i, np.int16))
    return place


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each call had to look at."""
    counts: list[int] = []
    real = header_cache.read_records

    def counted(root, entries, **settings):  # type: ignore[no-untyped-def]
        counts.append(len(entries))
        return real(root, entries, **settings)

    monkeypatch.setattr(header_cache, "read_records", counted)
    return counts


def test_only_new_and_changed_files_are_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = reads(monkeypatch)
    cache = tmp_path / "cache"
    first = find_scans(folder, cache=cache)
    assert find_scans(folder, cache=cache) == first
    np.savez(folder / "trn9.npz", ct=np.zeros((7, 3, 4), np.int16))
    np.savez(folder / "trn0.npz", ct=np.zeros((8, 3, 4), np.int16))
    (folder / "trn1.npz").unlink()
    assert [scan.n_slices for scan in find_scans(folder, cache=cache)] == [8, 4, 5, 6, 7]
    assert counts == [5, 0, 2]


def test_a_touched_file_is_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = reads(monkeypatch)
    find_scans(folder, cache=tmp_path / "cache")
    os.utime(folder / "trn2.npz", ns=(1, 1))
    find_scans(folder, cache=tmp_path / "cache")
    assert counts == [5, 1]


def test_what_the_caller_says_of_the_modality_is_remembered_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = reads(monkeypatch)
    find_scans(folder, cache=tmp_path / "cache")
    assert {scan.modality for scan in find_scans(folder, cache=tmp_path / "cache", modality="MR")} == {"MR"}
    assert counts == [5, 5]


@pytest.mark.parametrize("damage", [b"", b"PAR1 rubbish", b"\0" * 5000])
def test_a_damaged_cache_is_made_again(folder: Path, tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "cache"
    first = find_scans(folder, cache=cache)
    (file,) = cache.glob("*.parquet")
    file.write_bytes(damage)
    assert find_scans(folder, cache=cache) == first
    assert file.read_bytes() != damage


def test_another_version_of_the_readers_makes_its_own_records(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = reads(monkeypatch)
    find_scans(folder, cache=tmp_path / "cache")
    monkeypatch.setattr(header_cache, "_signature", lambda: "other")
    find_scans(folder, cache=tmp_path / "cache")
    assert counts == [5, 5]


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(find_scans(folder, cache=tmp_path / "cache")) == 5


def test_quick_looks_leave_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "CACHE_FROM_S", 2.0)
    find_scans(folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_its_owners_alone(folder: Path, tmp_path: Path) -> None:
    find_scans(folder, cache=tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_what_hangs_on_another_file_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_cache, "CACHE_FROM_S", 0.0)
    folder = tmp_path / "in"
    folder.mkdir()
    values = np.linspace(-1000, 500, 3 * 4 * 5).astype("<i2")
    (folder / "a.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementSpacing = 1 1 3\nElementType = MET_SHORT\n"
        "ElementDataFile = a.raw\n"
    )
    (scan,) = find_scans(folder, cache=tmp_path / "cache")
    assert scan.reason == "data_file_missing"
    (folder / "a.raw").write_bytes(values.tobytes())
    (scan,) = find_scans(folder, cache=tmp_path / "cache")
    assert (scan.verdict, scan.modality) == ("use", "CT")
    (folder / "a.raw").write_bytes(values.tobytes()[:-2])
    (scan,) = find_scans(folder, cache=tmp_path / "cache")
    assert scan.reason == "truncated_pixel_data"
