"""The montage: which slices, where things are drawn in millimetres, and what each panel says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.patches import Rectangle
from scipy.spatial.transform import Rotation

from aggregate.explain.boxes import Box
from aggregate.explain.montage import Montage, montage_figure, png
from aggregate.explain.overlay import (
    CONTOUR_COLOUR,
    MARKED_COLOUR,
    MOST_OPAQUE,
    EdgeMarks,
    edge_marks,
    heat,
    place_name,
    scale_bar_mm,
    window_name,
)
from clear.scans import find_scans, read_volume
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, PERCENTILE

ROWS, COLUMNS, SPACING = 30, 40, (3.0, 1.5)
DIRECTIONS = {  # rows of pixels run along the first, columns along the second
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
}


def volume_of(n: int = 8, plane: str = "axial", turn: np.ndarray | None = None) -> Volume:
    row, column = np.asarray(DIRECTIONS[plane], dtype=float) @ (np.eye(3) if turn is None else turn.T)
    normal = np.cross(row, column)
    positions = np.arange(n)[:, None] * 5.0 * normal + [-30.0, -45.0, 100.0]
    geometry = stack_geometry(positions, row, column, (ROWS, COLUMNS), SPACING)
    values = np.random.default_rng(0).integers(-100, 200, (n, ROWS, COLUMNS)).astype(np.int16)
    return Volume.from_stack(values, geometry, "CT")


def spot(volume: Volume) -> np.ndarray:
    """A map that is 1 in a block of slice 5, 0.4 around it in slices 4 and 5, else 0."""
    saliency = np.zeros(volume.voxels.shape, np.float32)
    saliency[4:6, 8:22, 8:32] = 0.4
    saliency[5, 12:18, 16:24] = 1.0
    return saliency


WEIGHTS = np.array([0.02, 0.05, 0.01, 0.12, 0.3, 0.35, 0.1, 0.05])


def panels(figure: Montage) -> list[Axes]:
    return [axes for axes in figure.axes if len(axes.images) > 0 and len(axes.texts) > 4]


def said(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def contours(axes: Axes) -> list[ContourSet]:
    return [each for each in axes.collections if isinstance(each, ContourSet)]


def test_the_highest_weights_come_first_and_each_panel_says_what_it_is() -> None:
    figure = montage_figure(volume_of(), ABDOMEN, spot(volume_of()), WEIGHTS, n=4)
    words = [said(axes) for axes in panels(figure)]
    assert [(each[0], each[1]) for each in words] == [
        ("slice 5, z 125.0 mm", "weight 35.0 %, rank 1"),
        ("slice 4, z 120.0 mm", "weight 30.0 %, rank 2"),
        ("slice 3, z 115.0 mm", "weight 12.0 %, rank 3"),
        ("slice 6, z 130.0 mm", "weight 10.0 %, rank 4"),
    ]
    for each in words:
        assert {"abdomen -175 to 275 HU", "20 mm", "R", "L", "A", "P"} <= set(each)


def test_equal_weights_keep_the_order_of_slices_and_few_slices_are_all_shown() -> None:
    figure = montage_figure(volume_of(3), ABDOMEN, None, np.full(3, 1 / 3), n=6)
    assert [said(axes)[0][:7] for axes in panels(figure)] == ["slice 0", "slice 1", "slice 2"]


def test_the_picture_is_in_millimetres_with_square_pixels() -> None:
    figure = montage_figure(volume_of(), ABDOMEN, spot(volume_of()), WEIGHTS, n=1)
    (axes,) = panels(figure)
    picture, overlay = axes.images
    assert picture.get_extent() == overlay.get_extent() == [0, COLUMNS * 1.5, ROWS * 3.0, 0]
    assert picture.get_array().shape == (60, 40)  # square pixels of 1.5 mm
    assert axes.get_aspect() == 1
    (bar,) = axes.lines
    x = np.asarray(bar.get_xdata(), dtype=float)
    assert np.ptp(x) * COLUMNS * 1.5 == pytest.approx(20)  # in shares of the panel's width


def test_heat_and_contours_lie_on_the_map() -> None:
    volume = volume_of()
    axes = panels(montage_figure(volume, ABDOMEN, spot(volume), WEIGHTS, n=2))
    rgba = np.asarray(axes[0].images[1].get_array())
    assert rgba[2, 2, 3] == 0
    assert rgba[30, 20, 3] == round(255 * MOST_OPAQUE)
    low, high = contours(axes[0])
    assert to_hex(high.get_edgecolor()[0]) == CONTOUR_COLOUR.lower()
    inner = high.get_paths()[0].vertices  # the block lies at x 24..36 and y 36..54 mm
    assert np.abs(inner.min(axis=0) - [24, 36]).max() < 3
    assert np.abs(inner.max(axis=0) - [36, 54]).max() < 3
    outer = low.get_paths()[0].vertices
    assert outer[:, 0].min() < 14
    assert outer[:, 0].max() > 46
    assert len(contours(axes[1])) == 1  # slice 4 stays below half of the scan's maximum


def test_boxes_and_masks_are_drawn_dashed_where_they_are_marked() -> None:
    volume = volume_of()
    mask = np.zeros(volume.voxels.shape, bool)
    mask[4, 5:15, 10:20] = True
    figure = montage_figure(volume, ABDOMEN, None, WEIGHTS, n=2, boxes=[Box((4, 10), (6, 9), (5, 6))], mask=mask)
    top, second = panels(figure)
    (box,) = (patch for patch in top.patches if isinstance(patch, Rectangle))
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (6.0, 18.0, 9.0, 9.0)
    assert (to_hex(box.get_edgecolor()), box.get_linestyle()) == (MARKED_COLOUR.lower(), "--")
    assert not second.patches
    (outline,) = contours(second)
    vertices = outline.get_paths()[0].vertices
    assert np.abs(vertices.min(axis=0) - [15, 15]).max() < 2
    assert np.abs(vertices.max(axis=0) - [30, 45]).max() < 2
    assert any("Dashed: marked lesion." in text.get_text() for text in figure.texts)


def test_without_a_map_there_is_no_colour_bar_and_a_map_of_zeros_is_said_to_be_one() -> None:
    volume = volume_of()
    bare = montage_figure(volume, ABDOMEN, None, WEIGHTS, n=2)
    assert len(bare.axes) == 2
    zero = montage_figure(volume, ABDOMEN, np.zeros(volume.voxels.shape, np.float32), WEIGHTS, n=2)
    assert len(zero.axes) == 2
    assert any("The map is zero everywhere." in text.get_text() for text in zero.texts)
    assert len(montage_figure(volume, ABDOMEN, spot(volume), WEIGHTS, n=2).axes) == 3


def test_the_same_input_gives_the_same_bytes_and_a_notebook_gets_them() -> None:
    first, second = (montage_figure(volume_of(), ABDOMEN, spot(volume_of()), WEIGHTS, n=2) for _ in range(2))
    assert png(first) == png(second) == first._repr_png_()
    assert png(first)[:4] == b"\x89PNG"


def test_a_title_is_text_whatever_is_in_it() -> None:
    figure = montage_figure(volume_of(), ABDOMEN, None, WEIGHTS, n=1, title="id $\\frac{1}$ <b>\nliver")
    (title,) = (text for text in figure.texts if "liver" in text.get_text())
    assert title.get_text() == "id $\\frac{1}$ <b>\nliver"
    assert png(figure)


def test_arguments_that_do_not_fit_are_refused() -> None:
    volume = volume_of()
    with pytest.raises(ValueError, match=r"weights: expected \(8,\)"):
        montage_figure(volume, ABDOMEN, None, WEIGHTS[:-1])
    with pytest.raises(ValueError, match=r"weights: .* finite"):
        montage_figure(volume, ABDOMEN, None, WEIGHTS * np.nan)
    with pytest.raises(ValueError, match="saliency: expected"):
        montage_figure(volume, ABDOMEN, spot(volume)[1:], WEIGHTS)
    with pytest.raises(ValueError, match="mask: expected"):
        montage_figure(volume, ABDOMEN, None, WEIGHTS, mask=spot(volume)[1:] > 0)
    with pytest.raises(ValueError, match="n: expected at least one"):
        montage_figure(volume, ABDOMEN, None, WEIGHTS, n=0)


@pytest.mark.parametrize(
    ("plane", "marks"),
    [
        ("axial", EdgeMarks("R", "L", "A", "P")),
        ("sagittal", EdgeMarks("A", "P", "H", "F")),
        ("coronal", EdgeMarks("R", "L", "H", "F")),
    ],
)
def test_edges_are_named_after_the_patient(plane: str, marks: EdgeMarks) -> None:
    volume = volume_of(plane=plane)
    assert volume.plane == plane
    assert edge_marks(volume) == marks


def test_a_leaning_axis_has_a_second_letter_from_15_degrees_on() -> None:
    steep = volume_of(turn=Rotation.from_euler("x", 20, degrees=True).as_matrix())
    assert edge_marks(steep) == EdgeMarks("R", "L", "AF", "PH")
    flat = volume_of(turn=Rotation.from_euler("x", 10, degrees=True).as_matrix())
    assert edge_marks(flat) == EdgeMarks("R", "L", "A", "P")


def test_flipped_files_are_shown_with_the_right_of_the_patient_on_the_left(shared_data: Path) -> None:
    (scan,) = find_scans(shared_data / "data/dicom_hard_cases/flipped_rows_and_columns", cache=False)
    assert edge_marks(read_volume(scan)) == EdgeMarks("R", "L", "A", "P")


def test_places_and_windows_are_named_in_the_units_of_the_plane_and_modality() -> None:
    assert place_name(volume_of(plane="sagittal"), 0).startswith("slice 0, x ")
    assert place_name(volume_of(plane="coronal"), 1).startswith("slice 1, y ")
    assert window_name(ABDOMEN, "CT") == "abdomen -175 to 275 HU"
    assert window_name(PERCENTILE, "MR") == "percentile 0.5 to 99.5 %"


def test_heat_grows_in_brightness_and_opacity_with_the_value() -> None:
    colours = heat(np.linspace(0, 2.0, 11), 2.0).astype(float)
    brightness = colours[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > 0).all()
    assert (np.diff(colours[:, 3]) > 0).all()
    assert colours[0, 3] == 0
    assert (heat(np.zeros(3), 0.0)[:, 3] == 0).all()


def test_a_scale_bar_is_at_most_a_third_of_the_picture() -> None:
    for width in (5, 30, 61, 150, 299, 300, 2000):
        bar = scale_bar_mm(width)
        assert bar in (1, 2, 5, 10, 20, 50, 100)
        assert bar <= width / 3
    assert scale_bar_mm(2.0) == 1
