"""Reading headers by several processes, and through damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clear import formats, headers
from clear.formats import radchestct
from clear.headers import Worker, read_record, read_records
from clear.tree import Entry, walk

ROOT = Path(headers.__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(60):
        np.savez(tmp_path / f"trn{i:05d}.npz", ct=np.full((2, 3, 4), -i, np.int16))
        (tmp_path / f"note{i}.txt").write_text("x")
    return tmp_path


def test_workers_give_the_records_in_order(folder: Path) -> None:
    entries = walk(folder).entries
    seen = []
    shared = read_records(folder, entries, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert shared == read_records(folder, entries, workers=1)
    assert seen[-1] == (120, 120)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_work_is_shared_only_when_it_is_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "Worker", lambda *_: pytest.fail("started a process for 120 small files"))
    read_records(folder, walk(folder).entries)


def test_a_file_that_ends_a_process_costs_that_file_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = walk(folder).entries
    killer = "trn00031.npz"

    class Fragile(Worker):
        def ask(self, entries):  # type: ignore[no-untyped-def]
            answers = []
            for entry in entries:
                if entry.name == killer:
                    self.process.kill()
                    return answers
                answers += super().ask([entry])
            return answers

    monkeypatch.setattr(headers, "Worker", Fragile)
    shared = read_records(folder, entries, workers=2)
    alone = read_records(folder, entries, workers=1)
    at = [entry.name for entry in entries].index(killer)
    assert shared[at]["scan"]["reason"] == "unreadable_file"
    assert shared[:at] + shared[at + 1 :] == alone[:at] + alone[at + 1 :]


def test_a_script_without_a_main_guard_can_use_workers(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "json.py"  # a name that would hide a module if the worker imported from its folder
    script.write_text(
        f"import sys; sys.path = [p for p in sys.path if p != {str(tmp_path)!r}]; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from clear.scans import find_scans\n"
        f"print(len(find_scans({str(folder)!r}, workers=2, cache=False)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "60"


def test_a_defect_of_ours_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", ct=np.zeros((2, 3, 4), np.int16))
    monkeypatch.setattr(radchestct, "scans", lambda *_: 1 / 0)
    record = read_record(tmp_path, Entry("a.npz", 1, 1))
    assert record["scan"]["reason"] == "unexpected_error"
    assert "a.npz" in record["scan"]["message"]
    assert "report it" in record["scan"]["message"]


def test_a_file_that_vanished_is_nothing(tmp_path: Path) -> None:
    assert read_record(tmp_path, Entry("gone.nii.gz", 1, 1)) == {"kind": "none"}


def test_an_unreadable_image_is_refused_and_other_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_args, **_kwargs):  # type: ignore[no-untyped-def]
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert read_record(tmp_path, Entry("a.dcm", 1, 1))["scan"]["reason"] == "unreadable_file"
    assert read_record(tmp_path, Entry("1-001", 1, 1))["scan"]["reason"] == "unreadable_file"  # DICOM's usual names
    assert read_record(tmp_path, Entry("a.txt", 1, 1)) == {"kind": "none"}


def test_every_format_of_the_table_can_be_imported_and_read() -> None:
    for name in formats.MODULES:
        module = formats.module(name)
        assert hasattr(module, "read_series" if name == "dicom" else "read")


def test_endings_go_and_other_dots_stay() -> None:
    assert formats.without_ending("a/b.c/1.2.840.113.NII.GZ") == "a/b.c/1.2.840.113"
    assert formats.without_ending("x.ome.zarr") == "x"
    assert formats.without_ending("1.3.6.1.4") == "1.3.6.1.4"
    assert formats.without_ending(".nii") == ".nii"
