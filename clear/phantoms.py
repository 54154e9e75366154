"""Synthetic chest-and-abdomen CTs with known findings, for the demonstration and for tests.

>>> phantom = draw_patient(seed=0, index=3, matrix=64, slices=6, findings=["effusion"])
>>> phantom.patient_id, phantom.series[0].hu.shape, phantom.findings["effusion"]
('PHANTOM-0004', (6, 64, 64), True)

`draw_patient` makes one patient in memory, `write_cohort` a folder of DICOM series with `labels.csv` and `boxes.csv`.
The parts: `phantom_anatomy` (the body), `phantom_findings` (what is planted), `phantom_plane` (drawing),
`phantom_scanner` (blur, noise, vendors), `phantom_patient` (one patient) and `phantom_dicom` (files).

Everything follows from (seed, index, matrix, slices, findings). Each part of a patient has a generator of its own, so a
finding can be switched on or off and nothing else changes; the number of workers never changes a byte.
"""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clear.errors import InputError
from clear.phantom_dicom import Written, write_patient
from clear.phantom_findings import FINDINGS
from clear.phantom_patient import PREVALENCE, Box, Phantom, PhantomSeries, draw_patient, patient_name

__all__ = ["FINDINGS", "Box", "Cohort", "Phantom", "PhantomSeries", "draw_labels", "draw_patient", "write_cohort"]

BOX_COLUMNS = ("patient_id", "series_uid", "finding", "x0", "x1", "y0", "y1", "slice0", "slice1", "z0_mm", "z1_mm")
LABELS_TABLE, BOXES_TABLE, DICOM_FOLDER = "labels.csv", "boxes.csv", "dicom"


@dataclass(frozen=True)
class Cohort:
    """What `write_cohort` wrote: the DICOM tree, the tables beside it, and how much there is.

    series counts the CT volumes; localizers the projection series that lie beside them.
    """

    dicom: Path
    labels: Path
    boxes: Path
    patients: int
    series: int
    localizers: int


def write_cohort(
    folder: Path | str,
    *,
    patients: int,
    seed: int = 0,
    matrix: int = 256,
    slices: int = 24,
    first: int = 0,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Cohort:
    """Write a cohort to `folder`: dicom/, labels.csv (one row a patient) and boxes.csv (one row a finding and series).

    Each finding is present in PREVALENCE of the patients (rounded), independently of the others. Box columns: x0..x1
    and y0..y1 half-open ranges of column and row indices, slice0..slice1 of slices from feet to head, z in mm.
    first: index of the first patient: cohorts of one seed that share no index share no patient and no patient id.
    workers: processes; with 1 everything runs in this one. progress: called with the number of patients just done.

    Raises InputError when `folder` exists and holds anything, or a number makes no sense.
    """
    if patients < 1 or workers < 1 or first < 0:
        raise InputError(
            f"a cohort needs at least one patient and one worker, and starts at index 0 or later; found {patients}, "
            f"{workers} and {first}"
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder for the synthetic cohort. Choose another one.")
    dicom = folder / DICOM_FOLDER
    dicom.mkdir(parents=True, exist_ok=True)
    present = draw_labels(patients, seed, first)
    draw = partial(write_patient, dicom, seed=seed, matrix=matrix, slices=slices)
    jobs = [(first + i, tuple(name for name in FINDINGS if present[name][i])) for i in range(patients)]
    if workers == 1:
        written = _collect(map(draw, jobs), progress)
    else:
        # spawn: a fork of a process that holds torch's or h5py's threads can hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, patients), mp_context=context) as pool:
            written = _collect(pool.map(draw, jobs), progress)
    labels, boxes = folder / LABELS_TABLE, folder / BOXES_TABLE
    ids = [patient_name(first + i) for i in range(patients)]
    table = [(ids[i], *(str(int(present[name][i])) for name in FINDINGS)) for i in range(patients)]
    _write_table(labels, ("patient_id", *FINDINGS), table)
    _write_table(boxes, BOX_COLUMNS, [row for part in written for row in part.boxes])
    series, localizers = sum(part.series for part in written), sum(part.localizers for part in written)
    return Cohort(dicom, labels, boxes, patients, series, localizers)


def draw_labels(patients: int, seed: int, first: int = 0) -> dict[str, NDArray[np.bool_]]:
    """Which patients have which finding: PREVALENCE of them, rounded, in an order of its own for each finding."""
    labels = {}
    for number, name in enumerate(FINDINGS):
        rng = np.random.default_rng([seed, number, 20, first] if first else [seed, number, 20])
        positive = np.zeros(patients, bool)
        positive[rng.permutation(patients)[: round(PREVALENCE * patients)]] = True
        labels[name] = positive
    return labels


def _collect(results: Iterable[Written], progress: Callable[[int], None] | None) -> list[Written]:
    written = []
    for one in results:
        written.append(one)
        if progress is not None:
            progress(1)
    return written


def _write_table(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
