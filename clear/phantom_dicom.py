"""Synthetic patients as DICOM: CT series with the habits of several vendors.

What a reader of real archives meets is here in small (see also `clear.phantom_scanner.VENDORS`):

- files lie in one folder a series, and their names do not follow the slices: shuffled numbers, UIDs, or no ending
- InstanceNumber runs from head to feet, and from feet to head for one vendor
- stored values are unsigned with an intercept of -1024, or signed; one vendor marks what lies outside its circular
  field of view with PixelPaddingValue -2000 (PS3.3 C.7.5.1.1.2)
- every fifth patient has a second series in the study, the same raw data with a sharp kernel
- every fourth study has a localizer; in one of twenty series a slice is missing, in one the spacing is uneven
- pixel spacing, field of view, slice thickness and table height differ between patients

Files are CT Image Storage, Explicit VR Little Endian. UIDs are `2.25.` and an integer (PS3.5 B.2) from a digest of the
cohort's settings, so the same call writes the same bytes. PatientName, birth date and times are empty; the
study dates are a counter, and ImageComments says that the images are synthetic.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from clear.phantom_patient import Phantom, PhantomSeries, draw_patient
from clear.phantom_scanner import PADDING_STORED

COMMENT = "Synthetic phantom, not a patient"


@dataclass(frozen=True)
class Written:
    """What one patient gave: rows of boxes.csv (BOX_COLUMNS), CT volumes, localizer series."""

    boxes: tuple[tuple[str, ...], ...]
    series: int
    localizers: int


def write_patient(dicom: Path, job: tuple[int, tuple[str, ...]], *, seed: int, matrix: int, slices: int) -> Written:
    """Draw one patient and write it to a folder of its own below `dicom`; job is (index, findings)."""
    index, findings = job
    phantom = draw_patient(seed, index, findings=findings, matrix=matrix, slices=slices)
    root = f"clear phantom 1 {seed} {index} {matrix} {slices} {sorted(findings)}"
    rng = np.random.default_rng([seed, index, 30])
    rows = []
    for number, series in enumerate(phantom.series, start=2):
        uid = make_uid(root, "series", number)
        _write_series(dicom / phantom.patient_id, phantom, series, number, root, rng)
        for box in phantom.boxes:
            whole = (*box.x, *box.y, *box.slices)
            z = (f"{v:.2f}" for v in box.z_mm)
            rows.append((phantom.patient_id, str(uid), box.finding, *(str(v) for v in whole), *z))
    if phantom.has_localizer:
        _write_localizer(dicom / phantom.patient_id, phantom, root)
    return Written(tuple(rows), len(phantom.series), int(phantom.has_localizer))


def make_uid(*parts: object) -> UID:
    """A UID that depends on nothing but the parts: `2.25.` and 128 bits of a digest (PS3.5 B.2)."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def _write_series(
    folder: Path, phantom: Phantom, series: PhantomSeries, number: int, root: str, rng: np.random.Generator
) -> None:
    vendor = series.vendor
    count = len(series.hu)
    folder = folder / f"{number:03d}-{series.kernel.name}"
    folder.mkdir(parents=True)
    names = rng.permutation(count)
    series_uid = make_uid(root, "series", number)
    image = _image(phantom, root, number, series_uid, ("ORIGINAL", "PRIMARY", "AXIAL"))
    image.SeriesDescription = f"CHEST ABDOMEN {series.thickness_mm:g} {series.kernel.name}"
    image.ConvolutionKernel = series.kernel.name
    image.SliceThickness = _number(series.thickness_mm)
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.PixelSpacing = [_number(series.pixel_mm)] * 2
    image.ReconstructionDiameter = _number(series.pixel_mm * series.hu.shape[2])
    image.PixelRepresentation = int(vendor.signed)
    image.BitsStored, image.HighBit = (16, 15) if vendor.signed else (12, 11)
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = vendor.intercept, 1, "HU"
    lung = series.kernel is vendor.sharp
    image.WindowCenter, image.WindowWidth = (-500, 2000) if lung else (50, 450)
    image.Rows, image.Columns = series.hu.shape[1:]
    if vendor.circular:
        image.add_new("PixelPaddingValue", "SS", PADDING_STORED)
    for at in range(count):
        instance = count - at if vendor.head_first else at + 1
        stored = series.hu[at].astype(np.int32) - vendor.intercept
        stored[series.padded] = PADDING_STORED
        uid = make_uid(root, "image", number, at)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
        image.InstanceNumber = instance
        position = (*series.origin_mm, float(series.z_mm[at]))
        image.ImagePositionPatient = [_number(v) for v in position]
        image.SliceLocation = _number(position[2])
        image.PixelData = stored.astype("<i2" if vendor.signed else "<u2").tobytes()
        name = {"number": f"IM-{names[at] + 1:04d}.dcm", "uid": f"{uid}.dcm", "bare": f"I{names[at] + 1:07d}"}
        image.save_as(folder / name[vendor.file_names], enforce_file_format=True)


def _write_localizer(folder: Path, phantom: Phantom, root: str) -> None:
    """A frontal projection: what a scanner takes first to plan the scan. No volume, and to be set aside by readers."""
    series = phantom.series[0]
    attenuation = np.clip(phantom.density + 1000, 0, None).mean(axis=1)[::-1]
    rows = np.linspace(0, len(attenuation) - 1, 2 * len(attenuation))
    low = np.floor(rows).astype(int)
    high = np.minimum(low + 1, len(attenuation) - 1)
    share = (rows - low)[:, None]
    projection = np.rint((1 - share) * attenuation[low] + share * attenuation[high]).astype("<u2")
    image = _image(phantom, root, 1, make_uid(root, "series", 1), ("ORIGINAL", "PRIMARY", "LOCALIZER"))
    image.SeriesDescription = "SCOUT"
    image.ConvolutionKernel = "T20f"
    image.SliceThickness = _number(0.6)
    image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    top = float(series.z_mm[-1])
    image.ImagePositionPatient = [_number(series.origin_mm[0]), _number(0.0), _number(top)]
    step = (top - float(series.z_mm[0])) / (len(rows) - 1)
    image.PixelSpacing = [_number(step), _number(series.pixel_mm)]
    image.PixelRepresentation, image.BitsStored, image.HighBit = 0, 12, 11
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = -1024, 1, "HU"
    image.WindowCenter, image.WindowWidth = 50, 800
    image.Rows, image.Columns = projection.shape
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = make_uid(root, "image", 1, 0)
    image.InstanceNumber = 1
    image.PixelData = projection.tobytes()
    path = folder / "001-scout"
    path.mkdir(parents=True)
    image.save_as(path / "scout.dcm", enforce_file_format=True)


def _image(phantom: Phantom, root: str, number: int, series_uid: UID, image_type: tuple[str, str, str]) -> FileDataset:
    """What all images of a series share: patient, study, equipment and frame (PS3.3 A.3.3, CT Image IOD)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = make_uid("clear phantom writer", 1)
    meta.ImplementationVersionName = "CLEAR_PHANTOM_1"
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SpecificCharacterSet = "ISO_IR 100"
    image.ImageType = list(image_type)
    image.SOPClassUID = CTImageStorage
    date = f"2000{1 + phantom.index // 28 % 12:02d}{1 + phantom.index % 28:02d}"
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = date
    image.StudyTime = image.SeriesTime = image.ContentTime = image.AcquisitionTime = ""
    image.AccessionNumber = ""
    image.Modality = "CT"
    image.Manufacturer = phantom.series[0].vendor.manufacturer
    image.ManufacturerModelName = "Synthetic phantom"
    image.ReferringPhysicianName = ""
    image.StudyDescription = "CT CHEST ABDOMEN"
    image.PatientName = ""
    image.PatientID = phantom.patient_id
    image.PatientBirthDate = ""
    image.PatientSex = phantom.sex
    image.PatientAge = f"{phantom.age_years:03d}Y"
    image.ContrastBolusAgent = "CONTRAST"
    image.BodyPartExamined = "CHEST"
    image.KVP = 120
    image.PatientPosition = "HFS"
    image.StudyInstanceUID = make_uid(root, "study")
    image.SeriesInstanceUID = series_uid
    image.FrameOfReferenceUID = make_uid(root, "frame")
    image.StudyID = "1"
    image.SeriesNumber = number
    image.AcquisitionNumber = 1
    image.PositionReferenceIndicator = ""
    image.ImageComments = COMMENT
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated = 16
    return image


def _number(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.1f}"
