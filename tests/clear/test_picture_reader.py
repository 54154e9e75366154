"""Pictures of slices of many scans, by one process or by several."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from clear.picture_reader import (
    NOT_THERE,
    OTHER_VOXELS,
    READ,
    REFUSED,
    Job,
    _as_data,
    _job,
    answer,
    read_pictures,
)
from clear.pictures import grey
from clear.scans import Scan, find_scans, read_volume
from clear.windows import ABDOMEN, LUNG, PERCENTILE

ROOM = 20_000


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Scan]:
    """Eight scans of smooth values."""
    folder = tmp_path_factory.mktemp("scans")
    y, x = np.mgrid[0:40, 0:40]
    for i in range(8):
        values = np.stack([400 * np.sin((x + z) / 9 + i) - 300 * np.cos(y / 7) for z in range(5)])
        image = SimpleITK.GetImageFromArray(values.astype(np.int16))
        image.SetSpacing((1.0, 1.0, 2.5))
        SimpleITK.WriteImage(image, str(folder / f"s{i}.mha"))
    return find_scans(folder, modality="CT", cache=False)


def job(scan: Scan, **changes: object) -> Job:
    asked = Job((scan,), read_volume(scan).digest, ((1, ABDOMEN), (4, LUNG), (2, PERCENTILE)), ROOM)
    return replace(asked, **changes)  # type: ignore[arg-type]


def test_each_picture_shows_its_slice_in_its_window(scans: list[Scan]) -> None:
    found = answer(job(scans[3]))
    volume = read_volume(scans[3])
    assert found.outcome == READ
    for picture, (slice, window) in zip(found.pictures, job(scans[3]).wanted, strict=True):
        assert picture is not None
        image = np.asarray(Image.open(io.BytesIO(picture)).convert("L"), dtype=float)
        assert np.abs(image - grey(volume, slice, window)).mean() < 4  # lossy


def test_several_processes_give_the_answers_of_one_in_the_same_order(scans: list[Scan]) -> None:
    jobs = [job(scan) for scan in scans]
    assert read_pictures(jobs) == read_pictures(jobs, readers=1)
    assert len({found.pictures for found in read_pictures(jobs)}) == len(jobs)


def test_the_first_scan_with_the_right_voxels_is_taken(scans: list[Scan]) -> None:
    asked = job(scans[0])
    assert answer(replace(asked, scans=(scans[1], scans[0]))) == answer(asked)


def test_what_cannot_be_shown_says_why(scans: list[Scan]) -> None:
    assert answer(job(scans[0], scans=())).outcome == NOT_THERE
    assert answer(job(scans[0], scans=(scans[1],))).outcome == OTHER_VOXELS
    gone = replace(scans[0], files=("gone.mha",), source="gone.mha")
    assert answer(job(scans[0], scans=(gone,))) == replace(answer(job(scans[0], scans=())), outcome=REFUSED)


@pytest.mark.parametrize("room", [ROOM, 400, 10])
def test_a_picture_is_as_large_as_its_room_allows(scans: list[Scan], room: int) -> None:
    pictures = answer(job(scans[0], room=room)).pictures
    assert all(picture is None or len(picture) <= room for picture in pictures)
    assert any(pictures) == (room > 10)


def test_a_job_survives_its_way_to_another_process(scans: list[Scan]) -> None:
    single = replace(scans[0], spacing_mm=(float("nan"), 1.0, 1.0))
    asked = job(scans[0], scans=(single, scans[1]))
    arrived = _job(json.loads(json.dumps(_as_data(asked))))
    assert arrived == asked
    assert [scan.root for scan in arrived.scans] == [scan.root for scan in asked.scans]
    assert isinstance(arrived.scans[0].root, Path)
