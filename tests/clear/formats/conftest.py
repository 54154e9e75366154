"""Writers of small real files that readers are tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2.1"
TOP_LEVEL_GEOMETRY = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "RescaleSlope", "RescaleIntercept"),
)


def dicom_dataset(pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **values: Any) -> FileDataset:
    """A CT slice (rows, columns), or frames of it, with stored values `pixels`; `values` overrides any attribute.

    A value of None removes the attribute.
    """
    rows, columns = pixels.shape[-2:]
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    content: dict[str, Any] = {
        "SOPClassUID": CT_CLASS,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.4.5",
        "FrameOfReferenceUID": "1.2.3.4.6",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": "Doe^Jane",
        "PatientID": "patient-1",
        "PatientBirthDate": "19700101",
        "AccessionNumber": "ACC-77",
        "StudyDate": "20200102",
        "Manufacturer": "ACME",
        "ConvolutionKernel": "B30f",
        "SliceThickness": 2.0,
        "ImagePositionPatient": [-10.0, -20.0, 0.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.75],
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": pixels.dtype.itemsize * 8,
        "HighBit": pixels.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
    for name, value in {**content, **values}.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2")
    return dataset


def save(dataset: FileDataset, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True, **options)
    return path


def functional_groups(z_mm: Sequence[float], **frame_values: Sequence[Any]) -> dict[str, Any]:
    """Attributes of an enhanced CT: frames at `z_mm`, with rescale and spacing shared."""

    def item(**values: Any) -> DicomSequence:
        dataset = Dataset()
        for name, value in values.items():
            setattr(dataset, name, value)
        return DicomSequence([dataset])

    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.75], SliceThickness=2.0)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=-1000, RescaleType="HU")
    frames = []
    for i, z in enumerate(z_mm):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[-10.0, -20.0, z])
        frame.FrameContentSequence = item(
            **{"FrameAcquisitionNumber": 1} | {name: values[i] for name, values in frame_values.items()}
        )
        frames.append(frame)
    return {
        "SOPClassUID": ENHANCED_CT_CLASS,
        "NumberOfFrames": len(z_mm),
        "SharedFunctionalGroupsSequence": DicomSequence([shared]),
        "PerFrameFunctionalGroupsSequence": DicomSequence(frames),
        **dict.fromkeys(TOP_LEVEL_GEOMETRY),
    }


class DicomMaker:
    """Writes DICOM files into one folder and reads them back as scans."""

    dataset = staticmethod(dicom_dataset)
    save = staticmethod(save)
    functional_groups = staticmethod(functional_groups)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)

    def pixels(self, *shape: int, low: int = 0, high: int = 4096, dtype: Any = np.uint16) -> np.ndarray:
        return self.rng.integers(low, high, shape or (6, 5)).astype(dtype)

    def slice(self, name: str, z_mm: float, pixels: np.ndarray | None = None, **values: Any) -> np.ndarray:
        """One CT slice at z; returns its stored values."""
        pixels = self.pixels() if pixels is None else pixels
        save(dicom_dataset(pixels, **{"ImagePositionPatient": [-10.0, -20.0, z_mm], **values}), self.folder / name)
        return pixels

    def series(self, z_mm: Sequence[float], **values: Any) -> np.ndarray:
        """One slice a position, file names in the opposite order; returns HU in the order of z_mm."""
        stored = [self.slice(f"{len(z_mm) - i:03}.dcm", z, InstanceNumber=1, **values) for i, z in enumerate(z_mm)]
        return np.stack(stored).astype(np.int16) - np.int16(1024)

    def records(self) -> list[tuple[str, dict[str, Any]]]:
        from clear.formats import dicom

        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        found = [(path.relative_to(self.folder).as_posix(), dicom.read_header(path)) for path in files]
        return [(name, record) for name, record in found if record is not None]

    def scans(self) -> list[Any]:
        from clear.formats import dicom

        return dicom.series_from_headers(self.records(), self.folder)

    def scan(self) -> Any:
        scans = self.scans()
        assert len(scans) == 1, [scan.scan_id for scan in scans]
        return scans[0]


@pytest.fixture
def make(tmp_path: Path) -> DicomMaker:
    return DicomMaker(tmp_path / "dicom")


@pytest.fixture(scope="session")
def dicom_maker() -> Callable[[Path], DicomMaker]:
    """For tests that need several folders."""
    return DicomMaker
