"""Boxes: the voxels that a row marks, in the scan that it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aggregate.explain.boxes import Box, Boxes, read_boxes
from clear.errors import InputError
from clear.phantoms import BOX_COLUMNS
from clear.volume import Volume, stack_geometry

SCANS = pl.DataFrame(
    {
        "scan_id": ["1.2.3", "site/a/scan-1", "site/b/scan-1"],
        "series_uid": ["1.2.3", None, None],
        "source": ["P1/CT", "site/a/scan-1.nii.gz", "site/b/scan-1.nii.gz"],
    }
)
OWN = "scan_id,x0,y0,x1,y1,slice,label,axes\n"


def volume(n: int = 4) -> Volume:
    geometry = stack_geometry([[0, 0, i] for i in range(n)], [1, 0, 0], [0, 1, 0], (5, 6), (1.0, 1.0))
    return Volume.from_stack(np.zeros((n, 5, 6), dtype=np.int16), geometry, "CT")


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    return path


def test_the_table_of_the_embedded_cohort_marks_half_open_ranges_in_canonical_axes(tmp_path: Path) -> None:
    rows = ["P1,1.2.3,nodule,1,3,2,5,1,3,0,9", "P1,1.2.3,effusion,0,6,0,1,0,1,0,9"]
    boxes = read_boxes(table(tmp_path, "\n".join([",".join(BOX_COLUMNS), *rows])), SCANS)
    assert boxes.labels == ("effusion", "nodule")
    assert boxes.scans_with(("nodule",)) == {"1.2.3"}
    expected = np.zeros((4, 5, 6), dtype=bool)
    expected[1:3, 2:5, 1:3] = True
    assert (boxes.region("1.2.3", ("nodule",), volume()) == expected).all()
    assert boxes.holds("1.2.3", ("nodule",), 4).tolist() == [False, True, True, False]
    assert boxes.holds("1.2.3", ("effusion",), 4).tolist() == [True, False, False, False]
    both = ("effusion", "nodule")
    assert boxes.holds("1.2.3", both, 4).tolist() == [True, True, True, False]
    parts = [boxes.region("1.2.3", (label,), volume()) for label in both]
    assert (boxes.region("1.2.3", both, volume()) == parts[0] | parts[1]).all()


def test_several_boxes_of_a_label_are_one_region(tmp_path: Path) -> None:
    text = OWN + "1.2.3,0,0,1,1,0,a,canonical\n1.2.3,5,4,6,5,3,a,canonical\n1.2.3,0,0,6,5,2,b,canonical\n"
    region = read_boxes(table(tmp_path, text), SCANS).region("1.2.3", ("a",), volume())
    assert np.argwhere(region).tolist() == [[0, 0, 0], [3, 4, 5]]


@pytest.mark.parametrize(
    ("x", "columns"),
    [
        ((1.0, 3.0), [1, 2]),
        ((1.4, 2.6), [1, 2]),  # the centres 1.5 and 2.5 lie inside
        ((1.6, 2.4), [2]),  # no centre does: the pixel in the middle
        ((-2.0, 0.8), [0]),
        ((5.2, 99.0), [5]),
    ],
)
def test_a_pixel_is_marked_where_its_centre_lies_inside_and_at_least_one_is(
    x: tuple[float, float], columns: list[int]
) -> None:
    boxes = Boxes(Path("t.csv"), {"1.2.3": (Box(x, (0.0, 1.0), (0, 1)),)})
    assert np.flatnonzero(boxes.region("1.2.3", ("",), volume())[0, 0]).tolist() == columns


def test_scans_are_named_by_id_by_series_by_file_or_by_the_only_last_part(tmp_path: Path) -> None:
    text = "series_uid,scan_id,file,x0,y0,x1,y1,slice0,slice1,axes\n"
    text += "1.2.3,,,0,0,1,1,0,1,canonical\n,site/a/scan-1,,0,0,1,1,0,1,canonical\n"
    text += ",,site/b/scan-1.nii.gz,0,0,1,1,2,4,canonical\n"
    boxes = read_boxes(table(tmp_path, text), SCANS)
    assert sorted(boxes.of_scan) == ["1.2.3", "site/a/scan-1", "site/b/scan-1"]
    assert boxes.of_scan["site/b/scan-1"] == (Box((0.0, 1.0), (0.0, 1.0), (2, 4)),)


def test_boxes_of_scans_that_are_not_there_are_counted(tmp_path: Path) -> None:
    text = OWN + "1.2.3,0,0,1,1,0,a,canonical\n9.9,0,0,1,1,0,a,canonical\nscan-1,0,0,1,1,0,a,canonical\n"
    boxes = read_boxes(table(tmp_path, text), SCANS)
    assert list(boxes.of_scan) == ["1.2.3"]
    assert "2 boxes are of 2 scans" in boxes.remarks[0]
    assert "9.9 and 1 more" in boxes.remarks[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN + "9.9,0,0,1,1,0,a,canonical\n", "none of its 1 boxes is of a scan of the bag file"),
        (OWN + "1.2.3,0,0,1,1,0,a,stored\n", "row 2: says axes stored"),
        (OWN + "1.2.3,0,0,1,1,0,a,\n", "does not say in which axes"),
        (OWN + "1.2.3,1,0,1,1,0,a,canonical\n", "is empty; expected x0 < x1"),
        (OWN + "1.2.3,0,0,1,1,0.5,a,canonical\n", "expected whole numbers"),
        (OWN + "1.2.3,0,zero,1,1,0,a,canonical\n", "y0 is 'zero'; expected a number"),
        (OWN + ",0,0,1,1,0,a,canonical\n", "names no scan"),
        ("scan_id,x0,y0,x1,y1,axes\n1.2.3,0,0,1,1,canonical\n", "no column slice"),
        ("patient,x0,y0,x1,y1,slice\nP1,0,0,1,1,0\n", "its boxes belong to no scan"),
        ("scan_id,x0,y0,x1,slice\n1.2.3,0,0,1,0\n", "no column 'y1'"),
        ("File_name,Bounding_boxes\na,b\n", "DeepLesion's own table"),
    ],
)
def test_a_table_that_cannot_be_placed_is_refused_with_the_row_and_what_to_do(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        read_boxes(table(tmp_path, text), SCANS)


def test_a_box_outside_its_scan_is_refused(tmp_path: Path) -> None:
    boxes = read_boxes(table(tmp_path, OWN + "1.2.3,0,0,1,1,4,a,canonical\n1.2.3,6,0,9,1,0,b,canonical\n"), SCANS)
    with pytest.raises(InputError, match="a box in slices 4 to 4, but the scan has the slices 0 to 3"):
        boxes.region("1.2.3", ("a",), volume())
    with pytest.raises(InputError, match="outside its 6 columns and 5 rows"):
        boxes.region("1.2.3", ("b",), volume())
