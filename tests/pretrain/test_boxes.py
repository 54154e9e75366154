"""Boxes: what is marked in a file as stored must surround the same voxels of the volume as read, whatever the axes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import zarr
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from clear.errors import InputError
from clear.phantoms import draw_patient, write_cohort
from clear.scans import Scan, find_scans, read_volume
from pretrain.box_tables import fill_spacing
from pretrain.boxes import Box, PlacedBoxes, place_boxes

MARK = 700  # HU of the marked block; everything else is air or fat
HEADER = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)


def marked_array(shape: tuple[int, int, int], block: tuple[slice, slice, slice]) -> np.ndarray:
    """int16 HU: noise around -1000, and one block of MARK."""
    values = np.random.default_rng(0).integers(-1020, -980, shape).astype(np.int16)
    values[block] = MARK
    return values


def scans_of(folder: Path) -> list[Scan]:
    return find_scans(folder, cache=False, workers=1)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lesion(name: str, box: str, *, kind: int = 5, noisy: int = 0, span: str = "1, 4", size: str = "16, 12") -> str:
    """A row of DL_info.csv."""
    vectors = f'"1, 1, 2, 2, 3, 3, 4, 4","{box}","11.9, 5.1"'
    return (
        f'{name},91,3,1,{int(name[-7:-4])},{vectors},"0.4, 0.2, 0.4",{kind},{noisy},"{span}","0.7, 0.8, 2.5",'
        f'"{size}","-175, 275",F,62,2'
    )


def write_deeplesion(folder: Path, rows: list[str], numbers: range = range(1, 5)) -> dict[int, np.ndarray]:
    """`Images_png/000091_03_01/001.png` and so on, HU + 32768, and DL_info.csv beside them; returns HU by number."""
    rng = np.random.default_rng(1)
    place = folder / "Images_png" / "000091_03_01"
    place.mkdir(parents=True)
    slices = {n: rng.integers(-1000, 1000, (12, 16)).astype(np.int32) for n in numbers}
    for n, hu in slices.items():
        sitk.WriteImage(sitk.GetImageFromArray((hu + 32768).astype(np.uint16)), str(place / f"{n:03d}.png"))
    write(folder / "DL_info.csv", "\n".join([HEADER, *rows]) + "\n")
    return slices


def assert_surrounds_the_mark(scan: Scan, placed: PlacedBoxes) -> None:
    """The boxes of the scan hold all marked voxels and no other, slice by slice."""
    assert not placed.problems
    volume = read_volume(scan).voxels
    inside = np.zeros(volume.shape, bool)
    for box in placed.boxes[scan.scan_id]:
        inside[box.slice, int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
    np.testing.assert_array_equal(inside, volume == MARK)


ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
@pytest.mark.parametrize("thick", [0, 1, 2])
def test_a_stored_box_moves_with_every_flip_and_transposition_of_a_nifti_file(
    tmp_path: Path, axes: tuple[int, int, int], flips: tuple[int, int, int], thick: int
) -> None:
    values = marked_array((7, 8, 9), (slice(1, 3), slice(2, 8), slice(7, 9)))  # indices i, j, k of the file
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (patient, sign) in enumerate(zip(axes, flips, strict=True)):
        affine[patient, axis] = sign * (3.0 if axis == thick else 1.1)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "case7.nii.gz")
    (scan,) = scans_of(tmp_path)
    block = [(1, 3), (2, 8), (7, 9)]  # up to the last index of the longer axes
    (z0, z1), (x0, x1), (y0, y1) = block[thick], *(block[axis] for axis in range(3) if axis != thick)
    table = write(
        tmp_path / "boxes.csv",
        f"scan_id,slice0,slice1,x0,y0,x1,y1,axes\ncase7,{z0},{z1},{x0},{y0},{x1},{y1},stored\n",
    )
    assert_surrounds_the_mark(scan, place_boxes([table], [scan]))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_a_stored_box_moves_with_the_directions_of_metaimage_and_nrrd(
    tmp_path: Path, suffix: str, flips: tuple[int, int, int]
) -> None:
    image = sitk.GetImageFromArray(marked_array((6, 8, 9), (slice(4, 5), slice(2, 6), slice(1, 3))))
    image.SetSpacing((0.7, 0.7, 2.5))
    image.SetDirection([float(v) for v in np.diag(flips).ravel()])
    sitk.WriteImage(image, str(tmp_path / f"case7{suffix}"))
    (scan,) = scans_of(tmp_path)
    table = write(tmp_path / "boxes.csv", "scan_id,slice,x0,y0,x1,y1,axes\ncase7,4,1,2,3,6,stored\n")
    assert_surrounds_the_mark(scan, place_boxes([table], [scan]))


def dicom_slice(pixels: np.ndarray, position: np.ndarray, orientation: list[float], **values: Any) -> FileDataset:
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"1.2.3.9.{values.get('InstanceNumber', 0)}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.PatientID, dataset.Modality, dataset.ImageType = "p1", "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient = [float(v) for v in position]
    dataset.ImageOrientationPatient = orientation
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.75], 2
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.PixelData = (pixels.astype(np.int32) + 1024).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


AXIAL = [(x, y, swapped) for x in (1, -1) for y in (1, -1) for swapped in (False, True)]


@pytest.mark.parametrize(("x", "y", "swapped"), AXIAL)
def test_a_box_of_a_dicom_file_finds_its_slice_and_moves_with_its_orientation(
    tmp_path: Path, x: int, y: int, swapped: bool
) -> None:
    row, column = np.array([x, 0, 0.0]), np.array([0, y, 0.0])
    row, column = (column, row) if swapped else (row, column)
    values = marked_array((4, 8, 9), (slice(2, 3), slice(2, 6), slice(7, 9)))
    for i, pixels in enumerate(values):  # from head to feet, so that canonical slices run the other way
        dataset = dicom_slice(pixels, np.array([0, 0, -2.0 * i]), [*row, *column], InstanceNumber=i + 1)
        pydicom.dcmwrite(tmp_path / f"IM{i}", dataset, enforce_file_format=True)
    (scan,) = scans_of(tmp_path)
    table = write(tmp_path / "boxes.csv", "file,x0,y0,x1,y1,axes\nIM2,7,2,9,6,stored\n")
    placed = place_boxes([table], [scan])
    assert_surrounds_the_mark(scan, placed)
    assert [box.slice for box in placed.boxes["1.2.3.4"]] == [1]


def test_the_frames_of_one_dicom_file_are_counted_as_stored(tmp_path: Path) -> None:
    values = marked_array((4, 8, 9), (slice(0, 2), slice(2, 6), slice(1, 3)))

    def item(**content: Any) -> DicomSequence:
        dataset = Dataset()
        for name, value in content.items():
            setattr(dataset, name, value)
        return DicomSequence([dataset])

    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.75], SliceThickness=2.0)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    shared.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    frames = []
    for z in (6.0, 2.0, 4.0, 0.0):  # frames in no order
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[0, 0, z])
        frames.append(frame)
    dataset = dicom_slice(
        values,
        np.zeros(3),
        [1, 0, 0, 0, 1, 0],
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        NumberOfFrames=4,
        SharedFunctionalGroupsSequence=DicomSequence([shared]),
        PerFrameFunctionalGroupsSequence=DicomSequence(frames),
    )
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    pydicom.dcmwrite(tmp_path / "frames.dcm", dataset, enforce_file_format=True)
    (scan,) = scans_of(tmp_path)
    table = write(tmp_path / "boxes.csv", "series_uid,slice0,slice1,x0,y0,x1,y1,axes\n1.2.3.4,0,2,1,2,3,6,stored\n")
    placed = place_boxes([table], [scan])
    assert_surrounds_the_mark(scan, placed)
    assert [box.slice for box in placed.boxes[scan.scan_id]] == [1, 3]


def test_rad_chestct_is_stored_from_head_to_feet(tmp_path: Path) -> None:
    np.savez(tmp_path / "trn00001.npz", ct=marked_array((6, 8, 9), (slice(4, 5), slice(2, 6), slice(1, 3))))
    (scan,) = scans_of(tmp_path)
    table = write(tmp_path / "boxes.csv", "scan_id,slice,x0,y0,x1,y1,axes\ntrn00001,4,1,2,3,6,stored\n")
    placed = place_boxes([table], [scan])
    assert_surrounds_the_mark(scan, placed)
    assert [box.slice for box in placed.boxes["trn00001"]] == [1]


@pytest.mark.parametrize("thick", [0, 1, 2])
def test_boxes_of_ome_zarr_follow_its_slice_axis(tmp_path: Path, thick: int) -> None:
    values = marked_array((6, 8, 9), (slice(4, 5), slice(2, 6), slice(1, 3)))
    group = zarr.open_group(tmp_path / "case7.ome.zarr", mode="w", zarr_format=3)
    group.create_array("0", shape=values.shape, dtype="int16")[...] = values
    scale = [2.5 if axis == thick else 0.8 for axis in range(3)]
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    steps = [{"type": "scale", "scale": scale}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [image]}})
    (scan,) = scans_of(tmp_path)
    block = [(4, 5), (2, 6), (1, 3)]
    (z0, z1), (y0, y1), (x0, x1) = block[thick], *(block[axis] for axis in range(3) if axis != thick)
    table = write(
        tmp_path / "boxes.csv",
        f"scan_id,slice0,slice1,x0,y0,x1,y1,axes\n{scan.scan_id},{z0},{z1},{x0},{y0},{x1},{y1},stored\n",
    )
    assert_surrounds_the_mark(scan, place_boxes([table], [scan]))


def test_a_canonical_box_stays_where_it_is(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(marked_array((7, 8, 9), np.s_[:0, :0, :0]), np.diag([1, 1, 3, 1.0])), tmp_path / "a.nii"
    )
    (scan,) = scans_of(tmp_path)
    table = write(tmp_path / "boxes.csv", "scan_id,slice,x0,y0,x1,y1,axes,label\na,8,1.5,2,3,6.25,canonical,cyst\n")
    assert place_boxes([table], [scan]).boxes == {"a": (Box(8, 1.5, 2, 3, 6.25, "cyst"),)}


def test_a_table_that_does_not_say_its_axes_is_refused_where_they_differ(tmp_path: Path) -> None:
    values = marked_array((7, 8, 9), np.s_[:0, :0, :0])
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1.0])), tmp_path / "ras.nii")
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 3, 1.0])), tmp_path / "lps.nii")
    scans = scans_of(tmp_path)
    table = write(tmp_path / "boxes.csv", "scan_id,slice,x0,y0,x1,y1\nlps,4,1,2,3,6\n")
    assert place_boxes([table], scans).boxes == {"lps": (Box(4, 1, 2, 3, 6),)}
    table = write(tmp_path / "boxes.csv", "scan_id,slice,x0,y0,x1,y1\nlps,4,1,2,3,6\nras,4,1,2,3,6\n")
    with pytest.raises(
        InputError, match=r"boxes\.csv: ras is stored with flipped rows and with flipped columns .* axes"
    ):
        place_boxes([table], scans)


def test_the_boxes_of_the_cohort_hold_every_voxel_that_a_finding_changed(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=5, matrix=64, slices=12, seed=3, workers=1)
    scans = [scan for scan in scans_of(cohort.dicom) if scan.verdict == "use"]
    placed = place_boxes([cohort.boxes], scans)
    assert not placed.problems
    compared = 0
    for index in range(5):
        phantom = draw_patient(3, index, matrix=64, slices=12, findings=())
        for finding in ("lung_nodule", "liver_lesion", "effusion", "bone_lesion"):
            with_it = draw_patient(3, index, matrix=64, slices=12, findings=[finding])
            changed = with_it.density != phantom.density
            for scan in scans:
                boxes = [box for box in placed.boxes.get(scan.scan_id, ()) if box.label == finding]
                if scan.patient_id != phantom.patient_id or not boxes:
                    continue
                inside = np.zeros(changed.shape, bool)
                for box in boxes:
                    inside[box.slice, int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
                assert not (changed & ~inside).any()
                assert (changed & inside).any()
                compared += 1
    assert compared >= 5


def test_deeplesion_boxes_are_counted_from_one_at_pixel_centres(tmp_path: Path) -> None:
    write_deeplesion(
        tmp_path,
        [lesion("000091_03_01_002.png", "3, 2.25, 9.5, 6"), lesion("000091_03_01_004.png", "5, 5, 6, 6", kind=-1)],
    )
    (scan,) = scans_of(tmp_path)
    placed = place_boxes([tmp_path / "DL_info.csv"], [scan])
    assert placed.boxes == {  # slices run from feet to head, numbers from head to feet
        "000091_03_01_001-004": (Box(0, 4.5, 4.5, 5.5, 5.5, ""), Box(2, 2.5, 1.75, 9.0, 5.5, "lung"))
    }
    assert not placed.problems


def test_deeplesion_boxes_come_with_their_spacing_where_the_table_lies_elsewhere(tmp_path: Path) -> None:
    write_deeplesion(tmp_path, [lesion("000091_03_01_002.png", "3, 2, 9, 6")])
    scans = scans_of(tmp_path / "Images_png")
    assert scans[0].spacing_mm is None
    (scan,) = fill_spacing(scans, [tmp_path / "DL_info.csv"])
    assert scan.spacing_mm == (2.5, 0.8, 0.7)
    np.testing.assert_allclose(read_volume(scan).z_mm, [-10, -7.5, -5, -2.5])
    assert place_boxes([tmp_path / "DL_info.csv"], [scan]).boxes[scan.scan_id][0].slice == 2


def test_deeplesion_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    rows = [
        lesion("000091_03_01_002.png", "3, 2, 9, 6", noisy=1),
        lesion("000091_03_01_009.png", "3, 2, 9, 6"),
        lesion("000091_03_01_002.png", "3, 2, 9"),
        lesion("000091_03_01_002.png", "3, 2, 9, 6", size="512, 512"),
        lesion("000091_03_01_003.png", "-3, 2, 9, 6"),
    ]
    write_deeplesion(tmp_path, rows)
    (scan,) = scans_of(tmp_path)
    placed = place_boxes([tmp_path / "DL_info.csv"], [scan])
    assert [(p.place, p.reason, p.lost) for p in placed.problems] == [
        ("DL_info.csv row 2", "possibly_noisy", False),
        ("DL_info.csv row 3", "no_scan", True),
        ("DL_info.csv row 4", "unreadable", True),
        ("DL_info.csv row 5", "other_size", True),
        ("DL_info.csv row 6", "clipped", False),
    ]
    assert placed.boxes[scan.scan_id] == (Box(1, 0, 1.5, 8.5, 5.5, "lung"),)


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        ("a,2,4,2,4,6,", "empty_box", "the box x 4 to 4, y 2 to 6 is empty; expected x0 < x1"),
        ("a,2,4,6,5,2,", "empty_box", "y 6 to 2 is empty"),
        ("a,2,7,2,9,6,", "outside", "x 7 to 9, y 2 to 6 is outside a, whose slices have 7 columns and 8 rows"),
        ("a,9,1,2,3,6,", "outside", "slice 9 is outside a, whose slices are 0 to 8"),
        ("a,-1,1,2,3,6,", "outside", "slice -1 is outside a"),
        ("a,,1,2,3,6,", "no_slice", "names no slice, and a has 9"),
        ("a,2.5,1,2,3,6,", "unreadable", "has slice 2.5; expected a whole number"),
        ("a,2,1,two,3,6,", "unreadable", "x0, y0, x1, y1 are 1, two, 3, 6; expected four numbers"),
        ("a,2,1,nan,3,6,", "unreadable", "expected four numbers"),
        ("a,2,1,2,3,6,up", "unreadable", "axes is 'up'; expected stored or canonical"),
        ("b,2,1,2,3,6,", "no_scan", "no scan has the scan_id 'b'"),
        (",2,1,2,3,6,", "no_scan", "names no scan"),
    ],
)
def test_each_row_that_gives_no_box_has_one_sentence(tmp_path: Path, row: str, reason: str, says: str) -> None:
    nibabel.save(
        nibabel.Nifti1Image(marked_array((7, 8, 9), np.s_[:0, :0, :0]), np.diag([-1, -1, 3, 1.0])), tmp_path / "a.nii"
    )
    table = write(tmp_path / "boxes.csv", f"scan_id,slice,x0,y0,x1,y1,axes\n{row}\na,2,1,2,3,6,\n")
    placed = place_boxes([table], scans_of(tmp_path))
    (problem,) = placed.problems
    assert (problem.reason, problem.lost) == (reason, True)
    assert problem.message.startswith("boxes.csv row 2: ")
    assert says in problem.message
    assert placed.boxes == {"a": (Box(2, 1, 2, 3, 6),)}  # the others are not touched by it
    assert placed.rows == 2


def test_a_box_across_the_border_is_cut_and_said_so(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(marked_array((7, 8, 9), np.s_[:0, :0, :0]), np.diag([-1, -1, 3, 1.0])), tmp_path / "a.nii"
    )
    table = write(tmp_path / "boxes.csv", "scan_id,slice0,slice1,x0,y0,x1,y1\na,-1,2,-4,6,3,12\na,0,1,0,6,3,8\n")
    placed = place_boxes([table], scans_of(tmp_path))
    assert placed.boxes == {"a": (Box(0, 0, 6, 3, 8), Box(1, 0, 6, 3, 8))}
    assert [(p.reason, p.lost) for p in placed.problems] == [("clipped", False), ("repeated", False)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slice,x0,y0,x1,y1\n1,1,2,3,6\n", "no column scan_id, series_uid or file"),
        ("scan_id,x0,y0,x1,y1\na,1,2,3,6\n", "no column slice"),
        ("scan_id,slice,x0,y0,x1\na,1,1,2,3\n", "no column 'y1'"),
        ("scan_id,slice0,x0,y0,x1,y1\na,1,1,2,3,6\n", "slice0 and slice1 .* go together"),
    ],
)
def test_a_table_without_its_columns_is_refused_at_once(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        place_boxes([write(tmp_path / "boxes.csv", text)], [])


def test_scans_are_found_by_file_by_path_and_by_the_last_part_of_their_id(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "case7.nii.gz"
    nibabel.save(nibabel.Nifti1Image(marked_array((7, 8, 9), np.s_[:0, :0, :0]), np.diag([-1, -1, 3, 1.0])), path)
    (scan,) = scans_of(tmp_path)
    for key, name in [
        ("file", "sub/case7.nii.gz"),
        ("file", "case7.nii.gz"),
        ("file", path),
        ("scan_id", "sub/case7"),
        ("scan_id", "case7"),
        ("scan_id", "case7.nii.gz"),
    ]:
        table = write(tmp_path / "boxes.csv", f"{key},slice,x0,y0,x1,y1\n{name},2,1,2,3,6\n")
        assert place_boxes([table], [scan]).boxes == {"sub/case7": (Box(2, 1, 2, 3, 6),)}, (key, name)
