"""What every registered encoder makes of one fixed scan, as numbers.

The weights are seeded (`conftest.seeded_network`), so what the numbers hold is everything else: windows, resize,
normalisation, channels, architecture, pooling, orientation and voxel size. Networks are shallow (`SHALLOW`) to keep
this to a minute; input size, width, preprocessing and pooling are the card's own, but where a line below says so.

After a change that means to move features, write the numbers anew and say in the change why they moved; names leave
the other encoders' numbers as they are:

    python tests/clear/test_goldens.py --write [NAME ...]
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clear.card import EncoderCard
from clear.encoders import ENCODERS
from clear.frozen import Encoder
from clear.models import fixed_volume
from clear.phantoms import draw_patient
from clear.volume import Volume

FILE = Path(__file__).with_name("goldens.json")
SLICE = 1  # of the fixed volume: lungs and a lesion, the least symmetric one
NUMBERS = 12
TOLERANCE = 2e-4  # of the row's root mean square; processors and releases of torch differ by about 1e-5
CODEBOOK_TOLERANCE = 1e-2  # where a token near the border of two codes may fall to the other one
APART = 10  # tolerances between what must be told apart

# by architecture, the longest prefix that fits: what of `settings` makes a shallow network
SHALLOW: dict[str, dict[str, Any]] = {
    "timm:mambaout": {"depths": (1, 1, 1, 1)},
    "timm:vit": {"depth": 2},
    "timm:resnet50": {"layers": (1, 1, 1, 1)},
    "vmamba": {"depths": (1, 1, 1, 1)},
    "vit_conv": {"depth": 2},
    "open_clip": {"depth": 2},
    "sam2": {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
    "davit": {"depths": (1, 1, 1, 1), "embed_dims": (64, 128, 256, 512), "num_heads": (2, 4, 8, 16)},  # narrow
    # narrow where its maps are the largest
    "merlin": {"layers": (1, 1, 1, 1), "stem": 8, "planes": (8, 16, 64, 512)},
    # a narrow CTViT: its last layer alone has 151 million weights
    "ctclip": {"spatial_depth": 1, "temporal_depth": 1, "dim": 64, "codebook_size": 64},
}


def shallow(card: EncoderCard) -> EncoderCard:
    """The card of a network with few layers, all else as it is."""
    fits = [prefix for prefix in SHALLOW if card.architecture.startswith(prefix)]
    return replace(card, settings={**card.settings, **SHALLOW[max(fits, key=len)]})


@functools.cache
def metal_scan() -> Volume:
    """A chest of 40 slices (6.75 x 4.4 x 4.4 mm) with oblique rods of 3000 HU, one voxel thick and eight apart.

    Steel is far above where any volume encoder clips, and thin, so that it matters whether HU are clipped before or
    after they are interpolated.
    """
    volume = draw_patient(seed=0, index=0, matrix=96, slices=40).series[0].volume
    z, y, x = np.indices(volume.voxels.shape)
    inside = (abs(y - 48) < 28) & (abs(x - 48) < 36)
    rods = ((x + z // 2) % 8 == 0) & (y % 8 == 4) & inside
    return replace(volume, voxels=np.where(rods, np.int16(3000), volume.hu))


def scans(card: EncoderCard) -> list[Volume]:
    """What is encoded, one embedding a window from each slice or scan: the one that counts, mirrored, its neighbour.

    For an encoder of slices they are three slices of one volume; for one of volumes the scan with metal, mirrored, and
    with every slice one place higher.
    """
    whole = fixed_volume() if card.volume is None else metal_scan()
    if card.volume is not None:
        flipped = np.ascontiguousarray(whole.voxels[:, :, ::-1])
        return [whole, replace(whole, voxels=flipped), replace(whole, voxels=np.roll(whole.voxels, 1, axis=0))]
    chosen = whole.voxels[SLICE]
    stack = np.stack([chosen, chosen[:, ::-1], whole.voxels[SLICE + 1]])
    return [replace(whole, voxels=stack, positions_mm=whole.positions_mm[: len(stack)])]


def encoded(encoder: Encoder, *, first_only: bool = False) -> list[NDArray[np.float32]]:
    """For each of the three a row a window, (windows, d)."""
    volumes = scans(encoder.card)
    if encoder.card.volume is None:
        return np.split(encoder.encode(volumes[0]), 3)
    return [encoder.encode(volume) for volume in (volumes[:1] if first_only else volumes)]


def numbers(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """(K, d) as (K, NUMBERS): every value counts in each number, with a random weight of its own."""
    d = embeddings.shape[1]
    weights = np.random.default_rng(d).standard_normal((d, NUMBERS)) / d**0.5
    return embeddings.astype(np.float64) @ weights


def golden(encoder: Encoder) -> dict[str, Any]:
    """One encoder's entry in the file."""
    embeddings = encoded(encoder, first_only=True)[0]
    scale = np.sqrt((embeddings.astype(np.float64) ** 2).mean(axis=1))
    return {
        "shape": list(embeddings.shape),
        "rms": [round(float(value), 6) for value in scale],
        "numbers": [[float(f"{value:.6g}") for value in row] for row in numbers(embeddings)],
    }


def distance(embeddings: NDArray[np.float32], expected: Mapping[str, Any], card: EncoderCard) -> NDArray[np.float64]:
    """For each row the largest difference of its numbers, in tolerances."""
    tolerance = CODEBOOK_TOLERANCE if card.architecture.startswith("ctclip") else TOLERANCE
    apart = np.abs(numbers(embeddings) - np.array(expected["numbers"])).max(axis=1)
    return apart / (tolerance * np.array(expected["rms"]))


@pytest.fixture(scope="module")
def goldens() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def test_every_registered_encoder_has_its_numbers(goldens: dict[str, Any]) -> None:
    assert list(goldens) == list(ENCODERS)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.usefixtures("one_thread")
def test_an_encoder_still_gives_its_numbers_and_tells_a_mirrored_and_a_neighbouring_slice_apart(
    name: str, goldens: dict[str, Any], seeded: Callable[..., Encoder]
) -> None:
    encoder, expected = seeded(shallow(ENCODERS[name])), goldens[name]
    card = encoder.card
    chosen, flipped, next_one = encoded(encoder)
    assert list(chosen.shape) == expected["shape"]
    assert chosen.shape[1] == ENCODERS[name].dim
    assert distance(chosen, expected, card).max() < 1
    assert distance(flipped, expected, card).min() > APART
    assert distance(next_one, expected, card).min() > APART


@pytest.mark.parametrize("name", [name for name, card in ENCODERS.items() if card.volume is not None])
@pytest.mark.usefixtures("one_thread")
def test_a_volume_prepared_otherwise_gives_other_numbers(
    name: str, goldens: dict[str, Any], seeded: Callable[..., Encoder]
) -> None:
    card = shallow(ENCODERS[name])
    spec = card.volume
    assert spec is not None
    opposite = str.maketrans("RLAPIS", "LRPASI")
    changes: dict[str, dict[str, Any]] = {
        "clip": {"clip": "before" if spec.clip == "after" else "after"},
        "grid": {"grid": "extent" if spec.grid == "first_centre" else "first_centre"},
        "axes": {"axes": spec.axes.translate(opposite)},
        "spacing": {"spacing_mm": tuple(1.01 * mm for mm in spec.spacing_mm)},
        "range": {"out": (spec.out[0], 0.8 * spec.out[1])},
    }
    for word, change in changes.items():
        encoder = seeded(replace(card, volume=replace(spec, **change)))
        apart = distance(encoded(encoder, first_only=True)[0], goldens[name], card).min()
        assert apart > APART, (word, apart)


def main(names: Sequence[str]) -> None:
    """Write the file, or the entries of these encoders."""
    from conftest import seeded_encoder

    torch.set_num_threads(1)
    known = json.loads(FILE.read_text(encoding="utf-8")) if names else {}
    found = {}
    for name, card in ENCODERS.items():
        if name in known and name not in names:
            found[name] = known[name]
            continue
        found[name] = golden(seeded_encoder(shallow(card)))
        print(name, found[name]["shape"], flush=True)
    rows = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"] or not set(sys.argv[2:]) <= set(ENCODERS):
        sys.exit(__doc__)
    main(sys.argv[2:])
