"""The stack of slices as an animated picture, WebP or GIF.

Each frame is one slice with heat and contours, as in the montage, and beside it the attention of all slices with a mark
at the one shown. The most attended slice is held for a moment.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage

from aggregate.explain.overlay import (
    CONTOUR_COLOUR,
    CONTOURS,
    checked,
    edge_marks,
    heat,
    place_name,
    scale_bar_mm,
    size_mm,
    window_name,
)
from clear.atomic import as_size, write_aside
from clear.errors import InputError
from clear.pictures import grey, resized_to_square_pixels, settled
from clear.volume import Volume
from clear.windows import Window

SIDE = 384  # pixels of the slice's longer side
SMALLEST_SIDE = 128
MOST_BYTES = 6_000_000
MOST_FRAMES = 200
FRAME_MS, HOLD_MS = 100, 1500
STRIP, PROFILE, MARGIN, TEXT = 20, 64, 4, 12  # pixels
WHITE, SHOWN, OTHER = (255, 255, 255), ImageColor.getrgb("#E69F00"), (130, 130, 130)


def write_animation(
    path: Path | str,
    volume: Volume,
    window: Window,
    saliency: NDArray[np.float32] | None,
    weights: NDArray[np.float64],
    *,
    most_bytes: int = MOST_BYTES,
) -> Path:
    """An animated WebP or GIF (by the path's ending) through the stack, first slice to last; returns its path.

    saliency: (Z, Y, X) >= 0 or None; weights: (Z,) shares, printed in percent.
    Of more than 200 slices, 200 are shown, evenly spaced, and the most attended one; each frame names its slice. The
    picture is drawn smaller until the file has at most `most_bytes`.

    Raises InputError for another ending, or when it does not fit at 128 pixels; ValueError when shapes do not fit;
    OutputError when the file cannot be written.
    """
    path = Path(path)
    kind = {".webp": "WEBP", ".gif": "GIF"}.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: expected a name that ends in .webp or .gif")
    weights = checked(volume, saliency, weights)
    top = 0.0 if saliency is None else float(saliency.max())
    best = int(np.argmax(weights))
    count = volume.n_slices
    evenly = np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int)
    chosen = sorted({*evenly.tolist(), best})
    (shown,) = settled(volume, [window])
    pictures = [_painted(volume, shown, None if saliency is None else saliency[i], top, i) for i in chosen]
    side = SIDE
    while True:
        frames = [
            _frame(volume, window_name(window, volume.modality), picture, weights, i, side)
            for picture, i in zip(pictures, chosen, strict=True)
        ]
        data = _encoded(frames, [HOLD_MS if i == best else FRAME_MS for i in chosen], kind)
        if len(data) <= most_bytes:
            break
        if side == SMALLEST_SIDE:
            raise InputError(
                f"{path}: {len(frames)} frames take {as_size(len(data))} at {side} pixels, more than "
                f"{as_size(most_bytes)}. Allow more{' or write .webp' if kind == 'GIF' else ''}"
            )
        side = max(SMALLEST_SIDE, int(0.95 * side * (most_bytes / len(data)) ** 0.5))
    write_aside(path, data)
    return path


Picture = tuple[NDArray[np.uint8], NDArray[np.float32] | None]
"""A slice on square pixels: (H, W) grey values, and the map as shares of the scan's maximum."""


def _painted(volume: Volume, window: Window, plane: NDArray[np.float32] | None, top: float, index: int) -> Picture:
    share = None if plane is None or top == 0 else resized_to_square_pixels(plane / top, volume.spacing_mm[1:])
    return grey(volume, index, window), share


def _frame(
    volume: Volume, window: str, picture: Picture, weights: NDArray[np.float64], index: int, side: int
) -> Image.Image:
    """One frame, RGB: the slice between two strips of text, and the profile of attention on the right."""
    image, share = picture
    height_mm, width_mm = size_mm(volume)
    scale = side / max(height_mm, width_mm)  # pixels a millimetre
    width, height = max(round(width_mm * scale), 1), max(round(height_mm * scale), 1)
    slice_ = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    if share is not None:
        resized = Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR)
        slice_ = _overlaid(slice_, np.asarray(resized))
    font = ImageFont.load_default(TEXT)
    room = max(width, round(font.getlength("slice 000, z -0000.0 mm   100.0 %")) + 2 * MARGIN)
    frame = Image.new("RGB", (room + PROFILE, height + 2 * STRIP))
    frame.paste(slice_, ((room - width) // 2, STRIP))
    draw = ImageDraw.Draw(frame)
    left, middle, bottom = (room - width) // 2, STRIP + height // 2, STRIP + height

    def write(x: float, y: float, text: str, anchor: str) -> None:
        draw.text((x, y), text, WHITE, font, anchor, stroke_width=1, stroke_fill=(0, 0, 0))

    write(MARGIN, STRIP / 2, place_name(volume, index), "lm")
    write(room - MARGIN, STRIP / 2, f"{100 * weights[index]:.1f} %", "rm")
    marks = edge_marks(volume)
    write(left + MARGIN, middle, marks.left, "lm")
    write(left + width - MARGIN, middle, marks.right, "rm")
    write(left + width / 2, STRIP + MARGIN, marks.top, "mt")
    write(left + width / 2, bottom - MARGIN, marks.bottom, "mb")
    bar = scale_bar_mm(width_mm)
    end = room - MARGIN
    draw.line((end - bar * scale, bottom + STRIP / 2, end, bottom + STRIP / 2), WHITE, 3)
    write(end - bar * scale - MARGIN, bottom + STRIP / 2, f"{bar} mm", "rm")
    write(MARGIN, bottom + STRIP / 2, window, "lm")
    write(room + MARGIN, STRIP / 2, "weight", "lm")
    place = room + MARGIN, STRIP, room + PROFILE - MARGIN, bottom
    _draw_profile(draw, weights, index, place, upward=volume.plane == "axial")
    return frame


def _overlaid(image: Image.Image, share: NDArray[np.float32]) -> Image.Image:
    """Heat, and the edges of what lies above each contour's share: every other pixel for the lower one."""
    colours = heat(share, 1.0)
    image = Image.composite(Image.fromarray(colours[..., :3]), image, Image.fromarray(colours[..., 3]))
    painted = np.array(image)
    y, x = np.indices(share.shape)
    for level, dotted in zip(CONTOURS, (True, False), strict=True):
        inside = share >= level
        edge = inside & ~ndimage.binary_erosion(inside, border_value=1)
        painted[edge & ((x + y) % 4 < 2) if dotted else edge] = ImageColor.getrgb(CONTOUR_COLOUR)
    return Image.fromarray(painted)


def _draw_profile(
    draw: ImageDraw.ImageDraw,
    weights: NDArray[np.float64],
    index: int,
    place: tuple[int, int, int, int],
    *,
    upward: bool,
) -> None:
    """Attention of all slices as bars from the left, the shown one marked; upward: the first slice is at the bottom."""
    left, top, right, bottom = place
    step = (bottom - top) / len(weights)
    longest = float(weights.max()) or 1.0
    draw.line((left, top, left, bottom), OTHER)
    for i in [*(i for i in range(len(weights)) if i != index), index]:
        y = bottom - (i + 1) * step if upward else top + i * step
        length = (right - left) * max(float(weights[i]), 0.0) / longest
        thick = max(step - 1, 1)
        draw.rectangle((left, y, left + max(length, 6 if i == index else 0), y + thick), SHOWN if i == index else OTHER)


def _encoded(frames: list[Image.Image], durations_ms: list[int], kind: str) -> bytes:
    options = {"quality": 70, "method": 4, "minimize_size": False} if kind == "WEBP" else {"optimize": False}
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=durations_ms, loop=0, **options)
    return out.getvalue()
