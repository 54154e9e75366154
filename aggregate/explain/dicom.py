"""A saliency volume as DICOM that refers to the series that it explains.

A *parametric map* (PS3.3 A.75) keeps the values: float32, with a real world value mapping (C.7.6.16.2.11) of slope 1
and a display window from 0 to the maximum. A *segmentation* (PS3.3 A.51) is what most viewers overlay: BINARY, the
voxels above a threshold, or FRACTIONAL, the map over its maximum.

Each frame has the matrix, position and orientation of the source image (or frame) that it lies on and names it, so
nothing is resampled and tilted, oblique and unevenly spaced series keep their places. highdicom builds the objects. It
is given a skeleton of the source, with what it needs and nothing else, because real archives lack required attributes:

- Patient and study are copied as they are written in the source, whatever they hold; what is absent stays empty.
- UIDs are referred to as they are written, valid or not: a corrected UID would name nothing. A source without them is
  refused by name.
- A series without FrameOfReferenceUID gets one made from its SeriesInstanceUID: the standard asks for one here.

New are only the UIDs of the map itself (random, `2.25.`, PS3.5 B.2), the time of writing, and the names and versions of
this program and of highdicom.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

import clear
from aggregate.explain.dicom_skeleton import header, refer_to_source, skeleton
from aggregate.explain.source_instances import Source, source_of
from clear.atomic import output_errors, write_aside
from clear.errors import InputError, MissingExtra
from clear.formats.dicom_values import quiet_pydicom
from clear.scans import Scan
from clear.volume import Volume

if TYPE_CHECKING:
    from types import ModuleType

Kind = Literal["parametric-map", "segmentation"]
KINDS: tuple[Kind, ...] = ("parametric-map", "segmentation")

REQUIRED = {
    "sop_uid": "SOPInstanceUID",
    "sop_class": "SOPClassUID",
    "series_uid": "SeriesInstanceUID",
    "study_uid": "StudyInstanceUID",
}
SERIES_NUMBER = {"parametric-map": 9000, "segmentation": 9001}  # far from what scanners count
LONGEST_TEXT = 64  # of an LO value (PS3.5 6.2)
SALIENCY = Code("saliency", "99CLEAR", "Saliency of a prediction")
MAKER: dict[str, Any] = {
    "manufacturer": "clear",
    "manufacturer_model_name": "clear-mil",
    "software_versions": clear.__version__,
    "device_serial_number": "0",  # required, and a program has none
}


def write_dicom(
    folder: Path | str,
    saliency: NDArray[np.float32],
    volume: Volume,
    scan: Scan,
    *,
    kind: Kind = "parametric-map",
    threshold: float | None = None,
    series_description: str = "Saliency (clear)",
) -> list[Path]:
    """A map (Z, Y, X) >= 0 over `volume` as one new DICOM series in `folder`; returns the files.

    The file is `parametric-map.dcm` or `segmentation.dcm`; one of that name is replaced.

    scan: the DICOM series that `volume` was read from.
    threshold: only for a segmentation: the segment is the voxels of at least this share (0..1) of the map's maximum,
    BINARY; None: the map over its maximum in steps of 1/255, FRACTIONAL.
    series_description: shown by viewers; beyond 64 characters it is cut, with a mark that says so.

    Raises MissingExtra without highdicom; InputError for a scan that is no DICOM, does not fit the volume or lacks the
    UIDs that a reference needs, for a bad argument, and for a segmentation of a map that is zero everywhere; ValueError
    when the map does not fit the volume; OutputError when a file cannot be written.
    """
    highdicom = load_highdicom()
    _check(saliency, volume, kind, threshold)
    source = check_source(scan, volume)
    if kind == "segmentation" and not saliency.any():
        raise InputError(f"{scan.source}: its map is zero everywhere, so there is nothing to segment")
    folder = Path(folder)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    values, top = np.ascontiguousarray(source.stored(saliency), dtype=np.float32), float(saliency.max(initial=0))
    with _unvalidated():
        original = header(scan, source.images[0])
        common = {
            "source_images": skeleton(original, source),
            "series_instance_uid": _new_uid(),
            "series_number": SERIES_NUMBER[kind],
            "sop_instance_uid": _new_uid(),
            "instance_number": 1,
            "series_description": _line(series_description),
            "specific_character_set": "ISO_IR 192",
            **MAKER,
        }
        if kind == "parametric-map":
            made = _parametric_map(highdicom, values, top, common)
        else:
            made = _segmentation(highdicom, values / np.float32(top), threshold, common)
        refer_to_source(made, source)
        made.copy_patient_and_study_information(original)
        if len(source.images) == 1:  # highdicom says 1 mm where there is no gap to measure
            del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
        file = io.BytesIO()
        made.save_as(file)
    path = folder / f"{kind}.dcm"
    write_aside(path, file.getvalue())
    return [path]


def check_source(scan: Scan, volume: Volume) -> Source:
    """The source that a map over `volume` refers to. Raises InputError where `write_dicom` would refuse it."""
    source = source_of(scan, volume)
    _check_uids(source)
    return source


def load_highdicom() -> ModuleType:
    """Raises MissingExtra where it is not installed."""
    try:
        import highdicom
    except ImportError:
        raise MissingExtra("highdicom", "dicom", "DICOM output") from None
    found: ModuleType = highdicom
    return found


def _parametric_map(highdicom: ModuleType, values: NDArray[np.float32], top: float, common: dict[str, Any]) -> Any:
    """values: (n, rows, columns) float32; top: the maximum over the whole scan."""
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="saliency",
        lut_explanation="slice attention x in-slice map",
        unit=Code("1", "UCUM", "no units"),
        value_range=(0.0, top),
        slope=1.0,
        intercept=0.0,
        quantity_definition=highdicom.sr.CodedConcept.from_code(SALIENCY),
    )
    width = top or 1.0
    return highdicom.pm.ParametricMap(
        pixel_array=values,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=width / 2, window_width=width)],
        contains_recognizable_visual_features=False,
        content_label="SALIENCY",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **common,
    )


def _segmentation(
    highdicom: ModuleType, share: NDArray[np.float32], threshold: float | None, common: dict[str, Any]
) -> Any:
    """share: (n, rows, columns) of the maximum over the whole scan, 0..1."""
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=_line("Saliency" if threshold is None else f"Saliency, at least {threshold:g} of its maximum"),
        segmented_property_category=Code("309825002", "SCT", "Spatial and Relational Concept"),
        segmented_property_type=SALIENCY,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="clear", version=clear.__version__, family=Code("123109", "DCM", "Artificial Intelligence")
        ),
    )
    return highdicom.seg.Segmentation(
        pixel_array=share if threshold is None else (share >= threshold).astype(np.uint8),
        segmentation_type="FRACTIONAL" if threshold is None else "BINARY",
        fractional_type="PROBABILITY",
        segment_descriptions=[segment],
        content_label="SALIENCY",
        omit_empty_frames=bool(share.any()),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **common,
    )


def _check(saliency: NDArray[np.float32], volume: Volume, kind: str, threshold: float | None) -> None:
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: expected {' or '.join(KINDS)}")
    if threshold is not None and (kind != "segmentation" or not 0 < threshold <= 1):
        raise InputError(f"threshold {threshold:g}: expected a share above 0 and up to 1, and kind 'segmentation'")
    if saliency.shape != volume.voxels.shape:
        raise ValueError(f"saliency: expected {volume.voxels.shape}, the volume's shape; found {saliency.shape}")
    if not np.isfinite(saliency).all() or (saliency < 0).any():
        raise ValueError("saliency: expected finite values of at least 0")


def _check_uids(source: Source) -> None:
    """Raises InputError naming what a reference to the source lacks."""
    for image in source.images:
        missing = [name for key, name in REQUIRED.items() if not image.record[key]]
        if missing:
            raise InputError(
                f"{image.file}: has no {', '.join(missing)}, so no DICOM object can refer to it. Write NIfTI instead"
            )
    if len({*source.instances}) < len(source.images):
        raise InputError(
            f"{source.images[0].file} and its series: several slices have one SOPInstanceUID, so a reference would be "
            "ambiguous. Write NIfTI instead"
        )


def _line(text: str) -> str:
    """As a value of type LO (PS3.5 6.2): one line, no backslash, at most 64 characters."""
    line = "".join(c if c.isprintable() and c != "\\" else " " for c in text).strip()
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…"


def _new_uid() -> UID:
    return UID(f"2.25.{uuid.uuid4().int}")


@contextmanager
def _unvalidated() -> Iterator[None]:
    """pydicom takes values as the source has them, and warns of none: a warning would quote them."""
    with quiet_pydicom(), pydicom.config.disable_value_validation():
        yield
