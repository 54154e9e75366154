"""The weights behind `mambaout-lecl`: a small MambaOut trained by LeCL on synthetic patients, and MoCo v3 beside it.

    python -m pretrain.shipped build/weights                 # draw, store, train both; then, with --install,
    python -m pretrain.shipped build/weights --install       # put LeCL's into clear/weights/mambaout-lecl

Everything follows from the numbers here. The patients are of the embedded cohort, but none that the demonstration or
any task scores: same seed, other indices (`clear.phantoms.write_cohort`). Both begin with the filter bank of
`pretrain.initialise`. What stands in the folder is not done again, so a stopped command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clear.card import WEIGHTS_FILE, read_card, write_card
from clear.phantoms import write_cohort
from pretrain.build import build_slices
from pretrain.engine import PretrainResult, pretrain
from pretrain.initialise import write_untrained

FIRST, PATIENTS, MATRIX, SLICES = 1000, 400, 256, 14  # the demonstration scores indices 0 to 149
NAME, INSTALLED = "mambaout-lecl", Path(__file__).parents[1] / "clear" / "weights" / "mambaout-lecl"
NOTE = "all of them synthetic, drawn by clear itself: for trying the software out, not for clinical conclusions"

# the same for both, and for the short runs of tests/bench/pretraining.py but for the epochs
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "batch": 64,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "annotated_share": 0.5,
        "options": {"hidden": 1024, "dim": 128, "crop": (0.2, 1.0)},
        "init": "own",
    }
)
EPOCHS = 4
# the worst of 12 slices of a real chest CT moves by 2.6 % (tests/clear/test_bfloat16.py); the start's moved by over 5 %
BFLOAT16 = True
OBJECTIVES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"lecl": {"lambda_": 1.0}, "moco-v3": {}})


def training_store(
    folder: Path, *, patients: int = PATIENTS, matrix: int = MATRIX, slices: int = SLICES, workers: int = 2
) -> Path:
    """The slice store of patients whom nothing scores, drawn and built once, under `folder`."""
    cohort, store = folder / "cohort", folder / "slices.zarr"
    if not cohort.is_dir():
        aside = folder / ".cohort"
        shutil.rmtree(aside, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_cohort(aside, patients=patients, seed=0, first=FIRST, matrix=matrix, slices=slices, workers=workers)
        aside.rename(cohort)
    build_slices(cohort / "dicom", store, boxes=cohort / "boxes.csv", workers=workers)
    return store


def untrained(folder: Path) -> Path:
    """The card of the start that both share, under `folder`."""
    card = folder / "untrained" / "card.json"
    if not card.is_file():
        write_untrained(card.parent)
    return card


def train(
    folder: Path,
    objective: str,
    *,
    options: Mapping[str, Any] | None = None,
    output: Path | None = None,
    store: Path | None = None,
    report: Callable[[str], None] | None = None,
    **changes: Any,
) -> PretrainResult:
    """One encoder as it is shipped, or with other settings; in `folder`/`objective` unless told."""
    settings = {**SETTINGS, "epochs": EPOCHS, "half": True, "note": NOTE, **changes}
    own = OBJECTIVES.get(objective, {}) if options is None else options
    return pretrain(
        store or training_store(folder),
        output or folder / objective,
        objective=objective,
        model=str(untrained(folder)),
        report=report,
        **{**settings, "options": {**SETTINGS["options"], **own}},
    )


def install(result: PretrainResult, folder: Path = INSTALLED) -> Path:
    """Put an encoder where the package has its own, under the paper's name; returns the card's path."""
    card = read_card(result.path)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(result.path / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    return write_card(replace(card, name=NAME, licence="Apache-2.0", bfloat16=BFLOAT16), folder)


def main(arguments: list[str] | None = None) -> None:
    """Train LeCL and MoCo v3, and install LeCL's weights where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--install", action="store_true")
    given = parser.parse_args(arguments)
    results = {}
    for objective in OBJECTIVES:
        results[objective] = train(given.folder, objective, report=print)
        print(results[objective].summary())
    if given.install:
        print(install(results["lecl"]))


if __name__ == "__main__":
    main()
