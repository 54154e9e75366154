"""Runs in a process of its own: builds of a slice store that die at chosen instants, or that wait to be killed.

`store_crash.py run INPUT STORE DELAY_S WORKERS`: one build whose scans are read slowly; says "reading" when it begins.
`store_crash.py sweep FOLDER EVERY`: dies before the k-th call that touches the disk, for k = 1, 1 + EVERY, ... until
one survives, then goes on undisturbed; prints one JSON line: instants, mismatches (instants after which anything
differs from an undisturbed build, or a store that was there could not be opened in between), and calls.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open")


def slow_build(folder: Path, store: Path, delay_s: float, workers: int) -> None:
    """One build; every scan takes `delay_s` longer, in whatever process it is read."""
    from pretrain import build_workers
    from pretrain.build import build_slices

    slow = (
        "import time; import pretrain.build_workers as w; real = w.read_volume; "
        f"w.read_volume = lambda scan: (time.sleep({delay_s}), real(scan))[1]"
    )
    exec(slow, {})
    build_workers._CODE = f"{build_workers._CODE.partition('from pretrain')[0]}{slow}; w.serve()"
    print("reading", flush=True)
    print(build_slices(folder, store, workers=workers, progress=False).new, flush=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def in_child(inputs: Path, store: Path, dies_at: int | None) -> tuple[int, int]:
    """Exit status of a build in a forked process, and how many disk calls it made before it ended."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == dies_at:
                    os._exit(137)
                return real(*arguments, **options)

            return call

        from pretrain.build import build_slices

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        try:
            build_slices(inputs, store, workers=1, progress=False)
            os.write(write_end, str(count).encode())
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(write_end)
    said = os.read(read_end, 20)
    os.close(read_end)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(said or 0)


def opens(store: Path) -> bool:
    """Whether the store of the first scan can be read, in a forked process, since this one must not use polars."""
    child = os.fork()
    if child == 0:
        try:
            from pretrain.store import SliceStore

            os._exit(0 if SliceStore(store).read(0).hu.any() else 1)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def sweep(folder: Path, every: int) -> dict[str, Any]:
    """See the module. FOLDER/scans holds a.nii and others."""
    for module in ("zarr", "polars", "SimpleITK", "numcodecs", "pretrain.build", "clear.formats.nifti"):
        importlib.import_module(module)  # once, before the forks
    inputs = folder / "scans"
    (folder / "plain").mkdir()
    status, calls = in_child(inputs, folder / "plain" / "s.zarr", None)
    assert status == 0
    expected = contents(folder / "plain")
    mismatches, instants = [], range(1, calls + 1, every)
    for instant in instants:
        place = folder / f"at-{instant}"
        place.mkdir()
        store = place / "s.zarr"
        begun = instant % (2 * every) == 1  # every other time there is a store already, which must stay readable
        assert not begun or in_child(inputs / "a.nii", store, None)[0] == 0
        died, _ = in_child(inputs, store, instant)
        readable = not begun or opens(store)
        again, _ = in_child(inputs, store, None)
        if died not in (0, 137) or not readable or again != 0 or contents(place) != expected:
            mismatches.append(instant)
        shutil.rmtree(place)
    return {"instants": len(instants), "mismatches": mismatches, "calls": calls}


if __name__ == "__main__":
    if sys.argv[1] == "run":
        slow_build(Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
    else:
        print(json.dumps(sweep(Path(sys.argv[2]), int(sys.argv[3]))))
