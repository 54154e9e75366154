"""Runs in a process of its own: extractions that die at chosen instants, or that wait to be killed.

`crash.py run COHORT OUTPUT DELAY_S`: one extraction of slow batches; says "reading" when it begins.
`crash.py sweep FOLDER SUFFIX EVERY [thumbnails]`: dies before the k-th call that touches the disk, for
k = 1, 1 + EVERY, ... until one survives, then goes on undisturbed; prints one JSON line: instants, mismatches
(instants after which anything differs from an undisturbed run), and calls (how many a run makes). With
`thumbnails` they are kept too.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "rename", "pwrite", "unlink", "rmdir", "mkdir", "ftruncate")


def _cohort_module() -> Any:
    spec = importlib.util.spec_from_file_location("cohort", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cohort"] = module
    spec.loader.exec_module(module)
    return module


def extraction(
    cohort: Path, output: Path, delay_s: float, *, scans: int = 12, announce: bool = False, thumbnails: bool = False
) -> None:
    """One extraction of the small cohort."""
    from extract import extract

    module = _cohort_module()
    found = module.make_scans(cohort, scans)
    if announce:
        print("reading", flush=True)
    encoder = module.FakeEncoder(delay_s=delay_s)
    settings: dict[str, Any] = {"batch": 4, "thumbnails": thumbnails, "progress": False}
    extract("cohort", output, [encoder], scans=found, read=module.read_raw, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the quality record, which holds times; its name counts."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): b"" if p.suffix == ".csv" else p.read_bytes() for p in files}


def in_child(cohort: Path, output: Path, dies_at: int | None, scans: int, thumbnails: bool = False) -> tuple[int, int]:
    """Exit status of an extraction in a forked process, and how many disk calls it made before it ended."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def counting(name: str, real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == dies_at:
                    os._exit(137)
                return real(*arguments, **options)

            return call

        for name in CALLS:
            setattr(os, name, counting(name, getattr(os, name)))
        try:
            extraction(cohort, output, 0.0, scans=scans, thumbnails=thumbnails)
            os.write(write_end, str(count).encode())
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(write_end)
    said = os.read(read_end, 20)
    os.close(read_end)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(said or 0)


def sweep(folder: Path, suffix: str, every: int, thumbnails: bool = False) -> dict[str, Any]:
    """See the module."""
    for package in ("extract", "zarr", "pytest"):  # once, before the forks
        importlib.import_module(package)

    cohort = folder / "cohort"
    (folder / "plain").mkdir()
    status, calls = in_child(cohort, folder / "plain" / f"f{suffix}", None, 3, thumbnails)
    assert status == 0
    expected = contents(folder / "plain")
    mismatches, instants = [], range(1, calls + 1, every)
    for instant in instants:
        place = folder / f"at-{instant}"
        place.mkdir()
        # some of the cohort is in the file already (without thumbnails), so that dying while it is replaced, or while
        # thumbnails are added, is covered too
        assert in_child(cohort, place / f"f{suffix}", None, 1)[0] == 0
        died, _ = in_child(cohort, place / f"f{suffix}", instant, 3, thumbnails)
        again, _ = in_child(cohort, place / f"f{suffix}", None, 3, thumbnails)
        if died not in (0, 137) or again != 0 or contents(place) != expected:
            mismatches.append(instant)
        shutil.rmtree(place)
    return {"instants": len(instants), "mismatches": mismatches, "calls": calls}


if __name__ == "__main__":
    if sys.argv[1] == "run":
        extraction(Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), announce=True)
    else:
        print(json.dumps(sweep(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:] == ["thumbnails"])))
