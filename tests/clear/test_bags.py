from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from clear.bags import Bag, BagHeader, Bags, ScanRow, bags_info, validate, write_bags
from clear.bags_zarr import recover_zarr
from clear.errors import BagFileError, InputError, ScanRefused
from clear.windows import CT_DEFAULT

HEADER = BagHeader(
    encoder="moments",
    encoder_digest="ab" * 32,
    encoder_card={"dim": 4, "mean": (0.5,)},
    windows=CT_DEFAULT,
    preprocessing={"resize": "bicubic", "field_of_view_mm": None},
    provenance={"precision": "float32", "trained on": "nothing"},
    dim=4,
)
STORES = ["feats.h5", "feats.zarr"]


def cohort(n: int = 4) -> tuple[list[ScanRow], dict[str, Bag]]:
    """Scans with odd ids, absent values and remarks, and their bags."""
    rng = np.random.default_rng(0)
    rows, bags = [], {}
    for i in range(n):
        k = 2 * (3 + i)
        scan_id = f"sörie/{n - i}"
        bags[scan_id] = Bag(
            scan_id,
            rng.normal(size=(k, 4)).astype(np.float16),
            np.repeat(np.arange(k // 2, dtype=np.int32), 2),
            np.tile(np.array([0, 1], np.uint8), k // 2),
            rng.normal(size=(k, 3)).astype(np.float32),
        )
        rows.append(
            ScanRow(
                scan_id=scan_id,
                digest=f"{i:064}",
                length=k,
                n_slices=k // 2,
                spacing_mm=(float("nan") if i == 0 else 2.5, 0.7, 0.7),
                plane="axial",
                modality="CT",
                patient_id=None if i == 0 else f"=p{i}",
                thickness_mm=None if i == 1 else 5.0,
                days_since_first=None if i == 2 else 12 * i,
                remarks=("gap: 1 slice missing", "gantry tilt") if i == 3 else (),
            )
        )
    return rows, bags


@pytest.fixture(params=STORES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[ScanRow], dict[str, Bag]]:
    path = tmp_path / request.param
    rows, bags = cohort()
    write_bags(path, HEADER, rows, lambda row: bags[row.scan_id])
    return path, rows, bags


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    path = tmp_path / "feats.h5"
    rows, bags = cohort()
    write_bags(path, HEADER, rows, lambda row: bags[row.scan_id])
    return path


def content(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    sha = hashlib.sha256()
    for file in files:
        sha.update(str(file.relative_to(path.parent)).encode() + file.read_bytes())
    return sha.hexdigest()


def test_what_is_written_is_read_back_in_both_stores(written):
    path, rows, bags = written
    opened = Bags(path)
    assert list(opened) == sorted(bags)
    for scan_id, bag in bags.items():
        for name in ("features", "slice", "window", "position_mm"):
            found = getattr(opened[scan_id], name)
            assert found.dtype == getattr(bag, name).dtype
            np.testing.assert_array_equal(found, getattr(bag, name))
    assert [opened.row(row.scan_id) for row in rows] == rows
    assert opened.header == replace(HEADER, encoder_card={"dim": 4, "mean": [0.5]})
    assert (opened.encoder, opened.dim, opened.windows) == ("moments", 4, CT_DEFAULT)
    assert opened.provenance == {"precision": "float32", "trained on": "nothing"}


def test_the_scans_table_says_null_where_nothing_is_known(written):
    path, rows, _ = written
    scans = Bags(path).scans
    assert scans["scan_id"].to_list() == [row.scan_id for row in rows][::-1]
    assert scans["patient_id"].to_list() == ["=p3", "=p2", "=p1", None]
    assert scans["thickness_mm"].to_list() == [5.0, 5.0, None, 5.0]
    assert scans["days_since_first"].to_list() == [36, None, 12, 0]
    assert scans["remarks"].to_list() == [["gap: 1 slice missing", "gantry tilt"], [], [], []]
    assert scans["start"].to_list() == [0, 12, 22, 30]
    assert scans["spacing_mm"].to_list()[0] == [2.5, 0.7, 0.7]


def test_both_stores_hold_the_same_content_and_say_so(tmp_path: Path):
    rows, bags = cohort()
    for name in STORES:
        write_bags(tmp_path / name, HEADER, rows, lambda row: bags[row.scan_id])
    a, b = (Bags(tmp_path / name) for name in STORES)
    assert a.digest == b.digest
    assert a.scans.equals(b.scans)
    np.testing.assert_array_equal(a.features, b.features[:])
    np.testing.assert_array_equal(a.position_mm, b.position_mm)


@pytest.mark.parametrize("name", STORES)
def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path: Path, name: str):
    rows, bags = cohort()
    for folder, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / folder).mkdir()
        write_bags(tmp_path / folder / name, HEADER, order, lambda row: bags[row.scan_id])
    assert content(tmp_path / "a" / name) == content(tmp_path / "b" / name)


def test_the_file_is_what_the_format_page_says(h5: Path):
    with h5py.File(h5) as file:
        assert file.attrs["format"].decode() == "clear-bags"
        assert file.attrs["version"] == 1
        assert json.loads(file.attrs["windows"])[1] == {"name": "lung", "kind": "range", "low": -1500.0, "high": 500.0}
        assert file["features"].dtype == np.float16
        assert file["features"].chunks is None
        assert file["features"].id.get_offset() % 2 == 0
        assert list(file["scans/start"]) == [0, 12, 22, 30]
        assert file["scans/scan_id"].asstr()[0] == "sörie/1"
        assert file["scans/remarks"].asstr()[0] == '["gap: 1 slice missing","gantry tilt"]'
        expected = np.concatenate([Bags(h5)[scan_id].features for scan_id in Bags(h5)])
        np.testing.assert_array_equal(file["features"][:], expected)


def test_features_are_mapped_and_cannot_be_written(h5: Path):
    features = Bags(h5).features
    assert not features.flags.owndata
    assert not features.flags.writeable


def test_float32_keeps_every_bit(tmp_path: Path):
    rows, bags = cohort(1)
    exact = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    bag = replace(bags[rows[0].scan_id], features=exact)
    write_bags(tmp_path / "f.h5", replace(HEADER, dtype="float32"), rows, lambda row: bag)
    np.testing.assert_array_equal(Bags(tmp_path / "f.h5")[bag.scan_id].features, exact)


@pytest.mark.parametrize("name", STORES)
def test_a_file_without_scans_is_valid(tmp_path: Path, name: str):
    write_bags(tmp_path / name, HEADER, [], lambda row: pytest.fail("there is no row"))
    opened = Bags(tmp_path / name)
    assert len(opened) == 0
    assert opened.features.shape == (0, 4)
    assert opened.scans.height == 0
    validate(tmp_path / name)


def test_zarr_chunks_join_bags_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clear.bags_zarr._CHUNK_BYTES", 5 * 8)  # five rows of features a chunk
    rows, bags = cohort()
    write_bags(tmp_path / "f.zarr", HEADER, rows, lambda row: bags[row.scan_id])
    opened = Bags(tmp_path / "f.zarr")
    for scan_id, bag in bags.items():
        np.testing.assert_array_equal(opened[scan_id].features, bag.features)
    validate(tmp_path / "f.zarr")


def test_workers_can_be_handed_an_open_file(h5: Path):
    opened = Bags(h5)
    again = pickle.loads(pickle.dumps(opened))
    assert again.digest == opened.digest


def test_the_digest_follows_rows_and_identity_but_not_provenance_or_patients(tmp_path: Path):
    rows, bags = cohort()

    def digest(header: BagHeader, rows: list[ScanRow]) -> str:
        write_bags(tmp_path / "d.h5", header, rows, lambda row: bags[row.scan_id])
        return Bags(tmp_path / "d.h5").digest

    first = digest(HEADER, rows)
    assert digest(replace(HEADER, provenance={"precision": "bfloat16"}), rows) == first
    assert digest(HEADER, [replace(row, patient_id="x") for row in rows]) == first
    assert digest(HEADER, rows[1:]) != first
    assert digest(HEADER, [replace(rows[0], digest="f" * 64), *rows[1:]]) != first
    assert digest(replace(HEADER, windows=CT_DEFAULT[::-1]), rows) != first


def test_a_missing_scan_is_named(h5: Path):
    with pytest.raises(InputError, match="no scan 'x' among its 4"):
        Bags(h5)["x"]


def test_a_closed_file_says_so_and_arrays_taken_before_stay_readable(h5: Path):
    with Bags(h5) as bags:
        features = bags["sörie/1"].features
    assert np.isfinite(features).all()
    with pytest.raises(BagFileError, match="closed"):
        _ = bags.features


def test_a_notebook_shows_what_a_file_holds(written):
    path, _, _ = written
    with Bags(path) as bags:
        shown = bags._repr_html_()
    for text in ("4, 36 instances", "3, 1 unknown", "moments, d = 4", "abdomen (-175 to 275)", "sörie/1", "=p3"):
        assert text in shown
    assert "was closed" in bags._repr_html_()


def test_a_hostile_id_stays_text_in_a_notebook(tmp_path: Path):
    rows, bags = cohort(7)
    hostile = "<img src=x onerror=alert(1)>"
    rows = [replace(row, patient_id=hostile) for row in rows]
    write_bags(tmp_path / "feats.h5", HEADER, rows, lambda row: bags[row.scan_id])
    shown = Bags(tmp_path / "feats.h5")._repr_html_()
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") == 5
    assert "<img" not in shown
    assert "and 2 more scans" in shown


def test_info_is_plain_data(written):
    path, _, _ = written
    info = json.loads(json.dumps(bags_info(path)))
    assert (info["scans"], info["patients"], info["scans_without_patient"]) == (4, 3, 1)
    assert (info["instances"], info["slices"], info["remarked"]) == (36, 18, 1)
    assert info["modalities"] == {"CT": 4}
    assert info["provenance"]["trained on"] == "nothing"


def test_text_of_thousands_of_characters_is_refused_and_long_remarks_are_cut():
    row = cohort(1)[0][0]
    with pytest.raises(ScanRefused, match="patient_id has 5000 characters"):
        replace(row, patient_id="x" * 5000)
    cut = replace(row, remarks=("y" * 3000, "z" * 3000, "w")).remarks
    assert cut == ("y" * 3000, "and 2 more remarks")
    assert replace(row, patient_id="a\0b\udcff").patient_id == "ab\\udcff"


# --- files that must not be trusted ---


@pytest.mark.parametrize("name", STORES)
def test_a_newer_version_asks_for_an_update(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clear.bag_format.VERSION", 2)
    rows, bags = cohort()
    write_bags(tmp_path / name, HEADER, rows, lambda row: bags[row.scan_id])
    monkeypatch.undo()
    with pytest.raises(BagFileError, match=r"newer clear: version 2 .* reads version 1. Update clear"):
        Bags(tmp_path / name)


def edit_link(file: h5py.File) -> None:
    del file["scans/source"]
    file["scans/source"] = h5py.ExternalLink("/etc/hostname", "/x")


def edit_soft_link(file: h5py.File) -> None:
    del file["features"]
    file["features"] = h5py.SoftLink("/instances/slice")


def edit_external_storage(file: h5py.File) -> None:
    del file["features"]
    file.create_dataset("features", (36, 4), "<f2", external=[("/etc/passwd", 0, 36 * 8)])


def edit_virtual(file: h5py.File) -> None:
    del file["features"]
    layout = h5py.VirtualLayout((36, 4), "<f2")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (36, 4))
    file.create_virtual_dataset("features", layout)


def edit_chunked(file: h5py.File) -> None:
    values = file["features"][:]
    del file["features"]
    file.create_dataset("features", data=values, compression="gzip")


def edit_lengths(file: h5py.File) -> None:
    file["scans/length"][0] = 11


def edit_overflowing_lengths(file: h5py.File) -> None:
    file["scans/length"][...] = [2**62, 2**62, 2**62, 2**62 + 36]


def edit_window(file: h5py.File) -> None:
    file["instances/window"][5] = 2


def edit_order(file: h5py.File) -> None:
    file["scans/scan_id"][...] = file["scans/scan_id"][...][::-1]


def edit_twice(file: h5py.File) -> None:
    file["scans/scan_id"][1] = file["scans/scan_id"][0]


def edit_missing(file: h5py.File) -> None:
    del file["instances/position_mm"]


def edit_type(file: h5py.File) -> None:
    del file["instances/slice"]
    file["instances/slice"] = np.zeros(36, np.int64)


def edit_json(file: h5py.File) -> None:
    file.attrs["encoder_card"] = "{not json"


def edit_deep_json(file: h5py.File) -> None:
    file.attrs["provenance"] = "[" * 60000


def edit_window_list(file: h5py.File) -> None:
    file.attrs["windows"] = '[{"name": "a", "low": 2, "high": 1}]'


def edit_windows_of_texts(file: h5py.File) -> None:
    file.attrs["windows"] = '["abdomen"]'


def edit_version(file: h5py.File) -> None:
    file.attrs["version"] = "one"


def edit_attribute_array(file: h5py.File) -> None:
    file.attrs["encoder"] = np.zeros((3, 3))


def edit_group_for_dataset(file: h5py.File) -> None:
    del file["features"]
    file.create_group("features")


def edit_remarks(file: h5py.File) -> None:
    file["scans/remarks"][0] = b"[1, 2]"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edit_link, "follows no links"),
        (edit_soft_link, "follows no links"),
        (edit_external_storage, "kept in another file"),
        (edit_virtual, "kept in another file"),
        (edit_chunked, "chunked, compressed"),
        (edit_lengths, "do not cover"),
        (edit_overflowing_lengths, "more than the file"),
        (edit_window, "window 2 of 2"),
        (edit_order, "not sorted"),
        (edit_twice, "not unique"),
        (edit_missing, "/instances/position_mm is missing"),
        (edit_type, "/instances/slice is"),
        (edit_json, "'encoder_card' is not JSON"),
        (edit_deep_json, "'provenance'"),
        (edit_window_list, "'windows' cannot be used"),
        (edit_windows_of_texts, "'windows' cannot be used"),
        (edit_version, "version number"),
        (edit_attribute_array, "'encoder'"),
        (edit_group_for_dataset, "no dataset"),
        (edit_remarks, "not a JSON list of texts"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_by_name(h5: Path, edit: Callable[[h5py.File], None], said: str):
    with h5py.File(h5, "r+") as file:
        edit(file)
    with pytest.raises(BagFileError, match=said) as caught:
        _ = Bags(h5).scans
    assert str(h5) in str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(h5: Path):
    whole = h5.read_bytes()
    for size in [0, 1, 7, 8, 100, *range(200, len(whole), 211), len(whole) - 1]:
        h5.write_bytes(whole[:size])
        with pytest.raises(BagFileError):
            Bags(h5)


def test_flipped_bytes_never_raise_anything_but_a_bag_file_error(h5: Path):
    whole = bytearray(h5.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(whole), 150, replace=False):
        broken = bytearray(whole)
        broken[at] ^= int(rng.integers(1, 256))
        h5.write_bytes(broken)
        try:
            bags = Bags(h5)
            _ = bags.scans, bags.features[:].sum()
        except BagFileError:
            refused += 1
    assert 0 < refused < 150  # flips in the layout are seen; those in the values cannot be


def test_other_files_are_no_bag_files(tmp_path: Path):
    (tmp_path / "text.h5").write_text("hello, this is no HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["feats"] = np.zeros((3, 4))
    (tmp_path / "folder.zarr").mkdir()
    for name, said in (
        ("text.h5", "expected an HDF5 bag file"),
        ("other.h5", "clear bags import"),
        ("folder.zarr", "not a bag file"),
        ("none.h5", "no such bag file"),
    ):
        with pytest.raises(BagFileError, match=said):
            Bags(tmp_path / name)


def edit_zarr(path: Path, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / key / "zarr.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.fixture
def zarr_bags(tmp_path: Path) -> Path:
    rows, bags = cohort()
    write_bags(tmp_path / "feats.zarr", HEADER, rows, lambda row: bags[row.scan_id])
    return tmp_path / "feats.zarr"


def test_zarr_codecs_that_may_run_code_are_refused(zarr_bags: Path):
    edit_zarr(zarr_bags, "scans/scan_id", lambda data: data["codecs"].append({"name": "numcodecs.pickle"}))
    with pytest.raises(BagFileError, match=r"numcodecs\.pickle.*may run code"):
        Bags(zarr_bags)


def test_zarr_links_are_refused(zarr_bags: Path):
    (zarr_bags / "features" / "c").rename(zarr_bags.parent / "elsewhere")
    (zarr_bags / "features" / "c").symlink_to(zarr_bags.parent / "elsewhere")
    with pytest.raises(BagFileError, match="is a link"):
        Bags(zarr_bags)


def test_a_zarr_array_larger_than_its_files_is_refused(zarr_bags: Path):
    edit_zarr(zarr_bags, "scans/start", lambda data: data.update(shape=[10**12]))
    with pytest.raises(BagFileError, match="claims 1000000000000 values"):
        Bags(zarr_bags)


def test_a_damaged_zarr_folder_is_refused(zarr_bags: Path):
    (zarr_bags / "scans" / "length" / "c" / "0").write_bytes(b"xx")
    with pytest.raises(BagFileError):
        Bags(zarr_bags)
    shutil.rmtree(zarr_bags / "scans" / "length")
    with pytest.raises(BagFileError, match=r"scans/length/zarr\.json is missing"):
        Bags(zarr_bags)


@pytest.mark.parametrize("died", ["before the new one is there", "before the old one is gone"])
def test_an_interrupted_replacement_of_a_zarr_folder_is_undone_or_completed(zarr_bags: Path, died: str):
    old = zarr_bags.with_name(".feats.zarr.old")
    shutil.copytree(zarr_bags, old)
    if died == "before the new one is there":
        shutil.rmtree(zarr_bags)
    recover_zarr(zarr_bags)
    assert len(Bags(zarr_bags)) == 4
    assert not old.exists()


def test_validation_finds_what_opening_does_not_read(h5: Path):
    assert "4 scans, 36 instances" in str(validate(h5))
    with h5py.File(h5, "r+") as file:
        file["features"][13, 2] = np.nan
    Bags(h5)
    assert validate(h5, deep=False).notes == ()
    with pytest.raises(BagFileError, match="scan sörie/2: 1 of 10 embeddings are not finite"):
        validate(h5)


def test_validation_finds_slices_that_do_not_exist(h5: Path):
    with h5py.File(h5, "r+") as file:
        file["instances/slice"][11] = 6
    with pytest.raises(BagFileError, match=r"slice indices 0\.\.6 with 6 slices"):
        validate(h5)


def test_validation_notes_equal_voxels_under_two_ids(tmp_path: Path):
    rows, bags = cohort()
    rows[1] = replace(rows[1], digest=rows[0].digest)
    write_bags(tmp_path / "f.h5", HEADER, rows, lambda row: bags[row.scan_id])
    assert validate(tmp_path / "f.h5").notes == ("sörie/3 and sörie/4 hold the same voxels",)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(h5: Path):
    rows, bags = cohort()
    before = h5.read_bytes()
    short = replace(bags[rows[2].scan_id], features=np.zeros((2, 4), np.float16))
    with pytest.raises(ValueError, match="expected 10 rows"):
        write_bags(h5, HEADER, rows, lambda row: short if row is rows[2] else bags[row.scan_id])
    assert h5.read_bytes() == before
    assert [path.name for path in h5.parent.iterdir()] == ["feats.h5"]
