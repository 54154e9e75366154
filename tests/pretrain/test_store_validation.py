"""Validation: every promise of docs/slice-store.md is checked, and hostile JSON is a sentence."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import nibabel
import numpy as np
import polars as pl
import pytest

from pretrain.build import build_slices
from pretrain.store import SliceStore, SliceStoreError
from pretrain.store_validation import validate
from pretrain.stored_scan import SHARD


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one scan of five slices of 12 x 10 pixels, with a box; treat it as read-only."""
    folder = tmp_path_factory.mktemp("store")
    values = np.random.default_rng(1).integers(-1000, 1500, (10, 12, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.7, 0.9, 3.0, 1.0])), folder / "a.nii")
    (folder / "boxes.csv").write_text("scan_id,slice,x0,y0,x1,y1,axes\na,1,1,2,3,6.5,canonical\n")
    build_slices(folder / "a.nii", folder / "s.zarr", boxes=folder / "boxes.csv", workers=1, progress=False)
    return folder / "s.zarr"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be damaged."""
    shutil.copytree(built, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def array(store: Path) -> Path:
    """The array's zarr.json."""
    return next((store / "scans").glob("*/zarr.json"))


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def put(store: Path, table: str, **columns: pl.Expr) -> None:
    """Other columns in a table of the store, as one who knows the format would put them there."""
    (path,) = (store / "tables").glob(f"{table}-*.parquet")
    data = io.BytesIO()
    pl.read_parquet(path).with_columns(**columns).write_parquet(data)
    name = f"{table}-{hashlib.sha256(data.getvalue()).hexdigest()}.parquet"
    (store / "tables" / name).write_bytes(data.getvalue())
    rewrite(store / "zarr.json", lambda root: root["attributes"]["tables"].update({table: name}))


def sharding(metadata: Any) -> Any:
    return metadata["codecs"][0]["configuration"]


def test_a_sound_store_is_called_sound(built: Path) -> None:
    assert validate(built).endswith("s.zarr: sound; 1 scans, 5 slices, 1 boxes")


def test_a_codec_may_be_named_by_a_word_alone(copy: Path) -> None:
    rewrite(array(copy), lambda data: sharding(data)["codecs"].__setitem__(2, "crc32c"))
    assert "sound" in validate(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(data_type="float64"), 'has data_type "float64"; expected "int16"'),
        (lambda data: data.update(zarr_format=2), "has zarr_format 2; expected 3"),
        (lambda data: data.update(node_type="group"), 'has node_type "group"; expected "array"'),
        (lambda data: data.update(shape=[5, 12, 11]), r"has shape \[5, 12, 11\]; expected \[5, 12, 10\]"),
        (lambda data: data.update(shape=7), "has shape 7;"),
        (lambda data: data.update(fill_value=0.5), "has fill_value 0.5; expected a whole number"),
        (lambda data: data.update(storage_transformers=[{"name": "x"}]), "has storage_transformers"),
        (lambda data: data["chunk_key_encoding"]["configuration"].update(separator="."), "has chunk_key_encoding"),
        (lambda data: data.update(chunk_key_encoding=None), "has chunk_key_encoding"),
        (lambda data: data["chunk_grid"]["configuration"].update(chunk_shape=[1, 12, 10]), "has chunk_grid"),
        (lambda data: data.update(chunk_grid={"name": "regular", "configuration": 3}), "has chunk_grid"),
        (lambda data: data.update(codecs=[]), r"has codecs \[\]; expected sharding_indexed alone"),
        (lambda data: data.update(codecs=sharding(data)["codecs"]), "has codecs .*; expected sharding_indexed alone"),
        (lambda data: data.update(codecs=[[]]), "has codecs .*; expected sharding_indexed alone"),
        (
            lambda data: sharding(data).update(chunk_shape=[5, 12, 10]),
            r"has chunk_shape \[5, 12, 10\]; expected \[1, 12",
        ),
        (lambda data: sharding(data).update(index_location="start"), 'has index_location "start"; expected "end"'),
        (lambda data: sharding(data)["index_codecs"].pop(), "has index_codecs"),
        (lambda data: sharding(data)["codecs"].pop(), r"has codecs .*; expected bytes \(little\), blosc"),
        (lambda data: sharding(data)["codecs"][0]["configuration"].update(endian="big"), "has codecs"),
        (lambda data: sharding(data)["codecs"][1]["configuration"].update(cname="zstd"), "has codecs"),
        (lambda data: sharding(data)["codecs"][1]["configuration"].update(shuffle="noshuffle"), "has codecs"),
        (lambda data: sharding(data)["codecs"][1]["configuration"].update(typesize=4), "has codecs"),
    ],
)
def test_an_array_must_be_what_the_format_says(copy: Path, change: Callable[[Any], Any], said: str) -> None:
    rewrite(array(copy), change)
    with pytest.raises(SliceStoreError, match=rf"s\.zarr: the file of scan a \(scans/\w+/zarr\.json\) {said}"):
        validate(copy)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", r"expected a JSON object, found \[\]; it is damaged"),
        ('"array"', "expected a JSON object"),
        ("null", "expected a JSON object, found null"),
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"shape": ' + "9" * 10_000 + "}", "is no JSON"),
        ("{}", "has zarr_format null; expected 3"),
    ],
)
def test_hostile_json_is_a_sentence(copy: Path, text: str, said: str) -> None:
    array(copy).write_text(text)
    with pytest.raises(SliceStoreError, match=said):
        validate(copy)


def test_an_array_without_its_metadata_is_damaged(copy: Path) -> None:
    array(copy).unlink()
    with pytest.raises(
        SliceStoreError, match=r"zarr\.json: cannot be read \(No such file or directory\); it is damaged"
    ):
        validate(copy)


@pytest.mark.parametrize(
    ("table", "columns", "said"),
    [
        ("boxes", {"x0_mm": pl.col("x0_mm") + 0.01}, "its boxes' x0_mm are not x0 times the pixel spacing"),
        ("boxes", {"y1_mm": pl.lit(None, pl.Float64)}, "its boxes' y1_mm are not y1 times"),
        ("boxes", {"x1_mm": pl.lit(float("nan"))}, "its boxes' x1_mm are not x1 times"),
        ("scans", {"spacing_x_mm": pl.lit(None, pl.Float64)}, "its boxes' x0_mm are not x0 times"),
        ("scans", {"spacing_y_mm": pl.lit(-0.9)}, "its scans have a spacing_y_mm that is no length"),
        ("scans", {"modality": pl.lit("MR")}, "it holds scans that are no CT"),
        ("scans", {"sha256": pl.lit("A" * 64)}, "its scans have a sha256 that is no sha256"),
    ],
)
def test_columns_that_follow_from_others_are_compared(
    copy: Path, table: str, columns: dict[str, pl.Expr], said: str
) -> None:
    put(copy, table, **columns)
    with pytest.raises(SliceStoreError, match=said):
        validate(copy)


def test_the_name_of_an_array_is_that_of_its_id_and_voxels(copy: Path) -> None:
    folder = array(copy).parent
    folder.rename(folder.with_name("0" * 32))
    put(copy, "scans", key=pl.lit("0" * 32))
    with pytest.raises(SliceStoreError, match="the key of scan a is not that of its id and digest"):
        validate(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: root.update(zarr_format=2), "has the zarr_format 2; expected 3"),
        (lambda root: root["attributes"].update(slices=6), "counts 6 slices, its table 5"),
        (lambda root: root["attributes"].pop("boxes"), "counts null boxes, its table 1"),
        (lambda root: root["attributes"].pop("clear"), "does not say which clear wrote it"),
    ],
)
def test_the_root_must_say_what_the_store_is(copy: Path, change: Callable[[Any], Any], said: str) -> None:
    rewrite(copy / "zarr.json", change)
    with pytest.raises(SliceStoreError, match=said):
        validate(copy)


def forge(store: Path, at: int, value: int) -> None:
    """Another byte in the first chunk, with its crc32c and the shard's sha256 made to fit."""
    opened = SliceStore(store)
    offset, length = opened.chunks(range(1))[0].tolist()
    path = array(store).parent / SHARD
    data = bytearray(path.read_bytes())
    data[offset + at] = value
    packed = bytes(data[offset : offset + length - 4])
    data[offset + length - 4 : offset + length] = google_crc32c.value(packed).to_bytes(4, "little")
    path.write_bytes(data)
    put(store, "scans", sha256=pl.lit(hashlib.sha256(data).hexdigest()))


@pytest.mark.parametrize(("at", "value"), [(2, 0x81), (2, 0x20), (3, 1)], ids=["zstd", "not shuffled", "by bytes of 1"])
def test_chunks_must_be_packed_as_the_array_says(copy: Path, at: int, value: int) -> None:
    forge(copy, at, value)
    with pytest.raises(SliceStoreError, match=r"the file of scan a has chunks that are packed in another way"):
        validate(copy)


def test_the_index_of_a_shard_must_have_its_checksum(copy: Path) -> None:
    path = array(copy).parent / SHARD
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    put(copy, "scans", sha256=pl.lit(hashlib.sha256(data).hexdigest()))
    with pytest.raises(SliceStoreError, match="the file of scan a has no sound index of its chunks"):
        validate(copy)
