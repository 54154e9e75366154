"""From records of files to series: which images belong together, in which order, and what is wrong with them.

The rules, in the order in which they apply to the images that share a SeriesInstanceUID:

====================================  =====================================================================
localizer, report, mask, ...          set aside by name; among usable images they are left out with a remark
truncated or damaged file             the whole series is refused, unless an intact copy of the image is there
several patients, modalities          refused: `mixed_patients`, `mixed_modality`
no position, orientation or spacing   refused: `no_geometry`
orientation, matrix, spacing differ   refused: `mixed_orientation`, `mixed_matrix`, `mixed_spacing`
the same image twice                  one is kept, with a remark
all images at one position            refused: `not_a_volume` (bolus tracking)
several images at one position, or    one scan for each value of the first attribute in VOLUME_ATTRIBUTES that
two interleaved stacks                tells clean volumes apart, `UID#EchoTime=4.6`, with a remark; else refused:
                                      `duplicate_positions`. In multi-frame files refused: `several_volumes`
order                                 by position along the normal; InstanceNumber is never looked at
tilt, uneven or missing slices        used, with a remark
rescale of 0 or no number             refused: `bad_rescale`
CT without rescale tags               refused `not_hu` when unsigned, else used with a remark
====================================  =====================================================================
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from clear.errors import ScanRefused
from clear.formats import MAX_VOLUME_BYTES
from clear.formats.dicom_header import Record
from clear.formats.dicom_hu import check_rescale, value_remarks
from clear.formats.dicom_image import Image, images_of
from clear.formats.dicom_split import SameImage, header_word, split, without_duplicates
from clear.formats.dicom_stack import Stack, check_parallel, stack_of

MAX_ID_LENGTH = 128


def group_series(records: Iterable[tuple[str, Record]]) -> dict[str, list[tuple[str, Record]]]:
    """Files by scan_id: the SeriesInstanceUID, whatever folder they lie in.

    A file without one belongs with those of the same folder, study and series number; a file whose header cannot be
    read is alone. Their ids are paths then.
    """
    groups: dict[str, list[tuple[str, Record]]] = defaultdict(list)
    for file, record in records:
        if record["kind"] != "directory":
            groups[_series_id(file, record)].append((file, record))
    return {key: sorted(group, key=lambda pair: pair[0]) for key, group in sorted(groups.items())}


def stacks_of(records: Sequence[tuple[str, Record]], same_image: SameImage) -> list[Stack]:
    """The volumes of one series, from records without a problem. Raises ScanRefused with the rule that it breaks."""
    images = images_of(records)
    _check_one(images, "patient_id", "mixed_patients", "patients")
    _check_one(images, "modality", "mixed_modality", "modalities")
    _check_size(images)
    check_parallel(images)
    check_rescale(images)
    images, remarks = without_duplicates(images, same_image)
    stacks = split(images) or [stack_of(images)]
    return [
        Stack(s.images, s.geometry, tuple(dict.fromkeys([*remarks, *s.remarks, *value_remarks(s.images)])), s.suffix)
        for s in stacks
    ]


def _series_id(file: str, record: Record) -> str:
    uid = record.get("series_uid", "")
    if uid:
        plain = len(uid) <= MAX_ID_LENGTH and "/" not in uid and "\\" not in uid
        return uid if plain else "uid-" + hashlib.sha256(uid.encode()).hexdigest()[:32]
    if record["kind"] != "image" or record["aside"] or record["problem"]:
        return file
    folder = PurePosixPath(file).parent.as_posix()
    number = header_word(record["series_number"]) or "none"
    study = hashlib.sha256(f"{record['study_uid']}|{record['patient_id']}".encode()).hexdigest()[:8]
    return f"{'' if folder == '.' else folder + '/'}series-{number}-{study}"


def _check_one(images: Sequence[Image], key: str, reason: str, what: str) -> None:
    first: dict[Any, str] = {}
    for image in images:
        first.setdefault(image.record[key], image.file)
    if len(first) > 1:
        a, b = list(first.values())[:2]
        raise ScanRefused(
            reason, f"{a} and {b} have one SeriesInstanceUID, but are of different {what}; give each its own"
        )


def _check_size(images: Sequence[Image]) -> None:
    total = sum(image.record["rows"] * image.record["columns"] for image in images)
    total *= 2 if images[0].record["modality"] == "CT" else 4
    if total > MAX_VOLUME_BYTES:
        raise ScanRefused(
            "too_large",
            f"{images[0].file} and its series say {len(images)} slices, {total / 2**30:.0f} GiB in memory; "
            f"at most {MAX_VOLUME_BYTES >> 30} GiB are read",
        )


def most_common(words: Iterable[str]) -> str:
    """The most frequent word, the first in the alphabet among equals."""
    counts = Counter(words)
    return min(counts, key=lambda word: (-counts[word], word))
