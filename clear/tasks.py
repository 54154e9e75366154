"""Tasks: what is predicted from the bags, and how it is judged, as plain data.

A task names its endpoints (columns of a label table), the windows its aggregator may see, how a label row that
matches several scans is treated, the validation protocol and the training preset. The registry below is a literal: no
other file branches on a task's name. A table and a column need no task at all: see `target_task`.

Training presets are data too, because a run must be able to say which one it used:

`paper` holds the settings of the CLEAR paper (Ligero, Lenz et al., MICCAI 2025) and its released configuration: AdamW,
learning rate 1e-4 kept constant, batches of 128 scans, at most 32 epochs, patience 8, dropout 0.5. Its class weights
are the training fold's negatives over positives (the released code has this ratio upside down). Where 32 epochs make
fewer than 500 steps (below about 2,000 training scans) they would end a fit before it has learnt anything; there batch
and epochs adapt as in `adaptive`.

`adaptive` is for cohorts of any size: learning rate 3e-4, and where the cohort is too small for the paper's batch and
epochs a smaller batch and more of them, so that at least 500 optimiser steps are made before early stopping can end a
fit; it weighs no class, so that its scores stay probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.windows import ABDOMEN, LUNG, Window

JoinRule = Literal["all", "first", "earliest", "pool"]
JOIN_RULES: tuple[JoinRule, ...] = ("all", "first", "earliest", "pool")
METRICS = ("auroc", "average_precision")
RESERVED = frozenset({"id", "scan_id", "series_uid", "study_uid", "patient_id", "macro"})  # columns and rows of a run


@dataclass(frozen=True)
class Preset:
    """How a fold is trained; what a run records under `training`.

    batch: scans a step. epochs: at most this many. patience: epochs without a better inner loss before stopping.
    min_steps: optimiser steps before stopping may fire; 0 takes batch and epochs as they are, otherwise both adapt.
    only_if_short: they adapt only where `epochs` epochs would not make `min_steps` steps.
    inner_fraction: share of the training patients held back for early stopping.
    class_weights: `none`, or `balanced` (negatives over positives, respectively n / (classes x n of the class)).
    standardise: features to mean 0 and sd 1 with the training patients' statistics, kept in the model.
    """

    name: str
    lr: float = 1e-4
    weight_decay: float = 1e-2
    batch: int = 128
    epochs: int = 32
    patience: int = 8
    min_steps: int = 0
    only_if_short: bool = False
    inner_fraction: float = 0.2
    dropout: float = 0.5
    class_weights: Literal["none", "balanced"] = "none"
    standardise: bool = True

    def __post_init__(self) -> None:
        for name in ("lr", "batch", "epochs", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"training preset {self.name}: {name} is {getattr(self, name)}; expected above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"training preset {self.name}: dropout is {self.dropout}; expected 0 or more, below 1")
        if not 0 < self.inner_fraction < 1:
            raise InputError(f"training preset {self.name}: inner_fraction is {self.inner_fraction}; expected 0..1")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def with_changes(self, **changes: Any) -> Preset:
        """The same preset with what is not None replaced, and `+changed` in its name when anything was."""
        given = {key: value for key, value in changes.items() if value is not None}
        return replace(self, name=f"{self.name}+changed", **given) if given else self


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "paper": Preset("paper", min_steps=500, only_if_short=True, class_weights="balanced"),
        "adaptive": Preset("adaptive", lr=3e-4, min_steps=500),
    }
)


@dataclass(frozen=True)
class Task:
    """Endpoints, windows, protocol and metrics under one name.

    windows: those that the aggregator sees, matched with the bag file by name and range; empty takes all of the file.
    labels: name of the reader for the label files, a key of `clear.labels.READERS`.
    join: what to do with a label row that matches several scans; None stops and asks.
    protocol: `cv`, out-of-fold scores of patient-grouped folds.
    """

    name: str
    description: str
    endpoints: tuple[Endpoint, ...]
    windows: tuple[Window, ...] = ()
    labels: str = "table"
    join: JoinRule | None = None
    protocol: Literal["cv"] = "cv"
    folds: int = 5
    preset: str = "adaptive"
    metrics: tuple[str, ...] = METRICS
    citation: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [endpoint.name for endpoint in self.endpoints]
        if not names or len(set(names)) != len(names):
            raise InputError(f"task {self.name}: expected endpoints with different names; found {names}")
        taken = [name for name in names if name in RESERVED]
        if taken:
            raise InputError(
                f"task {self.name}: {taken[0]!r} names an id or a mean, not something to predict; choose another "
                "column, or rename this one"
            )
        if self.preset not in PRESETS:
            raise InputError(f"task {self.name}: preset is {self.preset!r}; expected one of {', '.join(PRESETS)}")
        if self.join is not None and self.join not in JOIN_RULES:
            raise InputError(f"task {self.name}: join is {self.join!r}; expected one of {', '.join(JOIN_RULES)}")
        if self.folds < 2:
            raise InputError(f"task {self.name}: folds is {self.folds}; expected 2 or more")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        data["endpoints"] = [endpoint.as_dict() for endpoint in self.endpoints]
        data["windows"] = [window.as_dict() for window in self.windows]
        return data


def _binary(*names: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(name, "binary", ("absent", "present")) for name in names)


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "demo": Task(
            name="demo",
            description="The embedded synthetic chest and abdomen CT cohort: five planted findings",
            endpoints=_binary("lung_nodule", "emphysema", "effusion", "liver_lesion", "bone_lesion"),
            windows=(ABDOMEN, LUNG),
            join="pool",
            notes=(
                "labels belong to the patient; the series of one patient form one bag (join: pool)",
                "synthetic phantoms: the figures show that the software works and say nothing about patients",
            ),
        ),
        "rad-chestct": Task(
            name="rad-chestct",
            description="RAD-ChestCT: eight findings of chest CT reports, as in the CLEAR paper",
            endpoints=_binary(
                "emphysema",
                "bronchiectasis",
                "pleural_effusion",
                "atelectasis",
                "fibrosis",
                "calcification",
                "opacity",
                "lung_nodule",
            ),
            windows=(LUNG,),
            labels="rad-chestct",
            preset="paper",
            citation="Draelos et al., Medical Image Analysis 2021, doi:10.1016/j.media.2020.101857; "
            "data: zenodo.org/records/6406114",
            notes=(
                "emphysema, bronchiectasis, pleural_effusion, atelectasis, fibrosis, calcification: at any location; "
                "opacity: opacity*lung; lung_nodule: nodule*lung or nodulegr1cm*lung",
                "this mapping is ours: the CLEAR paper does not publish its own",
                "labels come from reports, where silence counts as absent",
                "patients (MRN_DEID) come from CT_Scan_Metadata_Complete_35747.csv beside the label files",
            ),
        ),
    }
)


def load_task(name: str | Task) -> Task:
    """The task of this name; raises InputError listing the known ones."""
    if isinstance(name, Task):
        return name
    if name not in TASKS:
        raise InputError(
            f"--task {name}: no such task. Built in: {', '.join(TASKS)}. "
            "A table of your own needs no task: --labels TABLE --target COLUMN"
        )
    return TASKS[name]


def target_task(targets: str | Sequence[str], *, name: str = "") -> Task:
    """A task made of columns of the user's own table; kinds and classes are inferred when the table is read."""
    columns = [targets] if isinstance(targets, str) else list(targets)
    if not columns or not all(columns):
        raise InputError("--target: expected the name of a column of the label table")
    return Task(
        name=name or "+".join(columns),
        description=f"own labels: {', '.join(columns)}",
        endpoints=tuple(Endpoint(column) for column in columns),
    )
