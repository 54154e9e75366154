from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clear.backbones.vit_attention import use_plain_attention
from clear.card import EncoderCard, WeightSource
from clear.errors import InputError, ScanRefused, WeightsError
from clear.export import export_encoder
from clear.frozen import Encoder, choose_device, choose_precision, load_encoder
from clear.volume import Volume, stack_geometry
from clear.windows import ABDOMEN, LUNG
from pretrain.initialise import random_network

CARD = EncoderCard(
    name="small",
    architecture="timm:mambaout_femto",
    dim=24,
    source=WeightSource("file", "-"),
    trained_on="untrained random weights",
    settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
    input_size=64,
    pooling="mean_norm",
    modalities=("CT",),
    ignored=("head.pre_logits.", "head.fc."),
)


def encoder(precision: str = "float32", card: EncoderCard = CARD) -> Encoder:
    return Encoder(card, random_network(card, seed=1), "note", device="cpu", precision=precision)


def volume(n: int = 7, modality: str = "CT") -> Volume:
    values = np.random.default_rng(0).normal(-200, 400, (n, 40, 48))
    geometry = stack_geometry([[0, 0, 5 * i] for i in range(n)], [1, 0, 0], [0, 1, 0], (40, 48), (0.8, 0.8))
    return Volume.from_stack(values.astype(np.int16 if modality == "CT" else np.float32), geometry, modality)


def test_rows_run_slice_by_slice_with_the_windows_inside() -> None:
    both = encoder().encode(volume())
    assert both.shape == (14, 24)
    assert np.allclose(both[0::2], encoder().encode(volume(), [ABDOMEN]), atol=1e-5)
    assert np.allclose(both[1::2], encoder().encode(volume(), [LUNG]), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_features_do_not_depend_on_the_batch(batch: int) -> None:
    reference = encoder().encode(volume(), batch=1)
    assert np.abs(encoder().encode(volume(), batch=batch) - reference).max() < 1e-5


def test_equal_calls_give_equal_bytes() -> None:
    assert np.array_equal(encoder().encode(volume(), batch=4), encoder().encode(volume(), batch=4))


def test_the_caller_hears_of_every_batch_and_can_stop() -> None:
    heard: list[int] = []
    encoder().encode(volume(), batch=4, on_batch=heard.append)
    assert heard == [4, 4, 4, 2]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder().encode(volume(), on_batch=stop)


def test_bfloat16_stays_within_five_percent_after_centring() -> None:
    exact = encoder().encode(volume())
    rounded = encoder("bfloat16").encode(volume())
    exact, rounded = exact - exact.mean(0), rounded - rounded.mean(0)
    error = np.linalg.norm(rounded - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert error.max() < 0.05
    distances = np.linalg.norm(rounded[:, None] - exact[None], axis=-1)
    assert np.array_equal(distances.argmin(1), np.arange(len(exact)))


def test_weights_rounded_once_are_those_that_autocast_rounds_in_every_batch() -> None:
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    rounded = encoder("bfloat16")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = random_network(CARD, seed=1)(x).float()
    with torch.inference_mode():
        assert torch.equal(rounded.forward(x), expected)
    assert rounded.digest == encoder().digest


def test_what_an_encoder_is_not_for_is_refused_by_name() -> None:
    with pytest.raises(ScanRefused, match="MR scan, but encoder small knows CT only") as refusal:
        encoder().encode(volume(modality="MR"))
    assert refusal.value.reason == "modality"
    with pytest.raises(ScanRefused, match="axial slices, but encoder small knows sagittal only"):
        encoder(card=replace(CARD, planes=("sagittal",))).encode(volume())


def test_an_exported_card_is_the_same_encoder(tmp_path: Path) -> None:
    network = random_network(CARD, seed=1)
    card = export_encoder(CARD, network, tmp_path / "mine")
    loaded = load_encoder(str(card), device="cpu", precision="float32")
    assert loaded.digest == encoder().digest
    assert loaded.weights_note == "untrained random weights"
    assert np.array_equal(loaded.encode(volume()), encoder().encode(volume()))
    assert sorted(p.name for p in card.parent.iterdir()) == ["card.json", "weights.safetensors"]


def test_a_card_whose_weights_are_of_another_network_is_refused(tmp_path: Path) -> None:
    other = replace(CARD, settings={"depths": (1, 1, 1, 1), "dims": (8, 12, 20, 24)})
    export_encoder(other, random_network(other), tmp_path)
    card = (tmp_path / "card.json").read_text().replace("20,", "16,")
    (tmp_path / "card.json").write_text(card)
    with pytest.raises(WeightsError, match=r"network\.stages\.2\..* has shape"):
        load_encoder(str(tmp_path))


def test_the_bundled_encoder_says_that_it_saw_synthetic_patients_only() -> None:
    bundled = load_encoder("mambaout-lecl", device="cpu")
    assert "all of them synthetic" in bundled.weights_note
    assert "not for clinical conclusions" in bundled.weights_note
    assert bundled.provenance["trained on"] == bundled.weights_note
    assert bundled.dim == 288


def test_random_networks_depend_on_their_seed_alone() -> None:
    first, second = random_network(CARD, seed=3).state_dict(), random_network(CARD, seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = random_network(CARD, seed=4).state_dict()
    assert not torch.equal(first["network.stem.conv1.weight"], other["network.stem.conv1.weight"])


def test_unknown_names_devices_and_precisions_are_explained() -> None:
    with pytest.raises(
        InputError, match=r"no such encoder\. Did you mean mambaout-lecl .*Expected one of mambaout-lecl"
    ):
        load_encoder("mambaout-huge")
    with pytest.raises(InputError, match="expected auto, cpu"):
        choose_device("tpu-or-so")
    with pytest.raises(InputError, match="expected auto, float32 or bfloat16"):
        choose_precision("float8", torch.device("cpu"), CARD)
    with pytest.raises(InputError, match="not known to keep its embeddings"):
        encoder("bfloat16", replace(CARD, bfloat16=False))
    assert encoder("auto", replace(CARD, bfloat16=False)).precision == "float32"


def test_plain_attention_is_the_fused_one_and_does_not_round_what_all_keys_share() -> None:
    card = replace(
        CARD,
        architecture="timm:vit_small_patch16_224",
        dim=48,
        settings={"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3},
        pooling="class_token",
        ignored=("head.",),
    )
    x = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def network(bias: float) -> torch.nn.Module:
        made = random_network(card, seed=1)
        for block in made.network.blocks:
            block.attn.qkv.weight.data *= 8
            block.attn.qkv.bias.data[48:96] = bias  # of the keys: shared by all of them
        return made

    fused, plain = network(0.5), network(0.5)
    use_plain_attention(plain)
    with torch.inference_mode():
        expected = fused(x)
        assert torch.allclose(plain(x), expected, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(made(x).float() - expected).norm() / expected.norm() for made in (plain, fused)]
    assert errors[0] < 1.5 * errors[1]
