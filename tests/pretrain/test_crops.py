from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.crops import BODY_HU, Crop, body_crop, body_share, cut, lesion_crop, random_crop, whole_square

spacings = st.tuples(st.floats(0.3, 5.0), st.floats(0.3, 5.0))
shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))
seeds = st.integers(0, 2**32 - 1)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray:
    """A box inside a slice, often at its border, sometimes of one pixel, sometimes between pixels."""
    ends = []
    for n in shape:
        low = draw(st.sampled_from([0, n - 1]) | st.integers(0, n - 1))
        high = draw(st.sampled_from([low + 1, n]) | st.integers(low + 1, n))
        inset = draw(st.sampled_from([0.0, 0.25]))
        ends.append((low + inset, high - inset))
    return np.array([ends[0][0], ends[1][0], ends[0][1], ends[1][1]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_whole_square_is_that_of_extraction() -> None:
    assert whole_square((512, 512), (0.7, 0.7)) == Crop(0, 0, 512, 512)
    assert whole_square((50, 100), (1.0, 1.0)) == Crop(-25, 0, 100, 100)
    assert whole_square((50, 100), (2.0, 1.0)) == Crop(0, 0, 50, 100)
    assert whole_square((100, 100), (1.0, 1.0), field_of_view_mm=60) == Crop(20, 20, 60, 60)
    assert whole_square((100, 100), (1.0, 1.0), field_of_view_mm=120) == Crop(-10, -10, 120, 120)


@settings(deadline=None)
@given(shapes, spacings, st.floats(0.01, 1), st.booleans(), st.none() | st.floats(5, 200), seeds)
def test_random_crops_lie_in_the_square_and_are_square_in_millimetres(
    shape: tuple[int, int],
    spacing: tuple[float, float],
    share: float,
    squeezed: bool,
    field_mm: float | None,
    seed: int,
) -> None:
    square = whole_square(shape, spacing, field_mm)
    crop = random_crop(square, shape, spacing, (share, 1.0), (0.5, 2.0) if squeezed else (1.0, 1.0), rng(seed))
    assert square.top <= crop.top
    assert crop.bottom <= square.bottom
    assert square.left <= crop.left
    assert crop.right <= square.right
    if not squeezed:
        off = abs(crop.height * spacing[0] - crop.width * spacing[1])
        assert off <= max(spacing) + 1e-6  # half a pixel along each axis; a single pixel is as long as it is
    for start, length, n, first, end in (
        (crop.top, crop.height, shape[0], square.top, square.bottom),
        (crop.left, crop.width, shape[1], square.left, square.right),
    ):
        visible = min(end, n) - max(first, 0)
        seen = min(start + length, n) - max(start, 0)
        assert seen == min(length, visible)  # no more air than it must show


def test_random_crops_take_the_share_of_the_area_they_are_asked_for() -> None:
    square = whole_square((400, 200), (0.5, 1.0))  # 200 x 200 mm
    draw = rng()
    crops = [random_crop(square, (400, 200), (0.5, 1.0), (0.2, 0.6), (1.0, 1.0), draw) for _ in range(2000)]
    shares = np.array([c.height * 0.5 * c.width / 200**2 for c in crops])
    assert shares.min() == pytest.approx(0.2, abs=0.01)
    assert shares.max() == pytest.approx(0.6, abs=0.01)
    assert shares.mean() == pytest.approx(0.4, abs=0.01)
    tops = np.array([c.top / (400 - c.height) for c in crops])
    assert np.histogram(tops, bins=4, range=(0, 1))[0] / 2000 == pytest.approx([0.25] * 4, abs=0.04)


def test_random_crops_reach_both_ends_of_the_aspects() -> None:
    square = whole_square((300, 300), (1.0, 1.0))
    draw = rng()
    crops = [random_crop(square, (300, 300), (1.0, 1.0), (0.1, 0.3), (3 / 4, 4 / 3), draw) for _ in range(1000)]
    aspects = np.array([c.width / c.height for c in crops])
    assert aspects.min() == pytest.approx(3 / 4, abs=0.02)
    assert aspects.max() == pytest.approx(4 / 3, abs=0.02)
    assert np.log(aspects).mean() == pytest.approx(0, abs=0.02)


def test_an_aspect_that_never_fits_shows_the_whole_square() -> None:
    square = whole_square((60, 60), (1.0, 1.0))
    assert random_crop(square, (60, 60), (1.0, 1.0), (1.0, 1.0), (1.5, 1.5), rng()) == square


@settings(deadline=None)
@given(st.data(), shapes, spacings, st.floats(1, 300), st.sampled_from([0.0, 10.0]) | st.floats(0, 40), st.floats(0, 1))
def test_a_lesion_crop_contains_the_box_and_its_margin(
    data: st.DataObject,
    shape: tuple[int, int],
    spacing: tuple[float, float],
    side_mm: float,
    margin_mm: float,
    jitter: float,
) -> None:
    box = data.draw(boxes(shape))
    crop = lesion_crop(box, spacing, side_mm, margin_mm, jitter, rng(data.draw(seeds)))
    margin = np.array([margin_mm / spacing[0], margin_mm / spacing[1]])
    assert crop.contains(box)
    assert crop.contains(np.concatenate([box[:2] - margin, box[2:] + margin]))
    assert not crop.contains(box + np.array([0, 0, crop.height, 0]))
    mapped = crop.map_boxes(box, 64)[0]
    assert mapped.min() >= 0
    assert mapped.max() <= 64
    if jitter == 0:
        for centre, start, length in (
            ((box[0] + box[2]) / 2, crop.top, crop.height),
            ((box[1] + box[3]) / 2, crop.left, crop.width),
        ):
            assert abs(centre - (start + length / 2)) <= 1


@settings(deadline=None)
@given(st.data(), shapes, spacings, st.floats(1, 300), st.floats(0, 40))
def test_a_lesion_crop_is_no_larger_than_it_must_be(
    data: st.DataObject, shape: tuple[int, int], spacing: tuple[float, float], side_mm: float, margin_mm: float
) -> None:
    box = data.draw(boxes(shape))
    crop = lesion_crop(box, spacing, side_mm, margin_mm, 0.0, rng())
    needed = max((box[2 + axis] - box[axis]) * spacing[axis] + 2 * margin_mm + 2 * spacing[axis] for axis in (0, 1))
    for axis, length in enumerate((crop.height, crop.width)):
        assert length * spacing[axis] <= max(side_mm, needed) + spacing[axis] + 1e-6
        assert length * spacing[axis] >= side_mm - spacing[axis] / 2 - 1e-6


@pytest.mark.parametrize(
    ("box", "crop"),
    [
        ((40, 30, 60, 60), Crop(30, 25, 40, 40)),  # 40 mm around the centre (50, 45)
        ((0, 0, 4, 4), Crop(-18, -18, 40, 40)),  # the image's corner: beyond it is air
        ((99, 99, 100, 100), Crop(80, 80, 40, 40)),  # one pixel
        ((10, 20, 70, 40), Crop(5, -5, 70, 70)),  # longer than 40 mm: grown to 60 + 2 x 5
    ],
)
def test_lesion_crops_centre_on_the_box_and_grow_with_it(box: tuple[float, ...], crop: Crop) -> None:
    assert lesion_crop(np.array(box, float), (1.0, 1.0), 40.0, 5.0, 0.0, rng()) == crop


def test_lesion_crops_are_square_at_the_true_spacing() -> None:
    crop = lesion_crop(np.array([20.0, 30, 22, 34]), (2.0, 0.5), 60.0, 5.0, 0.0, rng())
    assert (crop.height, crop.width) == (30, 120)
    assert (crop.top + 15, crop.left + 60) == (21, 32)


def test_jitter_moves_the_box_over_all_the_room_there_is() -> None:
    draw = rng()
    box = np.array([50.0, 50, 60, 60])
    starts = [lesion_crop(box, (1.0, 1.0), 50.0, 5.0, 1.0, draw).top for _ in range(500)]
    assert min(starts) == 15  # 5 mm below the box end the crop
    assert max(starts) == 45
    half = [lesion_crop(box, (1.0, 1.0), 50.0, 5.0, 0.5, draw).top for _ in range(500)]
    assert min(half) in (22, 23)  # half of the 15 mm to either side
    assert max(half) in (37, 38)


def test_a_cut_copies_what_is_there_and_is_air_beyond() -> None:
    hu = np.arange(30, dtype=np.int16).reshape(5, 6)
    inside = cut(hu, Crop(1, 2, 3, 3))
    assert np.array_equal(inside, hu[1:4, 2:5])
    inside[:] = 0
    assert hu[1, 2] == 8
    beyond = cut(hu, Crop(-1, 4, 3, 4))
    assert np.array_equal(beyond, [[-1000] * 4, [4, 5, -1000, -1000], [10, 11, -1000, -1000]])
    assert (cut(hu, Crop(7, 0, 2, 2)) == -1000).all()


@settings(deadline=None)
@given(
    st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_a_flip_mirrors_boxes_and_twice_is_none(
    crop: tuple[int, int, int, int], size: int, rows: bool, columns: bool
) -> None:
    box = np.array([[1.0, 2.0, 3.5, 7.0]])
    plain = Crop(*crop).map_boxes(box, size)[0]
    flipped = Crop(*crop).map_boxes(box, size, flip_rows=rows, flip_columns=columns)[0]
    assert flipped[2] - flipped[0] == pytest.approx(plain[2] - plain[0])
    assert flipped[3] - flipped[1] == pytest.approx(plain[3] - plain[1])
    assert flipped[0] == pytest.approx(size - plain[2] if rows else plain[0])
    assert flipped[1] == pytest.approx(size - plain[3] if columns else plain[1])


def test_crops_look_for_the_body() -> None:
    hu = np.full((200, 200), -1000, np.int16)
    hu[120:180, 10:70] = 40  # 9 % of the slice
    square = whole_square((200, 200), (1.0, 1.0))
    draw = rng()

    def shares(min_body: float) -> np.ndarray:
        found = [body_crop(hu, square, (1.0, 1.0), (0.05, 0.1), (1.0, 1.0), min_body, draw) for _ in range(100)]
        return np.array([(cut(hu, crop) > BODY_HU).mean() for crop in found])

    assert (shares(0.0) == 0).mean() > 0.3
    assert (shares(0.3) > 0.2).mean() > 0.9


def test_a_slice_of_air_still_has_crops() -> None:
    hu = np.full((50, 50), -1000, np.int16)
    crop = body_crop(hu, whole_square(hu.shape, (1.0, 1.0)), (1.0, 1.0), (0.1, 0.1), (1.0, 1.0), 0.5, rng())
    assert crop.height == crop.width == 16


def test_the_share_of_body_counts_what_lies_beyond_as_air() -> None:
    hu = np.full((60, 60), 40, np.int16)
    assert body_share(hu, Crop(0, 0, 60, 60)) == pytest.approx(1)
    assert body_share(hu, Crop(-60, 0, 120, 60)) == pytest.approx(0.5)
    assert body_share(hu, Crop(-20, -20, 10, 10)) == 0
