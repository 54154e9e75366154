"""The bag file of a run, found again.

A run remembers where its bag file lay, as a path of the folder in which training ran. It is looked for there, and from
every folder above the run; what is found counts only when its digest is the one that the run was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clear.bags import Bags
from clear.errors import ClearError, InputError


def find_bags(run_path: Path, record: dict[str, Any], given: Bags | Path | str | None = None) -> Bags | None:
    """The run's bag file, open; None when it is not at hand.

    record: `bags` of run.json. given: where it lies now. Raises InputError when that is another bag file.
    """
    digest = str(record.get("digest", ""))
    if given is not None:
        bags = given if isinstance(given, Bags) else Bags(given)
        if digest and bags.digest != digest:
            raise InputError(
                f"{bags.path}: not the bag file of {run_path}: expected digest {digest[:12]}, found "
                f"{bags.digest[:12]}. Give the bag file that the run was trained on"
            )
        return bags
    for place in _places(run_path, str(record.get("path", ""))):
        try:
            found = Bags(place)
        except ClearError:  # another file of this name, or one that is damaged: not the run's
            continue
        if found.digest == digest:
            return found
        found.close()
    return None


def _places(run_path: Path, path: str) -> Iterator[Path]:
    """Where the file may lie, each once."""
    if not path:
        return
    seen = set()
    for base in (Path(), *run_path.resolve().parents):
        for place in (base / path, base / Path(path).name):
            here = place.resolve()
            if here not in seen and here.exists():
                seen.add(here)
                yield place
