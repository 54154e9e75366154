"""DICOM outputs, read back with pydicom and highdicom, frame by frame against the source instances that they name."""

from __future__ import annotations

import getpass
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from aggregate.explain.dicom import Kind, write_dicom
from aggregate.explain.source_instances import source_of
from clear.errors import InputError, MissingExtra
from clear.scans import Scan, find_scans, read_volume
from clear.volume import Volume

CLOSE_MM = 0.01
CASES = [
    "dicom_hard_cases/gantry_tilt_siemens_4_slices",
    "dicom_hard_cases/oblique_nonsquare_pixels_tiny",
    "dicom_hard_cases/flipped_rows_and_columns",
    "dicom_hard_cases/flipped_y_no_thickness_j2k",
    "dicom_hard_cases/missing_slice_ge_4_slices",
    "dicom_hard_cases/localizer_and_report_mixed_in",
    "dicom_hard_cases/two_series_and_rtstruct_one_folder",
    "dicom_hard_cases/legacy_converted_enhanced_ct",
    "dicom_hard_cases/enhanced_multiframe_ct",
    "dicom_hard_cases/bad_private_sequence_jpegll",
    "mr_dicom/philips_coronal_4_slices",
    "mr_dicom/jpeg2000_sagittal_4_slices",
    "mr_dicom/siemens_enhanced_multiframe",
    "mr_dicom/per_slice_rescale_nonsquare",
]
ROWS, COLUMNS, SPACING = 6, 9, (1.5, 0.7)
OBLIQUE = Rotation.from_euler("xyz", [25, -15, 10], degrees=True).as_matrix()


def image(number: int, position: np.ndarray, axes: np.ndarray, frames: int = 1) -> FileDataset:
    """A CT image of random values; position: of its first frame, the others follow at 2 mm along the third axis."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    meta.MediaStorageSOPClassUID = found.SOPClassUID = CTImageStorage if frames == 1 else EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = f"1.2.3.4.{number + 1}"
    found.StudyInstanceUID, found.SeriesInstanceUID, found.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    found.Modality, found.PatientID, found.PatientName, found.PatientBirthDate = "CT", "P7", "Doe^Jane", "19500102"
    found.PatientSex, found.StudyDate, found.StudyTime, found.AccessionNumber = "F", "20240105", "101500", "A5"
    found.StudyID, found.ReferringPhysicianName, found.PatientAge = "S5", "House^G", "074Y"
    found.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    found.Rows, found.Columns, found.BitsAllocated, found.BitsStored, found.HighBit = ROWS, COLUMNS, 16, 16, 15
    found.PixelRepresentation, found.SamplesPerPixel, found.PhotometricInterpretation = 1, 1, "MONOCHROME2"
    values = np.random.default_rng(number).integers(-1000, 1000, (frames, ROWS, COLUMNS), dtype=np.int16)
    found.PixelData = values.tobytes()
    places = [[round(float(v), 6) for v in position + 2.0 * i * axes[:, 2]] for i in range(frames)]
    orientation = [round(float(v), 8) for v in (*axes[:, 0], *axes[:, 1])]
    if frames == 1:
        found.RescaleSlope, found.RescaleIntercept, found.PixelSpacing = 1, 0, list(SPACING)
        found.ImagePositionPatient, found.ImageOrientationPatient = places[0], orientation
        return found
    found.NumberOfFrames = frames
    found.SharedFunctionalGroupsSequence = [
        group(
            PixelMeasuresSequence={"PixelSpacing": list(SPACING), "SliceThickness": 2},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"},
        )
    ]
    found.PerFrameFunctionalGroupsSequence = [
        group(  # orientation by frame, as some vendors write it
            PlanePositionSequence={"ImagePositionPatient": place},
            PlaneOrientationSequence={"ImageOrientationPatient": orientation},
        )
        for place in places[::-1]
    ]
    return found


def group(**macros: dict[str, object]) -> Dataset:
    found = Dataset()
    for name, values in macros.items():
        macro = Dataset()
        for keyword, value in values.items():
            setattr(macro, keyword, value)
        setattr(found, name, [macro])
    return found


def series(
    folder: Path,
    along: Sequence[float] = (0, 3, 6, 9),
    *,
    axes: np.ndarray = OBLIQUE,
    tilt_mm: Sequence[float] = (0, 0, 0),
    without: Sequence[str] = (),
    frames: int = 1,
    **changed: object,
) -> Scan:
    """A series on disk, its files named against their order; tilt_mm: how far each slice is moved against the last."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, distance in enumerate(along):
        position = np.array([-80.0, 60.0, -400.0]) + distance * axes[:, 2] + number * np.asarray(tilt_mm)
        made = image(number, position, axes, frames)
        for keyword in without:
            delattr(made, keyword)
        for keyword, value in changed.items():
            with pydicom.config.disable_value_validation():
                setattr(made, keyword, value)
        made.save_as(folder / f"{99 - number}.dcm", enforce_file_format=True)
    (scan,) = find_scans(folder, cache=False)
    assert scan.verdict == "use", scan.message
    return scan


def map_of(volume: Volume) -> np.ndarray:
    """The scan's own values, moved to 0 and above: what lies at a pixel can be asked of the source."""
    values = volume.voxels.astype(np.float32)
    return values - values.min()


def written(folder: Path, scan: Scan, kind: Kind = "parametric-map", threshold: float | None = None) -> Dataset:
    volume = read_volume(scan)
    (path,) = write_dicom(folder / "out", map_of(volume), volume, scan, kind=kind, threshold=threshold)
    assert path.name == f"{kind}.dcm"
    return pydicom.dcmread(path)


def corners(position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float], shape: tuple[int, int]):
    """(4, 3) LPS centres of the corner pixels."""
    right, down = np.reshape(np.asarray(orientation, dtype=float), (2, 3))
    rows, columns = np.array([0, 0, 1, 1]) * (shape[0] - 1), np.array([0, 1, 0, 1]) * (shape[1] - 1)
    origin = np.asarray(position, dtype=float)
    return origin + rows[:, None] * down * float(spacing[0]) + columns[:, None] * right * float(spacing[1])


def macro(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """A functional group macro of a frame (from 0), of its own or shared."""
    own = dataset.PerFrameFunctionalGroupsSequence[frame]
    return (own if sequence in own else dataset.SharedFunctionalGroupsSequence[0])[sequence].value[0]


def source_frame(scan: Scan, uid: str, number: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Corners and rescaled values of one source image or frame, with pydicom alone."""
    (source,) = (d for d in map(pydicom.dcmread, scan.paths) if d.SOPInstanceUID == uid)
    shape = source.Rows, source.Columns
    if number is None:
        place = source.ImagePositionPatient, source.ImageOrientationPatient, source.PixelSpacing
        values = source.pixel_array * float(source.get("RescaleSlope", 1)) + float(source.get("RescaleIntercept", 0))
        return corners(*place, shape), values
    frame = number - 1
    place = (
        macro(source, frame, "PlanePositionSequence").ImagePositionPatient,
        macro(source, frame, "PlaneOrientationSequence").ImageOrientationPatient,
        macro(source, frame, "PixelMeasuresSequence").PixelSpacing,
    )
    rescale = macro(source, frame, "PixelValueTransformationSequence")
    values = source.pixel_array[frame] * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
    return corners(*place, shape), values


def check_frames(dataset: Dataset, scan: Scan) -> list[tuple[str, int | None]]:
    """Every frame lies on the source image that it names and holds its values; returns the names."""
    lowest = read_volume(scan).voxels.min()
    named = []
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for frame in range(dataset.NumberOfFrames):
        (reference,) = macro(dataset, frame, "DerivationImageSequence").SourceImageSequence
        assert reference.SpatialLocationsPreserved == "YES"
        named.append((reference.ReferencedSOPInstanceUID, reference.get("ReferencedFrameNumber")))
        expected, values = source_frame(scan, *named[-1])
        found = corners(
            macro(dataset, frame, "PlanePositionSequence").ImagePositionPatient,
            macro(dataset, frame, "PlaneOrientationSequence").ImageOrientationPatient,
            macro(dataset, frame, "PixelMeasuresSequence").PixelSpacing,
            (dataset.Rows, dataset.Columns),
        )
        assert np.linalg.norm(found - expected, axis=1).max() < CLOSE_MM
        np.testing.assert_allclose(pixels[frame], values - lowest, atol=0.51 if scan.modality == "CT" else 1e-3)
    return named


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("case", CASES)
def test_each_frame_lies_on_the_instance_that_it_names(case: str, shared_data: Path, tmp_path: Path) -> None:
    scans = [s for s in find_scans(shared_data / "data" / case, cache=False) if s.verdict == "use"]
    assert scans
    for scan in scans:
        named = check_frames(written(tmp_path, scan), scan)
        assert len(set(named)) == len(named) == scan.n_slices


@pytest.mark.parametrize(
    ("along", "tilt_mm"),
    [((0, 3, 6, 9), (0, 0, 0)), ((0, 3, 6, 9), (0.3, -0.8, 0)), ((0, 3, 5, 11), (0, 0, 0)), ((0, 3, 5, 11), (0, 1, 0))],
    ids=["oblique", "tilted", "uneven", "tilted and uneven"],
)
@pytest.mark.parametrize("flip", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_oblique_tilted_uneven_and_flipped_series_keep_their_places(
    along: Sequence[float], tilt_mm: Sequence[float], flip: tuple[int, int], tmp_path: Path
) -> None:
    axes = OBLIQUE * [*flip, flip[0] * flip[1]]
    scan = series(tmp_path / "in", along, axes=axes, tilt_mm=tilt_mm)
    assert len(check_frames(written(tmp_path, scan), scan)) == 4


@pytest.mark.parametrize("turn", [(90, 0, 0), (0, 90, 0), (90, 0, 90)])
def test_transposed_series_keep_their_places(turn: Sequence[float], tmp_path: Path) -> None:
    scan = series(tmp_path / "in", axes=Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ OBLIQUE)
    check_frames(written(tmp_path, scan), scan)


def test_several_multi_frame_files_are_one_map(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", (0, 4, 8), frames=2)
    assert (len(scan.files), scan.n_slices) == (3, 6)
    dataset = written(tmp_path, scan)
    named = check_frames(dataset, scan)
    assert sorted(named) == [(f"1.2.3.4.{file}", frame) for file in (1, 2, 3) for frame in (1, 2)]
    assert [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence] == [
        "1.2.3.4.1",
        "1.2.3.4.2",
        "1.2.3.4.3",
    ]
    assert {item.ReferencedSOPClassUID for item in dataset.SourceImageSequence} == {EnhancedCTImageStorage}


def test_a_parametric_map_says_what_its_values_are(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    dataset = written(tmp_path, scan)
    top = float(map_of(read_volume(scan)).max())
    assert dataset.SOPClassUID.name == "Parametric Map Storage"
    assert "FloatPixelData" in dataset
    shared = dataset.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == 0
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == top
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    (window,) = shared.FrameVOILUTSequence
    assert float(window.WindowCenter) * 2 == float(window.WindowWidth) == pytest.approx(top)
    assert dataset.ContentQualification == "RESEARCH"


def test_highdicom_reads_the_map_by_source_instance(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", tilt_mm=(0, 0.5, 0))
    written(tmp_path, scan)
    volume = read_volume(scan)
    source = source_of(scan, volume)
    read = highdicom.pm.ParametricMap.from_dataset(pydicom.dcmread(tmp_path / "out" / "parametric-map.dcm"))
    values = read.get_pixels_by_source_instance([uid for uid, _ in source.instances], apply_voi_transform=False)
    np.testing.assert_array_equal(values, source.stored(map_of(volume)))


def test_a_binary_segmentation_is_what_lies_above_the_threshold(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", (0, 3, 5, 11))
    volume = read_volume(scan)
    dataset = written(tmp_path, scan, "segmentation", 0.75)
    source = source_of(scan, volume)
    assert (dataset.SegmentationType, dataset.Modality) == ("BINARY", "SEG")
    read = highdicom.seg.Segmentation.from_dataset(dataset)
    found = read.get_pixels_by_source_instance([uid for uid, _ in source.instances], segment_numbers=[1])[..., 0]
    saliency = map_of(volume)
    np.testing.assert_array_equal(found, source.stored(saliency >= 0.75 * saliency.max()))
    assert 0 < found.mean() < 0.5


def test_a_fractional_segmentation_is_the_map_over_its_maximum(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    volume = read_volume(scan)
    dataset = written(tmp_path, scan, "segmentation")
    source = source_of(scan, volume)
    assert (dataset.SegmentationType, dataset.MaximumFractionalValue) == ("FRACTIONAL", 255)
    read = highdicom.seg.Segmentation.from_dataset(dataset)
    found = read.get_pixels_by_source_instance([uid for uid, _ in source.instances], segment_numbers=[1])[..., 0]
    np.testing.assert_allclose(found, source.stored(map_of(volume)) / map_of(volume).max(), atol=0.5 / 255 + 1e-6)


def test_slices_without_a_voxel_of_the_segment_are_left_out(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    volume = read_volume(scan)
    saliency = np.zeros(volume.voxels.shape, np.float32)
    saliency[2, 3, 4] = 1.0
    (path,) = write_dicom(tmp_path / "out", saliency, volume, scan, kind="segmentation", threshold=0.5)
    dataset = pydicom.dcmread(path)
    assert dataset.NumberOfFrames == 1
    (reference,) = macro(dataset, 0, "DerivationImageSequence").SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == source_of(scan).instances[2][0]
    assert len(dataset.SourceImageSequence) == 4


def test_patient_and_study_are_those_of_the_source_and_nothing_else_names_anyone(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", InstitutionName="Hospital", StationName="CT1", OperatorsName="Op^A")
    dataset, source = written(tmp_path, scan), pydicom.dcmread(scan.paths[0])
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "AccessionNumber", "StudyID"),
        *("StudyDate", "StudyTime", "StudyInstanceUID", "ReferringPhysicianName", "FrameOfReferenceUID"),
    ):
        assert dataset[keyword].value == source[keyword].value, keyword
    data = (tmp_path / "out" / "parametric-map.dcm").read_bytes()
    strangers = [socket.gethostname(), str(tmp_path), "Hospital", "CT1", "Op^A"]
    strangers += [getpass.getuser()] if len(getpass.getuser()) > 5 else []
    assert not [text for text in strangers if text.encode() in data]


def test_what_the_source_does_not_say_stays_empty(tmp_path: Path) -> None:
    absent = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID")
    scan = series(tmp_path / "in", without=[*absent, "ReferringPhysicianName"])
    dataset = written(tmp_path, scan)
    assert not [keyword for keyword in absent if dataset[keyword].value]
    check_frames(dataset, scan)


def test_values_that_break_the_standard_are_copied_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    wrong = {"StudyDate": "5 Jan", "PatientSex": "female", "PatientName": "Jane Doe", "AccessionNumber": "A" * 40}
    caplog.set_level(logging.INFO)
    scan = series(tmp_path / "in", **wrong)
    recwarn.clear()
    dataset = written(tmp_path, scan)
    assert not [warning for warning in recwarn if "Jane" in str(warning.message) or "5 Jan" in str(warning.message)]
    assert "Jane" not in caplog.text
    for keyword, value in wrong.items():
        assert str(dataset.get_item(keyword).value, "ascii").strip() == value, keyword


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "Καραγιάννης"), ("ISO 2022 IR 87", "Yamada^Tarou=山田^太郎")],
)
def test_names_survive_in_every_character_set(charset: str, name: str, tmp_path: Path) -> None:
    scan = series(
        tmp_path / "in", SpecificCharacterSet=["", charset] if "2022" in charset else charset, PatientName=name
    )
    volume = read_volume(scan)
    (path,) = write_dicom(tmp_path / "out", map_of(volume), volume, scan, series_description="Läsion, größter Herd")
    dataset = pydicom.dcmread(path)
    assert (dataset.PatientName, dataset.SeriesDescription) == (name, "Läsion, größter Herd")


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_that_are_none_are_referred_to_as_they_are(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", (0,), SOPInstanceUID="image-7", StudyInstanceUID="a-study", SeriesInstanceUID="a_b")
    dataset = written(tmp_path, scan)
    assert dataset.StudyInstanceUID == "a-study"
    assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID == "image-7"
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == "a_b"
    assert dataset.SOPInstanceUID.is_valid
    assert dataset.SeriesInstanceUID.is_valid


def test_a_private_sop_class_can_be_referred_to(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", SOPClassUID="1.2.840.113619.4.30")
    dataset = written(tmp_path, scan)
    assert {item.ReferencedSOPClassUID for item in dataset.SourceImageSequence} == {"1.2.840.113619.4.30"}


def test_maps_of_a_series_without_a_frame_of_reference_share_one(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", without=["FrameOfReferenceUID"])
    first, second = written(tmp_path, scan), written(tmp_path, scan, "segmentation", 0.5)
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID
    assert first.FrameOfReferenceUID.is_valid
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID"])
def test_a_source_without_uids_is_refused_by_name(keyword: str, tmp_path: Path) -> None:
    scan = series(tmp_path / "in", **{keyword: ""})
    with pytest.raises(InputError, match=rf"99\.dcm: has no {keyword}, .* Write NIfTI instead"):
        written(tmp_path, scan)


def test_covid_ct_md_which_has_no_instance_uids_is_refused_by_name(shared_data: Path, tmp_path: Path) -> None:
    for file in sorted((shared_data / "data/ct_dicom/covidctmd_P002_chest").iterdir())[:3]:
        (tmp_path / file.name).symlink_to(file)
    (scan,) = find_scans(tmp_path, cache=False)
    with pytest.raises(InputError, match="has no SOPInstanceUID, so no DICOM object can refer to it"):
        written(tmp_path, scan)


def test_instances_that_share_a_uid_are_refused(tmp_path: Path) -> None:
    scan = series(tmp_path / "in", SOPInstanceUID=generate_uid())
    with pytest.raises(InputError, match="several slices have one SOPInstanceUID"):
        written(tmp_path, scan)


def test_a_scan_that_is_no_dicom_is_told_to_write_nifti(shared_data: Path, tmp_path: Path) -> None:
    (scan,) = find_scans(shared_data / "data/ct_mha/3DCT_lung_baseline_small.mha", cache=False)
    with pytest.raises(InputError, match=r"a mha scan has no DICOM instances to refer to\. Write NIfTI instead"):
        written(tmp_path, scan)


def test_the_volume_of_another_series_is_refused(tmp_path: Path) -> None:
    one, other = series(tmp_path / "one"), series(tmp_path / "other", (0, 3, 6, 9.5))
    volume = read_volume(one)
    with pytest.raises(InputError, match="the volume does not lie where this series lies"):
        write_dicom(tmp_path / "out", map_of(volume), volume, other)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    volume = read_volume(scan)
    scan.paths[1].unlink()
    with pytest.raises(InputError, match=r"98\.dcm: cannot be read \(No such file"):
        write_dicom(tmp_path / "out", map_of(volume), volume, scan)


def test_without_highdicom_the_install_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = series(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtra, match=r"pip install 'clear-mil\[dicom\]'"):
        written(tmp_path, scan)


def test_a_map_of_zeros_can_be_kept_but_not_segmented(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    volume = read_volume(scan)
    nothing = np.zeros(volume.voxels.shape, np.float32)
    (path,) = write_dicom(tmp_path / "out", nothing, volume, scan)
    assert not pydicom.dcmread(path).pixel_array.any()
    with pytest.raises(InputError, match="zero everywhere, so there is nothing to segment"):
        write_dicom(tmp_path / "out", nothing, volume, scan, kind="segmentation")


def test_bad_arguments_stop_before_anything_is_read(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    volume = read_volume(scan)
    with pytest.raises(InputError, match=r"threshold 1\.5: expected a share"):
        write_dicom(tmp_path, map_of(volume), volume, scan, kind="segmentation", threshold=1.5)
    with pytest.raises(InputError, match=r"threshold 0\.5: .* and kind 'segmentation'"):
        write_dicom(tmp_path, map_of(volume), volume, scan, threshold=0.5)
    with pytest.raises(InputError, match="kind 'sr': expected parametric-map or segmentation"):
        write_dicom(tmp_path, map_of(volume), volume, scan, kind="sr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the volume's shape"):
        write_dicom(tmp_path, map_of(volume)[1:], volume, scan)
    with pytest.raises(ValueError, match="finite values of at least 0"):
        write_dicom(tmp_path, map_of(volume) - 1, volume, scan)


def test_a_long_description_is_cut_and_says_so(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    volume = read_volume(scan)
    (path,) = write_dicom(tmp_path / "out", map_of(volume), volume, scan, series_description="a\\b\n" + "c" * 80)
    assert pydicom.dcmread(path).SeriesDescription == "a b " + "c" * 59 + "…"


def test_what_was_written_is_set_aside_when_its_folder_is_read(tmp_path: Path) -> None:
    scan = series(tmp_path / "in")
    written(tmp_path, scan)
    written(tmp_path, scan, "segmentation", 0.5)
    found = find_scans(tmp_path, cache=False)
    assert sorted((s.verdict, s.reason) for s in found) == [
        ("set aside", "parametric_map"),
        ("set aside", "seg"),
        ("use", ""),
    ]


def test_stored_undoes_what_reading_did(tmp_path: Path) -> None:
    axes = Rotation.from_euler("xyz", [90, 0, 180], degrees=True).as_matrix() @ OBLIQUE
    scan = series(tmp_path / "in", axes=axes)
    source = source_of(scan)
    by_uid = {d.SOPInstanceUID: d.pixel_array for d in map(pydicom.dcmread, scan.paths)}
    expected = np.stack([by_uid[uid] for uid, _ in source.instances])
    np.testing.assert_array_equal(source.stored(read_volume(scan).voxels), expected)
