from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clear.encoders import ENCODERS
from clear.pictures import (
    MAX_SIDE,
    data_uri,
    encoded,
    grey,
    pixel_mm,
    resized_to_square_pixels,
    settled,
)
from clear.slices import prepare
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, LUNG, PERCENTILE, Window


def volume_of(voxels: np.ndarray, spacing=(1.0, 1.0), modality="CT", row=(1, 0, 0), column=(0, 1, 0), padding=None):
    """A volume whose slices lie 2 mm apart along the normal of the given directions."""
    normal = np.cross(row, column)
    positions = np.arange(len(voxels))[:, None] * 2.0 * normal
    stack = voxels.astype(np.int16 if modality == "CT" else np.float32)
    geometry = stack_geometry(positions, row, column, stack.shape[1:], spacing, 2.0)
    return Volume.from_stack(stack, geometry, modality, padding=padding)


def noise(shape=(3, 64, 64)) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 400, shape)


def decoded(webp: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(webp)).convert("L"))


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("window", [ABDOMEN, LUNG, PERCENTILE])
@pytest.mark.parametrize("padded", [False, True])
def test_a_picture_shows_the_values_that_the_encoder_gets(modality: str, window: Window, padded: bool) -> None:
    padding = np.array([[-50, 50], [1, 0], [200, 200]], np.int16) if padded else None
    volume = volume_of(noise(), modality=modality, padding=padding)
    card = replace(ENCODERS["mambaout-lecl"], input_size=64, mean=(0.0,) * 3, std=(1.0,) * 3)
    prepared = prepare(
        torch.from_numpy(volume.voxels),
        [window.limits(volume.voxels)],
        (1.0, 1.0),
        card,
        is_ct=modality == "CT",
        padding=None if padding is None else torch.from_numpy(padding),
    )
    for z in range(3):
        expected = np.floor(prepared[z, 0].numpy() * 255 + 0.5)
        assert len(np.unique(expected)) > 50
        assert np.array_equal(grey(volume, z, window), expected)


def test_stored_padding_is_painted_as_air() -> None:
    volume = volume_of(np.full((1, 8, 8), 100), padding=np.array([[100, 100]], np.int16))
    assert (grey(volume, 0, LUNG) == round(255 * 0.25)).all()  # -1000 HU in -1500..500


def test_values_that_are_no_number_are_black() -> None:
    volume = volume_of(noise(), modality="MR")
    volume.voxels[0, :8] = np.nan
    image = grey(volume, 0, LUNG)
    assert (image[:8] == 0).all()
    assert image[8:].min() > 0


@pytest.mark.parametrize(
    ("spacing", "shape"), [((2.0, 1.0), (96, 61)), ((0.5, 1.25), (48, 152)), ((1.0, 1.0), (48, 61))]
)
def test_pixels_become_square_at_the_finer_spacing(spacing: tuple[float, float], shape: tuple[int, int]) -> None:
    volume = volume_of(np.zeros((1, 48, 61)), spacing)
    assert grey(volume, 0, ABDOMEN).shape == shape
    assert pixel_mm(volume) == min(spacing)
    assert resized_to_square_pixels(np.zeros((48, 61)), spacing).shape == shape


def test_a_ball_is_round_in_the_picture_and_lies_where_an_overlay_puts_it() -> None:
    spacing = (2.5, 0.5)
    rows, columns = np.mgrid[:40, :200]
    inside = np.hypot((rows - 12) * spacing[0], (columns - 130) * spacing[1]) < 20
    volume = volume_of(np.where(inside, 1000, -1000)[None], spacing)
    image = grey(volume, 0, ABDOMEN) > 127
    height, width = int(image.any(1).sum()), int(image.any(0).sum())
    assert abs(height - 80) <= 5  # 40 mm in pixels of 0.5 mm, to a stored row
    assert abs(width - 80) <= 2
    overlay = resized_to_square_pixels(inside.astype(np.float64), spacing)
    assert overlay.dtype == np.float32
    for axis in (0, 1):
        where = np.arange(image.shape[axis])
        centres = [np.average(where, weights=mask.sum(1 - axis)) for mask in (image.astype(float), overlay)]
        assert abs(centres[0] - centres[1]) < 0.2


def test_an_overlay_on_square_pixels_is_left_as_it_is() -> None:
    plane = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    assert np.array_equal(resized_to_square_pixels(plane, (0.7, 0.7)), plane)
    mass = resized_to_square_pixels(plane, (2.1, 0.7))
    assert mass.min() >= plane.min()
    assert mass.max() <= plane.max()


@pytest.mark.parametrize(
    ("plane", "row", "column"),
    [("axial", (1, 0, 0), (0, 1, 0)), ("sagittal", (0, 1, 0), (0, 0, -1)), ("coronal", (1, 0, 0), (0, 0, -1))],
)
@pytest.mark.parametrize("swap", [False, True])
def test_a_picture_keeps_the_planes_orientation_however_it_was_stored(plane, row, column, swap: bool) -> None:
    """The mark lies near the end of the rows and the start of the columns: low on the left of the picture."""
    stored = np.full((2, 40, 30), -1000)
    stored[:, 30:36, 2:8] = 1000
    if swap:
        volume = volume_of(stored.transpose(0, 2, 1)[:, ::-1], row=column, column=-np.asarray(row))
    else:
        volume = volume_of(stored, row=row, column=column)
    assert volume.plane == plane
    image = grey(volume, 0, ABDOMEN)
    assert image.shape == (40, 30)
    assert (image[30:36, 2:8] == 255).all()
    assert int((image > 0).sum()) == 36


def test_a_side_bounds_the_picture_and_never_enlarges_it() -> None:
    volume = volume_of(noise((1, 120, 300)), (2.0, 1.0))
    assert grey(volume, 0, ABDOMEN, side=150).shape == (120, 150)
    assert grey(volume, 0, ABDOMEN, side=5000).shape == (240, 300)
    isotropic = volume_of(noise((1, 120, 300)))
    small = grey(isotropic, 0, ABDOMEN, side=150)
    assert np.array_equal(decoded(encoded(grey(isotropic, 0, ABDOMEN), side=150)), decoded(encoded(small)))
    assert decoded(encoded(small, side=1000)).shape == small.shape


def test_spacings_far_apart_do_not_make_a_giant() -> None:
    volume = volume_of(np.zeros((1, 64, 64)), (50.0, 0.001))
    image = grey(volume, 0, ABDOMEN)
    assert image.shape == (MAX_SIDE, 1)
    assert pixel_mm(volume) == pytest.approx(64 * 50 / MAX_SIDE)
    assert resized_to_square_pixels(np.zeros((64, 64)), (50.0, 0.001)).shape == image.shape


def test_settled_windows_give_the_same_pictures() -> None:
    volume = volume_of(noise(), modality="MR")
    (window,) = settled(volume, [PERCENTILE])
    assert window.kind == "range"
    assert np.array_equal(grey(volume, 1, window), grey(volume, 1, PERCENTILE))


def test_webp_keeps_what_the_eye_sees_in_grey_and_colour() -> None:
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))
    assert np.abs(decoded(encoded(ramp, quality=90)).astype(int) - ramp).mean() < 3
    red = np.zeros((40, 50, 3), np.uint8)
    red[..., 0] = 200
    back = np.asarray(Image.open(io.BytesIO(encoded(red))).convert("RGB"))
    assert back.shape == red.shape
    assert np.abs(back.astype(int) - red).max() < 12
    assert encoded(ramp) == encoded(ramp)


def test_a_data_uri_holds_the_picture() -> None:
    webp = encoded(np.zeros((4, 4), np.uint8))
    head, _, text = data_uri(webp).partition(",")
    assert head == "data:image/webp;base64"
    assert base64.b64decode(text) == webp
