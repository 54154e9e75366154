from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.slices import prepare
from clear.windows import ABDOMEN, LUNG, Window
from pretrain.augmentation import CT, NONE, PAPER, Augmentation
from pretrain.crops import Crop
from pretrain.intensity import Intensity
from pretrain.store import StoredSlice
from pretrain.views import ViewKind, ViewPlan, plan_views, render

CARD = replace(ENCODERS["mambaout-lecl"], input_size=32, mean=(0.0,) * 3, std=(1.0,) * 3, resize="bilinear")
ABDOMEN_HU, ALL_HU = (-175.0, 275.0), (-1000.0, 1000.0)
LESION, FULL, CROP = (
    ViewKind(32, (0.2, 1.0), lesion=True),
    ViewKind(32, (0.2, 1.0), full=True),
    ViewKind(32, (0.2, 1.0)),
)
seeds = st.integers(0, 2**32 - 1)


def stored(
    shape: tuple[int, int] = (60, 80), spacing: tuple[float, float] = (1.0, 1.0), boxes: object = (), row: int = 0
) -> StoredSlice:
    hu = np.random.default_rng(row).normal(0, 300, shape).astype(np.int16)
    return StoredSlice(hu, spacing, np.array(boxes, np.float64).reshape(-1, 4), row)


def plans(
    slice_: StoredSlice,
    kinds: list[ViewKind],
    augmentation: Augmentation,
    seed: int = 0,
    epoch: int = 0,
    repeat: int = 0,
) -> list[ViewPlan]:
    return plan_views(slice_, kinds, augmentation, CARD, seed=seed, epoch=epoch, repeat=repeat)


def whole(slice_: StoredSlice, card=CARD, size: int | None = None) -> torch.Tensor:
    """The rendered full view of a slice with a box, nothing augmented."""
    kind = ViewKind(size or card.input_size, (0.2, 1.0), full=True)
    only = replace(NONE, windows=(ABDOMEN,))
    (plan,) = plan_views(slice_, [kind], only, card, seed=0, epoch=0)
    return render(slice_, plan, card)


@pytest.mark.parametrize("shape", [(64, 64), (60, 90), (91, 40)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 0.7), (2.5, 0.8)])
@pytest.mark.parametrize(
    "changes", [{}, {"resize": "bicubic"}, {"field_of_view_mm": 50.0}, {"field_of_view_mm": 300.0}]
)
def test_a_full_view_is_what_extraction_encodes(
    shape: tuple[int, int], spacing: tuple[float, float], changes: dict[str, object]
) -> None:
    card = replace(CARD, **changes)
    one = stored(shape, spacing, boxes=[[1, 2, 5, 6]])
    expected = prepare(torch.from_numpy(one.hu)[None], [ABDOMEN_HU], spacing, card)[0, :1]
    assert torch.equal(whole(one, card), expected)


def test_cards_with_windows_of_their_own_get_them_jittered_in_their_channels() -> None:
    windows = (LUNG, ABDOMEN, Window("bone", -450, 1050))
    card = replace(CARD, channel_windows=windows)
    one = stored(boxes=[[1, 2, 5, 6]])
    expected = prepare(torch.from_numpy(one.hu)[None], [(w.low, w.high) for w in windows], (1, 1), card)[0]
    assert torch.equal(whole(one, card), expected)
    (plan,) = plan_views(one, [FULL], CT, card, seed=0, epoch=0)
    assert len({low for low, _ in plan.intensity.limits} | {w.low for w in windows}) == 6


def test_cards_that_standardise_slices_get_them_standardised() -> None:
    card = replace(CARD, intensity="slice_zscore", channels=1, mean=(0.0,), std=(1.0,))
    one = stored(boxes=[[1, 2, 5, 6]])
    assert torch.equal(whole(one, card), prepare(torch.from_numpy(one.hu)[None], [], (1, 1), card)[0])
    (plan,) = plan_views(stored(), [CROP], NONE, card, seed=0, epoch=0)
    view = render(stored(), plan, card)
    assert float(view.mean()) == pytest.approx(0, abs=1e-5)
    assert float(view.std()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("resize", "pil"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("crop", [Crop(10, 5, 40, 50), Crop(0, 0, 20, 20), Crop(-8, 60, 33, 33)])
def test_a_crops_window_and_resize_equal_another_librarys(resize: str, pil: int, crop: Crop) -> None:
    one = stored()
    view = render(one, ViewPlan(32, crop, Intensity((ABDOMEN_HU,))), replace(CARD, resize=resize))
    padded = np.pad(one.hu.astype(float), 60, constant_values=-1000)
    cut = padded[60 + crop.top : 60 + crop.bottom, 60 + crop.left : 60 + crop.right]
    windowed = np.clip((cut + 175) / 450, 0, 1).astype(np.float32)
    expected = np.clip(np.asarray(Image.fromarray(windowed).resize((32, 32), pil)), 0, 1)
    assert np.abs(view[0].numpy() - expected).max() < 2e-5


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_every_pixel_of_the_box_is_in_the_lesion_view(data: st.DataObject) -> None:
    """Painted one by one, each pixel of the box changes the view: at borders, of one pixel, larger than the crop."""
    shape = data.draw(st.tuples(st.integers(8, 70), st.integers(8, 70)))
    spacing = data.draw(st.tuples(st.floats(0.4, 3.0), st.floats(0.4, 3.0)))
    box = []
    for n in shape:
        low = data.draw(st.sampled_from([0, n - 1]) | st.integers(0, n - 1))
        box.append((low, data.draw(st.sampled_from([low + 1, n]) | st.integers(low + 1, n))))
    (y0, y1), (x0, x1) = box
    augmentation = replace(
        NONE,
        windows=(Window("all", *ALL_HU),),
        flips="both",
        lesion_side_mm=data.draw(st.sampled_from([(1.0, 1.0), (10.0, 100.0), None])),
        lesion_margin_mm=data.draw(st.sampled_from([0.0, 10.0])),
        lesion_jitter=data.draw(st.floats(0, 1)),
    )
    card = replace(CARD, resize=data.draw(st.sampled_from(["bilinear", "bicubic"])))
    air = StoredSlice(np.full(shape, -1000, np.int16), spacing, np.array([[y0, x0, y1, x1]], float), 0)
    kind = ViewKind(data.draw(st.integers(8, 48)), (0.05, 1.0), lesion=True)
    (plan,) = plan_views(air, [kind], augmentation, card, seed=data.draw(seeds), epoch=0)
    assert not plan.whole
    assert plan.crop.contains(air.boxes[0])

    corners = {(y, x) for y in (y0, y1 - 1) for x in (x0, x1 - 1)}
    inside = data.draw(st.sets(st.tuples(st.integers(y0, y1 - 1), st.integers(x0, x1 - 1)), min_size=1, max_size=12))
    mapped = plan.map_boxes(air.boxes)[0]
    reach = 2 * max(kind.size / plan.crop.height, kind.size / plan.crop.width, 1) + 1  # of the resize's filter
    for y, x in corners | inside:
        painted = replace(air, hu=air.hu.copy())
        painted.hu[y, x] = 1000
        found = (render(painted, plan, card)[0] > 1e-6).nonzero().numpy()
        assert len(found), f"pixel {y}, {x} of the box is not in the view"
        assert (found.min(0) >= mapped[:2] - reach).all()
        assert (found.max(0) + 1 <= mapped[2:] + reach).all()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_boxes_lie_where_their_pixels_do_after_flips_and_at_any_spacing(data: st.DataObject) -> None:
    spacing = data.draw(st.tuples(st.floats(0.4, 3.0), st.floats(0.4, 3.0)))
    shape = data.draw(st.tuples(st.integers(30, 70), st.integers(30, 70)))
    y0, x0 = (data.draw(st.integers(0, n - 12)) for n in shape)
    y1, x1 = y0 + data.draw(st.integers(6, 12)), x0 + data.draw(st.integers(6, 12))
    flips = replace(NONE, windows=(Window("all", *ALL_HU),), flips=data.draw(st.sampled_from(["left_right", "both"])))
    air = StoredSlice(np.full(shape, -1000, np.int16), spacing, np.array([[y0, x0, y1, x1]], float), 0)
    air.hu[y0:y1, x0:x1] = 1000
    size = 96
    kinds = [ViewKind(size, (0.3, 1.0), lesion=True), ViewKind(size, (0.3, 1.0), full=True)]
    for plan in plan_views(air, kinds, flips, CARD, seed=data.draw(seeds), epoch=0):
        bright = (render(air, plan, CARD)[0] > 0.5).nonzero().numpy()
        found = np.concatenate([bright.min(0), bright.max(0) + 1])
        assert found == pytest.approx(plan.map_boxes(air.boxes)[0], abs=1.0)


def test_both_flips_happen_and_none_does_by_default() -> None:
    one = stored()
    flipped = [plans(one, [CROP], replace(CT, flips="both"), epoch=e)[0] for e in range(200)]
    assert {(p.flip_rows, p.flip_columns) for p in flipped} == {(a, b) for a in (True, False) for b in (True, False)}
    mirrored = [plans(one, [CROP], replace(CT, flips="left_right"), epoch=e)[0] for e in range(50)]
    assert {(p.flip_rows, p.flip_columns) for p in mirrored} == {(False, False), (False, True)}
    for epoch in range(50):
        (plan,) = plans(one, [CROP], CT, epoch=epoch)
        assert not plan.flip_rows
        assert not plan.flip_columns


def test_a_flipped_view_is_the_view_flipped() -> None:
    one = stored()
    plan = plans(one, [CROP], CT)[0]
    flipped = render(one, replace(plan, flip_columns=True, intensity=replace(plan.intensity, blur_sigma=0)), CARD)
    plain = render(one, replace(plan, intensity=replace(plan.intensity, blur_sigma=0)), CARD)
    assert torch.equal(flipped, plain.flip(2))


def test_a_slice_with_a_box_gives_the_lesion_pair_and_another_two_crops() -> None:
    with_box = plans(stored(boxes=[[10, 10, 20, 20]]), [LESION, FULL, CROP], CT)
    assert with_box[0].box == (10, 10, 20, 20)
    assert with_box[0].crop.contains(np.array([10, 10, 20, 20]))
    assert with_box[1].whole
    assert with_box[1].crop == Crop(-10, 0, 80, 80)
    assert with_box[2].box is None
    assert not with_box[2].whole
    without = plans(stored(), [LESION, FULL, CROP], CT)
    assert all(plan.box is None and not plan.whole for plan in without)
    assert len({plan.crop for plan in without}) == 3
    assert [plan.crop for plan in without] == [plan.crop for plan in plans(stored(), [CROP] * 3, CT)]


def test_lesion_crops_are_centred_on_the_true_centre() -> None:
    for epoch in range(20):
        (plan,) = plans(stored((300, 300), boxes=[[90, 100, 110, 140]]), [LESION], CT, epoch=epoch)
        assert plan.crop.top + plan.crop.height / 2 == pytest.approx(100, abs=0.5)
        assert plan.crop.left + plan.crop.width / 2 == pytest.approx(120, abs=0.5)
        assert 64 <= plan.crop.height <= 160


def test_of_several_boxes_one_is_drawn_for_all_views_each_as_often() -> None:
    boxes = [[0, 0, 4, 4], [30, 30, 34, 34], [50, 70, 60, 80]]
    drawn = []
    for epoch in range(300):
        first, second = plans(stored(boxes=boxes), [LESION, LESION], CT, epoch=epoch)
        assert first.box == second.box
        drawn.append(boxes.index([int(v) for v in first.box or ()]))
    assert np.bincount(drawn) / 300 == pytest.approx([1 / 3] * 3, abs=0.08)


def test_views_of_a_slice_share_a_window_unless_told_otherwise() -> None:
    calm = replace(CT, level_jitter=0.0, width_jitter=1.0)
    shared = [[p.intensity.limits for p in plans(stored(), [CROP, CROP], calm, epoch=e)] for e in range(100)]
    assert all(a == b for a, b in shared)
    assert {limits for pair in shared for (limits,) in pair} == {(-175, 275), (-1500, 500), (-450, 1050)}
    free = replace(calm, share_window=False)
    pairs = [[p.intensity.limits for p in plans(stored(), [CROP, CROP], free, epoch=e)] for e in range(100)]
    assert 0.5 < np.mean([a != b for a, b in pairs]) < 0.8


def test_a_plan_depends_on_seed_epoch_repeat_row_and_view_alone() -> None:
    one = stored(row=3)
    first, second = plans(one, [CROP, CROP], CT)
    assert plans(one, [CROP, CROP], CT) == [first, second]
    assert plans(one, [CROP], CT) == [first]
    assert first.crop != second.crop
    others = [
        plans(one, [CROP], CT, seed=1),
        plans(one, [CROP], CT, epoch=1),
        plans(one, [CROP], CT, repeat=1),
        plans(replace(one, row=4), [CROP], CT),
    ]
    assert len({first.intensity.noise_seed, *(other[0].intensity.noise_seed for other in others)}) == 5


def test_local_crops_have_a_size_of_their_own() -> None:
    one = stored()
    local, large = plans(one, [ViewKind(12, (0.05, 0.2)), CROP], PAPER)
    assert render(one, local, CARD).shape == (1, 12, 12)
    assert render(one, large, CARD).shape == (1, 32, 32)
    assert local.crop.height < large.crop.height


def test_noise_is_added_in_hu_before_the_window_and_not_beyond_the_slice() -> None:
    air = StoredSlice(np.full((40, 40), -1000, np.int16), (1.0, 1.0), np.empty((0, 4)), 0)
    noisy = Intensity((ABDOMEN_HU,), noise_hu=50.0, noise_seed=1)
    assert float(render(air, ViewPlan(32, Crop(0, 0, 32, 32), noisy), CARD).max()) == 0  # below the window
    wide = render(air, ViewPlan(32, Crop(-16, 0, 32, 32), replace(noisy, limits=((-1500.0, 500.0),))), CARD)
    assert torch.equal(wide[0, :16], torch.full((16, 32), 0.25))
    assert float(wide[0, 16:].std()) == pytest.approx(50 / 2000, rel=0.1)


def test_rendering_leaves_the_slice_as_it_is() -> None:
    one = stored(boxes=[[1, 2, 5, 6]])
    before = one.hu.copy()
    one.hu.setflags(write=False)
    for epoch in range(5):
        for plan in plans(one, [LESION, FULL, CROP], CT, epoch=epoch):
            render(one, plan, CARD)
    assert np.array_equal(one.hu, before)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 0}, "size is 0"),
        ({"scale": (0.5, 0.2)}, "scale is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"lesion": True, "full": True}, "exclude each other"),
    ],
)
def test_views_that_make_no_sense_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(CROP, **values)
