"""explanation.json: what the files of an explanation's folder are of, so that none is taken for another's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aggregate.run import write_json
from clear.atomic import output_errors

RECORD = "explanation.json"
FORMAT, VERSION = "clear-explanation", 1


@contextmanager
def record_of_files(folder: Path, record: Mapping[str, Any]) -> Iterator[list[Path]]:
    """Gives a list for the files that are written to the folder, and writes the record with their names at the end.

    Files that an earlier record names and this one does not are removed; those that no record names are left alone.
    While files are written there is no record, so that a folder without one is half written. Raises OutputError.
    """
    place = folder / RECORD
    before = _named(place)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
    files: list[Path] = []
    yield files
    with output_errors(folder):
        for name in before - {file.name for file in files}:
            (folder / name).unlink(missing_ok=True)
    write_json(place, {"format": FORMAT, "version": VERSION, **record, "files": [file.name for file in files]})


def _named(place: Path) -> set[str]:
    """Files that a record in this place names; none without one."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        names = found["files"] if found["format"] == FORMAT else []
        return {name for name in names if isinstance(name, str) and name == Path(name).name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
