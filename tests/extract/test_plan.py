from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clear.atomic import OutputError
from clear.bags import Bags
from clear.errors import InputError
from clear.windows import CT_DEFAULT, LUNG, OTHER_DEFAULT
from extract import check_outputs, extract
from extract.plan import (
    check_space,
    choose_windows,
    fingerprint,
    header_for,
    in_shard,
    row_for,
    volume_bytes,
    with_clean_ids,
    with_plan,
)


def test_each_scan_is_in_exactly_one_shard_whatever_the_others_are():
    ids = [f"1.2.840.{i}" for i in range(300)]
    for scan_id in ids:
        assert sum(in_shard(scan_id, (i, 7)) for i in range(1, 8)) == 1
    sizes = [sum(in_shard(scan_id, (i, 7)) for scan_id in ids) for i in range(1, 8)]
    assert min(sizes) > 20
    # pinned: shards of one extraction may run under different versions
    assert [in_shard("1.2.840.0", (i, 4)) for i in range(1, 5)].index(True) == 2


def test_windows_follow_the_modality_unless_named(scans):
    assert choose_windows(None, scans) == CT_DEFAULT
    assert choose_windows([LUNG], scans) == (LUNG,)
    assert choose_windows(None, [replace(scan, modality="MR") for scan in scans]) == OTHER_DEFAULT
    assert choose_windows(None, [replace(scans[0], modality=""), *scans[1:]]) == CT_DEFAULT
    with pytest.raises(InputError, match="modality of none of the 6 scans is known"):
        choose_windows(None, [replace(scan, modality="") for scan in scans])
    with pytest.raises(InputError, match="name of its own"):
        choose_windows([LUNG, LUNG], scans)


def test_output_names_hold_the_model(tmp_path: Path):
    assert check_outputs(tmp_path / "f-{model}.h5", ["a", "x/b"]) == [tmp_path / "f-a.h5", tmp_path / "f-x_b.h5"]
    with pytest.raises(InputError, match="same name"):
        check_outputs(tmp_path / "f-{model}.h5", ["a", "a"])


def test_no_path_of_this_machine_gets_into_the_header(encoder, monkeypatch: pytest.MonkeyPatch):
    class Card:
        preprocessing: dict[str, int] = {}  # noqa: RUF012
        own_windows = ()

        def as_dict(self):
            return {"source": {"kind": "file", "place": "/home/somebody/weights.safetensors"}}

    monkeypatch.setattr(type(encoder), "card", Card())
    header = header_for(encoder, CT_DEFAULT, batch=4, dtype="float16")
    assert header.encoder_card["source"]["place"] == "weights.safetensors"


def test_space_is_summed_over_outputs_of_one_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("extract.plan.free_bytes", lambda folder: 100)
    check_space({tmp_path / "a.h5": 50, tmp_path / "b.h5": 50})
    with pytest.raises(OutputError, match="101 bytes"):
        check_space({tmp_path / "a.h5": 50, tmp_path / "b.h5": 51})


def test_a_fingerprint_follows_names_sizes_and_times(scans):
    first = fingerprint(scans[0])
    assert fingerprint(scans[0]) == first
    scans[0].paths[0].touch()
    assert fingerprint(scans[0]) != first
    scans[0].paths[0].unlink()
    assert fingerprint(scans[0]) == ""


def test_ids_that_cannot_be_stored_are_escaped(scans):
    odd = replace(scans[0], scan_id="z\udcff\0")
    assert [scan.scan_id for scan in with_clean_ids([odd, scans[1]])] == ["scan-001", "z\\udcff"]


def test_a_row_is_the_same_from_reading_and_from_the_plan(scans, reader, encoder):
    volume = reader(scans[1])
    row = row_for(scans[1], volume, volume.digest, header_for(encoder, CT_DEFAULT, batch=4, dtype="float16"))
    assert with_plan(row, scans[1]) == row
    assert row.length == 2 * volume.n_slices
    assert volume_bytes(scans[1]) == volume.voxels.nbytes


def test_a_folder_of_nifti_files_becomes_bags(tmp_path: Path, encoder):
    """End to end but for the encoder: discovery, decoding, geometry."""
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    (tmp_path / "ct" / "site").mkdir(parents=True)
    stored = {}
    for name in ("a", "site/b"):
        voxels = rng.integers(-1000, 1000, (7, 16, 18)).astype(np.int16)
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((0.7, 0.7, 3.0))
        image.SetOrigin((-10.0, -20.0, 5.0))
        sitk.WriteImage(image, str(tmp_path / "ct" / f"{name}.nii.gz"))
        stored[name] = voxels
    result = extract(tmp_path / "ct", tmp_path / "f.h5", [encoder], windows=CT_DEFAULT)
    assert (result.done, result.exit_status) == (2, 0)
    bags = Bags(tmp_path / "f.h5")
    assert list(bags) == ["a", "site/b"]
    low, high = CT_DEFAULT[0].low, CT_DEFAULT[0].high
    for name, voxels in stored.items():
        mean = np.clip((voxels.astype(np.float32) - low) / (high - low), 0, 1).mean(axis=(1, 2))
        np.testing.assert_allclose(bags[name].features[::2, 0], mean, atol=1e-3)
        np.testing.assert_allclose(bags[name].position_mm[::2, 2], 5.0 + 3.0 * np.arange(7), atol=1e-3)
    assert extract(tmp_path / "ct", tmp_path / "f.h5", [encoder], windows=CT_DEFAULT).new == 0
