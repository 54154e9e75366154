"""Onto the scan's pixels: the preprocessing run backwards, for every shape, spacing and field of view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from aggregate.explain.field import Field
from clear.card import EncoderCard, WeightSource
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.slices import prepare
from clear.volume import Volume, stack_geometry

CARD = EncoderCard(
    name="plain",
    architecture="timm:mambaout_femto",
    dim=8,
    source=WeightSource("file", "-"),
    trained_on="nothing",
    input_size=64,
    channels=1,
    mean=(0.0,),
    std=(1.0,),
    resize="bilinear",
    pooling="mean_norm",
)
# rows, columns, mm between rows, mm between columns, field of view in mm
GEOMETRIES = [
    (64, 64, 1.0, 1.0, None),
    (96, 60, 0.8, 0.8, None),
    (60, 97, 0.7, 0.7, None),
    (80, 80, 1.5, 0.5, None),
    (50, 120, 2.0, 0.75, None),
    (128, 128, 1.0, 1.0, 80.0),
    (121, 90, 0.9, 1.3, 70.0),
    (60, 70, 1.0, 1.0, 200.0),
    (90, 140, 1.7, 0.6, 75.5),
]


def scan(rows: int, columns: int, dy: float, dx: float, values: np.ndarray | None = None) -> Volume:
    plane = np.full((rows, columns), -1000) if values is None else values
    geometry = stack_geometry([[0, 0, 0], [0, 0, 5]], [1, 0, 0], [0, 1, 0], (rows, columns), (dy, dx))
    return Volume.from_stack(np.stack([plane, plane]).astype(np.int16), geometry, "CT")


@pytest.mark.parametrize(("rows", "columns", "dy", "dx", "field_mm"), GEOMETRIES)
def test_a_spot_comes_back_to_where_it_was(
    rows: int, columns: int, dy: float, dx: float, field_mm: float | None
) -> None:
    """A bright square is prepared as for an encoder, averaged to 16 x 16 cells, and laid back onto the scan."""
    card = replace(CARD, field_of_view_mm=field_mm)
    visible = min(rows * dy, columns * dx, field_mm or np.inf)
    side_mm = field_mm or max(rows * dy, columns * dx)
    cell_mm = side_mm / 16
    y, x = np.mgrid[:rows, :columns]
    for ty, tx in ((0.0, 0.0), (-0.3, 0.25), (0.22, -0.31)):
        cy, cx = (rows - 1) / 2 + ty * visible / dy, (columns - 1) / 2 + tx * visible / dx
        inside = (np.abs(y - cy) * dy <= 1.2 * cell_mm) & (np.abs(x - cx) * dx <= 1.2 * cell_mm)
        volume = scan(rows, columns, dy, dx, np.where(inside, 400, -1000))
        prepared = prepare(torch.from_numpy(volume.voxels[:1]), [(-1000, 400)], (dy, dx), card)
        grid = functional.avg_pool2d(prepared, 4)[0, 0].numpy()
        found = Field.of(volume, card).onto_scan(grid)
        assert found.shape == (rows, columns)
        true = np.array([(y[inside] * dy).mean(), (x[inside] * dx).mean()])
        centre = np.array([(found * y).sum() * dy, (found * x).sum() * dx]) / found.sum()
        assert np.abs(centre - true).max() < cell_mm / 2
        peak = np.unravel_index(found.argmax(), found.shape)
        assert inside[peak]


@pytest.mark.parametrize(("rows", "columns", "dy", "dx", "field_mm"), GEOMETRIES)
def test_it_is_torchs_interpolation_onto_the_square_with_the_slice_cut_out(
    rows: int, columns: int, dy: float, dx: float, field_mm: float | None
) -> None:
    field = Field.of(scan(rows, columns, dy, dx), replace(CARD, field_of_view_mm=field_mm))
    grid = np.random.default_rng(0).random((3, 7, 5))
    left, right, top, bottom = field.margins
    size = (rows + top + bottom, columns + left + right)
    square = functional.interpolate(torch.from_numpy(grid)[None], size, mode="bilinear", align_corners=False)[0]
    expected = functional.pad(square, (-left, -right, -top, -bottom)).numpy()
    np.testing.assert_allclose(field.onto_scan(grid), expected, atol=1e-6)


def test_pixels_that_the_encoder_never_saw_are_0_and_the_rest_of_an_even_map_is_even() -> None:
    field = Field.of(scan(100, 100, 1.0, 1.0), replace(CARD, field_of_view_mm=60.0))
    found = field.onto_scan(np.ones((4, 4)))
    assert (found[20:80, 20:80] == 1).all()
    found[20:80, 20:80] = 0
    assert not found.any()


def test_an_encoder_of_whole_volumes_has_no_slices_to_lay_a_map_onto() -> None:
    with pytest.raises(InputError, match="takes whole volumes"):
        Field.of(scan(10, 10, 1, 1), ENCODERS["ct-clip"])
