"""The optimiser: which parameters decay, how fast it steps, and what is held still or computed twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import timm.optim
import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from clear.errors import InputError
from pretrain.objectives.objective import Objective
from pretrain.schedules import cosine, dino_learning_rate, moco_learning_rate
from pretrain.settings import PretrainSettings

REFERENCE_BATCH = 256  # Goyal et al., Accurate, Large Minibatch SGD, 2017: the rate grows with the batch


def build_optimiser(objective: Objective, settings: PretrainSettings) -> torch.optim.Optimizer:
    """AdamW, or timm's LARS with momentum 0.9, over everything that wants a gradient.

    Biases, norms and what a network itself exempts (`no_weight_decay`: positions, tokens) do not decay; LARS does not
    adapt their rate either, as in MoCo v3's code. settings: settled.
    """
    parted = timm.optim.param_groups_weight_decay(objective, weight_decay=1.0, no_weight_decay_list=_exempt(objective))
    groups = [
        {**group, "decays": group["weight_decay"] > 0, "weight_decay": 0.0} for group in parted if group["params"]
    ]
    if settings.optimizer == "lars":
        adapting = [{**group, "always_adapt": group["decays"]} for group in groups]
        optimiser: torch.optim.Optimizer = timm.optim.Lars(adapting, lr=0.0, momentum=0.9)
        return optimiser
    return torch.optim.AdamW(groups, lr=0.0, fused=True)  # on a CPU a third of the time of a loop over tensors


def set_rates(optimiser: torch.optim.Optimizer, settings: PretrainSettings, step: int, steps: int) -> float:
    """Set learning rate and weight decay for step `step` (counted from 0) of `steps`; returns the learning rate.

    A linear rise, then half a cosine, as the objective's authors count them (`pretrain.schedules`); weight decay along
    half a cosine to its end where it has one.
    """
    peak = float(settings.lr or 0.0) * settings.batch / REFERENCE_BATCH
    warmup = float(settings.warmup_epochs or 0.0)
    if settings.recipe.counts_steps:
        end = min(settings.recipe.lr_end, peak)
        rate = dino_learning_rate(
            step, peak=peak, steps=steps, warmup_steps=round(warmup * steps / settings.epochs), end=end
        )
    else:
        rate = moco_learning_rate(
            step / steps * settings.epochs, peak=peak, epochs=settings.epochs, warmup_epochs=warmup
        )
    decay = float(settings.weight_decay or 0.0)
    if settings.weight_decay_end is not None:
        decay = cosine(step / steps, decay, settings.weight_decay_end)
    for group in optimiser.param_groups:
        group["lr"] = rate
        if group["decays"]:
            group["weight_decay"] = decay
    return rate


def clip_gradients(parameters: Sequence[nn.Parameter], settings: PretrainSettings) -> Tensor:
    """Scale down gradients longer than the settings' clip (0: none); returns the norm of all together before.

    DINO's code clips each tensor by its own norm, all others the whole gradient.
    """
    if not (settings.clip and settings.recipe.clips_each):
        return nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf)
    norms = [nn.utils.clip_grad_norm_([each], settings.clip) for each in parameters if each.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def hold_patch_embedding(objective: Objective, settings: PretrainSettings) -> str:
    """Stop gradients at the patch embedding where asked for; returns a remark, "" where nothing is held.

    Chen et al. 2021, section 4.1: training a vision transformer contrastively is less unstable with a random, fixed
    patch projection. By default so for vision transformers under an objective whose authors do so; a convolutional
    stem is always trained, as in their code. Raises InputError where it is asked for and there is none.
    """
    found = [module for module in objective.student.modules() if isinstance(module, PatchEmbed)]
    wanted = settings.recipe.freeze_patch_embed if settings.freeze_patch_embed is None else settings.freeze_patch_embed
    if settings.freeze_patch_embed and not found:
        raise InputError(
            "--freeze-patch-embed: the network has no patch embedding of a vision transformer; leave it out"
        )
    if not (wanted and found):
        return ""
    for module in found:
        module.requires_grad_(False)
    return "the patch embedding keeps its start (--no-freeze-patch-embed trains it)"


def checkpoint_activations(objective: Objective) -> None:
    """Compute the student's activations anew in the backward pass instead of keeping them.

    Raises InputError for a network that cannot.
    """
    for module in objective.student.modules():
        if hasattr(module, "set_grad_checkpointing"):
            cast(Any, module).set_grad_checkpointing(True)
            return
    raise InputError(
        f"--checkpoint-grads: {type(objective.student).__name__} cannot compute its activations anew; leave it out, "
        "and give --micro-batch where memory is short"
    )


def _exempt(module: nn.Module) -> set[str]:
    """Full names of parameters that a network exempts from decay, by method or by mark (VMamba's decay rates)."""
    names = {name for name, parameter in module.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
    for prefix, part in module.named_modules():
        own = getattr(part, "no_weight_decay", None)
        if callable(own):
            names |= {f"{prefix}.{name}" if prefix else name for name in own()}
    return names
