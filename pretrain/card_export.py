"""From a trained network to an encoder card, and the record in it of what it was trained on."""

from __future__ import annotations

import copy
import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

import clear
from clear.atomic import output_errors
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import digest_of
from clear.export import export_encoder
from clear.training_record import TrainingRecord, earlier_trainings
from pretrain.augmentation import augmentation
from pretrain.run_folder import Identity
from pretrain.settings import RANDOM

if TYPE_CHECKING:
    from pretrain.store import SliceStore

RECORD_FORMAT = "clear-training-record"
RECORD_VERSION = 1


def data_record(store: SliceStore, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What is trained on: the store's digest, which of its rows (digest), and counts."""
    table = store.table[rows]
    return {
        "digest": store.digest,
        "rows": hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest(),
        "slices": len(rows),
        "scans": table["scan_id"].n_unique(),
        "patients": table["patient_id"].drop_nulls().n_unique(),
        "annotated_slices": int((table["n_boxes"] > 0).sum()),
        "slices_left_out": len(store) - len(rows),
    }


def seen_record(store: SliceStore, rows: NDArray[np.int64]) -> TrainingRecord:
    """Keyed hashes of the patients, scans and voxels of these rows; the key follows from the data."""
    table = store.table[rows].select("patient_id", "scan_id", "scan_digest").unique()
    key = hashlib.sha256(f"{RECORD_FORMAT} {store.digest}".encode()).hexdigest()[:32]
    return TrainingRecord.of(
        table["patient_id"].to_list(), table["scan_id"].to_list(), table["scan_digest"].to_list(), key=key
    )


def exported_card(
    identity: Identity, seen: TrainingRecord, planes: Sequence[str], epoch: Mapping[str, float], name: str
) -> EncoderCard:
    """The card of the encoder after this epoch (a row of epochs.csv).

    It says what a user must know: what it was trained on and by what, whose licence the weights are under, and, in
    `training`, whom it has seen: in this training, and under `earlier` in those of the weights that it began with.
    """
    settings, data = identity.settings, identity.data
    recipe, base = settings.recipe, identity.card
    origin = identity.origin
    if settings.init == RANDOM:
        begun, licence = "random weights", "yours to give: own training"
    elif origin is not None:
        begun, licence = f"{origin.name} ({origin.trained_on})", f"begun from {origin.name}: {origin.licence}"
    else:
        begun = f"the weights of {Path(settings.init).name}"
        licence = f"begun from {Path(settings.init).name}: that of those weights, which no card states"
    annotated = f", {data['annotated_slices']:,} with a lesion's box," if data["annotated_slices"] else ""
    whose = f"of {data['scans']:,} scans" + (f" of {data['patients']:,} patients" if data["patients"] else "")
    described = (
        f"trained by {recipe.title} on {data['slices']:,} CT slices{annotated} {whose}, {int(epoch['epoch'])} epochs "
        f"from {begun}{f'; {settings.note}' if settings.note else ''}"
    )
    training = {
        "format": RECORD_FORMAT,
        "version": RECORD_VERSION,
        "objective": settings.objective,
        "settings": _portable(settings.as_dict()),
        "data": dict(data),
        "epoch": {key: value for key, value in epoch.items() if key not in ("seconds", "images_per_s")},
        "precision": identity.precision,
        "judged_on": identity.judged,
        "versions": code_versions(),
        "seen": seen.as_dict(),
    }
    if origin is not None and (earlier := earlier_trainings(origin.training)):
        training["earlier"] = earlier
    return replace(
        base,
        name=name,
        source=WeightSource("file", "weights.safetensors", "weights.safetensors"),
        trained_on=described,
        any_size=False,
        stem_mean=(),
        stem_std=(),
        windows=tuple(window.name for window in augmentation(settings.augmentation).windows),
        modalities=("CT",),
        planes=tuple(planes),
        licence=licence,
        citation="; ".join(dict.fromkeys([recipe.citation, *filter(None, [base.citation])])),
        unverified="",
        training=training,
    )


def export(card: EncoderCard, network: nn.Module, folder: Path, *, half: bool) -> EncoderCard:
    """Write the card and its weights to `folder`, in place of what is there; returns the card as written.

    Its training record gains `encoder_digest`, that of the encoder as it will be loaded. Raises OutputError.
    """
    as_loaded = copy.deepcopy(network).half().float() if half else network
    digest = card.digest(digest_of(as_loaded))
    complete = replace(card, training={**card.training, "encoder_digest": digest})
    with output_errors(folder):
        export_encoder(complete, network, folder, half=half, overwrite=True)
    return complete


def code_versions() -> dict[str, str]:
    """Of clear, Python and what computes."""
    try:
        own = metadata.version("clear-mil")
    except metadata.PackageNotFoundError:
        own = clear.__version__
    return {
        "clear": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without this machine's paths, since a card travels, and without what changes nothing."""
    names = ("model", "init", "judge", "judge_labels")
    told = {key: value for key, value in settings.items() if key != "workers"}
    return {key: Path(value).name if key in names and value else value for key, value in told.items()}
