"""OME-Zarr: stores of both versions, and metadata that must not be trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.testing import assert_allclose, assert_array_equal

from clear.errors import InputError, ScanRefused
from clear.scans import find_scans, read_volume, survey

RNG = np.random.default_rng(6)
SCALE, SHIFT = [2.5, 0.8, 0.7], [-100.0, 5.0, 6.0]


def hu() -> np.ndarray:
    return RNG.integers(-1000, 1500, (9, 20, 16)).astype(np.int16)


def store(
    path: Path, array: np.ndarray, version: int = 3, axes: str = "zyx", unit: str = "millimeter", factor: float = 1.0
) -> Path:
    """A store with two resolutions, as NGFF 0.4 (Zarr 2) or 0.5 (Zarr 3) has it."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    extra = [1.0] * (len(axes) - 3)
    for level, data in (("0", array), ("1", array[..., ::2, ::2])):
        made = group.create_array(level, shape=data.shape, dtype=data.dtype, chunks=(*(1 for _ in extra), 4, 10, 10))
        made[...] = data
    datasets = [
        {
            "path": level,
            "coordinateTransformations": [
                {
                    "type": "scale",
                    "scale": [*extra, *(s * factor * step for s, step in zip(SCALE, (1, f, f), strict=True))],
                },
                {"type": "translation", "translation": [*(0 * v for v in extra), *(s * factor for s in SHIFT)]},
            ],
        }
        for level, f in (("0", 1), ("1", 2))
    ]
    named = [
        {"name": a, "type": "space", "unit": unit}
        if a in "zyx"
        else {"name": a, "type": "time" if a == "t" else "channel"}
        for a in axes
    ]
    image = {"multiscales": [{"axes": named, "datasets": datasets, "version": "0.4"}]}
    group.attrs.update(image if version == 2 else {"ome": {"version": "0.5", **image}})
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_give_values_and_geometry(tmp_path: Path, version: int) -> None:
    array = hu()
    path = store(tmp_path / "scan.ome.zarr", array, version)
    (scan,) = find_scans(tmp_path, cache=False)
    assert (scan.scan_id, scan.format, scan.modality, scan.source) == ("scan", "omezarr", "CT", "scan.ome.zarr")
    for volume in (read_volume(scan), read_volume(path)):
        assert_array_equal(volume.hu, array)
        assert_allclose(volume.spacing_mm, SCALE)
        assert_allclose(volume.positions_mm[0], SHIFT[::-1])
        assert any("no anatomy" in remark for remark in volume.remarks)


def test_a_store_is_one_entry_whatever_files_it_has(tmp_path: Path) -> None:
    store(tmp_path / "scan.ome.zarr", hu())
    assert survey(tmp_path, cache=False).n_files == 1


def test_time_and_channel_of_length_one_are_dropped(tmp_path: Path) -> None:
    array = hu()
    path = store(tmp_path / "a.zarr", array[None, None], axes="tczyx")
    assert_array_equal(read_volume(path).hu, array)
    for axes, reason in (("tzyx", "time_series"), ("czyx", "colour")):
        path = store(tmp_path / "b.zarr", np.stack([array, array]), axes=axes)
        with pytest.raises(ScanRefused) as refusal:
            read_volume(path)
        assert refusal.value.reason == reason


@pytest.mark.parametrize(("unit", "factor"), [("micrometer", 1000), ("millimeter", 1), ("nanometer", 1e6)])
def test_lengths_are_converted_to_millimetres(tmp_path: Path, unit: str, factor: float) -> None:
    path = store(tmp_path / "a.zarr", hu(), unit=unit, factor=factor)
    assert_allclose(read_volume(path).spacing_mm, SCALE)


def test_labels_below_an_image_are_no_second_scan(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", hu())
    store(path / "labels" / "organs", (hu() > 0).astype(np.uint8))
    assert len(find_scans(tmp_path, cache=False)) == 1


def test_a_group_of_images_is_several_scans_and_other_stores_are_none(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "cohort.zarr", mode="w", zarr_format=2)
    for name in ("one", "two"):
        store(tmp_path / "cohort.zarr" / name, hu(), 2)
    other = zarr.open_group(tmp_path / "feats.zarr", mode="w")
    other.create_array("features", shape=(10, 3), dtype="f4")[...] = 1
    ids = [scan.scan_id for scan in find_scans(tmp_path, cache=False)]
    assert ids == ["cohort.zarr/one", "cohort.zarr/two"]
    with pytest.raises(InputError):
        find_scans(tmp_path / "feats.zarr", cache=False)


def edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def reason(path: Path) -> str:
    (scan,) = find_scans(path, cache=False)
    assert scan.verdict == "refused"
    assert path.name in scan.message
    return scan.reason


def test_a_pickle_codec_is_never_run(tmp_path: Path) -> None:
    path = store(tmp_path / "a.ome.zarr", hu(), 2)
    edit(path / "0" / ".zarray", lambda meta: meta.update(filters=[{"id": "pickle"}]))
    assert reason(path) == "unsupported_encoding"
    path = store(tmp_path / "b.ome.zarr", hu(), 3)
    edit(path / "0" / "zarr.json", lambda meta: meta["codecs"].append({"name": "numcodecs.pickle"}))
    assert reason(path) == "unsupported_encoding"


def test_metadata_that_lie_are_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "a.ome.zarr", hu(), 2)
    whole = tmp_path / "whole"
    shutil.copytree(path, whole)

    def datasets(meta: Any) -> Any:
        return meta["multiscales"][0]["datasets"][0]

    for file, change, expected in (
        ("0/.zarray", lambda meta: meta.update(shape=[100000, 100000, 100000]), "too_large"),
        ("0/.zarray", lambda meta: meta.update(chunks=[100000, 100000, 100000]), "too_large"),
        ("0/.zarray", lambda meta: meta.update(shape=["x"]), "bad_header"),
        ("0/.zarray", lambda meta: meta.update(dtype="|O"), "unsupported_values"),
        (".zattrs", lambda meta: datasets(meta).update(path="../../.."), "bad_header"),
        (".zattrs", lambda meta: datasets(meta).update(path="gone"), "truncated_pixel_data"),
        (".zattrs", lambda meta: meta.update(multiscales=[]), "bad_header"),
        (".zattrs", lambda meta: meta["multiscales"][0].update(axes=3), "bad_header"),
        (".zattrs", lambda meta: datasets(meta).update(coordinateTransformations=1.5), "bad_header"),
        ("0/.zarray", lambda meta: meta.update(filters=["x"]), "bad_header"),
        (".zattrs", lambda meta: meta["multiscales"][0].update(axes=["x", "y", "z"]), "not_a_volume"),
        (
            ".zattrs",
            lambda meta: datasets(meta)["coordinateTransformations"][0].update(scale=[1, 2]),
            "bad_geometry",
        ),
    ):
        shutil.rmtree(path)
        shutil.copytree(whole, path)
        edit(path / file, change)
        assert reason(path) == expected, (file, expected)


def test_damaged_metadata_are_refused_by_name(tmp_path: Path) -> None:
    path = store(tmp_path / "a.ome.zarr", hu(), 3)
    (path / "zarr.json").write_text("{not json")
    assert reason(tmp_path / "a.ome.zarr") == "bad_header"


def test_a_damaged_chunk_is_refused_and_an_absent_one_is_noted(tmp_path: Path) -> None:
    path = store(tmp_path / "a.ome.zarr", hu(), 2)
    (path / "0" / "2.1.1").unlink()
    (scan,) = find_scans(path, cache=False)
    assert any("1 of 12 chunks are not stored" in remark for remark in scan.remarks)
    chunk = path / "0" / "2.0.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(ScanRefused) as refusal:
        read_volume(scan)
    assert refusal.value.reason == "truncated_pixel_data"
