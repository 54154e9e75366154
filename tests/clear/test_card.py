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


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "\xff", "[" * 200_000, '{"a": ' * 100_000, '{"dim": ' + "1" * 6000 + "}", " " * 2_000_000, "\x00", ""],
    ids=["half", "list", "no text", "deep", "deep names", "digits", "large", "zero", "empty"],
)
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


BELL = "\x1b[31mred\x1b[0m"


@pytest.mark.parametrize("text", [BELL, "a\nb", "\ud800", "\u202etxt", "\x07", "\x9b1m", "x" * 10_000])
@pytest.mark.parametrize("field", ["name", "architecture", "trained_on", "licence", "citation", "unverified"])
def test_texts_are_plain_and_shown_without_what_a_terminal_would_obey(field: str, text: str) -> None:
    with pytest.raises(InputError, match=f"{field} is .* expected plain text of one line") as error:
        EncoderCard.from_dict({**CARD.as_dict(), field: text})
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 3000


def test_names_of_other_languages_are_plain() -> None:
    for text in ("Pérez-García et al.", "编码器", "α-β, «x»", "a\u00a0b"):
        assert replace(CARD, name=text, citation=text).name == text


@pytest.mark.parametrize(
    "change",
    [
        {BELL: 1},
        {"format": BELL},
        {"version": BELL},
        {"pooling": BELL},
        {"windows": [BELL]},
        {"settings": {BELL: 1}},
        {"settings": {"pretrained" + BELL: 1}},
        {"settings": {"act_layer": BELL}},
        {"source": {"kind": BELL, "place": "x"}},
        {"source": {"kind": "file", "place": "x", BELL: 1}},
        {"volume": {BELL: 1}},
        {"volume": {**WHOLE.as_dict(), "axes": BELL}},
        {"channel_windows": [{"name": BELL, "low": 0, "high": 1} for _ in range(3)]},
    ],
)
def test_no_part_of_a_card_reaches_the_terminal_as_it_is(change: dict) -> None:
    with pytest.raises(InputError) as error:
        EncoderCard.from_dict({**CARD.as_dict(), **change}, "card.json")
    assert str(error.value).isprintable()


HUGE = 10**400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 10**7}, "dim is 10000000; expected at most 1000000"),
        ({"dim": HUGE}, "dim is 1000"),
        ({"input_size": 10**7}, "input_size is 10000000; expected at most 4096"),
        ({"field_of_view_mm": 1e12}, "field_of_view_mm is 1000000000000.0; expected millimetres, 1 to 2000"),
        ({"field_of_view_mm": 1e-9}, "field_of_view_mm is 1e-09; expected millimetres, 1 to 2000"),
        ({"field_of_view_mm": HUGE}, "field_of_view_mm is 1000"),
        ({"std": [1e-320] * 3}, "std is .* expected at least 1e-06 each"),
        ({"std": [1e39] * 3}, "std is .* expected a list of numbers within 1e.06"),
        ({"mean": [HUGE] * 3}, "mean is .* expected a list of numbers within 1e.06"),
        ({"mean": [float("inf")] * 3}, "mean is .* expected a list of numbers"),
        (
            {"channels": 1, "mean": [0.5], "std": [0.5], "stem_mean": [0, 0, 0], "stem_std": [0, 0, 0]},
            "stem_std is .* expected at least 1e-06 each",
        ),
        ({"settings": {"depth": -1}}, r"settings: depth is -1; expected .* numbers in 0\.\.100000"),
        ({"settings": {"depth": 10**9}}, "settings: depth is 1000000000; expected"),
        ({"settings": {"depth": HUGE}}, "settings: depth is 1000"),
        ({"settings": {"mlp_ratio": float("nan")}}, "settings: mlp_ratio is nan; expected"),
        ({"settings": {"dims": [[[[[1]]]]]}}, "settings: dims is"),
        ({"settings": {"a": {"b": [-1]}}}, "settings: a is"),
        ({"channel_windows": [{"name": n, "low": 0, "high": 1e-9} for n in "abc"]}, "channel window a from 0 to 1e-09"),
        ({"channel_windows": [{"name": n, "low": 0, "high": HUGE} for n in "abc"]}, "of the wrong kind"),
        ({"channel_windows": "abc"}, "of the wrong kind"),
        ({"volume": {**WHOLE.as_dict(), "shape": [10**5] * 3}}, "shape is .* at most 268435456 voxels in all"),
        ({"volume": {**WHOLE.as_dict(), "shape": [HUGE, 1, 1]}}, "shape is .* in voxels"),
        ({"volume": {**WHOLE.as_dict(), "spacing_mm": [1e-9, 1, 1]}}, "spacing_mm is .* voxels of 0.01 to 100 mm"),
        ({"volume": {**WHOLE.as_dict(), "spacing_mm": [1, 1e9, 1]}}, "spacing_mm is .* voxels of 0.01 to 100 mm"),
        ({"volume": {**WHOLE.as_dict(), "out": [0, 1e39]}}, "out is .* low below high"),
        ({"volume": {**WHOLE.as_dict(), "out": [0, 1e7]}}, "out is .* values within 1e.06"),
        ({"volume": {**WHOLE.as_dict(), "pad": -1e7}}, "pad is .* a number within 1e.06"),
        ({"volume": {**WHOLE.as_dict(), "hu": [0, HUGE]}}, "hu is .* whole HU"),
        ({"source": {"kind": "file", "place": 3}}, "weights' source: place is 3; expected text"),
        ({"source": {"kind": "hub", "place": "x", "size_mb": "big"}}, "size_mb is 'big'; expected megabytes"),
        ({"source": {"kind": "hub", "place": "x", "output": [float("nan")]}}, "output is .*; expected numbers"),
    ],
)
def test_numbers_are_bounded_before_they_cost_anything(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        EncoderCard.from_dict({**CARD.as_dict(), **change})
    assert len(str(error.value)) < 3000


def test_what_cards_have_is_within_the_bounds() -> None:
    wide = replace(CARD, input_size=4096, field_of_view_mm=2000, std=(1 / 255,) * 3, mean=(-3.0, 0.0, 3.0))
    assert EncoderCard.from_dict(json.loads(json.dumps(wide.as_dict()))) == wide
    nested = {"stages": [1, 2, 3], "windows": [[7, 7], [14, 14]], "act": "gelu", "no": None, "more": {"a": [1.5, True]}}
    assert replace(CARD, settings=nested).settings == nested
    replace(WHOLE, shape=(512, 512, 512), spacing_mm=(0.1, 0.1, 0.1), out=(-1024, 3071), pad=-1024)
