"""Synthetic patients: the same call gives the same bytes, the truth is true, and the files are DICOM."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from clear.errors import InputError
from clear.phantom_bodies import draw_anatomy
from clear.phantom_findings import COUNT, DIAMETER_MM, plant
from clear.phantoms import BOX_COLUMNS, FINDINGS, Cohort, draw_labels, draw_patient, write_cohort

SMALL = {"matrix": 64, "slices": 6}
PATIENTS = 13


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "a", patients=PATIENTS, seed=3, workers=1, **SMALL)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def series(cohort: Cohort) -> dict[str, list[pydicom.Dataset]]:
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted(cohort.dicom.rglob("*")):
        if path.is_file():
            image = pydicom.dcmread(path)
            str(image)  # every element is decoded, and checked against its VR
            found.setdefault(image.SeriesInstanceUID, []).append(image)
    return found


def volumes(cohort: Cohort) -> dict[str, list[pydicom.Dataset]]:
    return {uid: images for uid, images in series(cohort).items() if "LOCALIZER" not in images[0].ImageType}


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(cohort: Cohort, tmp_path: Path) -> None:
    again = write_cohort(tmp_path / "b", patients=PATIENTS, seed=3, workers=2, **SMALL)
    assert contents(again.dicom.parent) == contents(cohort.dicom.parent)


def test_another_seed_gives_another_patient_and_other_uids(cohort: Cohort, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "b", patients=2, seed=4, workers=1, **SMALL)
    assert not set(series(other)) & set(series(cohort))
    assert (draw_patient(4, 0, **SMALL).density != draw_patient(3, 0, **SMALL).density).any()


def test_one_finding_never_moves_another() -> None:
    alone = draw_patient(0, 5, findings=["lung_nodule"], **SMALL)
    every = draw_patient(0, 5, findings=FINDINGS, **SMALL)
    boxes = [[b for b in p.boxes if b.finding == "lung_nodule"] for p in (alone, every)]
    assert boxes[0] == boxes[1]


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_voxels_inside_its_boxes_and_nowhere_else(finding: str) -> None:
    size = {"matrix": 128, "slices": 12}
    with_it = draw_patient(2, 4, findings=[finding], **size)
    without = draw_patient(2, 4, findings=[], **size)
    changed = with_it.density != without.density
    covered = np.zeros_like(changed)
    for box in with_it.boxes:
        assert box.finding == finding
        part = slice(*box.slices), slice(*box.y), slice(*box.x)
        covered[part] = True
        assert changed[part].any()
        z = with_it.series[0].z_mm[part[0]]
        half = with_it.series[0].thickness_mm / 2
        assert box.z_mm[0] - half <= z[0] <= z[-1] <= box.z_mm[1] + half
    assert changed.any()
    assert not (changed & ~covered).any()
    # blur spreads a change by a few pixels, noise is the same: nothing else differs in the image either
    images = with_it.series[0].hu.astype(int), without.series[0].hu.astype(int)
    far = np.abs(images[0] - images[1]) > 15
    assert far.any()
    grown = covered | np.roll(covered, 2, 1) | np.roll(covered, -2, 1)
    grown |= np.roll(grown, 2, 2) | np.roll(grown, -2, 2)
    assert not (far & ~grown).any()


def test_findings_have_the_density_that_they_should_have() -> None:
    size = {"matrix": 256, "slices": 16}
    phantom = draw_patient(1, 2, findings=FINDINGS, **size)
    before = draw_patient(1, 2, findings=[], **size)

    def core(box: object) -> tuple[float, float]:
        z, y, x = ((low + high) // 2 for low, high in (box.slices, box.y, box.x))  # type: ignore[attr-defined]
        part = z, slice(y - 1, y + 1), slice(x - 1, x + 1)
        return float(np.median(phantom.density[part])), float(np.median(before.density[part]))

    seen = {name: [core(box) for box in phantom.boxes if box.finding == name] for name in FINDINGS}
    assert np.median([a for a, _ in seen["lung_nodule"]]) == pytest.approx(50, abs=60)
    assert np.median([b for _, b in seen["lung_nodule"]]) < -700
    assert np.median([b - a for a, b in seen["liver_lesion"]]) > 30
    assert np.median([abs(a - b) for a, b in seen["bone_lesion"]]) > 60
    for name, (low, high) in COUNT.items():
        assert 1 <= len(seen[name]) <= high, (name, low)
    changed = phantom.density != before.density
    air = changed & (before.density < -700) & (phantom.density < -940)
    fluid = changed & (before.density < -700) & (np.abs(phantom.density - 10) < 20)
    assert air.sum() > 500
    assert fluid.sum() > 500


def test_balls_have_the_sizes_that_are_promised() -> None:
    def stream(name: str) -> np.random.Generator:
        return np.random.default_rng([8, len(name)])

    planted = plant(draw_anatomy(stream("anatomy")), FINDINGS, np.arange(-120.0, 140.0, 12.0), stream)
    assert {ball.finding for ball in planted.balls} == set(DIAMETER_MM)
    for ball in planted.balls:
        low, high = DIAMETER_MM[ball.finding]
        assert low <= 2 * ball.radius_mm <= high
    assert all(2 * ball.radius_mm < 4 for ball in planted.granulomas)


def test_tissues_have_textbook_densities() -> None:
    phantom = draw_patient(0, 1, findings=[], matrix=256, slices=12)
    hu = phantom.series[0].hu.astype(float)
    histogram = Counter((hu.ravel() // 20 * 20).astype(int).tolist())

    def peak(low: int, high: int) -> int:
        return max(range(low, high, 20), key=lambda value: histogram[value])

    assert peak(-1020, -980) in (-1020, -1000)
    assert -900 <= peak(-940, -700) <= -800
    assert -140 <= peak(-180, -40) <= -80
    assert 20 <= peak(0, 80) <= 60
    assert 80 <= peak(80, 200) <= 140
    assert (hu > 400).mean() > 0.001
    assert hu.min() >= -1024
    assert hu.max() <= 3071


def test_noise_is_stronger_with_a_sharp_kernel_and_the_anatomy_the_same() -> None:
    phantom = draw_patient(0, 2, findings=[], matrix=128, slices=6)
    soft, sharp = phantom.series
    middle = np.s_[:, 40:88, 40:88]
    noise = [float(np.std(one.hu[middle] - phantom.density[middle])) for one in (soft, sharp)]
    assert noise[1] > 1.5 * noise[0]
    assert np.corrcoef(soft.hu.ravel(), sharp.hu.ravel())[0, 1] > 0.98
    np.testing.assert_array_equal(soft.z_mm, sharp.z_mm)


def test_the_tables_agree_with_each_other_and_with_the_files(cohort: Cohort) -> None:
    labels, boxes = table(cohort.labels), table(cohort.boxes)
    assert tuple(labels[0]) == ("patient_id", *FINDINGS)
    assert tuple(boxes[0]) == BOX_COLUMNS
    assert [row["patient_id"] for row in labels] == [f"PHANTOM-{i + 1:04d}" for i in range(PATIENTS)]
    boxed = {(row["patient_id"], row["finding"]) for row in boxes}
    assert boxed == {(row["patient_id"], name) for row in labels for name in FINDINGS if row[name] == "1"}
    found = volumes(cohort)
    assert {row["series_uid"] for row in boxes} <= set(found)
    for row in boxes:
        images = found[row["series_uid"]]
        assert images[0].PatientID == row["patient_id"]
        assert 0 <= int(row["slice0"]) < int(row["slice1"]) <= len(images)
        assert 0 <= int(row["x0"]) < int(row["x1"]) <= images[0].Columns
        assert 0 <= int(row["y0"]) < int(row["y1"]) <= images[0].Rows
    assert (cohort.patients, cohort.series, cohort.localizers) == (
        PATIENTS,
        len(found),
        len(series(cohort)) - len(found),
    )


def test_cohorts_of_one_seed_without_a_common_index_share_no_patient(cohort: Cohort, tmp_path: Path) -> None:
    later = write_cohort(tmp_path / "later", patients=2, seed=3, first=PATIENTS, workers=1, **SMALL)
    assert [row["patient_id"] for row in table(later.labels)] == [f"PHANTOM-{PATIENTS + i:04d}" for i in (1, 2)]
    own, others = volumes(cohort), volumes(later)
    assert not set(own) & set(others)
    first = f"PHANTOM-{PATIENTS + 1:04d}"
    images = next(images for images in others.values() if images[0].PatientID == first)
    findings = [name for name in FINDINGS if table(later.labels)[0][name] == "1"]
    drawn = draw_patient(3, PATIENTS, findings=findings, **SMALL)
    assert drawn.patient_id == first
    assert images[0].PatientAge == f"{drawn.age_years:03d}Y"
    heights = sorted(float(image.ImagePositionPatient[2]) for image in images)
    assert any(np.allclose(heights, one.z_mm, atol=1e-3) for one in drawn.series)
    with pytest.raises(InputError, match="starts at index 0 or later"):
        write_cohort(tmp_path / "none", patients=2, first=-1)


def test_each_finding_is_present_in_its_share_and_independent_of_the_others() -> None:
    labels = draw_labels(2000, seed=1)
    matrix = np.array([labels[name] for name in FINDINGS], float)
    np.testing.assert_array_equal(matrix.sum(axis=1), 900)
    off_diagonal = np.corrcoef(matrix)[~np.eye(len(FINDINGS), dtype=bool)]
    assert np.abs(off_diagonal).max() < 4 / np.sqrt(2000)


def test_pydicom_and_simpleitk_read_back_the_phantom(cohort: Cohort) -> None:
    labels = {row["patient_id"]: [name for name in FINDINGS if row[name] == "1"] for row in table(cohort.labels)}
    for images in volumes(cohort).values():
        index = int(images[0].PatientID[-4:]) - 1
        phantom = draw_patient(3, index, findings=labels[images[0].PatientID], **SMALL)
        (drawn,) = [one for one in phantom.series if one.kernel.name == images[0].ConvolutionKernel]
        images = sorted(images, key=lambda image: float(image.ImagePositionPatient[2]))
        stored = np.stack([image.pixel_array for image in images]).astype(int)
        hu = stored * int(images[0].RescaleSlope) + int(images[0].RescaleIntercept)
        if "PixelPaddingValue" in images[0]:
            outside = stored == images[0].PixelPaddingValue
            np.testing.assert_array_equal(outside, np.broadcast_to(drawn.padded, outside.shape))
            hu[outside] = -1000
        np.testing.assert_array_equal(hu, drawn.hu)
        z = [float(image.ImagePositionPatient[2]) for image in images]
        np.testing.assert_allclose(z, drawn.z_mm, atol=0.006)
        reader = sitk.ReadImage(images[2].filename)
        expected = stored[2] * int(images[0].RescaleSlope) + int(images[0].RescaleIntercept)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(reader)[0], expected)
        assert reader.GetSpacing()[0] == pytest.approx(drawn.pixel_mm, rel=1e-5)
        np.testing.assert_allclose(drawn.volume.z_mm, drawn.z_mm)


def test_files_are_conformant_and_name_nobody(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    sop_uids = set()
    for images in series(cohort).values():
        frames = {(image.StudyInstanceUID, image.FrameOfReferenceUID, image.PatientID) for image in images}
        assert len(frames) == 1
        for image in images:
            assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            assert image.SOPClassUID == image.file_meta.MediaStorageSOPClassUID == CTImageStorage
            assert image.SOPInstanceUID == image.file_meta.MediaStorageSOPInstanceUID
            assert image.SOPInstanceUID.is_valid
            assert image.SOPInstanceUID.startswith("2.25.")
            sop_uids.add(image.SOPInstanceUID)
            assert str(image.PatientName) == image.PatientBirthDate == ""
            assert "Synthetic" in image.ImageComments
            assert image.KVP == 120
    assert len(sop_uids) == sum(len(images) for images in series(cohort).values())


def test_every_habit_is_there(cohort: Cohort) -> None:
    found = volumes(cohort)
    studies = Counter(images[0].StudyInstanceUID for images in found.values())
    assert sorted(studies.values()) == [1] * 10 + [2] * 3
    first = [images[0] for images in found.values()]
    assert len({image.Manufacturer for image in first}) == 4
    assert {image.PixelRepresentation for image in first} == {0, 1}
    assert {int(image.RescaleIntercept) for image in first} == {0, -1024}
    assert any(image.get("PixelPaddingValue") == -2000 for image in first)
    assert len({float(image.PixelSpacing[0]) for image in first}) > 8
    assert len({float(image.SliceThickness) for image in first}) > 2
    downwards, shuffled, gaps = set(), 0, []
    for images in found.values():
        z = np.array([float(image.ImagePositionPatient[2]) for image in images])  # in order of file names
        numbers = np.array([int(image.InstanceNumber) for image in images])
        downwards.add(bool(np.corrcoef(z, numbers)[0, 1] < 0))
        shuffled += bool((np.diff(z) > 0).any() and (np.diff(z) < 0).any())
        gaps.append(np.diff(np.sort(z)))
    assert downwards == {True, False}
    assert shuffled >= len(found) - 1
    uneven = [gap for gap in gaps if np.ptp(gap) > 0.02 * np.median(gap)]
    missing = [gap for gap in uneven if np.allclose(sorted(gap / gap.min()), [1] * (len(gap) - 1) + [2], atol=0.02)]
    assert len(missing) >= 1
    assert len(uneven) > len(missing)


def test_a_localizer_is_one_frontal_image_of_its_own_series(cohort: Cohort) -> None:
    scouts = [images for images in series(cohort).values() if "LOCALIZER" in images[0].ImageType]
    assert len(scouts) == cohort.localizers == 3
    for (image,) in scouts:
        assert list(image.ImageOrientationPatient) == [1, 0, 0, 0, 0, -1]
        assert image.pixel_array.std() > 10


def test_progress_counts_patients(tmp_path: Path) -> None:
    done: list[int] = []
    write_cohort(tmp_path / "new", patients=2, workers=1, matrix=32, slices=4, progress=done.append)
    assert done == [1, 1]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="new or empty folder"):
        write_cohort(tmp_path, patients=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_arguments_that_make_no_sense_are_named() -> None:
    with pytest.raises(InputError, match="matrix of 32 or more"):
        draw_patient(0, 0, matrix=8, slices=6)
    with pytest.raises(InputError, match=r"unknown findings \['pneumonia'\]"):
        draw_patient(0, 0, findings=["pneumonia"])


@pytest.mark.parametrize("slices", [4, 5, 6, 7, 9])
def test_few_slices_are_enough_for_every_finding(slices: int) -> None:
    for index in range(4):
        phantom = draw_patient(11, index, findings=FINDINGS, matrix=32, slices=slices)
        assert {box.finding for box in phantom.boxes} == set(FINDINGS)
