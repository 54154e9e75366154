"""Which images form a volume: one test a rule, on small series written for it."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest

from clear.errors import ScanRefused
from clear.formats import dicom

Z = [0.0, 2.0, 4.0, 6.0]


def test_slices_are_ordered_by_position_and_never_by_number_or_name(make: Any) -> None:
    hu = make.series(Z)  # file names run the other way, InstanceNumber is 1 everywhere
    scan = make.scan()
    assert scan.files == ("004.dcm", "003.dcm", "002.dcm", "001.dcm")
    assert (scan.verdict, scan.plane, scan.shape, scan.spacing_mm) == ("use", "axial", (6, 5), (2.0, 0.5, 0.75))
    volume = dicom.read_series(scan)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.z_mm.tolist() == Z
    assert volume.positions_mm[0].tolist() == [-10.0, -20.0, 0.0]


def test_what_a_plan_needs_is_in_the_scan(make: Any) -> None:
    make.series(Z, ContrastBolusAgent="Iomeprol")
    make.slice("later/1.dcm", 0, SeriesInstanceUID="1.2.9", StudyInstanceUID="1.2.3.9", StudyDate="20200201")
    later, scan = sorted(make.scans(), key=lambda s: s.n_slices)
    assert scan.scan_id == scan.series_uid == "1.2.3.4.5"
    assert (scan.patient_id, scan.study_uid, scan.modality) == ("patient-1", "1.2.3.4", "CT")
    assert (scan.manufacturer, scan.kernel, scan.thickness_mm, scan.contrast) == ("ACME", "B30f", 2.0, "Iomeprol")
    assert (scan.days_since_first, later.days_since_first) == (0, 30)
    assert (scan.source, later.source) == (".", "later/1.dcm")


def test_several_series_in_one_folder_are_several_scans(make: Any) -> None:
    make.slice("a.dcm", 0, SeriesInstanceUID="1.1")
    make.slice("b.dcm", 0, SeriesInstanceUID="1.2")
    make.slice("c.dcm", 2, SeriesInstanceUID="1.1")
    assert [(scan.scan_id, scan.n_slices) for scan in make.scans()] == [("1.1", 2), ("1.2", 1)]


def test_a_localizer_in_an_axial_series_is_left_out_with_a_remark(make: Any) -> None:
    hu = make.series(Z)
    localizer = [0, 1, 0, 0, 0, -1]
    make.slice("x.dcm", 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=localizer)
    scan = make.scan()
    assert (scan.verdict, scan.n_slices) == ("use", 4)
    assert scan.remarks == ("1 localizer image(s) left out, the first x.dcm",)
    np.testing.assert_array_equal(dicom.read_series(scan).hu, hu)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "Modality": "RTSTRUCT"}, "rtstruct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2", "Modality": "RTDOSE"}, "rtdose"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.5", "Modality": "RTPLAN"}, "rtplan"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"}, "seg"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "Modality": "SR"}, "sr"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR"}, "dose_report"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59", "Modality": "KO"}, "key_object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Modality": "PR"}, "presentation_state"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.1", "Modality": "REG"}, "registration"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Modality": "DOC"}, "document"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "screenshot"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "screenshot"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screenshot"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "DOSE_INFO"]}, "dose_report"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"Modality": "US", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, "unsupported_modality"),
        ({"Modality": "MG", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2"}, "unsupported_modality"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "colour"),
    ],
)
def test_what_is_no_volume_is_set_aside_by_name(make: Any, values: dict[str, Any], reason: str) -> None:
    make.slice("a.dcm", 0, **values)
    scan = make.scan()
    assert (scan.verdict, scan.reason) == ("set aside", reason)
    assert scan.message.startswith("a.dcm")
    with pytest.raises(ScanRefused) as caught:
        dicom.read_series(scan)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "mixed_orientation"),
        ({"PixelSpacing": [0.5, 0.8]}, "mixed_spacing"),
        ({"pixels": np.zeros((6, 6), np.uint16)}, "mixed_matrix"),
        ({"PatientID": "patient-2"}, "mixed_patients"),
        ({"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "mixed_modality"),
        ({"ImagePositionPatient": None}, "no_geometry"),
        ({"ImageOrientationPatient": None}, "no_geometry"),
        ({"PixelSpacing": None}, "no_geometry"),
        ({"PixelSpacing": [0, 0]}, "mixed_spacing"),
        ({"RescaleSlope": 0}, "bad_rescale"),
        ({"RescaleSlope": 1e300}, "bad_rescale"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "not_hu"),
    ],
)
def test_one_slice_that_does_not_fit_refuses_the_series_and_is_named(
    make: Any, values: dict[str, Any], reason: str
) -> None:
    make.series(Z)
    make.slice("odd.dcm", 8, **values)
    scan = make.scan()
    assert (scan.verdict, scan.reason, scan.plane) == ("refused", reason, None)
    assert "odd.dcm" in scan.message
    assert scan.refusal == scan.message


def test_spacing_rounded_differently_is_still_one_spacing(make: Any) -> None:
    make.series(Z, PixelSpacing=[0.9765625, 0.9765625])
    make.slice("z.dcm", 8, PixelSpacing=[0.976563, 0.976563])
    assert make.scan().n_slices == 5


def test_copies_of_a_file_are_left_out_with_a_remark(make: Any) -> None:
    hu = make.series(Z)
    shutil.copy(make.folder / "002.dcm", make.folder / "copy.dcm")
    (make.folder / "again").mkdir()
    shutil.copy(make.folder / "002.dcm", make.folder / "again" / "x.dcm")
    scan = make.scan()
    (remark,) = scan.remarks
    assert remark.startswith("2 duplicate file(s) left out")
    np.testing.assert_array_equal(dicom.read_series(scan).hu, hu)


def test_the_same_pixels_under_another_uid_are_a_copy(make: Any) -> None:
    make.series(Z)
    pixels = make.slice("a.dcm", 8)
    make.slice("b.dcm", 8, pixels)
    assert make.scan().n_slices == 5


def test_a_copy_in_another_transfer_syntax_is_a_copy(make: Any) -> None:
    make.series(Z)
    pixels = make.slice("a.dcm", 8)
    dataset = make.dataset(pixels, ImagePositionPatient=[-10, -20, 8])
    dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    make.save(dataset, make.folder / "b.dcm")
    scan = make.scan()
    assert (scan.verdict, scan.n_slices) == ("use", 5)


def test_different_images_at_one_position_are_refused(make: Any) -> None:
    make.series(Z)
    make.slice("other.dcm", 4)
    scan = make.scan()
    assert (scan.verdict, scan.reason) == ("refused", "duplicate_positions")
    assert "002.dcm" in scan.message
    assert "other.dcm" in scan.message


def test_equal_uids_do_not_make_different_images_equal(make: Any) -> None:
    make.series(Z, SOPInstanceUID="1.2.3.99")  # a careless anonymiser: all slices share one UID
    assert make.scan().n_slices == 4
    make.slice("defaced.dcm", 4, SOPInstanceUID="1.2.3.99")
    assert make.scan().reason == "duplicate_positions"


def test_bolus_tracking_is_no_volume(make: Any) -> None:
    for i in range(4):
        make.slice(f"{i}.dcm", 61.5, AcquisitionNumber=i)
    scan = make.scan()
    assert (scan.verdict, scan.reason) == ("refused", "not_a_volume")
    assert "0.dcm" in scan.message


@pytest.mark.parametrize(
    ("attribute", "values", "suffixes"),
    [
        ("EchoTime", [4.6, 9.2], ["#EchoTime=4.6", "#EchoTime=9.2"]),
        ("AcquisitionNumber", [1, 2], ["#AcquisitionNumber=1", "#AcquisitionNumber=2"]),
        ("TemporalPositionIdentifier", [1, 2], ["#TemporalPosition=1", "#TemporalPosition=2"]),
        ("ConvolutionKernel", ["B30f", "B70f"], ["#ConvolutionKernel=B30f", "#ConvolutionKernel=B70f"]),
        ("ImageType", [["A", "B", "M"], ["A", "B", "P"]], ["#ImageType=A-B-M", "#ImageType=A-B-P"]),
    ],
)
def test_two_volumes_in_one_series_are_two_scans(
    make: Any, attribute: str, values: list[Any], suffixes: list[str]
) -> None:
    written = [
        np.stack([make.slice(f"{attribute}{i}-{z}.dcm", z, **{attribute: value}) for z in Z])
        for i, value in enumerate(values)
    ]
    scans = make.scans()
    assert [scan.scan_id for scan in scans] == ["1.2.3.4.5" + suffix for suffix in suffixes]
    for scan, stored in zip(scans, written, strict=True):
        assert scan.series_uid == "1.2.3.4.5"
        assert any("one of 2 volumes in this series" in remark for remark in scan.remarks)
        np.testing.assert_array_equal(dicom.read_series(scan).hu, stored.astype(np.int16) - 1024)


def test_interleaved_acquisitions_are_not_merged(make: Any) -> None:
    for name, offset in (("a", 0.0), ("b", 0.7)):
        for z in Z:
            make.slice(f"{name}{z}.dcm", z + offset, AcquisitionNumber=1 if name == "a" else 2)
    assert [(scan.n_slices, scan.spacing_mm[0]) for scan in make.scans()] == [(4, 2.0), (4, 2.0)]


def test_acquisitions_that_continue_each_other_are_one_volume(make: Any) -> None:
    for i, z in enumerate([0, 2, 4, 9, 11, 13]):
        make.slice(f"{i}.dcm", z, AcquisitionNumber=1 if z < 5 else 2)
    scan = make.scan()
    assert (scan.verdict, scan.n_slices) == ("use", 6)
    assert "uneven spacing: 2.00 to 5.00 mm, median 2.00 mm" in scan.remarks


def test_a_missing_slice_is_remarked(make: Any) -> None:
    make.series([0, 2, 4, 8, 10])
    assert any("1 slice(s) of 2 mm missing" in remark for remark in make.scan().remarks)


def test_gantry_tilt_is_remarked(make: Any) -> None:
    for i, z in enumerate(Z):
        make.slice(f"{i}.dcm", z, ImagePositionPatient=[-10.0, -20.0 + 0.25 * z, z])
    assert "gantry tilt 14.0 degrees" in make.scan().remarks


def test_a_sideways_jump_is_remarked(make: Any) -> None:
    for i, z in enumerate([0, 2, 4, 6, 8, 10]):
        make.slice(f"{i}.dcm", z, ImagePositionPatient=[-10.0 if i != 3 else 30.0, -20.0, z])
    assert any("shifted sideways" in remark for remark in make.scan().remarks)


def test_files_without_series_uid_are_grouped_by_folder(make: Any) -> None:
    for z in Z:
        make.slice(f"one/{z}.dcm", z, SeriesInstanceUID=None, SeriesNumber=7)
        make.slice(f"two/{z}.dcm", z, SeriesInstanceUID=None, SeriesNumber=7)
    scans = make.scans()
    assert [scan.n_slices for scan in scans] == [4, 4]
    assert [scan.scan_id.rpartition("-")[0] for scan in scans] == ["one/series-7", "two/series-7"]
    assert scans[0].series_uid is None


def test_an_id_that_could_leave_the_folder_is_not_used_as_it_is(make: Any) -> None:
    make.slice("a.dcm", 0, SeriesInstanceUID="../../etc/passwd")
    scan = make.scan()
    assert "/" not in scan.scan_id
    assert scan.scan_id.startswith("uid-")


def test_uids_that_are_no_uids_group_all_the_same(make: Any) -> None:
    make.series(Z, SeriesInstanceUID="09bc8aea-ff9c-4106", StudyInstanceUID="not a uid")
    assert (make.scan().scan_id, make.scan().n_slices) == ("09bc8aea-ff9c-4106", 4)


def test_signed_values_without_rescale_are_used_with_a_remark(make: Any) -> None:
    pixels = [make.pixels(low=-1000, high=1000, dtype=np.int16) for _ in Z]
    for z, stored in zip(Z, pixels, strict=True):
        make.slice(f"{z}.dcm", z, stored, RescaleSlope=None, RescaleIntercept=None)
    scan = make.scan()
    assert "no rescale tags: stored values are taken as HU" in scan.remarks
    np.testing.assert_array_equal(dicom.read_series(scan).hu, np.stack(pixels))


def test_values_without_rescale_and_without_air_are_refused_when_read(make: Any) -> None:
    make.slice("a.dcm", 0, make.pixels(dtype=np.int16), RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(ScanRefused, match="rescale tags") as caught:
        dicom.read_series(make.scan())
    assert caught.value.reason == "not_hu"


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        ({"RescaleIntercept": 0}, "not HU? no value can be below 0"),
        ({"RescaleType": "Z_EFF"}, "not HU? the rescale type is Z_EFF"),
        ({"pixels": np.zeros((6, 5), np.uint8)}, "not HU? only 8 bits are stored"),
        ({"LossyImageCompression": "01"}, "lossy compression"),
    ],
)
def test_doubtful_values_are_remarked(make: Any, values: dict[str, Any], remark: str) -> None:
    make.slice("a.dcm", 0, **values)
    assert remark in make.scan().remarks


def test_a_file_that_changed_since_the_plan_is_refused(make: Any) -> None:
    make.series(Z)
    scan = make.scan()
    make.slice("002.dcm", 4, np.zeros((7, 7), np.uint16))
    with pytest.raises(ScanRefused, match=r"002\.dcm") as caught:
        dicom.read_series(scan)
    assert caught.value.reason == "changed_since_plan"
    (make.folder / "002.dcm").unlink()
    with pytest.raises(ScanRefused) as caught:
        dicom.read_series(scan)
    assert caught.value.reason == "unreadable_file"


def test_what_the_user_deselected_can_still_be_read(make: Any) -> None:
    hu = make.series(Z)
    scan = dataclasses.replace(make.scan(), verdict="set aside", reason="not_selected", message="not selected")
    np.testing.assert_array_equal(dicom.read_series(scan).hu, hu)


def test_the_order_of_the_records_changes_nothing(make: Any) -> None:
    make.series(Z)
    shutil.copy(make.folder / "002.dcm", make.folder / "copy.dcm")
    records = make.records()
    assert dicom.series_from_headers(records[::-1], make.folder) == dicom.series_from_headers(records, make.folder)


# Multi-frame


def test_frames_are_read_with_their_own_geometry_and_rescale(make: Any) -> None:
    pixels = make.pixels(3, 6, 5)
    make.save(make.dataset(pixels, **make.functional_groups([4.0, 0.0, 2.0])), make.folder / "mf.dcm")
    scan = make.scan()
    assert (scan.verdict, scan.n_slices, scan.spacing_mm, scan.files) == ("use", 3, (2.0, 0.5, 0.75), ("mf.dcm",))
    volume = dicom.read_series(scan)
    np.testing.assert_array_equal(volume.hu, pixels[[1, 2, 0]].astype(np.int16) - 1000)
    assert volume.z_mm.tolist() == [0, 2, 4]


def test_one_series_of_two_multi_frame_files_is_one_volume(make: Any) -> None:
    parts = [make.pixels(2, 6, 5) for _ in range(2)]
    for i, part in enumerate(parts):
        groups = make.functional_groups([4.0 * i, 4.0 * i + 2.0])
        make.save(make.dataset(part, **groups), make.folder / f"{i}.dcm")
    volume = dicom.read_series(make.scan())
    np.testing.assert_array_equal(volume.hu, np.concatenate(parts).astype(np.int16) - 1000)


def test_time_points_in_one_multi_frame_image_are_refused_by_name(make: Any) -> None:
    groups = make.functional_groups([0.0, 2.0, 0.0, 2.0], TemporalPositionIndex=[1, 1, 2, 2])
    make.save(make.dataset(make.pixels(4, 6, 5), **groups), make.folder / "mf.dcm")
    scan = make.scan()
    assert (scan.verdict, scan.reason) == ("refused", "several_volumes")
    assert "TemporalPosition" in scan.message


def test_a_copied_multi_frame_file_is_left_out(make: Any) -> None:
    make.save(make.dataset(make.pixels(3, 6, 5), **make.functional_groups([0.0, 2.0, 4.0])), make.folder / "a.dcm")
    shutil.copy(make.folder / "a.dcm", make.folder / "b.dcm")
    scan = make.scan()
    assert (scan.files, scan.remarks) == (("a.dcm",), ("1 duplicate file(s) left out, the first b.dcm",))


def test_frames_without_positions_are_refused(make: Any) -> None:
    make.save(make.dataset(make.pixels(3, 6, 5), NumberOfFrames=3), make.folder / "a.dcm")
    assert make.scan().reason == "no_geometry"


def test_fewer_frame_descriptions_than_frames_are_refused(make: Any) -> None:
    groups = {**make.functional_groups([0.0, 2.0]), "NumberOfFrames": 3}
    make.save(make.dataset(make.pixels(3, 6, 5), **groups), make.folder / "a.dcm")
    assert make.scan().reason == "damaged_header"
