"""Synthetic scanners: vendors' habits, reconstruction kernels, and what these do to an image.

Noise has the power spectrum of filtered back-projection, a ramp that the kernel rolls off (Riederer, Pelc and Chesler,
Phys Med Biol 1978); sharp kernels blur less, lift the middle frequencies and are noisier. The names of vendors and
kernels are real, because programs look at them; the numbers behind them are round ones of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from clear.phantom_anatomy import Array

PADDING_STORED = -2000
LOWEST_HU, HIGHEST_HU = -1024, 3071  # 12 bits with an intercept of -1024


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel: noise in HU (standard deviation, 5 mm slice, centre of the body), where its noise power
    fades (cycles per mm), blur of the image (Gaussian sigma, mm) and edge enhancement (1 = none)."""

    name: str
    noise_hu: float
    noise_per_mm: float
    blur_mm: float
    edges: float = 1.0


@dataclass(frozen=True)
class Vendor:
    """A vendor's habits.

    signed: stored values are signed; intercept: RescaleIntercept; circular: pixels outside the circular field of view
    hold PADDING_STORED, named by PixelPaddingValue; head_first: InstanceNumber 1 is the slice nearest the head;
    thickness_mm: nominal slice thickness.
    """

    manufacturer: str
    soft: Kernel
    sharp: Kernel
    signed: bool
    intercept: int
    circular: bool
    head_first: bool
    thickness_mm: float
    file_names: str  # "number", "uid" or "bare": what files are called


VENDORS = (
    Vendor(
        "SIEMENS",
        Kernel("B31f", 13, 0.33, 0.65),
        Kernel("B70f", 42, 0.60, 0.30, 1.5),
        signed=False,
        intercept=-1024,
        circular=False,
        head_first=True,
        thickness_mm=5.0,
        file_names="number",
    ),
    Vendor(
        "GE MEDICAL SYSTEMS",
        Kernel("STANDARD", 15, 0.38, 0.60),
        Kernel("LUNG", 45, 0.60, 0.30, 1.6),
        signed=True,
        intercept=-1024,
        circular=True,
        head_first=True,
        thickness_mm=5.0,
        file_names="uid",
    ),
    Vendor(
        "Philips",
        Kernel("B", 14, 0.36, 0.62),
        Kernel("L", 38, 0.55, 0.32, 1.4),
        signed=False,
        intercept=-1024,
        circular=False,
        head_first=False,
        thickness_mm=6.0,
        file_names="number",
    ),
    Vendor(
        "TOSHIBA",
        Kernel("FC13", 14, 0.35, 0.65),
        Kernel("FC51", 44, 0.58, 0.30, 1.5),
        signed=True,
        intercept=0,
        circular=False,
        head_first=True,
        thickness_mm=7.0,
        file_names="bare",
    ),
)


class Optics:
    """Blur and noise of a reconstruction, in the Fourier plane of one image size."""

    def __init__(self, matrix: int, pixel_mm: float) -> None:
        self.shape = (matrix, matrix)
        fy, fx = fft.fftfreq(matrix, pixel_mm)[:, None], fft.rfftfreq(matrix, pixel_mm)[None]
        self.per_mm = np.hypot(fy, fx)
        self._gains: dict[tuple[str, str], Array] = {}

    def blur(self, kernel: Kernel, spectrum: NDArray[np.complex64]) -> Array:
        """The image with the kernel's modulation: a Gaussian, with a hump at mid frequencies for sharp kernels."""
        f = self.per_mm
        hump = 1 + (kernel.edges - 1) * np.exp(-(((f - 0.35) / 0.18) ** 2)) * (1 - np.exp(-((f / 0.1) ** 2)))
        gain = self._gain("blur", kernel, np.exp(-2 * (np.pi * kernel.blur_mm * f) ** 2) * hump)
        return np.asarray(fft.irfft2(spectrum * gain, s=self.shape), np.float32)

    def noise(self, kernel: Kernel, rng: np.random.Generator) -> Array:
        """Unit-variance noise; its power is a ramp that the kernel rolls off."""
        f = self.per_mm
        gain = self._gain("noise", kernel, np.sqrt(f) * np.exp(-((f / kernel.noise_per_mm) ** 2)))
        white = fft.rfft2(rng.standard_normal(self.shape, dtype=np.float32))
        noise = np.asarray(fft.irfft2(white * gain, s=self.shape), np.float32)
        return np.asarray(noise / noise.std())

    def _gain(self, kind: str, kernel: Kernel, gain: NDArray[np.float64]) -> Array:
        return self._gains.setdefault((kind, kernel.name), gain.astype(np.float32))
