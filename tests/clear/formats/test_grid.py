"""Rules that all files with an array and an affine share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from clear.errors import ScanRefused
from clear.formats.grid import Grid, blocks, check_size, look, values_of
from clear.volume import AIR_HU

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 2000, (8, 32, 32)).astype(np.int16)


def chunks(array: np.ndarray, n: int = 3) -> list[np.ndarray]:
    return np.array_split(array.ravel(), n)


def test_a_value_that_only_ct_has_ends_the_look() -> None:
    first, *_ = chunks(NOISE - 1024)

    def endless():  # type: ignore[no-untyped-def]
        yield first
        pytest.fail("looked on although the first block decides")

    assert look(endless()).low <= -150


def test_the_rescale_counts_in_the_look() -> None:
    assert look(chunks(NOISE), 1.0, -1024.0).low <= -150
    assert look(chunks(NOISE), 1.0, 0.0).low >= 0


def test_labels_are_told_from_an_eight_bit_image() -> None:
    labels = np.zeros((8, 64, 64), np.uint8)
    labels[2:6, 10:40, 10:30] = 3
    labels[2:6, 10:40, 30:50] = 117
    image = (NOISE % 256).astype(np.uint8)
    assert look(chunks(labels)).is_segmentation
    assert look(chunks(labels.astype(np.float32))).is_segmentation
    assert look(chunks(labels.astype(np.int32))).is_segmentation
    assert not look(chunks(image)).is_segmentation
    assert not look(chunks(NOISE)).is_segmentation
    assert not look(chunks(labels * 0.5)).is_segmentation


def test_the_look_does_not_depend_on_how_values_arrive() -> None:
    for array in (NOISE, NOISE.astype(np.float32) - 100):
        assert look(chunks(array, 1)) == look(chunks(array, 7))


def test_values_that_are_not_finite_are_painted_and_counted() -> None:
    array = NOISE.astype(np.float32)
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    ct, remarks = values_of(array, "CT")
    assert ct[0, 0, 0] == ct[1, 1, 1] == AIR_HU
    assert remarks == ("2 voxels are not finite: painted as air",)
    mr, _ = values_of(array, "MR")
    assert mr.dtype == np.float32
    assert np.isfinite(mr).all()


def test_hu_are_rounded_half_to_even_and_clipped_to_int16() -> None:
    array = np.array([[[0.5, 1.5, -0.5, 40000.0, -40000.0, 2.4999]]])
    values, remarks = values_of(array, "CT")
    assert_array_equal(values.ravel(), [0, 2, 0, 32767, -32768, 2])
    assert remarks == ("2 voxels lie outside int16 and were clipped",)
    wide, _ = values_of(np.array([[[2**31 - 1, -(2**31), 7]]], np.int32), "CT")
    assert_array_equal(wide.ravel(), [32767, -32768, 7])
    unsigned, _ = values_of(np.array([[[65535, 7]]], np.uint16), "CT")
    assert_array_equal(unsigned.ravel(), [32767, 7])


def test_slope_and_intercept_are_applied_once() -> None:
    values, _ = values_of(np.array([[[0, 1, 4095]]], np.uint16), "CT", 0.5, -1024)
    assert_array_equal(values.ravel(), [-1024, -1024, 1024])  # 1023.5 rounds to even


def grid(path: Path, shape: tuple[int, int, int], compression: str = "") -> Grid:
    return Grid(shape, np.eye(4), np.dtype("<i2"), path, compression=compression)


def test_a_header_cannot_claim_more_than_the_file_could_hold(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(b"\0" * 1000)
    for claim, reason in (((4000, 4000, 4000), "too_large"), ((100, 100, 100), "truncated_pixel_data")):
        with pytest.raises(ScanRefused) as refusal:
            check_size("bomb", grid(path, claim, "gzip"))
        assert refusal.value.reason == reason
    with pytest.raises(ScanRefused):
        check_size("bomb", grid(path, (10, 10, 10)))
    check_size("bomb", grid(path, (5, 10, 10)))


def test_unpacking_yields_small_blocks_whatever_is_packed(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(b"\0" * 50_000_000))
    total = 0
    for block in blocks(path, 0, "gzip"):
        assert len(block) <= 1 << 20
        total += len(block)
    assert total == 50_000_000


def test_gzip_members_are_joined(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(b"first ") + gzip.compress(b"second"))
    assert b"".join(blocks(path, 0, "gzip")) == b"first second"


def test_cut_gzip_ends_in_an_error(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(RNG.bytes(100_000))[:-5000])
    with pytest.raises(EOFError):
        list(blocks(path, 0, "gzip"))


def test_numbers_that_float32_cannot_hold_are_not_finite_values() -> None:
    array = np.array([[[1e300, 2.0], [-1e300, 5.0]]])
    values, remarks = values_of(array, "MR")
    assert values.tolist() == [[[2.0, 2.0], [2.0, 5.0]]]
    assert remarks == ("2 voxels are not finite: painted as the lowest value",)
