"""What the tests of data sets share: the scans of a generated tree, as a bag file would list them, and its labels."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from clear.label_join import Joined, join_labels
from clear.labels import read_labels
from clear.plan import select_series
from clear.scans import find_scans
from clear.task import JoinRule
from clear.task_labels import find_labels
from clear.task_scans import name_scans
from clear.tasks import load_task

TEXT = ("scan_id", "series_uid", "study_uid", "patient_id")


def scans_of(folder: Path, task: str) -> pl.DataFrame:
    """The usable scans of a folder, named and selected as `clear extract --task` does."""
    one = load_task(task)
    found = name_scans(find_scans(folder, cache=False, workers=1, modality=one.modality or None), one)
    found = select_series(found, one.select) if one.select else found
    rows = [
        {**{name: getattr(scan, name) for name in TEXT}, "digest": f"d{i}", "days_since_first": scan.days_since_first}
        for i, scan in enumerate(found)
        if scan.verdict == "use"
    ]
    return pl.DataFrame(rows, schema={**dict.fromkeys((*TEXT, "digest"), pl.String), "days_since_first": pl.Int32})


def joined_of(folder: Path, task: str, rule: JoinRule | None = None) -> Joined:
    """Labels found in a folder, joined to its scans: what training sees."""
    one = load_task(task)
    place = find_labels(one, folder)
    assert place is not None, f"no labels of {task} in {folder}"
    return join_labels(read_labels(place, one), scans_of(folder, task), rule=rule or one.join)


def dicom_series(
    folder: Path, patient: str, series: str, *, modality: str = "CT", study: str = "", day: int = 1
) -> None:
    """Three slices of one series, named as NBIA does (1-001.dcm)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(series.encode()))
    for i in range(3):
        dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        dataset.SOPInstanceUID = f"{series}.{i + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study or f"{series}.0", series
        dataset.PatientID, dataset.Modality = patient, modality
        dataset.StudyDate = f"200001{day:02d}"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.0 * i], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 2
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 8, 8, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = rng.integers(0, 2000, (8, 8)).astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        pydicom.dcmwrite(folder / f"1-{i + 1:03d}.dcm", dataset, enforce_file_format=True)


def nifti(path: Path, *, blank: bool = False) -> None:
    """A CT volume; blank: with the empty header of CT-RATE's first release (spacing 1, 1, 1)."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(str(path))).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    affine = np.eye(4) if blank else np.diag([0.75, 0.75, 1.5, 1])
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


@pytest.fixture(name="scans_of")
def _scans_of() -> Callable[[Path, str], pl.DataFrame]:
    return scans_of


@pytest.fixture(name="joined_of")
def _joined_of() -> Callable[..., Joined]:
    return joined_of


@pytest.fixture(name="dicom_series")
def _dicom_series() -> Callable[..., None]:
    return dicom_series


@pytest.fixture(name="nifti")
def _nifti() -> Callable[..., None]:
    return nifti


@pytest.fixture
def rows() -> Callable[[pl.DataFrame, Sequence[str]], list[tuple[object, ...]]]:
    """Rows of some columns, for comparison."""
    return lambda frame, columns: frame.select(columns).rows()
