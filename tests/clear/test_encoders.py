"""One battery over every registered encoder.

Full-size networks are built on the meta device and run on tensors that have shapes and no numbers. Numbers are the
golden outputs' (`test_goldens.py`) and, here, the small networks'.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from clear.backbones import FAMILIES, build, convert
from clear.card import EncoderCard, WeightSource
from clear.encoders import ENCODERS

SMALL = [card for card in ENCODERS.values() if card.name in ("mambaout-femto", "radio-dino-t", "dinov2-s")]
CARDS = pytest.mark.parametrize("card", ENCODERS.values(), ids=list(ENCODERS))


def on_meta(card: EncoderCard) -> torch.nn.Module:
    with torch.device("meta"):
        return build(card)


def parameters(card: EncoderCard) -> int:
    return sum(parameter.numel() for parameter in on_meta(card).parameters())


SHORT = {"vmamba": {"depths": (1, 1, 1, 1)}}  # its scan is a loop of thousands of steps, each of them followed here


@CARDS
def test_every_encoder_gives_an_embedding_and_a_map_of_the_size_its_card_promises(card: EncoderCard) -> None:
    settings = {**card.settings, **SHORT.get(card.architecture.partition(":")[0], {})}
    network: Any = on_meta(replace(card, settings=settings))
    inner = (card.input_size, card.input_size) if card.volume is None else card.volume.tensor_shape
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # buffers outside the state dict stay real
        network.to_empty(device="cpu")
        x = torch.empty(1, card.channels if card.volume is None else 1, *inner)
        embedding, features = network(x), network.feature_map(x)
    assert embedding.shape == (1, card.dim)
    assert features.ndim == (4 if card.volume is None else 5)
    assert min(features.shape[1:]) > 1
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("card", SMALL, ids=[card.name for card in SMALL])
def test_an_untrained_encoder_ends_in_a_norm_and_answers_twice_alike(card: EncoderCard) -> None:
    network = build(card)
    x = torch.randn(1, card.channels, card.input_size, card.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding, again = network(x), network(x)
    assert torch.equal(embedding, again)  # no dropout
    assert embedding.mean().abs() < 1e-5
    assert embedding.std(correction=0) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # of the papers' tables, of the part that we keep
        ("vit-s", 21.7),
        ("vit-b", 85.8),
        ("dino-b16", 85.8),
        ("dinov2-s", 22.1),
        ("dinov2-b", 86.6),
        ("dinov2-l", 304.4),
        ("resnet50", 23.5),
        ("medimageinsight", 362.7),
    ],
)
def test_networks_have_as_many_parameters_as_published(name: str, millions: float) -> None:
    card = ENCODERS[name]
    if name.startswith("dinov2"):  # counted there with the positions of 518 px
        card = replace(card, input_size=518, settings={"img_size": 518})
    assert parameters(card) / 1e6 == pytest.approx(millions, rel=0.005)


def test_sam2_and_merlin_have_exactly_the_parameters_of_the_published_classes(shared_data: Path) -> None:
    def meta(fixture: str) -> dict:
        with np.load(shared_data / "fixtures" / f"{fixture}.npz", allow_pickle=False) as file:
            return json.loads(str(file["meta_json"]))["real_model"]

    sizes = {"sam2-t": "tiny", "sam2-s": "small", "sam2-b": "base_plus", "sam2-l": "large"}
    published = meta("sam2_image_encoder_tiny")["image_encoder_parameters"]
    assert {name: parameters(ENCODERS[name]) for name in sizes} == {name: published[s] for name, s in sizes.items()}
    published = meta("merlin_image_tiny")["parameters"]
    assert parameters(ENCODERS["merlin"]) == published["backbone"]
    assert parameters(ENCODERS["merlin-contrastive"]) == published["backbone"] + published["contrastive_head"]


# ---- positions on another grid, by each author's rule


def cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' kernel (Cubic convolution interpolation, 1981), with its parameter a."""
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def sampled(old: int, new: int, factor: float) -> NDArray[np.float64]:
    """(new, old): a = -0.75 between the four neighbours, the outermost repeated; places lie 1 / factor apart."""
    out = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) / factor - 0.5
        for k in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            out[i, min(max(k, 0), old - 1)] += cubic(np.array(place - k), -0.75)
    return out


def antialiased(old: int, new: int) -> NDArray[np.float64]:
    """(new, old): a = -0.5, widened to the step where the grid shrinks, weights of what is inside summing to 1."""
    step = old / new
    places = (np.arange(new) + 0.5) * step
    weights = cubic((np.arange(old) + 0.5 - places[:, None]) / max(step, 1.0), -0.5)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


# facebookresearch/dino and dinov2 sample with the factor (new + 0.1) / old, transformers to the exact size
POSITIONS = {
    "dinov2": lambda old, new: sampled(old, new, (new + 0.1) / old),
    "dinov2_registers": antialiased,
    "exact": lambda old, new: sampled(old, new, new / old),
}
# whose code resizes them: DINO's and DINOv2's own, DINOv2's with registers, transformers'
DINO = ("dino-s16", "dino-s8", "dino-b16", "dino-b8", "radio-dino-t", "radio-dino-t-sp", "radio-dino-s-sp")
DINO += ("radio-dino-s", "radio-dino-b", "dinov2-s", "dinov2-b", "dinov2-l", "radio-dinov2")
RULE_OF = {
    **dict.fromkeys(DINO, "dinov2"),
    **dict.fromkeys(("dinov2-s-reg", "dinov2-b-reg", "dinov2-l-reg"), "dinov2_registers"),
    **dict.fromkeys(("rad-dino", "curia", "medsiglip"), "exact"),
}


def test_each_encoder_with_positions_has_its_authors_rule() -> None:
    assert {name for name, card in ENCODERS.items() if card.positions != "native"} == set(RULE_OF)


@pytest.mark.parametrize("side", [9, 37], ids=["enlarged or shrunk", "of 518 px"])
@pytest.mark.parametrize("name", RULE_OF)
def test_positions_of_another_grid_are_resized_by_the_rule_of_the_cards_authors(name: str, side: int) -> None:
    card = ENCODERS[name]
    network: Any = on_meta(card)
    own = network.state_dict()["network.pos_embed"]
    rows = network.network.patch_embed.grid_size[0]
    side += rows == side  # RAD-DINO's own grid
    prefix = own.shape[1] - rows * rows
    positions = np.random.default_rng(0).standard_normal((prefix + side * side, 3))
    wide = np.zeros((1, len(positions), card.dim), np.float32)
    wide[0, :, :3] = positions
    found = convert(card, {"pos_embed": torch.from_numpy(wide)}, network)["network.pos_embed"]
    assert found.shape == own.shape
    np.testing.assert_array_equal(found[0, :prefix], wide[0, :prefix])
    grid = positions[prefix:].reshape(side, side, 3)

    def error(rule: str) -> float:
        along = POSITIONS[rule](side, rows)
        expected = np.einsum("ai,bj,ijd->abd", along, along, grid).reshape(rows * rows, 3)
        return float(np.abs(found[0, prefix:, :3].numpy() - expected).max())

    assert error(RULE_OF[name]) < 1e-4
    assert all(error(rule) > 1e-2 for rule in POSITIONS if rule != RULE_OF[name])


ONLY_THE_ENCODER = [c for c in ENCODERS.values() if c.source.place.startswith("timm/") or c.name == "rad-dino"]


@pytest.mark.parametrize("card", ONLY_THE_ENCODER, ids=[card.name for card in ONLY_THE_ENCODER])
def test_a_published_file_is_as_large_as_its_network(card: EncoderCard) -> None:
    assert card.source.size_mb is not None
    head = 1.45 if card.architecture.startswith("timm:mambaout") else 1.12  # its classifier is an MLP
    assert 0.995 < card.source.size_mb / (parameters(card) * 4 / 1e6) < head


def test_every_family_has_an_encoder() -> None:
    assert {card.architecture.partition(":")[0] for card in ENCODERS.values()} == set(FAMILIES)


@CARDS
def test_every_card_says_where_its_weights_are_and_on_what_terms(card: EncoderCard) -> None:
    assert card.licence
    assert card.citation
    assert card.trained_on.startswith(("trained on", "trained by", "untrained"))
    assert card.source.place
    assert card.source.kind != "hub" or (card.source.size_mb or 0) > 10
    assert (card.source.kind == "elsewhere") == card.source.place.startswith("https://")
    if card.source.kind == "hub":
        owner, _, repository = card.source.place.removeprefix("datasets/").partition("/")
        assert owner
        assert repository
        assert "/" not in repository


@pytest.fixture(scope="module")
def page() -> Any:
    """The command that writes docs/encoders.md."""
    place = Path(__file__).parents[1] / "bench" / "encoders.py"
    spec = importlib.util.spec_from_file_location("encoders_page", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_credits_each_encoder_with_what_it_was_compared_with(page: Any) -> None:
    found = {name: page.verified(card) for name, card in ENCODERS.items()}
    assert all(found.values())
    for name in ("rad-dino", "curia"):
        assert found[name].startswith("transformers' numbers")
    assert {name for name, text in found.items() if text.startswith("DINO's")} == set(DINO) | {
        name for name, rule in RULE_OF.items() if rule == "dinov2_registers"
    }


@pytest.mark.parametrize("kind", ["bundled", "hub", "elsewhere", "file", "none"])
def test_a_row_of_the_page_names_what_was_not_verified_whatever_the_source(page: Any, kind: Any) -> None:
    card = replace(ENCODERS["mambaout-femto"], source=WeightSource(kind, "somewhere"), unverified="its colour")
    row = dict(zip(page.HEAD, page.row(card, {}), strict=True))
    unseen = {"hub": "; the published file, which was not seen", "none": "; there is no published file"}
    unseen["elsewhere"] = unseen["hub"]
    assert row["not verified"] == f"its colour{unseen.get(kind, '')}"


def test_the_page_says_that_the_papers_own_network_is_not_there_and_why_bfloat16_is_refused(page: Any) -> None:
    rows = {n: dict(zip(page.HEAD, page.row(ENCODERS[n], {}), strict=True)) for n in ("mambaout-lecl", "resnet50")}
    assert rows["mambaout-lecl"]["not verified"] == "the paper's own checkpoint, which is not published"
    assert rows["resnet50"]["slices/s, bfloat16"] == "refused: loses more than 5 % here (52 %)"
    assert all(row["not verified"] for row in rows.values())


def test_names_are_spelled_one_way() -> None:
    assert all(name == card.name == name.lower() and "_" not in name for name, card in ENCODERS.items())
