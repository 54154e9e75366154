"""The run folder of a pretraining: what it is a run of, and who may go on with it.

    settings.json         what was asked for, the data's digest, the card: the run's identity
    checkpoint.pt         the run between two steps, see `pretrain.checkpoints`
    history.csv, epochs.csv, tensorboard/   see `pretrain.history`
    best/                 the encoder card of the epoch that the judge liked best, while and after training
    last/                 the encoder card of the last epoch, where there is a judge
    card.json, weights.safetensors   the encoder, once the run is done: the best, or the last without a judge

The same command again goes on where it stopped; other settings need another folder.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clear.atomic import output_errors, write_aside
from clear.card import CARD_FILE, EncoderCard
from clear.errors import InputError
from pretrain.settings import PretrainSettings, differences

SETTINGS = "settings.json"
FORMAT = "clear-pretraining"
VERSION = 1
JUDGED = "judged.zarr"  # the slices of labelled scans, where the judge got a folder
_LOCK = ".lock"


@dataclass(frozen=True)
class Identity:
    """What a run is of.

    settings: settled. data: digest, rows and counts of what is trained on. card: architecture and preprocessing.
    judged: digest of the labelled set, "" without one. precision: settled, of the first start. begun: digest of the
    weights that it began with, "" for random ones; origin: their card, where they have one.
    """

    settings: PretrainSettings
    data: Mapping[str, Any]
    card: EncoderCard
    judged: str = ""
    precision: str = "float32"
    begun: str = ""
    origin: EncoderCard | None = None

    def as_dict(self) -> dict[str, Any]:
        """settings.json."""
        card = {name: value for name, value in self.card.as_dict().items() if name not in ("source", "training")}
        return {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings.as_dict(),
            "data": dict(self.data),
            "card": card,
            "judged": self.judged,
            "precision": self.precision,
            "begun": self.begun,
        }


def check_folder(path: Path) -> dict[str, Any] | None:
    """settings.json of a run that is there, None for a new or empty folder.

    Raises InputError when the place is taken by something else, or the file is damaged or of a newer clear.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; expected a folder for the run. Choose another one")
    file = path / SETTINGS
    if not file.is_file():
        if path.is_dir() and any(not each.name.startswith((_LOCK, "judged")) for each in path.iterdir()):
            raise InputError(f"{path}: is not empty and no pretraining (no {SETTINGS}). Choose another folder")
        return None
    damaged = f"{file}: not the settings of a pretraining, or damaged. Use another folder"
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(damaged) from error
    if not isinstance(recorded, dict) or recorded.get("format") != FORMAT or type(recorded.get("version")) is not int:
        raise InputError(damaged)
    if recorded["version"] > VERSION:
        raise InputError(
            f"{file}: version {recorded['version']}, from a newer clear; this one reads up to {VERSION}. Update clear"
        )
    if not all(isinstance(recorded.get(name), dict) for name in ("settings", "data", "card")):
        raise InputError(damaged)
    return recorded


def check_same(path: Path, recorded: Mapping[str, Any], identity: Identity) -> None:
    """Raises InputError naming what differs between the run in the folder and the one asked for."""
    asked = identity.as_dict()
    before, now = recorded["card"], asked["card"]
    if before.get("architecture") != now["architecture"]:
        raise InputError(
            f"{path}: trains {before.get('architecture')} ({before.get('name')}), and --model "
            f"{identity.settings.model} is {now['architecture']}. Use another folder for it"
        )
    found = differences(recorded["settings"], asked["settings"])
    described = ("name", "trained_on", "licence", "citation", "unverified")
    fields = [name for name in now if name not in described and before.get(name) != json.loads(json.dumps(now[name]))]
    if fields:
        found.append(f"the card's {', '.join(fields)} differ")
    if recorded["data"].get("digest") != asked["data"]["digest"]:
        found.append(f"the slices were others ({_counts(recorded['data'])} then, {_counts(asked['data'])} now)")
    elif recorded["data"].get("rows") != asked["data"]["rows"]:
        found.append(f"other patients were left out ({_counts(recorded['data'])} then, {_counts(asked['data'])} now)")
    if recorded.get("judged", "") != identity.judged:
        found.append("the labelled set of --judge was another one")
    if recorded.get("begun", "") != identity.begun:
        found.append("it began with other weights")
    if found:
        raise InputError(
            f"{path}: was begun with other settings: {'; '.join(found)}. Use another folder, or the settings of before"
        )


def write_settings(path: Path, identity: Identity) -> None:
    """The folder and its settings.json; raises OutputError."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    write_aside(path / SETTINGS, (json.dumps(identity.as_dict(), indent=2) + "\n").encode())


def is_finished(path: Path) -> bool:
    """Whether the run is done: its card is written last."""
    return (path / CARD_FILE).is_file()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the folder while the block runs; raises InputError when another process trains in it.

    The lock is the system's and this process's own: a killed one leaves none behind, nor do its readers keep it. File
    systems without locks give none.
    """
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with output_errors(path):
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            os.close(fd)  # the other's lock and folder stay as they are
            raise InputError(
                f"{path}: another process trains in this folder. Wait for it, or use another one"
            ) from None
    try:
        yield
    finally:
        if not (path / SETTINGS).exists():  # nothing was begun: nothing is left behind
            with suppress(OSError):
                (path / _LOCK).unlink()
                path.rmdir()
        os.close(fd)


def _counts(data: Mapping[str, Any]) -> str:
    return f"{data.get('slices', 0)} slices of {data.get('patients', 0)} patients"
