from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clear.card import EncoderCard, read_card, write_card
from clear.encoders import ENCODERS
from clear.errors import InputError
from clear.training_record import TrainingRecord
from clear.volume_input import VolumeInput
from clear.windows import ABDOMEN, LUNG, Window

CARD = ENCODERS["mambaout-lecl"]
BONE = Window("bone", -450, 1050)
WHOLE = VolumeInput(
    spacing_mm=(3.0, 1.5, 1.5),
    shape=(16, 24, 32),
    hu=(-1000, 1000),
    out=(0.0, 1.0),
    pad=0.0,
    axes="RAS",
    grid="extent",
    clip="before",
)


@pytest.mark.parametrize("card", ENCODERS.values(), ids=list(ENCODERS))
def test_a_card_survives_json(card: EncoderCard) -> None:
    assert EncoderCard.from_dict(json.loads(json.dumps(card.as_dict()))) == card


def test_a_written_card_finds_its_weights_beside_it(tmp_path: Path) -> None:
    write_card(CARD, tmp_path / "mine")
    for place in (tmp_path / "mine", tmp_path / "mine" / "card.json"):
        card = read_card(place)
        assert card.source.place == str(tmp_path / "mine" / "weights.safetensors")
        assert replace(card, source=CARD.source) == CARD


def test_the_digest_sees_all_that_changes_features_and_nothing_else() -> None:
    same = [
        CARD,
        replace(CARD, name="other", trained_on="x", licence="y", windows=(), citation=""),
        replace(CARD, training={"objective": "lecl", "epochs": 3}),
    ]
    different = [
        replace(CARD, pooling="mean"),
        replace(CARD, input_size=192),
        replace(CARD, resize="bicubic"),
        replace(CARD, mean=(0.0, 0.0, 0.0)),
        replace(CARD, std=(1.0, 1.0, 1.0)),
        replace(CARD, channels=1, mean=(0.5,), std=(0.5,)),
        replace(CARD, field_of_view_mm=300.0),
        replace(CARD, channel_windows=(LUNG, ABDOMEN, BONE)),
        replace(CARD, channel_windows=(ABDOMEN, LUNG, BONE)),
        replace(CARD, intensity="slice_zscore"),
        replace(CARD, volume=WHOLE),
        replace(CARD, volume=replace(WHOLE, axes="LPS")),
        replace(CARD, channels=1, mean=(0.5,), std=(0.5,), stem_mean=(0.4, 0.5, 0.6), stem_std=(1.0, 1.0, 1.0)),
        replace(CARD, settings={"output": "other"}),
        replace(CARD, positions="dinov2"),
    ]
    assert len({card.digest("w") for card in same}) == 1
    assert len({card.digest("w") for card in [CARD, *different]} | {CARD.digest("v")}) == len(different) + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected an encoder card"),
        ({"version": 2}, "card version 2; this clear reads version 1"),
        ({"pooling": "max"}, "pooling is 'max'; expected one of"),
        ({"colour": "red"}, "unknown field"),
        ({"mean": [0.5]}, "a mean and a std each"),
        ({"dim": 0}, "must be positive"),
        ({"source": {"kind": "hub"}}, "missing or of the wrong kind"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderCard.from_dict({**CARD.as_dict(), **change})


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_a_file_that_is_no_card_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "card.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"card\.json"):
        read_card(tmp_path)


def test_a_training_record_survives_the_file_and_a_card_without_one_has_no_such_field(tmp_path: Path) -> None:
    seen = TrainingRecord.of(["p1"], ["s1"], key="k").as_dict()
    write_card(replace(CARD, training={"objective": "lecl", "seen": seen}), tmp_path)
    assert read_card(tmp_path).training["seen"] == seen
    assert "training" not in CARD.as_dict()
    assert EncoderCard.from_dict(CARD.as_dict()).training == {}


def test_a_missing_card_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a card\.json beside weights\.safetensors"):
        read_card(tmp_path)


def test_windows_and_volumes_of_a_cards_own_survive_json() -> None:
    for card in (replace(CARD, channel_windows=(LUNG, ABDOMEN, BONE)), replace(CARD, volume=WHOLE)):
        assert EncoderCard.from_dict(json.loads(json.dumps(card.as_dict()))) == card


def test_an_encoder_that_prepares_values_itself_has_one_window_of_its_own() -> None:
    assert CARD.own_windows == ()
    stacked = replace(CARD, channel_windows=(LUNG, ABDOMEN, BONE))
    assert stacked.own_windows == (Window("lung+abdomen+bone", -1500, 1050, "encoder"),)
    assert replace(CARD, volume=WHOLE).own_windows == (Window("volume", -1000, 1000, "encoder"),)
    assert replace(CARD, intensity="slice_zscore").own_windows[0].kind == "encoder"


def test_contradictory_cards_are_refused() -> None:
    with pytest.raises(InputError, match="2 channel windows for 3 channels"):
        replace(CARD, channel_windows=(LUNG, ABDOMEN))
    with pytest.raises(InputError, match="exclude each other"):
        replace(CARD, channel_windows=(LUNG, ABDOMEN, BONE), volume=WHOLE)
    with pytest.raises(InputError, match="of a card with 1 channel"):
        replace(CARD, stem_mean=(0.1, 0.2, 0.3), stem_std=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="intensity is 'raw'"):
        replace(CARD, intensity="raw")


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir", "features_only"])
def test_a_card_cannot_make_a_library_load_weights_of_its_own(key: str) -> None:
    with pytest.raises(InputError, match=f"no {key}: weights are loaded by clear alone"):
        replace(CARD, settings={key: "evil.pth"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", ["a", "b", "c"]),
        ("mean", [float("nan"), 0.0, 0.0]),
        ("mean", 0.5),
        ("field_of_view_mm", -3),
        ("input_size", 224.5),
        ("dim", 384.0),
        ("settings", "x"),
        ("settings", []),
        ("architecture", None),
        ("bfloat16", "no"),
        ("windows", "lung"),
        ("ignored", "head."),
        ("ignored", [""]),
        ("volume", []),
        ("source", {"kind": "pipe", "place": "x"}),
        ("training", "a lot"),
        ("training", ["p1"]),
        ("training", {"loss": float("nan")}),
        ("training", {"seen": {"patients": ["a"]}}),
    ],
)
def test_a_field_of_another_kind_is_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match="kind" if field == "source" else field if field != "volume" else "card"):
        EncoderCard.from_dict({**CARD.as_dict(), field: value})


def test_equal_cards_have_one_digest_however_their_numbers_are_spelled() -> None:
    assert replace(CARD, mean=(0, 0, 0)).digest("w") == replace(CARD, mean=(0.0, 0.0, 0.0)).digest("w")
    spelled = replace(WHOLE, spacing_mm=(3, 1.5, 1.5), pad=0, out=(0, 1))
    assert replace(CARD, volume=spelled).digest("w") == replace(CARD, volume=WHOLE).digest("w")
    refusing = replace(CARD, volume=WHOLE, planes=("axial", "coronal"))  # a rule of what is refused moves no feature
    assert refusing.digest("w") == replace(CARD, volume=WHOLE).digest("w")
    assert replace(CARD, name="other", volume=WHOLE).own_windows == replace(CARD, volume=WHOLE).own_windows
