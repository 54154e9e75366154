from __future__ import annotations

import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from clear.bag_format import BagHeader
from clear.errors import InputError
from clear.pictures import encoded, grey
from clear.thumbnails import FORMAT, Thumbnails, packed, thumbnail_windows, thumbnails_folder
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, CT_DEFAULT, LUNG, PERCENTILE, Window

DIGEST = "0123456789abcdef" * 4


def volume_of(shape=(4, 200, 300), spacing=(1.0, 1.0), modality="CT") -> Volume:
    z, y, x = np.indices(shape)
    voxels = (500 * np.sin(x / 20) + 3 * y + 100 * z - 500).astype(np.int16 if modality == "CT" else np.float32)
    positions = [(0.0, 0.0, 3.0 * i) for i in range(shape[0])]
    return Volume.from_stack(voxels, stack_geometry(positions, (1, 0, 0), (0, 1, 0), shape[1:], spacing), modality)


def kept(folder: Path, data: bytes, digest: str = DIGEST) -> Thumbnails:
    """Thumbnails of one file of these bytes."""
    thumbnails = Thumbnails(folder / "f.thumbnails")
    path = thumbnails.path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return thumbnails


def test_every_slice_comes_back_in_every_window(tmp_path: Path) -> None:
    volume = volume_of()
    thumbnails = kept(tmp_path, packed(volume, CT_DEFAULT))
    assert thumbnails.windows(DIGEST) == CT_DEFAULT
    for z in range(volume.n_slices):
        for i, window in enumerate(CT_DEFAULT):
            webp = thumbnails.get(DIGEST, z, i)
            assert webp is not None
            assert webp == thumbnails.get(DIGEST, z, window)
            assert webp == encoded(grey(volume, z, window, side=160), effort=2)
            image = Image.open(io.BytesIO(webp))
            assert image.size == (160, 107)
            difference = np.asarray(image.convert("L")).astype(float) - grey(volume, z, window, side=160)
            assert np.abs(difference).mean() < 4


def test_the_same_scan_gives_the_same_bytes() -> None:
    assert packed(volume_of(), CT_DEFAULT) == packed(volume_of(), CT_DEFAULT)


def test_pixels_of_thumbnails_are_square(tmp_path: Path) -> None:
    thumbnails = kept(tmp_path, packed(volume_of((1, 100, 100), (4.0, 1.0)), [ABDOMEN]))
    assert Image.open(io.BytesIO(thumbnails.get(DIGEST, 0, 0) or b"")).size == (40, 160)


def test_a_percentile_window_is_worked_out_once_for_the_scan(tmp_path: Path) -> None:
    volume = volume_of(modality="MR")
    thumbnails = kept(tmp_path, packed(volume, [PERCENTILE]))
    assert thumbnails.windows(DIGEST) == (PERCENTILE,)
    assert thumbnails.get(DIGEST, 2, PERCENTILE) == encoded(grey(volume, 2, PERCENTILE, side=160), effort=2)


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert Thumbnails.of(tmp_path / "f.h5") is None
    thumbnails = kept(tmp_path, packed(volume_of(), CT_DEFAULT))
    found = Thumbnails.of(tmp_path / "f.h5")
    assert found is not None
    assert found.get(DIGEST, 0, 0) == thumbnails.get(DIGEST, 0, 0)
    for digest, z, window in [
        ("f" * 64, 0, 0),
        ("", 0, 0),
        ("../../etc/passwd", 0, 0),
        (DIGEST.upper(), 0, 0),
        (DIGEST, 4, 0),
        (DIGEST, -1, 0),
        (DIGEST, 0, 2),
        (DIGEST, 0, -1),
    ]:
        assert found.get(digest, z, window) is None
    assert found.get(DIGEST, 0, Window("abdomen", -100, 100)) is None
    assert found.get(DIGEST, 0, Window("soft", -175, 275)) == found.get(DIGEST, 0, 0)
    assert found.windows("f" * 64) == ()


def test_a_window_is_known_by_its_range_so_pictures_in_another_are_never_shown(tmp_path: Path) -> None:
    thumbnails = kept(tmp_path, packed(volume_of(), [LUNG, ABDOMEN]))
    assert thumbnails.holds(DIGEST, [LUNG, ABDOMEN])
    assert not thumbnails.holds(DIGEST, CT_DEFAULT)
    assert not thumbnails.holds("f" * 64, CT_DEFAULT)


def test_indices_may_be_numpys(tmp_path: Path) -> None:
    thumbnails = kept(tmp_path, packed(volume_of(), CT_DEFAULT))
    assert thumbnails.get(DIGEST, np.int32(3), np.uint8(1)) == thumbnails.get(DIGEST, 3, 1)  # type: ignore[arg-type]  # as bags give them


@pytest.mark.parametrize("damage", ["empty", "short", "text", "cut", "zeros", "folder"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    whole = packed(volume_of(), CT_DEFAULT)
    spoiled = {
        "empty": b"",
        "short": whole[:5],
        "text": b"<img src=x onerror=alert(1)>" * 40,
        "cut": whole[:-100],
        "zeros": bytes(len(whole)),
        "folder": whole,
    }[damage]
    thumbnails = kept(tmp_path, spoiled)
    if damage == "folder":
        thumbnails.path(DIGEST).unlink()
        thumbnails.path(DIGEST).mkdir()
        assert thumbnails.get(DIGEST, 0, 0) is None
        return
    with pytest.raises(InputError, match=rf"{DIGEST}.*Remove the file; `clear extract --thumbnails` makes it again"):
        thumbnails.get(DIGEST, 0, 0)
    assert not thumbnails.holds(DIGEST, CT_DEFAULT)


def test_a_flipped_byte_never_goes_unnoticed_or_breaks_anything(tmp_path: Path) -> None:
    volume = volume_of((2, 40, 40))
    whole = packed(volume, CT_DEFAULT)
    expected = [kept(tmp_path, whole).get(DIGEST, z, w) for z in range(2) for w in CT_DEFAULT]
    for at in range(0, len(whole), 13):
        spoiled = bytearray(whole)
        spoiled[at] ^= 0x55
        thumbnails = kept(tmp_path, bytes(spoiled))
        found = []
        for z in range(2):
            for window in CT_DEFAULT:
                try:
                    found.append(thumbnails.get(DIGEST, z, window))
                except InputError:
                    found.append(None)
        assert all(a is None or a == b for a, b in zip(found, expected, strict=True)), at


def file_of(index: list[list[int]], pictures: bytes, head: object = None, dtype=np.int64) -> bytes:
    """A file that says anything."""
    head = {"version": 1, "windows": [ABDOMEN.as_dict()]} if head is None else head
    arrays = {"index": np.array(index, dtype=dtype), "pictures": np.frombuffer(pictures, np.uint8)}
    return save(arrays, metadata={FORMAT: head if isinstance(head, str) else json.dumps(head)})


GIANT = encoded(np.zeros((20, 4000), np.uint8))
HTML = b"<svg onload=alert(1)>" * 10


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (file_of([[0, 1 << 40, 0]], GIANT), "points beyond"),
        (file_of([[-8, 8, 0]], GIANT), "points beyond"),
        (file_of([[1 << 62, 1 << 62, 0]], GIANT), "points beyond"),
        (file_of([[0, len(GIANT), 0]], GIANT), "picture 0 is damaged"),
        (file_of([[0, len(GIANT), zlib.crc32(GIANT)]], GIANT), "picture 0 is damaged"),
        (file_of([[0, len(HTML), zlib.crc32(HTML)]], HTML), "no lossy WebP"),
        (file_of([[0, 0, 0]], b"x"), "no lossy WebP"),
        (file_of([[0, 1]], b"x"), "another shape"),
        (file_of([[0, 1, 0]], b"x", dtype=np.int32), "another shape"),
        (file_of([[0, 1, 0]], b"x", {"version": 2, "windows": []}), "version is 2, this clear reads version 1"),
        (file_of([[0, 1, 0]], b"x", {"version": 1, "windows": [ABDOMEN.as_dict()] * 2}), "another shape"),
        (file_of([[0, 1, 0]], b"x", {"version": 1, "windows": [{"name": "x", "low": 1e999, "high": 0}]}), "cannot be"),
        (file_of([[0, 1, 0]], b"x", {"version": 1, "windows": [{"name": "x", "low": 10**400, "high": 0}]}), "cannot"),
        (file_of([[0, 1, 0]], b"x", {"version": 1, "windows": 3}), "cannot be read"),
        (file_of([[0, 1, 0]], b"x", [1]), "cannot be read"),
        (file_of([[0, 1, 0]], b"x", "[" * 100_000), "cannot be read"),
        (file_of([[0, 1, 0]], b"x", "no JSON"), "expected the thumbnails"),
        (save({"index": np.zeros((1, 3), np.int64)}), "cannot be read"),
        ((1 << 21).to_bytes(8, "little") + b"{" * 100, "its header is larger"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        kept(tmp_path, data).get(DIGEST, 0, 0)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    thumbnails = kept(tmp_path, b"")
    thumbnails.path(DIGEST).unlink()
    os.mkfifo(thumbnails.path(DIGEST))
    assert thumbnails.get(DIGEST, 0, 0) is None


def test_no_index_of_windows_without_windows(tmp_path: Path) -> None:
    empty = file_of([], b"", {"version": 1, "windows": []})
    with pytest.raises(InputError, match="another shape"):
        kept(tmp_path, empty).get(DIGEST, 0, 0)


def header(windows: tuple[Window, ...], preprocessing: dict[str, object]) -> BagHeader:
    return BagHeader(
        encoder="x",
        encoder_digest="d" * 64,
        encoder_card={},
        windows=windows,
        preprocessing=preprocessing,
        provenance={},
        dim=4,
        dtype="float16",
    )


def test_thumbnails_are_in_the_windows_of_the_file_or_those_that_a_radiologist_would_choose() -> None:
    own = Window("lung+abdomen", -1500, 500, kind="encoder")
    stacked = {"channel_windows": [LUNG.as_dict(), ABDOMEN.as_dict()]}
    assert thumbnail_windows(header((LUNG,), {}), "CT") == (LUNG,)
    assert thumbnail_windows(header((own,), stacked), "CT") == (LUNG, ABDOMEN)
    assert thumbnail_windows(header((own,), {"volume": {}}), "CT") == CT_DEFAULT
    assert thumbnail_windows(header((own,), {"intensity": "slice_zscore"}), "MR") == (PERCENTILE,)


def test_the_folder_is_named_like_the_other_companions() -> None:
    assert thumbnails_folder(Path("a/feats.h5")) == Path("a/feats.thumbnails")
    assert thumbnails_folder(Path("feats.zarr")) == Path("feats.thumbnails")
