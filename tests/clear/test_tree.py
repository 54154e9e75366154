"""Walking trees that hold circles, locks, pipes and links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clear.tree import walk


def names(root: Path) -> list[str]:
    return [entry.name for entry in walk(root).entries]


def test_files_are_listed_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/z/y", "c", ".git/x", "a/.hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    entries = walk(tmp_path).entries
    assert [entry.name for entry in entries] == ["a/z/y", "b/1", "b/2", "c"]
    assert entries[0].size == 5


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b" / "self").symlink_to(".")
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "gone").symlink_to("nowhere")
    assert names(tmp_path) == ["a/file"]


def test_a_folder_reached_twice_keeps_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "file").write_text("x")
    (tmp_path / "a").symlink_to("z")
    assert names(tmp_path) == ["z/file"]


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "one").symlink_to(tmp_path / "far" / "file")
    assert names(tmp_path / "in") == ["link/file", "one"]


def test_pipes_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.dcm")
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may open every folder")
def test_a_locked_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    try:
        assert walk(tmp_path).unreadable == ["locked"]
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_a_folder_that_vanishes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    real = os.scandir

    def vanish(path):  # type: ignore[no-untyped-def]
        if Path(path).name == "a":
            raise FileNotFoundError
        return real(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert walk(tmp_path).unreadable == ["a"]
