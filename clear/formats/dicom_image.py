"""One slice of a DICOM series: a frame of a file, with what its header says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clear.formats.dicom_header import Record


@dataclass(frozen=True)
class Image:
    """One slice: a frame of a file, with the geometry that its header gives it."""

    file: str
    record: Record
    frame: int

    @property
    def header(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record["slices"][self.frame]
        return found

    @property
    def rescale(self) -> tuple[float, float]:
        """Slope and intercept; (1, 0) where the header has none."""
        slope, intercept = self.header["slope"], self.header["intercept"]
        return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def images_of(records: Iterable[tuple[str, Record]]) -> list[Image]:
    """One image for each frame of each file."""
    return [Image(file, record, frame) for file, record in records for frame in range(len(record["slices"]))]
