"""CT-RATE: `{train,valid}_predicted_labels.csv`, a row a reconstruction, keyed by VolumeName with its .nii.gz.

`train_1_a_1` is patient `train_1`, scan `a`, reconstruction 1. The labels call the second set `valid`, other tables
`validation`: both are taken. Facts: TorchIO-project/torchio `src/torchio/datasets/ct_rate.py` and its discussions.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from clear.datasets.assemble import assemble
from clear.datasets.files import find_files, folder_of, need_files
from clear.errors import InputError
from clear.formats import without_ending
from clear.labels import Labels
from clear.tables import need_column, read_table, some
from clear.task import Task

FILES = ("*_predicted_labels.csv",)
EXCLUDED = ("no_chest_*.txt",)
ORIGIN = "CT-RATE (huggingface.co/datasets/ibrahimhamamci/CT-RATE): dataset/multi_abnormality_labels"
SPLIT = {"train": "train", "valid": "test", "validation": "test"}  # the official second set is what is reported on
_NAME = re.compile(r"^(?P<patient>(?P<set>train|valid|validation)_\d+)_(?P<scan>[a-z]+)_(?P<reconstruction>\d+)$")


def read(path: Path, task: Task) -> Labels:
    """Findings of each volume, `valid` as the test set; versions of one scan are told by `one_of`.

    Volumes that no_chest_*.txt names are left out. Raises InputError for a name that is not of CT-RATE.
    """
    files = need_files(path, FILES, ORIGIN)
    parts = []
    for file in files:
        table = read_table(file)
        for column in ("VolumeName", *(endpoint.source_column for endpoint in task.endpoints)):
            need_column(table, column, file)
        parts.append(table.select("VolumeName", *(endpoint.source_column for endpoint in task.endpoints)))
    table = pl.concat(parts).drop_nulls("VolumeName")
    named = [(name, _NAME.match(name)) for name in map(without_ending, table["VolumeName"].to_list())]
    strange = [name for name, match in named if match is None]
    if strange:
        raise InputError(
            f"{path}: {len(strange)} volumes are named otherwise than train_1_a_1.nii.gz: {some(strange, 3)}"
        )
    columns = {
        "id": [name for name, _ in named],
        "patient_id": [match["patient"] for _, match in named if match],
        "split": [SPLIT[match["set"]] for _, match in named if match],
        "one_of": [f"{match['patient']}_{match['scan']}" for _, match in named if match],
    }
    table = table.drop("VolumeName").with_columns(pl.Series(name, words) for name, words in columns.items())
    excluded = _excluded(path)
    kept = table.filter(~pl.col("id").is_in(excluded))
    noted = [f"{table.height - kept.height} volumes without a chest are left out"] if kept.height < table.height else []
    return assemble(kept, task, str(path), "scan_id", noted)


def _excluded(path: Path) -> list[str]:
    """Volumes named in no_chest_*.txt of the folder, or of `metadata` beside it."""
    folder = folder_of(path)
    lists = find_files(folder, EXCLUDED)
    if not lists and (folder.parent / "metadata").is_dir():
        lists = find_files(folder.parent / "metadata", EXCLUDED)
    words = [
        word for file in lists for word in re.split(r"[\s,;]+", file.read_text(encoding="utf-8", errors="replace"))
    ]
    return [without_ending(word) for word in words if word]
