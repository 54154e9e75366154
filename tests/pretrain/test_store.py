"""The slice store as a reader sees it: what was stored comes back, a slice is one chunk, and damage is a sentence."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import polars as pl
import pytest
import zarr

from clear.errors import InputError
from clear.scans import find_scans, read_volume
from pretrain.build import build_slices
from pretrain.store import COLUMNS, SliceStore, SliceStoreError, describe
from pretrain.store_validation import validate
from pretrain.stored_scan import SHARD


def write_nifti(
    path: Path, seed: int, shape: tuple[int, int, int] = (10, 12, 5), xy: tuple[float, float] = (0.7, 0.9)
) -> None:
    """A CT of random HU, stored with flipped columns and rows."""
    values = np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*xy, 3.0, 1.0])), path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two scans of different sizes, one with boxes; treat it as read-only."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "scans").mkdir()
    write_nifti(folder / "scans" / "a.nii", 1)
    write_nifti(folder / "scans" / "b.nii", 2, (16, 8, 7), (1.0, 1.0))
    rows = ["b,6,1,2,3,6.5,canonical,cyst", "a,0,0,0,10,12,stored,", "b,6,0,0,1,1,canonical,"]
    (folder / "boxes.csv").write_text("\n".join(["scan_id,slice,x0,y0,x1,y1,axes,label", *rows]))
    build_slices(folder / "scans", folder / "s.zarr", boxes=folder / "boxes.csv", workers=1, progress=False)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be damaged."""
    shutil.copytree(built / "s.zarr", tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def test_every_slice_comes_back_voxel_by_voxel(built: Path) -> None:
    store = SliceStore(built / "s.zarr")
    volumes = [read_volume(scan).hu for scan in find_scans(built / "scans", cache=False)]
    assert len(store) == sum(map(len, volumes)) == 12
    for row, expected in enumerate(image for volume in volumes for image in volume):
        found = store.read(row)
        assert found.row == row
        assert found.hu.dtype == np.int16
        np.testing.assert_array_equal(found.hu, expected)


def test_the_table_says_what_each_slice_is(built: Path) -> None:
    table = SliceStore(built / "s.zarr").table
    assert tuple(table.columns) == COLUMNS
    assert table["row"].to_list() == list(range(12))
    assert table["scan_id"].to_list() == ["a"] * 5 + ["b"] * 7
    assert table["slice"].to_list() == [*range(5), *range(7)]
    assert table["n_boxes"].to_list() == [1, *[0] * 10, 2]
    first = table.row(0, named=True)
    assert (first["height"], first["width"], first["n_slices"], first["modality"]) == (12, 10, 5, "CT")
    spacing = [first[f"spacing_{axis}_mm"] for axis in "zyx"]
    np.testing.assert_allclose(spacing, [3.0, 0.9, 0.7], rtol=1e-6)
    np.testing.assert_allclose(table["z_mm"][:5], [0, 3, 6, 9, 12], atol=1e-5)
    (a, b) = find_scans(built / "scans", cache=False)
    assert table["scan_digest"].unique(maintain_order=True).to_list() == [read_volume(s).digest for s in (a, b)]


def test_boxes_are_in_pixels_and_millimetres_and_come_with_their_slice(built: Path) -> None:
    store = SliceStore(built / "s.zarr")
    assert store.boxes.select("row", "x0", "y0", "x1", "y1", "label").rows() == [
        (0, 0, 0, 10, 12, None),
        (11, 0, 0, 1, 1, None),
        (11, 1, 2, 3, 6.5, "cyst"),
    ]
    np.testing.assert_allclose(store.boxes.row(0)[5:9], [0, 0, 7.0, 10.8], rtol=1e-6)
    found = store.read(11)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 1, 1], [2, 1, 6.5, 3]])  # y0, x0, y1, x1
    assert store.read(5).boxes.shape == (0, 4)
    np.testing.assert_allclose(store.read(0).spacing_mm, (0.9, 0.7), rtol=1e-6)


def test_a_slice_is_one_read_of_its_own_chunk(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SliceStore(built / "s.zarr")
    reads: list[int] = []
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        reads.append(length)
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    store.read(7)
    shard = next((built / "s.zarr" / "scans").rglob("c/0/0/0"))
    assert len(reads) == 1
    assert reads[0] < 16 * 8 * 2 + 100 < shard.stat().st_size


def test_any_zarr_library_reads_the_same_voxels(built: Path) -> None:
    store = SliceStore(built / "s.zarr")
    group = zarr.open_group(built / "s.zarr", mode="r", zarr_format=3)
    for key, first, count in zip(store.scans["key"], (0, 5), (5, 7), strict=True):
        array = group[f"scans/{key}"]
        assert array.chunks == (1, *array.shape[1:])
        np.testing.assert_array_equal(array[...], np.stack([store.read(first + i).hu for i in range(count)]))


def read_sum(store: SliceStore, row: int) -> int:
    return int(store.read(row).hu.sum())


def test_a_store_goes_to_other_processes_and_threads(built: Path) -> None:
    store = SliceStore(built / "s.zarr")
    expected = [read_sum(store, row) for row in range(12)]
    again = pickle.loads(pickle.dumps(store))
    assert again.digest == store.digest
    assert again.table.equals(store.table)
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda row: read_sum(again, row), range(12))) == expected
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as forks:
        assert list(forks.map(read_sum, [store] * 12, range(12))) == expected


def test_rows_outside_the_store_are_an_index_error(built: Path) -> None:
    store = SliceStore(built / "s.zarr")
    for row in (-1, 12):
        with pytest.raises(IndexError, match="of a store of 12 slices"):
            store.read(row)


def test_a_store_is_described(built: Path) -> None:
    described = describe(built / "s.zarr")
    assert described["boxes"] == "3 in 2 slices"
    assert described["patients"] == "0, and 2 scans whose patient is not known"
    assert described["spacing"] == "known"


def root(store: Path) -> dict[str, object]:
    return json.loads((store / "zarr.json").read_text())  # type: ignore[no-any-return]


def test_folders_that_are_no_store_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        SliceStore(tmp_path / "nowhere.zarr")
    with pytest.raises(SliceStoreError, match=r"it has no zarr\.json"):
        SliceStore(tmp_path)
    zarr.create_group(tmp_path / "bags.zarr", zarr_format=3, attributes={"format": "clear-bags"})
    with pytest.raises(SliceStoreError, match="expected the format clear-slices, found clear-bags"):
        SliceStore(tmp_path / "bags.zarr")


def test_a_newer_version_is_refused(copy: Path) -> None:
    data = root(copy)
    data["attributes"]["version"] = 2  # type: ignore[index]
    (copy / "zarr.json").write_text(json.dumps(data))
    with pytest.raises(SliceStoreError, match="of version 2; this clear reads up to 1"):
        SliceStore(copy)


@pytest.mark.parametrize("version", [0, True, "1", None])
def test_another_version_than_1_is_no_version(copy: Path, version: object) -> None:
    data = root(copy)
    data["attributes"]["version"] = version  # type: ignore[index]
    (copy / "zarr.json").write_text(json.dumps(data))
    with pytest.raises(SliceStoreError, match=f"of version {version}; expected 1"):
        SliceStore(copy)


def test_an_unfinished_store_is_refused_and_says_how_to_go_on(copy: Path) -> None:
    data = root(copy)
    data["attributes"] = {"format": "clear-slices", "version": 1}
    (copy / "zarr.json").write_text(json.dumps(data))
    with pytest.raises(SliceStoreError, match=r"not finished\.* Run the same `clear slices build` again"):
        SliceStore(copy)


def shards(store: Path) -> list[Path]:
    keys = SliceStore(store).scans["key"]
    return [store / "scans" / key / SHARD for key in keys]


def test_a_scan_that_is_missing_or_cut_off_is_found_when_the_store_is_opened(copy: Path) -> None:
    first, second = shards(copy)
    data = second.read_bytes()
    second.write_bytes(data[:-1])
    with pytest.raises(SliceStoreError, match=r"the file of scan b \(scans/.*\) has another size; it is damaged"):
        SliceStore(copy)
    second.write_bytes(data)
    SliceStore(copy)
    shutil.rmtree(first.parent)
    with pytest.raises(SliceStoreError, match=r"the file of scan a \(.*\) is missing"):
        SliceStore(copy)


def test_a_link_out_of_the_store_is_not_followed(copy: Path, tmp_path: Path) -> None:
    first, _ = shards(copy)
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SliceStoreError, match="the file of scan a"):
        SliceStore(copy)


@pytest.mark.parametrize("at", [3, 40, -30])
def test_a_changed_byte_is_found_when_the_slice_is_read_and_by_validation(copy: Path, at: int) -> None:
    first, _ = shards(copy)
    data = bytearray(first.read_bytes())
    data[at] ^= 0x10
    first.write_bytes(data)
    store = SliceStore(copy)
    if at >= 0:  # in the first slice; the other place is in the shard's own index, which reading does not need
        with pytest.raises(SliceStoreError, match="the chunk of slice row 0 is not as it was written"):
            store.read(0)
    np.testing.assert_array_equal(store.read(1).hu.shape, (12, 10))
    with pytest.raises(SliceStoreError, match="the file of scan a is not as it was written"):
        validate(copy)


def test_damaged_tables_are_refused(copy: Path) -> None:
    (table,) = (copy / "tables").glob("boxes-*.parquet")
    data = table.read_bytes()
    table.write_bytes(data[:-10] + bytes(10))
    with pytest.raises(SliceStoreError, match="is not as it was written"):
        SliceStore(copy)
    table.unlink()
    with pytest.raises(SliceStoreError, match=r"its table boxes-.* is missing"):
        SliceStore(copy)


@pytest.mark.parametrize("name", ["../../etc/passwd", "boxes.parquet", 7, None])
def test_tables_are_looked_for_nowhere_else(copy: Path, name: object) -> None:
    data = root(copy)
    data["attributes"]["tables"]["boxes"] = name  # type: ignore[index]
    (copy / "zarr.json").write_text(json.dumps(data))
    with pytest.raises(SliceStoreError, match="names no table of boxes"):
        SliceStore(copy)


def put(store: Path, table: str, frame: pl.DataFrame) -> None:
    """Another table in the place of the store's, as one who knows the format would put it there."""
    data = io.BytesIO()
    frame.write_parquet(data)
    name = f"{table}-{hashlib.sha256(data.getvalue()).hexdigest()}.parquet"
    (store / "tables" / name).write_bytes(data.getvalue())
    attributes = root(store)
    attributes["attributes"]["tables"][table] = name  # type: ignore[index]
    (store / "zarr.json").write_text(json.dumps(attributes))


def table(store: Path, name: str) -> pl.DataFrame:
    (path,) = (store / "tables").glob(f"{name}-*.parquet")
    return pl.read_parquet(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scans", {"key": pl.lit("../escape")}),
        ("scans", {"scan_digest": pl.lit("0" * 64)}),
        ("scans", {"n_slices": pl.lit(3, pl.Int32)}),
        ("scans", {"n_slices": pl.lit(2**31 - 1, pl.Int32)}),
        ("scans", {"n_slices": pl.lit(None, pl.Int32)}),
        ("scans", {"key": pl.lit(None, pl.String)}),
        ("slices", {"offset": pl.lit(None, pl.Int64)}),
        ("slices", {"offset": pl.lit(2**63 - 1, pl.Int64)}),
        ("slices", {"length": pl.lit(2**63 - 1, pl.Int64)}),
        ("boxes", {"row": pl.col("row").reverse()}),
        ("boxes", {"x1": pl.lit(float("nan"))}),
        ("boxes", {"x0": pl.lit(None, pl.Float64)}),
    ],
)
def test_tables_that_contradict_each_other_or_the_digest_are_refused(
    copy: Path, name: str, change: dict[str, pl.Expr]
) -> None:
    put(copy, name, table(copy, name).with_columns(**change))
    with pytest.raises(SliceStoreError, match=r"contradict each other|not those of its digest"):
        SliceStore(copy)


def test_a_chunk_that_says_more_than_it_holds_is_not_unpacked(copy: Path) -> None:
    import google_crc32c

    store = SliceStore(copy)
    offset, length = store.chunks(range(1))[0].tolist()
    (first, _) = shards(copy)
    data = bytearray(first.read_bytes())
    data[offset + 12 : offset + 16] = (10**6).to_bytes(4, "little")  # its packed length
    packed = bytes(data[offset : offset + length - 4])
    data[offset + length - 4 : offset + length] = google_crc32c.value(packed).to_bytes(4, "little")
    first.write_bytes(data)
    with pytest.raises(SliceStoreError, match="the chunk of slice row 0 is not as it was written"):
        store.read(0)


def test_a_store_that_was_changed_meanwhile_does_not_answer_for_the_old_one(copy: Path, built: Path) -> None:
    again = pickle.loads(pickle.dumps(SliceStore(copy)))
    before = again.read(11).hu
    write_nifti(copy.parent / "c.nii", 9)
    build_slices(copy.parent / "c.nii", copy, workers=1, progress=False)
    with pytest.raises(SliceStoreError, match="was changed while it was in use"):
        again.table  # noqa: B018  # it is read here
    np.testing.assert_array_equal(again.read(11).hu, before)  # its voxels are still those it knew
