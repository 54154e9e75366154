"""MedMNIST 3D: labels lie in the same `.npz` as the volumes, `{train,val,test}_labels` of shape (N, 1).

An endpoint's column is the data set's name (`organmnist3d`), which begins the file's name too: organmnist3d.npz (28
voxels a side), organmnist3d_64.npz. Codes are those of the 3D sets: in OrganMNIST3D 0 is the liver and 10 the
pancreas, while the 2D organ sets use other codes and are not read here. Facts: MedMNIST/MedMNIST `medmnist/info.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from clear.datasets.assemble import SPLITS, assemble
from clear.datasets.files import need_files
from clear.endpoints import Endpoint
from clear.errors import InputError, ScanRefused
from clear.formats.medmnist import read_labels, volume_id
from clear.labels import Labels
from clear.task import Task

FILES = ("*mnist3d.npz", "*mnist3d_*.npz")
ORIGIN = "MedMNIST (zenodo.org/records/10519652), such as organmnist3d.npz"


def read(path: Path, task: Task) -> Labels:
    """The class of each volume and its official set; every volume counts as a patient of its own.

    Raises InputError when the task's data set is not there, or its labels are not codes of its classes.
    """
    if len(task.endpoints) != 1:
        raise InputError(f"task {task.name}: a MedMNIST file answers one question, not {len(task.endpoints)}")
    (endpoint,) = task.endpoints
    flag = endpoint.source_column
    files = [file for file in need_files(path, FILES, ORIGIN) if re.fullmatch(rf"{re.escape(flag)}(_\d+)?", file.stem)]
    if not files:
        raise InputError(f"{path}: no {flag}.npz or {flag}_64.npz; expected the file of {ORIGIN}")
    rows = [row for file in files for row in _rows(file, flag, endpoint)]
    table = pl.DataFrame(rows, schema=["id", "patient_id", "split", flag], orient="row")
    noted = ["no patient ids are published: every volume counts as a patient of its own"]
    return assemble(table, task, str(path), "scan_id", noted)


def _rows(file: Path, flag: str, endpoint: Endpoint) -> list[tuple[str, str, str, str]]:
    rows = []
    for split in SPLITS:
        try:
            codes = read_labels(file, split)
        except ScanRefused as refusal:
            raise InputError(f"{file}: {refusal}") from None
        for index, code in enumerate(codes):
            if not 0 <= code < len(endpoint.classes):
                most = len(endpoint.classes) - 1
                raise InputError(f"{file}: {split}_labels holds {code}; expected 0 to {most} for {endpoint.name}")
            patient = volume_id(flag, split, index)  # the same whatever the size
            rows.append((volume_id(file.stem, split, index), patient, split, endpoint.classes[code]))
    return rows
