"""Headers: what is read, what is never read, and what damaged or hostile files can do (nothing)."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from clear.errors import ScanRefused
from clear.formats import dicom, dicom_elements

EXPLICIT, IMPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in (".1", "", ".2", ".1.99"))


def header_of(make: Any, name: str, content: bytes) -> dict[str, Any] | None:
    path = make.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return dicom.read_header(path)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
def test_the_record_does_not_depend_on_the_encoding(make: Any, syntax: str) -> None:
    pixels = make.pixels()
    kept = []
    for name, coding in (("a.dcm", EXPLICIT), ("b.dcm", syntax)):
        dataset = make.dataset(pixels, syntax=coding, PixelPaddingValue=63, SOPInstanceUID="1.2.3")
        make.save(dataset, make.folder / name)
        kept.append(dicom.read_header(make.folder / name))
    assert {**kept[1], "syntax": ""} == {**kept[0], "syntax": ""}
    assert kept[1]["syntax"] == syntax


def test_the_record_is_plain_data_without_a_name_or_a_birth_date(make: Any) -> None:
    make.slice("a.dcm", 0, PatientAddress="12 Main St", InstitutionName="General", ReferringPhysicianName="Roe")
    text = json.dumps(dicom.read_header(make.folder / "a.dcm"))
    assert "patient-1" in text
    for secret in ("Doe", "Jane", "19700101", "ACC-77", "Main", "General", "Roe", "20200102"):
        assert secret not in text


def test_patient_ids_in_other_alphabets_are_kept(make: Any) -> None:
    make.slice("a.dcm", 0, SpecificCharacterSet="ISO_IR 192", PatientID="患者-7")
    make.slice("b.dcm", 0, SpecificCharacterSet="ISO_IR 100", PatientID="Müller-3", SeriesInstanceUID="1.9")
    assert {scan.patient_id for scan in make.scans()} == {"患者-7", "Müller-3"}


def test_a_file_without_preamble_is_read(make: Any) -> None:
    pixels = make.slice("a.dcm", 0)
    whole = (make.folder / "a.dcm").read_bytes()
    (make.folder / "a.dcm").write_bytes(whole[132:])
    np.testing.assert_array_equal(dicom.read_series(make.scan()).hu[0], pixels.astype(np.int16) - 1024)
    meta_length = struct.unpack_from("<I", whole, 140)[0]
    (make.folder / "a.dcm").write_bytes(whole[144 + meta_length :])
    np.testing.assert_array_equal(dicom.read_series(make.scan()).hu[0], pixels.astype(np.int16) - 1024)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"hello, this is text" * 50, b"\x89PNG\r\n\x1a\n" + b"\0" * 300, b"\x08\x00" + b"\xff" * 500],
)
def test_what_is_not_dicom_has_no_record(make: Any, content: bytes) -> None:
    assert header_of(make, "a.bin", content) is None


def test_a_file_that_cannot_be_opened_raises_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        dicom.read_header(tmp_path / "missing.dcm")


def test_a_large_header_is_read_to_its_end(make: Any) -> None:
    dataset = make.dataset(make.pixels())
    block = dataset.private_block(0x0009, "ACME", create=True)
    block.add_new(1, "OB", b"\7" * 3_000_000)
    make.save(dataset, make.folder / "a.dcm")
    record = dicom.read_header(make.folder / "a.dcm")
    assert record is not None
    assert record["rows"] == 6


def test_every_cut_of_a_file_is_refused_or_no_dicom(make: Any) -> None:
    make.slice("a.dcm", 0)
    whole = (make.folder / "a.dcm").read_bytes()
    (make.folder / "a.dcm").unlink()
    reasons = set()
    for length in range(132, len(whole), 7):
        record = header_of(make, "cut.dcm", whole[:length])
        assert record is not None
        (scan,) = dicom.series_from_headers([("cut.dcm", record)], make.folder)
        assert (scan.verdict, length) == ("refused", length)
        assert "cut.dcm" in scan.message
        reasons.add(scan.reason)
    assert reasons == {"truncated_pixel_data", "damaged_header"}


def test_one_truncated_file_refuses_its_series(make: Any) -> None:
    make.series([0, 2, 4])
    path = make.folder / "002.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    scan = make.scan()
    assert (scan.verdict, scan.reason, scan.n_slices) == ("refused", "truncated_pixel_data", 3)
    assert scan.message.startswith("002.dcm has 50 of 60 bytes")


def test_malformed_private_sequences_do_not_matter(make: Any) -> None:
    make.slice("a.dcm", 0)
    whole = (make.folder / "a.dcm").read_bytes()
    at = whole.index(struct.pack("<HH2s", 0x0018, 0x0050, b"DS"))
    head = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    junk = [
        struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 30) + b"\x13" * 30,
        head + b"\x42" * 40 + end,
        head + struct.pack("<HHI", 0xFFFE, 0xE000, 8) + b"\xff" * 8 + end,
        struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + end,
    ]
    for broken in junk:
        record = header_of(make, "b.dcm", whole[:at] + broken + whole[at:])
        assert record is not None
        assert record["problem"] is None
        assert (record["rows"], record["thickness_mm"]) == (6, 2.0)


def test_deeply_nested_sequences_end_in_a_reason(make: Any) -> None:
    make.slice("a.dcm", 0)
    whole = (make.folder / "a.dcm").read_bytes()
    at = whole.index(struct.pack("<HH2s", 0x0018, 0x0050, b"DS"))
    level = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    record = header_of(make, "a.dcm", whole[:at] + level * 100_000 + whole[at:])
    assert record is not None
    (scan,) = dicom.series_from_headers([("a.dcm", record)], make.folder)
    assert (scan.verdict, scan.reason) == ("refused", "damaged_header")


@pytest.mark.parametrize(
    "values",
    [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2_000_000_000}, {"Rows": 0}, {"HighBit": 40}],
)
def test_absurd_sizes_are_refused_from_the_header(make: Any, values: dict[str, Any]) -> None:
    make.slice("a.dcm", 0, **values)
    assert make.scan().reason in ("too_large", "damaged_header")


def test_many_large_compressed_slices_are_too_large(make: Any) -> None:
    dataset = make.dataset(make.pixels())
    dataset.compress("1.2.840.10008.1.2.5")
    dataset.Rows = dataset.Columns = 8192
    for i in range(70):
        dataset.ImagePositionPatient = [0, 0, i]
        dataset.SOPInstanceUID = f"1.2.{i}"
        make.save(dataset, make.folder / f"{i}.dcm")
    assert make.scan().reason == "too_large"


def test_a_deflated_file_inflates_only_to_a_limit(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_elements, "MAX_INFLATED_BYTES", 1 << 20)
    make.slice("a.dcm", 0, np.zeros((1500, 1500), np.uint16), syntax=DEFLATED)
    assert (make.folder / "a.dcm").stat().st_size < 20_000
    scan = make.scan()
    assert (scan.verdict, scan.reason) == ("refused", "damaged_header")
    assert "grows beyond 1 MiB" in scan.message


def test_a_truncated_deflated_file_is_refused(make: Any) -> None:
    make.slice("a.dcm", 0, make.pixels(64, 64), syntax=DEFLATED)
    path = make.folder / "a.dcm"
    path.write_bytes(path.read_bytes()[:-2000])
    assert make.scan().reason == "truncated_pixel_data"


def test_endless_empty_fragments_end_in_a_reason(make: Any) -> None:
    dataset = make.dataset(make.pixels())
    dataset.compress("1.2.840.10008.1.2.5")
    make.save(dataset, make.folder / "a.dcm")
    whole = (make.folder / "a.dcm").read_bytes()
    at = whole.index(struct.pack("<HH", 0xFFFE, 0xE000))
    start = time.process_time()
    header_of(make, "a.dcm", whole[:at] + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 700_000)
    assert make.scan().reason == "truncated_pixel_data"
    assert time.process_time() - start < 5


def test_random_damage_raises_nothing_else(make: Any) -> None:
    make.save(make.dataset(make.pixels(3, 6, 5), **make.functional_groups([0.0, 2.0, 4.0])), make.folder / "a.dcm")
    whole = (make.folder / "a.dcm").read_bytes()
    rng = np.random.default_rng(1)
    reasons: set[str] = set()
    for _ in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(128, len(whole), rng.integers(1, 12)):
            damaged[at] = rng.integers(256)
        record = header_of(make, "a.dcm", bytes(damaged))
        if record is None:
            continue
        for scan in dicom.series_from_headers([("a.dcm", json.loads(json.dumps(record)))], make.folder):
            try:
                dicom.read_series(scan)
            except ScanRefused as refusal:
                reasons.add(refusal.reason)
    assert reasons  # the damage was seen, and ended in nothing but named refusals


def test_numbers_that_are_none_do_not_place_a_slice(make: Any) -> None:
    make.slice("a.dcm", 0)
    whole = (make.folder / "a.dcm").read_bytes()
    assert b"-10.0\\-20.0\\0.0" in whole
    header_of(make, "a.dcm", whole.replace(b"-10.0\\-20.0\\0.0", b"nan\\-20.0\\00.00"))
    assert make.scan().reason == "no_geometry"


def test_a_rescale_that_is_no_number_is_not_taken_for_none(make: Any) -> None:
    make.slice("a.dcm", 0, Modality="MR", RescaleSlope="1.5")
    whole = (make.folder / "a.dcm").read_bytes()
    header_of(make, "a.dcm", whole.replace(b"1.5 ", b"1;5 "))
    assert make.scan().reason == "bad_rescale"


def test_directories_are_no_series(make: Any) -> None:
    item = Dataset()
    item.DirectoryRecordType = "PATIENT"
    dataset = make.dataset(make.pixels(), SOPClassUID="1.2.840.10008.1.3.10", DirectoryRecordSequence=Sequence([item]))
    make.save(dataset, make.folder / "DICOMDIR")
    assert make.scans() == []


def test_a_header_takes_about_a_millisecond(make: Any) -> None:
    make.slice("a.dcm", 0, make.pixels(512, 512))
    best = 1.0
    for _ in range(20):
        start = time.process_time()
        dicom.read_header(make.folder / "a.dcm")
        best = min(best, time.process_time() - start)
    assert best < 2e-3
