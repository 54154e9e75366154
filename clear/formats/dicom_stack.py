"""Parallel slices as one stack: the checks that they are one, their order and their geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clear.errors import ScanRefused
from clear.formats.dicom_image import Image
from clear.volume import Geometry, stack_geometry

DIRECTION_TOLERANCE = 1e-3  # of a unit vector: 0.06 degrees
SPACING_TOLERANCE = 1e-3  # relative: six digits in a header, eight in the next


@dataclass(frozen=True)
class Stack:
    """Images of one volume in canonical order, with their geometry in that order, and remarks.

    suffix: "" or `#EchoTime=4.6`, what is added to the series' id when it holds several volumes.
    """

    images: tuple[Image, ...]
    geometry: Geometry
    remarks: tuple[str, ...]
    suffix: str = ""


def stack_of(images: Sequence[Image]) -> Stack:
    """Images of one volume in canonical order. Raises ScanRefused when they are not parallel slices."""
    geometry = geometry_of(images)
    ordered = tuple(images[i] for i in geometry.order)
    geometry = replace(geometry, order=tuple(range(len(ordered))))
    return Stack(ordered, geometry, (*geometry.remarks, *_shift_remark(geometry)))


def geometry_of(images: Sequence[Image]) -> Geometry:
    """Where images lie, in any order. Raises ScanRefused when they are not parallel slices of one size."""
    check_parallel(images)
    first = images[0].header
    return stack_geometry(
        [image.header["position"] for image in images],
        first["orientation"][:3],
        first["orientation"][3:],
        (images[0].record["rows"], images[0].record["columns"]),
        tuple(first["spacing"]),
        first["gap_mm"],
    )


def check_parallel(images: Sequence[Image]) -> None:
    """All images have a place, and share matrix, spacing and orientation."""
    for image in images:
        header = image.header
        missing = [name for name in ("position", "orientation", "spacing") if header[name] is None]
        if missing:
            raise ScanRefused(
                "no_geometry",
                f"{image.file} does not say its {', '.join(missing)} in the patient (ImagePositionPatient, "
                "ImageOrientationPatient, PixelSpacing); without these its slices cannot be placed",
            )
    for what, key, tolerance in _SHARED:
        values = np.array([image.header[key] if key in image.header else _matrix(image) for image in images])
        differs = (np.abs(values - values[0]) > tolerance * (values[0] if what == "spacing" else 1)).any(axis=1)
        if differs.any():
            at = int(np.argmax(differs))
            a, b = (values[i].round(3).tolist() for i in (0, at))
            raise ScanRefused(
                f"mixed_{what}",
                f"one series, but {images[0].file} has {what} {a} and {images[at].file} {b}; expected parallel "
                "slices of one size. Sort them into series of their own",
            )


_SHARED = (  # what all slices of a volume share: name, key in the header, tolerance
    ("orientation", "orientation", DIRECTION_TOLERANCE),
    ("matrix", "matrix", 0.0),
    ("spacing", "spacing", SPACING_TOLERANCE),
)


def _matrix(image: Image) -> tuple[int, int]:
    return image.record["rows"], image.record["columns"]


def _shift_remark(geometry: Geometry) -> list[str]:
    """Slices that do not lie on one line: their in-plane origin moves, by more than a pixel."""
    if len(geometry.positions_mm) < 3:
        return []
    z = geometry.positions_mm @ geometry.normal
    line = np.polynomial.polynomial.polyfit(z - z.mean(), geometry.positions_mm, 1)
    off = geometry.positions_mm - np.polynomial.polynomial.polyval(z - z.mean(), line).T
    shift = float(np.linalg.norm(off, axis=1).max())
    return [f"slices are shifted sideways by up to {shift:.1f} mm"] if shift > max(geometry.spacing_mm[1:]) else []
