"""Whether the values of a CT are HU, from its headers and from its voxels, and which of them are padding.

A CT holds air or fat: values below 0. What cannot be HU is refused as `not_hu`; what may not be is used with a remark
that begins with "not HU?".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.errors import ScanRefused
from clear.formats.dicom_image import Image
from clear.formats.dicom_pixels import round_to_int16

TISSUE_HU = (-900, 1500)
FEWEST_HU = 100  # a CT whose values span less has no contrast that could be tissue
PERFUSION_MAPS = frozenset({"RCBF", "RCBV", "MTT", "TTP", "TMAX", "CBF", "CBV", "PERF"})


def check_rescale(images: Sequence[Image]) -> None:
    """Rescale must be usable, and a CT without it must at least be able to hold air."""
    for image in images:
        slope, intercept = image.header["slope"], image.header["intercept"]
        if slope == 0:
            raise ScanRefused(
                "bad_rescale",
                f"{image.file} has a RescaleSlope of 0, or one or a RescaleIntercept that is no number, so its values "
                "mean nothing. Export the series anew",
            )
        if image.record["modality"] == "CT" and slope is None and intercept is None and not image.record["signed"]:
            raise ScanRefused(
                "not_hu",
                f"{image.file} has no RescaleSlope and RescaleIntercept and stores no negative values, so they "
                "cannot be HU. Export the series with its rescale tags",
            )


def value_remarks(images: Sequence[Image]) -> list[str]:
    """What the headers say about the values: lossy compression, and CT values that may not be HU."""
    record = images[0].record
    remarks = ["lossy compression"] if any(image.record["lossy"] for image in images) else []
    frames = {image.record["frame_of_reference"] for image in images}
    if len(frames) > 1:
        remarks.append(f"{len(frames)} frames of reference in one series")
    if record["modality"] != "CT":
        return remarks
    if any(image.header["slope"] is None and image.header["intercept"] is None for image in images):
        remarks.append("no rescale tags: stored values are taken as HU")
    kind = record["rescale_type"]
    if kind not in ("", "HU", "US"):
        remarks.append(f"not HU? the rescale type is {kind}")
    if record["bits_stored"] <= 8:
        remarks.append(f"not HU? only {record['bits_stored']} bits are stored")
    elif not record["signed"] and all(image.rescale[1] >= 0 and image.rescale[0] > 0 for image in images):
        remarks.append("not HU? no value can be below 0")
    maps = [word for word in record["image_type"][2:] if "PERFUSION" in word or word in PERFUSION_MAPS]
    if maps:
        remarks.append(f"not HU? a computed map ({', '.join(maps)})")
    return remarks


def padding_hu(images: Sequence[Image]) -> tuple[NDArray[np.int16] | None, list[str]]:
    """Per image the HU that mean "outside the image", (n, 2); None when no header names any."""
    ranges = np.full((len(images), 2), (1, 0), dtype=np.int16)  # low > high: none
    ignored = 0
    for i, image in enumerate(images):
        stored = image.record["padding"]
        if stored is None:
            continue
        slope, intercept = image.rescale
        low, high = sorted(round_to_int16(np.array(stored) * float(slope) + intercept).tolist())
        if low <= TISSUE_HU[1] and high >= TISSUE_HU[0]:
            ignored += 1
            remark = f"PixelPaddingValue means {low} HU, which is tissue: ignored in"
            continue
        ranges[i] = low, high
    remarks = [f"{remark} {ignored} slice(s)"] if ignored else []
    return (ranges if (ranges[:, 0] <= ranges[:, 1]).any() else None), remarks


def check_values(stack: NDArray[Any], images: Sequence[Image]) -> list[str]:
    """A CT of real HU holds air or fat, below 0, and spans more than a few values."""
    low, high = int(stack.min()), int(stack.max())
    if low >= 0:
        if any(image.header["slope"] is None and image.header["intercept"] is None for image in images):
            raise ScanRefused(
                "not_hu",
                f"{images[0].file} and its series have no rescale tags and no value below 0 ({low} to {high}), so they "
                "cannot be HU. Export the series with its rescale tags",
            )
        return [f"not HU? values from {low} to {high}, none below 0"]
    return [f"not HU? values only from {low} to {high}"] if high - low < FEWEST_HU else []
