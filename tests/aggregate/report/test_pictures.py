"""Pictures: of the scan that was extracted and of no other, within their budget."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clear.picture_reader as module
from aggregate.report.pictures import BUDGET, Wanted, find_pictures
from clear.bags import Bags
from clear.errors import InputError
from clear.pictures import grey
from clear.scans import read_volume
from clear.thumbnails import Thumbnails, packed, thumbnails_folder
from clear.windows import ABDOMEN, LUNG


@pytest.fixture
def bags(runs: dict[str, Path]) -> Bags:
    return Bags(runs["pixels"] / "feats.h5")


def wanted(bags: Bags, n: int = 3, start: int = 3) -> list[Wanted]:
    """Slice 4 of some scans, in both windows in turn."""
    rows = bags.scans.filter(bags.scans["scan_id"].str.starts_with("scan"))[start : start + n]
    return [
        Wanted(scan, digest, 4, (ABDOMEN, LUNG)[i % 2])
        for i, (scan, digest) in enumerate(rows.select("scan_id", "digest").rows())
    ]


def image(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)


def test_a_picture_shows_the_slice_in_its_window(runs: dict[str, Path], bags: Bags) -> None:
    asked = wanted(bags)
    found = find_pictures(asked, bags, scans=runs["pixels"] / "scans")
    assert set(found.found) == set(asked)
    assert found.notes == ()
    for each in asked:
        volume = read_volume(runs["pixels"] / "scans" / f"{each.scan}.mha", modality="CT")
        expected = grey(volume, 4, each.window).astype(float)
        assert image(found.found[each]).shape == expected.shape
        assert np.abs(image(found.found[each]) - expected).mean() < 12  # lossy


def test_scans_that_are_not_shown_are_not_read(
    runs: dict[str, Path], bags: Bags, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(module, "read_volume", lambda scan: (read.append(scan.scan_id), read_volume(scan))[1])
    asked = wanted(bags, 2)
    find_pictures(asked, bags, scans=runs["pixels"] / "scans")
    assert sorted(read) == [each.scan for each in asked]


def test_other_voxels_under_the_same_name_are_not_shown(runs: dict[str, Path], bags: Bags, tmp_path: Path) -> None:
    first, second = wanted(bags, 2)
    scans = runs["pixels"] / "scans"
    shutil.copy(scans / f"{second.scan}.mha", tmp_path / f"{first.scan}.mha")
    found = find_pictures([first], bags, scans=tmp_path)
    assert found.found == {}
    assert "1 scans have other voxels there than those that were extracted." in found.notes


def test_a_scan_under_another_name_is_known_by_its_voxels(runs: dict[str, Path], bags: Bags, tmp_path: Path) -> None:
    (asked,) = wanted(bags, 1)
    shutil.copy(runs["pixels"] / "scans" / f"{asked.scan}.mha", tmp_path / "renamed.mha")
    assert set(find_pictures([asked], bags, scans=tmp_path).found) == {asked}


def test_scans_that_changed_places_are_known_by_their_voxels(
    runs: dict[str, Path], bags: Bags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wanted(bags, 3)
    first, second, third = (each.scan for each in asked)
    shutil.copytree(runs["pixels"] / "scans", tmp_path, dirs_exist_ok=True)
    for scan, place in ((first, second), (second, first)):
        shutil.copy(runs["pixels"] / "scans" / f"{scan}.mha", tmp_path / f"{place}.mha")
    read = []
    monkeypatch.setattr(module, "HELP_FROM", 100)
    monkeypatch.setattr(module, "read_volume", lambda scan: (read.append(scan.scan_id), read_volume(scan))[1])
    found = find_pictures(asked, bags, scans=tmp_path)
    assert read[:3] == [first, second, third]  # as they are named
    assert sorted(read[3:5]) == [first, second]  # to know them by their voxels
    assert read[5:] == [second, first]
    assert len(found.found) == 3
    assert found == find_pictures(asked, bags, scans=runs["pixels"] / "scans")


@pytest.mark.parametrize("help_from", [6, 100])
def test_all_renamed_scans_of_one_geometry_are_found_and_each_is_digested_once(
    runs: dict[str, Path], bags: Bags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, help_from: int
) -> None:
    asked = wanted(bags, 9)
    for i, each in enumerate(reversed(asked)):
        shutil.copy(runs["pixels"] / "scans" / f"{each.scan}.mha", tmp_path / f"renamed{i}.mha")
    read = []
    monkeypatch.setattr(module, "HELP_FROM", help_from)
    monkeypatch.setattr(module, "read_volume", lambda scan: (read.append(scan.scan_id), read_volume(scan))[1])
    found = find_pictures(asked, bags, scans=tmp_path)
    assert set(found.found) == set(asked)
    assert found.notes == ()
    assert len(read) == (18 if help_from == 100 else 0)  # once to find them, once for the pictures
    read.clear()
    assert set(find_pictures(asked[-1:], bags, scans=tmp_path).found) == {asked[-1]}
    assert help_from == 6 or len(read) == 2  # the first that is read is the one: no other is


def test_renamed_scans_that_are_others_are_not_there(runs: dict[str, Path], bags: Bags, tmp_path: Path) -> None:
    first, second = wanted(bags, 2)
    shutil.copy(runs["pixels"] / "scans" / f"{second.scan}.mha", tmp_path / "renamed.mha")
    assert "1 scans are not in the folder of the scans." in find_pictures([first], bags, scans=tmp_path).notes


def test_scans_that_are_not_there_are_counted(runs: dict[str, Path], bags: Bags, tmp_path: Path) -> None:
    asked = wanted(bags, 2)
    shutil.copy(runs["pixels"] / "scans" / f"{asked[0].scan}.mha", tmp_path)
    found = find_pictures(asked, bags, scans=tmp_path)
    assert set(found.found) == {asked[0]}
    assert found.notes == ("1 scans are not in the folder of the scans.", "1 of 2 slices have no picture.")


def test_a_folder_without_scans_is_an_error(bags: Bags, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        find_pictures(wanted(bags, 1), bags, scans=tmp_path / "nowhere")


def test_without_scans_and_thumbnails_there_is_a_note_and_no_picture(bags: Bags) -> None:
    found = find_pictures(wanted(bags), bags)
    assert found.found == {}
    assert "--scans" in found.notes[0]


def test_thumbnails_serve_where_the_scans_do_not(runs: dict[str, Path], copied: Callable[[str], Path]) -> None:
    folder = copied("pixels")
    bags = Bags(folder / "feats.h5")
    first, second = wanted(bags, 2)
    thumbnails = Thumbnails(thumbnails_folder(bags.path))
    place = thumbnails.path(first.digest)
    place.parent.mkdir(parents=True)
    place.write_bytes(packed(read_volume(folder / "scans" / f"{first.scan}.mha", modality="CT"), bags.windows))
    found = find_pictures([first, second], bags)
    assert set(found.found) == {first}
    assert found.notes == ("1 of 2 slices have no picture.",)
    volume = read_volume(folder / "scans" / f"{first.scan}.mha", modality="CT")
    assert np.abs(image(found.found[first]) - grey(volume, 4, first.window)).mean() < 12
    place.write_bytes(b"not one")
    assert "1 thumbnails are damaged." in find_pictures([first, second], bags).notes


def test_many_scans_are_read_by_processes_that_give_the_same_pictures(
    runs: dict[str, Path], bags: Bags, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, scans = wanted(bags, 8), runs["pixels"] / "scans"
    shared = find_pictures(asked, bags, scans=scans)
    monkeypatch.setattr(module, "HELP_FROM", 100)
    assert find_pictures(asked, bags, scans=scans) == shared
    assert len(shared.found) == 8


def test_a_reading_process_that_dies_costs_its_scan_alone(
    runs: dict[str, Path], bags: Bags, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = wanted(bags, 8), module._Worker.ask

    def dies(self: module._Worker, job: module.Job) -> module.Answer | None:
        if job.digest == asked[3].digest:
            self.process.kill()
        return ask(self, job)

    monkeypatch.setattr(module._Worker, "ask", dies)
    found = find_pictures(asked, bags, scans=runs["pixels"] / "scans")
    assert set(found.found) == set(asked) - {asked[3]}
    assert found.notes == ("1 scans could not be read.", "1 of 8 slices have no picture.")


@pytest.mark.parametrize("budget", [BUDGET, 2_000, 900])
def test_pictures_stay_within_their_budget(runs: dict[str, Path], bags: Bags, budget: int) -> None:
    found = find_pictures(wanted(bags, 4), bags, scans=runs["pixels"] / "scans", budget=budget)
    assert sum(len(uri) * 3 // 4 for uri in found.found.values()) <= budget + 4 * 20
