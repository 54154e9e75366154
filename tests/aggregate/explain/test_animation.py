"""The animation: every slice in order, held at the most attended one, and never larger than allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aggregate.explain import animation
from aggregate.explain.animation import FRAME_MS, HOLD_MS, SMALLEST_SIDE, write_animation
from clear.errors import InputError
from clear.volume import Volume, stack_geometry
from clear.windows import Window

GREY = Window("grey", 0, 1000)


def volume_of(levels: np.ndarray, shape: tuple[int, int] = (24, 32), noise: int = 0) -> Volume:
    """Slices of one value each."""
    positions = np.arange(len(levels))[:, None] * [0.0, 0.0, 4.0] + [-10, -20, 300]
    geometry = stack_geometry(positions, (1, 0, 0), (0, 1, 0), shape, (2.0, 1.0))
    values = np.broadcast_to(levels[:, None, None], (len(levels), *shape)).astype(np.int16)
    values = values + np.random.default_rng(0).integers(0, noise + 1, values.shape).astype(np.int16)
    return Volume.from_stack(values.astype(np.int16), geometry, "CT")


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int]]:
    with Image.open(path) as picture:
        frames, durations = [], []
        for i in range(picture.n_frames):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGB")).astype(int))
            durations.append(picture.info["duration"])
    return frames, durations


def inside(frame: np.ndarray) -> float:
    """Mean grey value of a part of the slice without letters or lines."""
    height, width = frame.shape[0], frame.shape[1] - 64
    return float(frame[int(0.3 * height) : int(0.4 * height), int(0.45 * width) : int(0.55 * width)].mean())


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_slices_run_from_first_to_last_and_the_most_attended_one_is_held(ending: str, tmp_path: Path) -> None:
    levels = np.array([100, 300, 500, 700, 900])
    weights = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    path = write_animation(tmp_path / f"stack.{ending}", volume_of(levels), GREY, None, weights)
    frames, durations = frames_of(path)
    assert [inside(frame) for frame in frames] == pytest.approx(levels * 0.255, abs=6)
    assert durations == [FRAME_MS, FRAME_MS, HOLD_MS, FRAME_MS, FRAME_MS]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_heat_lies_where_the_map_is(tmp_path: Path) -> None:
    volume = volume_of(np.full(3, 400))
    saliency = np.zeros(volume.voxels.shape, np.float32)
    saliency[1, :12, :16] = 1.0
    frames, _ = frames_of(write_animation(tmp_path / "stack.webp", volume, GREY, saliency, np.array([0.2, 0.6, 0.2])))
    height, width = frames[1].shape[0], frames[1].shape[1] - 64
    hot, cold = frames[1][height // 3, width // 4], frames[1][2 * height // 3, 3 * width // 4]
    assert hot[1] - hot[2] > 60  # yellow
    assert np.ptp(cold) < 12  # grey
    assert np.ptp(frames[0][height // 3, width // 4]) < 12


def test_pixels_are_square(tmp_path: Path) -> None:
    frames, _ = frames_of(
        write_animation(tmp_path / "a.webp", volume_of(np.array([500]), (20, 80)), GREY, None, np.ones(1))
    )
    assert frames[0].shape == (40 * 384 // 80 + 40, 384 + 64, 3)  # 40 x 80 mm, between two strips, beside the profile


def test_a_long_stack_is_thinned_but_keeps_its_most_attended_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(animation, "SIDE", 128)  # for speed
    weights = np.full(503, 1e-3)
    weights[252] = 0.5
    levels = np.zeros(503)
    levels[252] = 1000
    path = write_animation(tmp_path / "stack.webp", volume_of(levels, (8, 8)), GREY, None, weights)
    frames, durations = frames_of(path)
    assert 200 <= len(frames) <= 201
    assert durations.count(HOLD_MS) == 1
    assert inside(frames[durations.index(HOLD_MS)]) > 240


def test_the_file_is_made_smaller_until_it_is_small_enough_or_refused(tmp_path: Path) -> None:
    volume, weights = volume_of(np.full(6, 100), (64, 64), noise=800), np.full(6, 1 / 6)
    large = write_animation(tmp_path / "large.webp", volume, GREY, None, weights)
    limit = large.stat().st_size // 2
    small = write_animation(tmp_path / "small.webp", volume, GREY, None, weights, most_bytes=limit)
    assert small.stat().st_size <= limit
    assert SMALLEST_SIDE <= max(Image.open(small).size) < max(Image.open(large).size)
    with pytest.raises(InputError, match=r"none\.gif: 6 frames take .* at 128 pixels, more than 1\.0 kB"):
        write_animation(tmp_path / "none.gif", volume, GREY, None, weights, most_bytes=1000)
    assert not (tmp_path / "none.gif").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    volume, weights = volume_of(np.array([100, 200])), np.array([0.5, 0.5])
    first, second = (
        write_animation(tmp_path / name, volume, GREY, None, weights).read_bytes() for name in ("a.webp", "b.webp")
    )
    assert first == second


def test_another_ending_and_another_shape_are_refused(tmp_path: Path) -> None:
    volume = volume_of(np.array([100, 200]))
    with pytest.raises(InputError, match=r"ends in \.webp or \.gif"):
        write_animation(tmp_path / "stack.mp4", volume, GREY, None, np.ones(2))
    with pytest.raises(ValueError, match="weights: expected"):
        write_animation(tmp_path / "stack.gif", volume, GREY, None, np.ones(3))
