from __future__ import annotations

import json

import pytest

from clear.errors import InputError
from clear.windows import Window
from pretrain.augmentation import AUGMENTATIONS, BONE, CT, Augmentation, augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_presets_survive_json(name: str) -> None:
    stored = json.loads(json.dumps(AUGMENTATIONS[name].as_dict()))
    assert augmentation(stored) == augmentation(name) == AUGMENTATIONS[name]


def test_fields_differ_from_a_preset() -> None:
    found = augmentation({"preset": "paper", "flips": "none", "blur_chance": 0.3, "aspect": [1, 1]})
    assert found.flips == "none"
    assert found.blur_chance == (0.3,)
    assert found.aspect == (1, 1)
    assert found.solarise_chance == AUGMENTATIONS["paper"].solarise_chance
    assert augmentation({"level_jitter": 0.2}).windows == CT.windows


def test_windows_have_names_or_ranges() -> None:
    found = augmentation({"windows": ["bone", "abdomen", "liver=0..150"]}).windows
    assert found == (BONE, Window("abdomen", -175, 275), Window("liver", 0, 150))
    assert augmentation({"windows": "lung"}).windows == (Window("lung", -1500, 500),)


def test_no_preset_flips_patients_but_the_papers() -> None:
    assert {name: preset.flips for name, preset in AUGMENTATIONS.items()} == {
        "ct": "none",
        "paper": "left_right",
        "none": "none",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("strong", "augmentation 'strong' is unknown; expected one of ct, paper, none"),
        (3, "augmentation 3 is unknown; expected one of ct, paper, none"),
        ({"flip": "both"}, "unknown flip"),
        ({"flips": "up"}, "flips is 'up'; expected none, left_right or both"),
        ({"noise_chance": 2}, "noise_chance is 2; expected 0..1"),
        ({"width_jitter": 0.5}, "width_jitter is 0.5; expected 1..10"),
        ({"aspect": [2, 1]}, "two numbers, low and high"),
        ({"blur_sigma": [0.1, float("nan")]}, "blur_sigma"),
        ({"blur_chance": []}, "blur_chance"),
        ({"share_window": "yes"}, "share_window is 'yes'"),
        ({"lesion_side_mm": [0, 10]}, "lesion_side_mm"),
        ({"windows": ["percentile"]}, "window percentile is no range in HU"),
        ({"windows": []}, "at least one window"),
    ],
)
def test_what_is_wrong_is_named(given: object, said: str) -> None:
    with pytest.raises(InputError, match=r".") as caught:
        augmentation(given)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_an_augmentation_is_taken_as_it_is() -> None:
    own = Augmentation(flips="both")
    assert augmentation(own) is own
