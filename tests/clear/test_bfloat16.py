"""bfloat16 against float32, architecture by architecture, on slices of a real chest CT and at full depth.

Weights are seeded, with all layers at work (`conftest.seeded_network`), and batch norms know the statistics of these
slices, as trained ones know those of their data. MambaOut is compared at its library's start as well: with seeded
weights every block adds as much as all before it, which its 45 blocks make chaotic (small and base lose 8 %);
at the library's start the same networks lose 2 %. How far rounding shows depends on how much a scan's embeddings differ
from their mean, and trained weights may round differently: only a machine that has them can tell. An encoder that
fails here says `bfloat16=False` in its card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clear.card import EncoderCard
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.frozen import Encoder
from clear.scans import find_scans, read_volume
from clear.slices import prepare
from clear.volume import Volume
from clear.windows import Window
from pretrain.initialise import random_network

WORST_ERROR = 0.05  # of an embedding, once the scan's mean embedding is gone
SLICES = 12
SOFT_TISSUE = Window("soft_tissue", -160, 240)

# one member a family and pooling; larger members, inputs above 224 px and the scan of VMamba take minutes
QUICK = ("mambaout-femto", "dinov2-s", "sam2-t")
SLOW = (
    "vit-s",
    "dino-s16",
    "dinov2-s-reg",
    "dinov3-s",
    "mambaout-lecl",
    "vmamba-lecl",
    "vit-conv-lecl",
    "dino-b8",
    "dinov2-b",
    "dinov2-l",
    "dinov3-l",
    "sam2-l",
    "biomedclip",
    "rad-dino",
    "medsiglip",
)
# these lose more than 5 %, the volume encoders by their own tests
REFUSED = {
    "resnet50",
    "radimagenet-resnet50",
    "medimageinsight",
    "curia",
    "merlin",
    "merlin-contrastive",
    "ct-clip",
}


@pytest.fixture(scope="module")
def chest(shared_data: Path) -> Volume:
    """A dozen slices spread over a real scan."""
    scan = next(s for s in find_scans(shared_data / "data" / "ct_dicom" / "covidctmd_P002_chest") if s.refusal is None)
    volume = read_volume(scan)
    chosen = np.linspace(0, volume.n_slices - 1, SLICES).astype(int)
    padding = None if volume.padding is None else volume.padding[chosen]
    return replace(volume, voxels=volume.voxels[chosen], positions_mm=volume.positions_mm[chosen], padding=padding)


def calibrate(encoder: Encoder, volume: Volume, windows: Sequence[Window]) -> None:
    """Batch norms' statistics from these slices, in float32; nothing where there are none."""
    norms = [module for module in encoder.network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    limits = [window.limits(volume.voxels) for window in windows]
    x = prepare(torch.from_numpy(volume.voxels), limits, volume.spacing_mm[1:], encoder.card)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    with torch.no_grad():
        encoder.network.float()(x)
    encoder.network.eval()


def errors(card: EncoderCard, chest: Volume, seeded: Callable[..., Encoder]) -> tuple[np.ndarray, np.ndarray]:
    """Each slice's relative error, and the index of the exact embedding that its rounded one is nearest to."""
    windows = [SOFT_TISSUE]
    encoders = [seeded(card, precision) for precision in ("float32", "bfloat16")]
    calibrate(encoders[0], chest, windows)
    statistics = {name: value for name, value in encoders[0].network.state_dict().items() if "running_" in name}
    encoders[1].network.load_state_dict(statistics, strict=False)  # statistics alone
    exact, rounded = (encoder.encode(chest, windows) for encoder in encoders)
    exact, rounded = exact - exact.mean(axis=0), rounded - rounded.mean(axis=0)
    distances = np.linalg.norm(rounded[:, None] - exact[None], axis=-1)
    return np.linalg.norm(rounded - exact, axis=1) / np.linalg.norm(exact, axis=1), distances.argmin(axis=1)


def check(card: EncoderCard, chest: Volume, seeded: Callable[..., Encoder]) -> None:
    error, nearest = errors(card, chest, seeded)
    print(f"{card.name}: {error.max():.4f}")  # shown with -s
    assert 0 < error.max() <= WORST_ERROR  # 0 would be one precision twice
    assert np.array_equal(nearest, np.arange(SLICES))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", QUICK)
def test_rounded_embeddings_are_nearest_to_their_exact_ones(
    name: str, chest: Volume, seeded: Callable[..., Encoder]
) -> None:
    check(ENCODERS[name], chest, seeded)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_rounded_embeddings_are_nearest_to_their_exact_ones_in_large_networks(
    name: str, chest: Volume, seeded: Callable[..., Encoder]
) -> None:
    check(ENCODERS[name], chest, seeded)


def test_each_architecture_that_allows_bfloat16_is_among_those_compared() -> None:
    def kind(card: EncoderCard) -> tuple[str, ...]:
        family, _, model = card.architecture.partition(":")
        return (family, model.partition("_")[0], card.pooling) if family == "timm" else (family,)

    compared = {kind(ENCODERS[name]) for name in (*QUICK, *SLOW)}
    assert {kind(card) for card in ENCODERS.values() if card.bfloat16} == compared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mambaout-small", "mambaout-base"])
def test_the_deepest_mambaouts_keep_their_embeddings_at_the_librarys_start(name: str, chest: Volume) -> None:
    def started(card: EncoderCard, precision: str) -> Encoder:
        return Encoder(card, random_network(card, seed=1), "library's start", device="cpu", precision=precision)

    check(ENCODERS[name], chest, started)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "curia", "medimageinsight"])
def test_what_refuses_it_does_not_pass(name: str, chest: Volume, seeded: Callable[..., Encoder]) -> None:
    error, _ = errors(replace(ENCODERS[name], bfloat16=True), chest, seeded)
    assert error.max() > WORST_ERROR


def test_an_encoder_that_loses_too_much_refuses_it(seeded: Callable[..., Encoder]) -> None:
    refusing = [card for card in ENCODERS.values() if not card.bfloat16]
    assert {card.name for card in refusing} == REFUSED
    tiny = replace(ENCODERS["merlin"], dim=16, settings={"layers": (1, 1, 1, 1), "planes": (1, 1, 1, 4), "stem": 1})
    assert seeded(tiny, "auto").precision == "float32"
    with pytest.raises(InputError, match=f"encoder {tiny.name} is not known to keep its embeddings"):
        seeded(tiny, "bfloat16")
