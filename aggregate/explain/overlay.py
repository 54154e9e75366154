"""What is drawn over a slice: heat, marks of direction, a scale bar, and where the slice lies.

Shared by the montage and the animation, so that both say the same in the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray

from clear.volume import CANONICAL_AXES, Volume
from clear.windows import Window

HEAT = "viridis"  # brightness grows along it, with and without colour vision; cividis is grey halfway, like a CT
MOST_OPAQUE = 0.6
CONTOURS = (0.25, 0.5)  # shares of the volume's maximum; the second is the drawn-out line
CONTOUR_COLOUR = "#F0E442"  # Okabe and Ito's yellow
MARKED_COLOUR = "#56B4E9"  # Okabe and Ito's sky blue, for lesions that a table or a mask marks

LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # LPS axes: towards smaller values, towards larger ones
LETTER_FROM = 0.26  # of a unit vector: 15 degrees
BARS_MM = (100, 50, 20, 10, 5, 2, 1)
FIRST_SLICE = {"axial": "at the feet", "sagittal": "on the right", "coronal": "in front"}


@dataclass(frozen=True)
class EdgeMarks:
    """Where in the patient the edges of a picture lie: R, L, A, P, H (head), F (feet), the nearest letter first."""

    left: str
    right: str
    top: str
    bottom: str


def edge_marks(volume: Volume) -> EdgeMarks:
    """The letters of PatientOrientation (PS3.3 C.7.6.1.1.1) at the four edges of a slice as it is stored in `volume`.

    A second letter is written where the axis leans by more than 15 degrees.
    """
    row, column = volume.row_direction, volume.column_direction
    return EdgeMarks(_letters(-row), _letters(row), _letters(-column), _letters(column))


def heat(saliency: NDArray[np.floating], top: float) -> NDArray[np.uint8]:
    """(..., 4) RGBA of values from 0 to `top`: colour and opacity both grow with the value; 0 is transparent."""
    share = np.clip(np.asarray(saliency, dtype=np.float64) / (top or 1.0), 0.0, 1.0)
    colours = matplotlib.colormaps[HEAT](share, bytes=True)
    colours[..., 3] = np.rint(255 * MOST_OPAQUE * np.sqrt(share))
    return np.asarray(colours, dtype=np.uint8)


def scale_bar_mm(width_mm: float) -> int:
    """The length of a scale bar: a round number of millimetres, at most a third of the picture.

    >>> scale_bar_mm(360.0), scale_bar_mm(40.0)
    (100, 10)
    """
    return next((bar for bar in BARS_MM if bar <= width_mm / 3), BARS_MM[-1])


def size_mm(volume: Volume) -> tuple[float, float]:
    """(height, width) of a slice, from the outer edges of its pixels."""
    _, rows, columns = volume.voxels.shape
    return rows * volume.spacing_mm[1], columns * volume.spacing_mm[2]


def along_mm(volume: Volume) -> NDArray[np.float64]:
    """(Z,) coordinate of each slice's first voxel along the plane's slice axis, as in `SliceAttention.z_mm`."""
    axis = np.asarray(CANONICAL_AXES[volume.plane][0], dtype=np.float64)
    return np.asarray(volume.positions_mm @ axis, dtype=np.float64)


def place_name(volume: Volume, index: int) -> str:
    """`slice 12, z -105.3 mm`: its index as in bag files (0 is the first along Z), and its patient coordinate."""
    axis = {"axial": "z", "sagittal": "x", "coronal": "y"}[volume.plane]
    return f"slice {index}, {axis} {along_mm(volume)[index]:.1f} mm"


def window_name(window: Window, modality: str) -> str:
    """`abdomen -175 to 275 HU`; `%` for percentiles of the scan."""
    unit = " %" if window.kind == "percentile" else " HU" if modality == "CT" else ""
    return f"{window.name} {window.low:g} to {window.high:g}{unit}"


def checked(
    volume: Volume, saliency: NDArray[np.floating] | None, weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The weights as float64. Raises ValueError when they or the map do not fit the volume or are not finite."""
    if weights.shape != (volume.n_slices,) or not np.isfinite(weights).all():
        raise ValueError(f"weights: expected ({volume.n_slices},) finite numbers; found {weights.shape}")
    if saliency is not None and (saliency.shape != volume.voxels.shape or not np.isfinite(saliency).all()):
        raise ValueError(f"saliency: expected {volume.voxels.shape} finite numbers; found {saliency.shape}")
    return np.asarray(weights, dtype=np.float64)


def most_weighted(weights: NDArray[np.float64], n: int) -> list[int]:
    """Indices of the n highest weights, the highest first, of equal ones the lower index; all where there are fewer."""
    return [int(i) for i in np.argsort(-weights, kind="stable")[:n]]


def _letters(direction: NDArray[np.float64]) -> str:
    order = np.argsort(-np.abs(direction), kind="stable")
    return "".join(LETTERS[i][int(direction[i] > 0)] for i in order if abs(direction[i]) >= LETTER_FROM)
