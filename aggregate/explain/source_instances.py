"""Which DICOM instance and frame each slice of a volume came from.

A `Volume` is reached from its files by sorting, flips and a transposition. This module makes the same steps from the
headers alone, with the reader's own functions, and keeps what is needed to go back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear.errors import InputError, ScanRefused
from clear.formats.dicom_header import read_record
from clear.formats.dicom_image import Image, images_of
from clear.formats.dicom_stack import geometry_of
from clear.scans import Scan
from clear.volume import Geometry, Volume

SAME_PLACE_MM = 1e-3  # a header read twice gives the same numbers; anything else is another scan


@dataclass(frozen=True)
class Source:
    """The stored images of one scan, in canonical slice order.

    images: one a slice, with its file, its frame in it and its header; geometry: how the stored images, in the order
    of the scan's files, become the volume.
    """

    images: tuple[Image, ...]
    geometry: Geometry

    @property
    def instances(self) -> list[tuple[str, int | None]]:
        """(SOPInstanceUID, number of the frame counted from 1, None in a single-frame image) of each slice.

        "" where the file has no SOPInstanceUID.
        """
        return [
            (image.record["sop_uid"], image.frame + 1 if image.record["frames"] > 1 else None) for image in self.images
        ]

    def stored(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Canonical (Z, Y, X) as the images' own (Z, rows, columns), still in canonical slice order.

        The inverse of the flips and the transposition of `Geometry.apply`; no value changes.
        """
        if self.geometry.flip_columns:
            values = values[:, :, ::-1]
        if self.geometry.flip_rows:
            values = values[:, ::-1]
        return values.swapaxes(1, 2) if self.geometry.transpose else values


def source_of(scan: Scan, volume: Volume | None = None) -> Source:
    """The stored images behind a DICOM scan, from the headers of its files.

    volume: if given, must lie where the files say. Raises InputError for a scan that is no DICOM, whose files are gone
    or changed, or that is not the volume's.
    """
    if scan.format != "dicom":
        raise InputError(
            f"{scan.source}: a {scan.format or 'file'} scan has no DICOM instances to refer to. Write NIfTI instead, "
            "or explain the DICOM series that it was made from"
        )
    images: list[Image] = []
    for file, path in zip(scan.files, scan.paths, strict=True):
        try:
            record = read_record(path)
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror or 'I/O error'}). List them again") from None
        if record is None or record["kind"] != "image" or record["problem"]:
            raise InputError(f"{file}: was a DICOM image when the scans were listed and is none now. List them again")
        images += images_of([(file, record)])
    if len(images) != scan.n_slices:
        raise InputError(f"{scan.source}: now {len(images)} slices, {scan.n_slices} when listed. List the scans again")
    try:
        geometry = geometry_of(images)
    except ScanRefused as refusal:
        raise InputError(f"{scan.source}: {refusal}") from None
    source = Source(tuple(images[i] for i in geometry.order), geometry)
    if volume is not None and not _same_place(geometry, volume, source.images[0]):
        raise InputError(
            f"{scan.source}: the volume does not lie where this series lies, so it was not read from it. Give the "
            "series that the volume was read from"
        )
    return source


def _same_place(geometry: Geometry, volume: Volume, image: Image) -> bool:
    rows, columns = image.record["rows"], image.record["columns"]
    shape = (len(geometry.order), *((columns, rows) if geometry.transpose else (rows, columns)))
    return volume.voxels.shape == shape and all(
        np.allclose(a, b, rtol=0, atol=SAME_PLACE_MM)
        for a, b in (
            (geometry.positions_mm, volume.positions_mm),
            (geometry.row_direction, volume.row_direction),
            (geometry.column_direction, volume.column_direction),
            (geometry.spacing_mm[1:], volume.spacing_mm[1:]),
        )
    )
