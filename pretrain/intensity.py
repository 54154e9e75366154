"""What a view does to intensities: window jitter and noise before windowing, blur and tone after the resize.

Window jitter takes the place of colour jitter: a radiology encoder's input differs from the next by its window, so the
level and width around the presets that extraction uses are what it should not mind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pretrain.augmentation import Augmentation

BLUR_SIZE = 224  # the view's size for which blur_sigma is stated
BLUR_REACH = 3.0  # standard deviations


@dataclass(frozen=True)
class Intensity:
    """One view's draw.

    limits: (low, high) in HU of each window; noise_hu: standard deviation, 0 for none, and the seed of its field;
    blur_sigma: in pixels of the view, 0 for none; brightness, contrast: factors, 1 for none; contrast_first: their
    order; solarise: values from 0.5 on inverted.
    """

    limits: tuple[tuple[float, float], ...]
    noise_hu: float = 0.0
    noise_seed: int = 0
    blur_sigma: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    contrast_first: bool = False
    solarise: bool = False


def draw_intensity(
    augmentation: Augmentation,
    limits: Sequence[tuple[float, float]],
    view: int,
    size: int,
    rng: np.random.Generator,
) -> Intensity:
    """One draw for view number `view` of `size` pixels, around the windows `limits`.

    As many random numbers are drawn whatever happens, so a probability changes nothing but what it is for.
    """
    chance = rng.random(4)
    jittered = tuple(jitter_window(window, augmentation, rng) for window in limits)
    noise_hu, seed = rng.uniform(0, augmentation.noise_hu), int(rng.integers(2**63))
    sigma = rng.uniform(*augmentation.blur_sigma) * size / BLUR_SIZE
    brightness, contrast = (1 + rng.uniform(-1, 1) * v for v in (augmentation.brightness, augmentation.contrast))
    toned = chance[2] < augmentation.tone_chance
    return Intensity(
        jittered,
        noise_hu=noise_hu if chance[0] < augmentation.noise_chance else 0.0,
        noise_seed=seed,
        blur_sigma=sigma if chance[1] < _of_view(augmentation.blur_chance, view) else 0.0,
        brightness=brightness if toned else 1.0,
        contrast=contrast if toned else 1.0,
        contrast_first=bool(rng.random() < 0.5),
        solarise=bool(chance[3] < _of_view(augmentation.solarise_chance, view)),
    )


def _of_view(chances: Sequence[float], view: int) -> float:
    return chances[min(view, len(chances) - 1)]


def jitter_window(
    limits: tuple[float, float], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[float, float]:
    """Another window: its level moved by a share of the width (uniform), its width by a factor (log-uniform).

    Without jitter the limits come back as they are.
    """
    low, high = limits
    move, stretch = rng.uniform(-1, 1, 2)
    if augmentation.level_jitter == 0 and augmentation.width_jitter == 1:
        return limits
    level = (low + high) / 2 + move * augmentation.level_jitter * (high - low)
    width = (high - low) * math.exp(stretch * math.log(augmentation.width_jitter))
    return level - width / 2, level + width / 2


def add_noise(hu: NDArray[np.int16], deviation_hu: float, seed: int) -> NDArray[np.float32]:
    """White noise on a slice's pixels, (Y, X) float32.

    Sums of four uniform bytes: normal to the eye (they end at 3.4 standard deviations) at a quarter of the time.
    """
    draws = np.frombuffer(np.random.default_rng(seed).bytes(4 * hu.size), np.uint8).reshape(4, *hu.shape)
    noise = draws[0].astype(np.int16)
    for more in draws[1:]:
        noise += more
    scaled: NDArray[np.float32] = noise.astype(np.float32)
    scaled -= 2 * 255
    scaled *= deviation_hu / math.sqrt(4 * (256**2 - 1) / 12)
    scaled += hu
    return scaled


def retouch(grey: Tensor, intensity: Intensity) -> Tensor:
    """Tone, blur and solarising of a view (C, S, S), in the published order; values in [0, 1] stay there."""
    if intensity.brightness != 1 or intensity.contrast != 1:
        steps = [_brightness, _contrast]
        for step in reversed(steps) if intensity.contrast_first else steps:
            grey = step(grey, intensity)
    if intensity.blur_sigma > 0:
        sigma = (0, intensity.blur_sigma, intensity.blur_sigma)
        grey = torch.from_numpy(ndimage.gaussian_filter(grey.numpy(), sigma, mode="nearest", truncate=BLUR_REACH))
    if intensity.solarise:
        grey = torch.where(grey >= 0.5, 1 - grey, grey)
    return grey


def _brightness(grey: Tensor, intensity: Intensity) -> Tensor:
    return (grey * intensity.brightness).clamp_(0, 1)


def _contrast(grey: Tensor, intensity: Intensity) -> Tensor:
    """Away from the image's mean, or towards it (torchvision's adjust_contrast)."""
    mean = grey.mean()
    return ((grey - mean) * intensity.contrast + mean).clamp_(0, 1)
