from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clear.encoders import ENCODERS
from clear.slices import prepare, square_margins

CARD = replace(ENCODERS["mambaout-lecl"], input_size=224, mean=(0.0,) * 3, std=(1.0,) * 3)
WINDOW = (-175.0, 275.0)


def grey(slices: np.ndarray, card=CARD, spacing=(1.0, 1.0), limits=(WINDOW,), **settings) -> np.ndarray:
    return prepare(torch.from_numpy(slices), limits, spacing, card, **settings)[:, 0].numpy()


def noise(shape=(2, 96, 96)) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 300, shape).astype(np.int16)


@pytest.mark.parametrize(("resize", "pil"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("side", [64, 224])
def test_window_and_resize_equal_another_librarys(resize: str, pil: int, side: int) -> None:
    slices = noise()
    expected = []
    for values in slices:
        windowed = np.clip((values.astype(np.float64) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), 0, 1)
        image = Image.fromarray(windowed.astype(np.float32)).resize((side, side), pil)
        expected.append(np.clip(np.asarray(image), 0, 1))
    found = grey(slices, replace(CARD, resize=resize, input_size=side))
    assert np.abs(found - np.stack(expected)).max() < 2e-5


def test_instances_run_slice_by_slice_with_the_windows_inside() -> None:
    slices = noise((3, 224, 224))
    both = grey(slices, limits=(WINDOW, (-1500.0, 500.0)))
    assert len(both) == 6
    assert np.array_equal(both[0::2], grey(slices))
    assert np.array_equal(both[1::2], grey(slices, limits=((-1500.0, 500.0),)))


def test_a_slice_does_not_depend_on_its_neighbours() -> None:
    slices = noise((4, 100, 90))
    assert np.array_equal(grey(slices)[2], grey(slices[2:3])[0])


def test_a_wide_slice_becomes_square_with_air_above_and_below() -> None:
    slices = np.full((1, 50, 100), 40, np.int16)
    image = grey(slices, replace(CARD, input_size=100))[0]
    assert np.allclose(image[26:74], (40 + 175) / 450, atol=1e-6)
    assert np.allclose(image[:24], 0)
    assert np.allclose(image[76:], 0)
    in_lung = grey(slices, replace(CARD, input_size=100), limits=((-1500.0, 500.0),))[0]
    assert np.allclose(in_lung[:24], 0.25)  # -1000 HU is a quarter of the way from -1500 to 500


def test_square_means_square_in_millimetres() -> None:
    assert square_margins((512, 512), (0.7, 0.7), None) == (0, 0, 0, 0)
    assert square_margins((50, 100), (2.0, 1.0), None) == (0, 0, 0, 0)
    assert square_margins((50, 100), (1.0, 1.0), None) == (0, 0, 25, 25)
    assert square_margins((100, 100), (1.0, 1.0), 60.0) == (-20, -20, -20, -20)
    disc = (np.hypot(*np.mgrid[-30:31, -60:61] / [[[1]], [[2]]]) < 20).astype(np.int16) * 500 - 200
    image = grey(disc[None], replace(CARD, input_size=61), spacing=(2.0, 1.0))[0] > 0.5
    assert abs(int(image.any(0).sum()) - int(image.any(1).sum())) <= 1  # an ellipse in pixels, a circle in millimetres


def test_a_field_of_view_cuts_the_centre() -> None:
    slices = noise((1, 120, 120))
    whole = grey(slices[:, 30:90, 30:90], replace(CARD, input_size=60))
    cut = grey(slices, replace(CARD, input_size=60, field_of_view_mm=30.0), spacing=(0.5, 0.5))
    assert np.array_equal(whole, cut)


def test_stored_padding_is_painted_as_air_where_the_slice_has_some() -> None:
    slices = np.full((2, 224, 224), 100, np.int16)
    slices[:, :10] = 60
    padding = torch.tensor([[60, 60], [1, 0]], dtype=torch.int16)
    image = grey(slices, padding=padding)
    assert np.allclose(image[0, :10], 0)
    assert np.allclose(image[1, :10], (60 + 175) / 450)
    assert np.allclose(image[:, 10:], (100 + 175) / 450)


def test_mean_and_std_are_applied_per_channel_last() -> None:
    card = replace(CARD, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = prepare(torch.from_numpy(noise((1, 224, 224))), [WINDOW], (1, 1), card)
    plain = prepare(torch.from_numpy(noise((1, 224, 224))), [WINDOW], (1, 1), CARD)
    for channel in range(3):
        expected = (plain[:, channel] - card.mean[channel]) / card.std[channel]
        assert torch.allclose(x[:, channel], expected, atol=1e-6)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_one_channel_cards_get_one_channel() -> None:
    card = replace(CARD, channels=1, mean=(0.5,), std=(0.25,))
    assert prepare(torch.from_numpy(noise()), [WINDOW], (1, 1), card).shape == (2, 1, 224, 224)
