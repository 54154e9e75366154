"""What building a derived DICOM object needs of its source, made even from headers that lack a lot.

`skeleton` is a plain single-frame series, one image a slice, whatever the source is: single frames, one or several
multi-frame files, a private SOP class, UIDs that are none. Its instances go by numbers, and `refer_to_source` puts the
real references in their place once the object is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import UID, CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from aggregate.explain.source_instances import Source
from clear.errors import InputError
from clear.formats.dicom_image import Image
from clear.scans import Scan

STAND_INS = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
NUMBER = "2.25."  # and the slice counted from 1: how a skeleton's instances are called
EMPTY = (  # type 2 attributes that highdicom reads from the source; their values are copied afterwards, unread
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def skeleton(original: Dataset, source: Source) -> list[Dataset]:
    """One data set a slice, in canonical slice order. original: the header of the first slice's file."""
    first = source.images[0]
    record = first.record
    base = Dataset()
    for keyword in EMPTY:
        setattr(base, keyword, "")
    for keyword in LOSSY:
        if keyword in original:
            base.add(original[keyword])
    base.SOPClassUID, base.Modality = STAND_INS[record["modality"]], record["modality"]
    base.StudyInstanceUID, base.SeriesInstanceUID = record["study_uid"], record["series_uid"]
    base.FrameOfReferenceUID = record["frame_of_reference"] or _uid_from("frame of reference", record["series_uid"])
    base.Rows, base.Columns = record["rows"], record["columns"]
    base.PixelSpacing = _numbers(first.header["spacing"])
    base.ImageOrientationPatient = _numbers(first.header["orientation"])
    gap = source.geometry.spacing_mm[0]
    thickness = record["thickness_mm"] or (None if np.isnan(gap) else gap)
    base.SliceThickness = None if thickness is None else _numbers([thickness])[0]
    slices = []
    for number, image in enumerate(source.images, start=1):
        slice_ = Dataset()
        slice_.update(base)
        slice_.SOPInstanceUID = f"{NUMBER}{number}"
        slice_.ImagePositionPatient = _numbers(image.header["position"])
        slices.append(slice_)
    return slices


def refer_to_source(made: Dataset, source: Source) -> None:
    """Replaces the skeleton's numbers by references to the source (Image SOP Instance Reference, PS3.3 10.3).

    Each frame names its image, and the frame in it if it has several (counted from 1); the object names each image
    once, in the order of the slices.
    """
    instances = source.instances
    for frame in made.PerFrameFunctionalGroupsSequence:
        (item,) = frame.DerivationImageSequence[0].SourceImageSequence
        at = int(item.ReferencedSOPInstanceUID.removeprefix(NUMBER)) - 1
        item.ReferencedSOPClassUID = source.images[at].record["sop_class"]
        item.ReferencedSOPInstanceUID, number = instances[at]
        if number is not None:
            item.ReferencedFrameNumber = number
    classes = {image.record["sop_uid"]: image.record["sop_class"] for image in source.images}
    references = []
    for uid, sop_class in classes.items():
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, uid
        references.append(reference)
    made.SourceImageSequence = references
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references


def header(scan: Scan, image: Image) -> Dataset:
    """The data set of one source file without its pixels, text decoded."""
    try:
        original = pydicom.dcmread(scan.root / image.file, stop_before_pixels=True, force=True)
        original.decode()
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{image.file}: its header cannot be copied ({type(error).__name__})") from None
    original.SOPClassUID, original.SOPInstanceUID = STAND_INS[image.record["modality"]], image.record["sop_uid"]
    return original


def _numbers(values: Sequence[float]) -> list[Any]:
    """Decimal strings of at most 16 characters (PS3.5 6.2)."""
    return [pydicom.valuerep.DSfloat(float(value), auto_format=True) for value in values]


def _uid_from(*parts: str) -> UID:
    return UID(f"2.25.{int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], 'big')}")
