"""Several images at one position: copies of one image, or several volumes in one series."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear.errors import ScanRefused
from clear.formats.dicom_header import VOLUME_ATTRIBUTES
from clear.formats.dicom_image import Image
from clear.formats.dicom_stack import Stack, stack_of
from clear.volume import EVEN_GAPS_TOLERANCE, SAME_POSITION_MM

SameImage = Callable[["Image", "Image"], bool]
"""Whether two files hold the same pixels; reads them."""


def without_duplicates(images: list[Image], same_image: SameImage) -> tuple[list[Image], list[str]]:
    """Each image once. Images at one position that differ all stay: what they are is decided by `_split`."""
    dropped: list[Image] = []
    several = False  # volumes in this series: then only copies with one SOPInstanceUID are worth a comparison
    for cluster in _clusters(images):
        kept: list[Image] = []
        for image in cluster:
            uid = image.record["sop_uid"]
            rivals = [other for other in kept if uid and other.record["sop_uid"] == uid] or ([] if several else kept)
            if any(_is_copy(other, image, same_image) for other in rivals):
                dropped.append(image)
                continue
            kept.append(image)
            several = several or len(kept) > 1
    files = sorted({image.file for image in dropped})
    remarks = [f"{len(files)} duplicate file(s) left out, the first {files[0]}"] if files else []
    gone = {id(image) for image in dropped}
    return [image for image in images if id(image) not in gone], remarks


def _is_copy(a: Image, b: Image, same_image: SameImage) -> bool:
    """The same picture at the same place in another file."""
    same_place = a.header["position"] == b.header["position"] and a.rescale == b.rescale
    return same_place and a.frame == b.frame and a.file != b.file and same_image(a, b)


def _clusters(images: Sequence[Image]) -> list[list[Image]]:
    """Images by position along the normal; each cluster holds those that share one."""
    z_mm = _z_mm(images)
    order = np.argsort(z_mm, kind="stable")
    clusters: list[list[Image]] = []
    last = -np.inf
    for i in order:
        if clusters and z_mm[i] - last < SAME_POSITION_MM:
            clusters[-1].append(images[i])
        else:
            clusters.append([images[i]])
        last = z_mm[i]
    return clusters


def _z_mm(images: Sequence[Image]) -> NDArray[np.float64]:
    orientation = images[0].header["orientation"]
    normal = np.cross(orientation[:3], orientation[3:])
    length = np.linalg.norm(normal)
    positions = np.array([image.header["position"] for image in images], dtype=np.float64)
    found: NDArray[np.float64] = positions @ (normal / length if length else normal)
    return found


def split(images: list[Image]) -> list[Stack]:
    """Several volumes in one series, told apart by one attribute; [] when it is one volume.

    Raises ScanRefused when there are several, but nothing in the headers separates them.
    """
    z_mm = np.sort(_z_mm(images))
    gaps = np.diff(z_mm)
    if len(gaps) == 0 or (gaps < SAME_POSITION_MM).all():
        return []  # one slice, or `not_a_volume`, as stack_geometry will say
    crowded = bool((gaps < SAME_POSITION_MM).any())
    if not crowded and _even(gaps):
        return []
    found = next((s for name in VOLUME_ATTRIBUTES if (s := _split_by(images, name, crowded))), None)
    if not crowded and not found:
        return []
    if any(image.record["frames"] > 1 for image in images):
        what = (
            f"{len(found)} volumes, told apart by {found[0].suffix[1:].split('=')[0]}" if found else "several volumes"
        )
        raise ScanRefused(
            "several_volumes",
            f"{images[0].file} holds {what} (time points, echoes or b-values) in one multi-frame image; "
            "export each as a series of its own",
        )
    if found:
        return found
    a, b = next(cluster for cluster in _clusters(images) if len(cluster) > 1)[:2]
    raise ScanRefused(
        "duplicate_positions",
        f"{a.file} and {b.file} are different images at one position ({_z_mm([a])[0]:.2f} mm), and no attribute "
        "tells their volumes apart; sort them into series of their own",
    )


def _split_by(images: list[Image], attribute: str, crowded: bool) -> list[Stack]:
    """Stacks by the value of one attribute, if each of them is a clean volume; else []."""
    groups: dict[str, list[Image]] = defaultdict(list)
    values: dict[str, Any] = {}
    for image in images:
        value = image.header["split"].get(attribute)
        if value is None:
            return []
        word = header_word(value)
        if values.setdefault(word, value) != value:
            return []
        groups[word].append(image)
    if len(groups) < 2 or min(map(len, groups.values())) < (2 if crowded else 3):
        return []
    sorted_z = {word: np.sort(_z_mm(group)) for word, group in groups.items()}
    if any((np.diff(z) < SAME_POSITION_MM).any() for z in sorted_z.values()):
        return []
    if not crowded and not _interleaved(list(sorted_z.values())):
        return []
    stacks = []
    for word, group in sorted(groups.items()):
        stack = stack_of(group)
        remark = f"one of {len(groups)} volumes in this series, told apart by {attribute} (here {values[word]})"
        stacks.append(Stack(stack.images, stack.geometry, (remark, *stack.remarks), f"#{attribute}={word}"))
    return stacks


def _interleaved(stacks: list[NDArray[np.float64]]) -> bool:
    """Whether evenly spaced stacks overlap, so that merging them would mix two acquisitions."""
    if not all(_even(np.diff(z)) for z in stacks):
        return False
    spans = sorted((z[0], z[-1]) for z in stacks)
    return any(b[0] < a[1] for a, b in itertools.pairwise(spans))


def _even(gaps: NDArray[np.float64]) -> bool:
    median = np.median(gaps)
    return bool(np.abs(gaps - median).max() <= EVEN_GAPS_TOLERANCE * median)


def header_word(value: object) -> str:
    """A header value as part of an id: letters, digits, dot and minus."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[:64]
