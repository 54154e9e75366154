"""Settings of a pretraining: one frozen, checked object from the command line or the notebook down.

What is left open (None) comes from the recipe of the objective, which is its authors'. Nothing here needs torch, so
that a wrong number stops before anything is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clear.errors import InputError
from clear.yaml_file import read_yaml
from pretrain.augmentation import augmentation

OPTIMIZERS = ("adamw", "lars")
PRECISIONS = ("auto", "float32", "bfloat16")
RANDOM, OWN = "random", "own"  # starts that are no file
_NUMBERS = ("lr", "warmup_epochs", "weight_decay", "weight_decay_end", "clip")


@dataclass(frozen=True)
class Recipe:
    """What an objective's authors train with. lr: base, at a batch of 256, by optimizer; weight_decay likewise.

    weight_decay_end: reached along a half cosine, None for a constant one. lr_end: what the rate falls to, at any
    batch. counts_steps: the warm-up's last step has the peak already, as in DINO's code (`pretrain.schedules`). clip:
    largest norm of the gradient, None for none; clips_each: of each tensor's own instead of all together.
    freeze_patch_embed: whether a vision transformer's patch embedding stays as it begins (MoCo v3, section 4.1). title:
    in running text; citation: of the paper.
    """

    title: str
    citation: str
    lr: Mapping[str, float]
    weight_decay: Mapping[str, float]
    weight_decay_end: float | None = None
    lr_end: float = 0.0
    counts_steps: bool = False
    clip: float | None = None
    clips_each: bool = False
    freeze_patch_embed: bool = False


_MOCO = "Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers (MoCo v3), ICCV 2021"
_LECL = "Ligero, Lenz et al., CLEAR: lesion-enhanced contrastive learning for CT, MICCAI 2025"
_DINO = "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021"
_DINOV2 = "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024"


def _contrastive(title: str, citation: str) -> Recipe:
    """facebookresearch/moco-v3, CONFIG.md: ViTs by AdamW, ResNets by LARS; LeCL changes views and loss alone."""
    return Recipe(
        title,
        citation,
        lr={"adamw": 1.5e-4, "lars": 0.3},
        weight_decay={"adamw": 0.1, "lars": 1.5e-6},
        freeze_patch_embed=True,
    )


def _distilling(title: str, citation: str, *, clips_each: bool) -> Recipe:
    """facebookresearch/dino, main_dino.py, clipped as in its README; dinov2 differs in what a norm is taken of."""
    return Recipe(
        title,
        citation,
        lr={"adamw": 5e-4, "lars": 0.3},
        weight_decay={"adamw": 0.04, "lars": 1e-4},
        weight_decay_end=0.4,
        lr_end=1e-6,
        counts_steps=True,
        clip=3.0,
        clips_each=clips_each,
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "moco-v3": _contrastive("MoCo v3", _MOCO),
        "lecl": _contrastive("LeCL", _LECL),
        "dino": _distilling("DINO", _DINO, clips_each=True),
        "dinov2": _distilling("DINOv2", _DINOV2, clips_each=False),
    }
)


@dataclass(frozen=True)
class PretrainSettings:
    """Everything that decides what a pretraining makes of a slice store.

    objective: `moco-v3`, `lecl`, `dino` or `dinov2`; options: fields of its own settings, such as lambda_ or tau.
    model: an encoder by name, `timm:MODEL`, or the path of a card: its architecture and its slices' preprocessing.
    init: `random`, the library's own start, which depends on the seed alone; `own`, the weights that `clear extract`
    would use; or a file of weights.
    input_size: side of the global views in pixels, in place of the card's.
    batch: slices in a step over all processes. micro_batch: slices that a process encodes at a time, in two passes
    (`pretrain.accumulate`); None for the whole batch at once.
    lr: at a batch of 256, scaled to the batch; warmup_epochs: of a linear rise, a tenth of the epochs by default; then
    half a cosine to the recipe's end. weight_decay spares biases and norms. clip: largest norm of the gradient, 0 for
    none.
    precision: of the products in training; auto is bfloat16 where the hardware has it.
    augmentation: a preset of `pretrain.augmentation`, or a mapping of the fields that differ from its `preset`.
    annotated_share: of every batch, slices with a box; None takes them as they come.
    workers: processes that read slices.
    freeze_patch_embed: keep the patch embedding of a vision transformer as it begins. checkpoint_grads: compute
    activations anew in the backward pass, where the network can. half: store the weights as float16.
    name: what the encoder is called, the run folder's name by default; note: ends the line that says what it is trained
    on, such as "not for clinical conclusions".
    judge: a labelled set, see `pretrain.judge`; every judge_every epochs; judge_labels, judge_target: table and column.
    """

    objective: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    init: str = RANDOM
    input_size: int | None = None
    epochs: int = 100
    batch: int = 256
    micro_batch: int | None = None
    optimizer: str = "adamw"
    lr: float | None = None
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    weight_decay_end: float | None = None
    clip: float | None = None
    seed: int = 0
    precision: str = "auto"
    augmentation: str | Mapping[str, Any] = "ct"
    annotated_share: float | None = None
    workers: int = 2
    freeze_patch_embed: bool | None = None
    checkpoint_grads: bool = False
    half: bool = False
    name: str = ""
    note: str = ""
    judge: str = ""
    judge_labels: str = ""
    judge_target: str = ""
    judge_every: int = 10

    def __post_init__(self) -> None:
        if self.objective not in RECIPES:
            raise InputError(f"--objective {self.objective}: no such objective; expected one of {', '.join(RECIPES)}")
        for name, allowed in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"--{name} {getattr(self, name)}: expected {' or '.join(allowed)}")
        for name, lowest in (("epochs", 1), ("batch", 1), ("workers", 0), ("seed", 0), ("judge_every", 1)):
            self._need_whole(name, lowest)
        for name in ("micro_batch", "input_size"):
            if getattr(self, name) is not None:
                self._need_whole(name, 1)
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 <= value < math.inf):
                raise InputError(f"--{_flag(name)} {value}: expected a number of 0 or more")
        share = self.annotated_share
        if share is not None and not (type(share) in (int, float) and 0 <= share <= 1):
            raise InputError(f"--annotated-share {share}: expected a share of 0 to 1")
        if self.lr == 0:
            raise InputError("--lr 0: nothing would be learnt; expected a number above 0")
        if self.batch == 1:
            raise InputError("--batch 1: slices are contrasted with each other, so a step needs 2 of them or more")
        if (self.warmup_epochs or 0) > self.epochs:
            raise InputError(f"--warmup-epochs {self.warmup_epochs}: longer than the {self.epochs} epochs")
        augmentation(self.augmentation)
        if not isinstance(self.options, Mapping) or not all(isinstance(key, str) for key in self.options):
            raise InputError(f"--option: expected names and values; found {self.options!r}")
        if "epochs" in self.options:
            raise InputError("--option epochs: is the run's length; give --epochs")
        if (self.judge_labels or self.judge_target) and not self.judge:
            raise InputError(
                "--judge-labels, --judge-target: expected --judge, the labelled scans or slices, beside them"
            )

    @property
    def recipe(self) -> Recipe:
        """The recipe of the objective."""
        return RECIPES[self.objective]

    def settled(self) -> PretrainSettings:
        """The same settings with what was left open taken from the recipe (the patch embedding stays open)."""
        recipe = self.recipe

        def given(value: float | None, otherwise: float | None) -> float | None:
            return otherwise if value is None else value

        decay = recipe.weight_decay[self.optimizer]
        end = given(self.weight_decay_end, recipe.weight_decay_end if self.weight_decay is None else None)
        return replace(
            self,
            lr=given(self.lr, recipe.lr[self.optimizer]),
            warmup_epochs=given(self.warmup_epochs, self.epochs / 10),
            weight_decay=given(self.weight_decay, decay),
            weight_decay_end=end if self.optimizer == "adamw" or self.weight_decay_end is not None else None,
            clip=given(self.clip, recipe.clip if recipe.clip is not None else 0.0),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, as it will be read again; the augmentation in full."""
        whole = {**asdict(self), "augmentation": augmentation(self.augmentation).as_dict()}
        plain: dict[str, Any] = json.loads(json.dumps(whole))
        return plain

    def _need_whole(self, name: str, lowest: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < lowest:
            raise InputError(f"--{_flag(name)} {value}: expected a whole number of {lowest} or more")


# what another run of the same command may change without changing what is learnt
FREE = frozenset({"workers", "model", "judge", "judge_labels", "note", "name"})


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """How two records of settings differ, as phrases for people; empty when the one may go on with the other.

    recorded: of settings.json; asked: `PretrainSettings.as_dict` of settled settings. Of the model and the judged set
    the contents are compared elsewhere, not where they lie. A field that only one of them knows differs unless it is at
    its default.
    """
    found = []
    defaults = {f.name: f.default for f in fields(PretrainSettings)}
    for name in dict.fromkeys([*recorded, *asked]):
        if name in FREE:
            continue
        before, now = (record.get(name, defaults.get(name)) for record in (recorded, asked))
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            for key in dict.fromkeys([*before, *now]):
                if before.get(key) != now.get(key):
                    found.append(f"{key.rstrip('_')} was {_word(before.get(key))} and is {_word(now.get(key))}")
        elif before != now:
            found.append(f"{_flag(name)} was {_word(before)} and is {_word(now)}")
    return found


def read_settings(path: Path | str) -> dict[str, Any]:
    """The fields of a YAML file of settings. Raises InputError for a file that is absent, damaged or no table."""
    known = sorted(f.name for f in fields(PretrainSettings))
    data = read_yaml(Path(path), "settings of a pretraining")
    if surplus := sorted(set(map(str, data)) - set(known)):
        raise InputError(f"{path}: unknown setting {', '.join(surplus)}; expected some of {', '.join(known)}")
    return {name: _number(value) if name in _NUMBERS else value for name, value in data.items()}


def _number(value: Any) -> Any:
    """`1e-4` is text in YAML 1.1, which asks for a dot in front of the e."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _word(value: Any) -> str:
    return "not given" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)
