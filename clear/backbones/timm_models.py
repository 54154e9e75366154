"""Networks from timm (huggingface/pytorch-image-models), without their classifiers.

timm's own `num_classes=0` is not always the embedding: MambaOut's head keeps an MLP four times the width
(yuweihao/MambaOut, class MlpHead). So the pooling is ours, by the card, and the rest of the head is dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from clear.backbones.huggingface import to_timm, without_zero_biases
from clear.backbones.positions import resize_positions
from clear.backbones.residual import keep_float32
from clear.backbones.stem import fold_stem
from clear.backbones.vit_attention import last_attention, patch_map
from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

_HEAD_WIDTH, _MOCO_HEADS = 64, 12  # see `variant`


class TimmEncoder(nn.Module):
    """A timm network and the pooling that makes one embedding of a slice.

    Tensor names are timm's own, with `network.` in front. prefix_tokens: class token and registers before the patches.
    rounds_weights: every product runs under autocast, so its weights may be rounded beforehand.
    """

    rounds_weights = True

    def __init__(self, network: Any, pooling: str) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        if pooling == "mean_norm":
            norm: nn.Module = network.get_submodule("head.norm")
            network.head = nn.ModuleDict({"norm": norm})
            keep_float32(network.stem, *(stage.downsample for stage in network.stages))
        elif pooling == "native":
            network.reset_classifier(0)
        else:
            network.reset_classifier(0, "")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to (N, d)."""
        if self.pooling == "native":
            embeddings: Tensor = self.network(x)
            return embeddings
        features: Tensor = self.network.forward_features(x)
        if self.pooling == "mean_norm":  # MambaOut: maps are (N, H, W, d)
            pooled: Tensor = self.network.head["norm"](features.mean(dim=(1, 2)))
            return pooled
        if self.pooling == "mean":
            return features.mean(dim=(1, 2) if _channels_last(self.network) else (2, 3))
        first, patches = features[:, 0], features[:, self.prefix_tokens :].mean(dim=1)  # (N, T, d), normed
        return {
            "class_token": first,
            "patch_mean": patches,
            "class_patch_mean": torch.cat([first, patches], dim=1),
        }[self.pooling]

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, h, w, d) last map: patch tokens after the final norm, or a convolutional network's before its pooling."""
        if _has_tokens(self.network):
            return patch_map(self.network, x)
        features: Tensor = self.network.forward_features(x)
        if features.ndim != 4:
            raise InputError(f"{type(self.network).__name__} has no map of the slice that can be looked at")
        return features if _channels_last(self.network) else features.permute(0, 2, 3, 1)

    def last_attention(self, x: Tensor) -> Tensor:
        """(N, heads, T, T) of the last block; InputError for a network without attention."""
        return last_attention(self.network, x)


def _channels_last(network: Any) -> bool:
    return getattr(network, "output_fmt", "NCHW") in ("NHWC", "NHWC_2D")


def _has_tokens(network: Any) -> bool:
    """A vision transformer whose tokens are a class token, registers and a grid of patches, normed at the end."""
    return (
        hasattr(network, "num_prefix_tokens")
        and hasattr(network, "blocks")
        and hasattr(getattr(network, "patch_embed", None), "patch_size")
    )


def build(card: EncoderCard) -> nn.Module:
    """The card's timm network in eval mode, with weights as constructed. Nothing is downloaded.

    Raises InputError when timm has no such model, or its width is not the card's dim.
    """
    _, _, model = card.architecture.partition(":")
    if not timm.is_model(model):
        raise InputError(f"encoder {card.name}: timm {timm.__version__} has no model {model!r}; see timm.list_models()")
    try:
        network = timm.create_model(model, pretrained=False, in_chans=card.channels, **dict(card.settings))
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"encoder {card.name}: timm cannot build {model} with {dict(card.settings)}") from error
    _check_pooling(card, network)
    encoder = TimmEncoder(network, card.pooling).eval()
    width = int(network.head_hidden_size if card.pooling == "native" else network.num_features)
    width *= 2 if card.pooling == "class_patch_mean" else 1
    if width != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but {model} has {width}")
    return encoder


def _check_pooling(card: EncoderCard, network: Any) -> None:
    """Raises InputError where the card's pooling would take something else than it says."""

    def need(fits: bool, why: str) -> None:
        if not fits:
            raise InputError(f"encoder {card.name}: pooling {card.pooling!r} needs {why}; choose another, or 'native'")

    if card.pooling == "mean_norm":
        need(type(network).__name__ == "MambaOut", "a MambaOut")
    elif card.pooling == "mean":
        need(not hasattr(network, "num_prefix_tokens"), "a network of maps, not of tokens")
        need(hasattr(network, "feature_info"), "a network of maps")
    elif card.pooling != "native":
        need(_has_tokens(network), "a vision transformer with a grid of patches")
        need(not isinstance(network.norm, nn.Identity), "a final norm of the tokens, which this network has not")
        need(card.pooling == "patch_mean" or network.num_prefix_tokens > 0, "a class token")


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Authors', timm's or transformers' names to ours; positions and stem as the card's input needs them.

    Positions of another grid are resized by the card's rule; a stem of three channels is folded into one where the
    card's input has one (`clear.backbones.stem`).
    """
    named = _official_mambaout(to_timm({n: t for n, t in tensors.items() if not n.startswith(card.ignored)}))
    out = {f"network.{name}": tensor for name, tensor in named.items() if not name.startswith(card.ignored)}
    own = network.state_dict()
    key = "network.pos_embed"
    if card.positions != "native" and key in out and key in own and out[key].shape != own[key].shape:
        patches: Any = network.get_submodule("network.patch_embed")
        out[key] = resize_positions(out[key], patches.grid_size, card.positions)
    if card.stem_mean:
        out = fold_stem(card, out, network)
    return without_zero_biases(out, network)


def variant(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a card must say for a network that takes these tensors, read off their names and shapes.

    MambaOut: depths and dims. ViT: width, depth, patch size, registers, layer scale and grid. Heads are in no tensor:
    they are taken as 64 wide, as in most published ViTs, and as 12 in MoCo v3's, known by its fixed sine positions
    whose first row is 0 (facebookresearch/moco-v3, vits.py). Raises WeightsError when the tensors are of neither.
    """
    named = _official_mambaout(to_timm(dict(tensors)))
    if "stem.conv1.weight" in named:
        depths = _counts(named, r"stages\.(\d+)\.blocks\.(\d+)\.")
        dims = tuple(len(named[f"stages.{stage}.blocks.0.norm.weight"]) for stage in range(len(depths)))
        settings: dict[str, Any] = {"depths": depths, "dims": dims}
        return {
            "architecture": "timm:mambaout_tiny",
            "dim": dims[-1],
            "settings": settings,
            "pooling": "mean_norm",
            "ignored": ("head.pre_logits.", "head.fc."),
        }
    needed = ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
    if all(name in named for name in needed):
        width, _, patch, _ = named["patch_embed.proj.weight"].shape
        hidden = len(named["blocks.0.mlp.fc1.weight"])
        if named["blocks.0.mlp.fc2.weight"].shape[1] != hidden:
            raise WeightsError("a ViT with gated layers, whose settings cannot be read off its tensors; use --arch")
        has_registers = "reg_token" in named
        fixed_positions = not has_registers and not bool(named["pos_embed"][:, 0].count_nonzero())
        settings = {
            "img_size": math.isqrt(named["pos_embed"].shape[1]) * patch,
            "patch_size": patch,
            "embed_dim": width,
            "depth": _counts(named, r"(blocks)\.(\d+)\.")[0],
            "num_heads": _MOCO_HEADS if fixed_positions else max(1, width // _HEAD_WIDTH),
            "mlp_ratio": hidden / width,
            "init_values": 1.0 if "blocks.0.ls1.gamma" in named else None,
            "reg_tokens": named["reg_token"].shape[1] if has_registers else 0,
            "no_embed_class": has_registers,
        }
        return {
            "architecture": "timm:vit_small_patch16_224",
            "dim": width,
            "settings": settings,
            "pooling": "class_token",
            "positions": "dinov2_registers" if has_registers else "dinov2",
            "ignored": ("head.",),
        }
    begin = ", ".join(list(named)[:3])
    raise WeightsError(f"not the tensors of a MambaOut or a ViT, whose size can be read off them; they begin {begin}")


def _counts(names: Mapping[str, Any], pattern: str) -> tuple[int, ...]:
    """How many numbers stand in the second group of the pattern, for each first group in order."""
    pairs = {(match[1], match[2]) for name in names if (match := re.match(pattern, name))}
    groups = sorted({group for group, _ in pairs}, key=lambda group: (len(group), group))
    return tuple(sum(first == group for first, _ in pairs) for group in groups)


def card_of(model: str) -> EncoderCard:
    """A card for any timm model by its timm name: input, normalisation, filter and hub id as timm states them.

    Pooling is timm's own (`num_classes=0`), but for MambaOut. bfloat16 is for the families that have been compared with
    float32: vision transformers and MambaOut. Raises InputError for a name that timm does not know.
    """
    from clear.card import EncoderCard, WeightSource

    if not timm.is_model(model):
        raise InputError(f"--model timm:{model}: timm {timm.__version__} has no such model; see timm.list_models()")
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise InputError(f"--model timm:{model}: timm knows no weights of that name on the hub; see its model list")
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    base, _, _ = model.partition(".")
    with torch.device("meta"):
        network = timm.create_model(model, pretrained=False)
    pooling = "mean_norm" if type(network).__name__ == "MambaOut" else "native"
    classifier = config.classifier if isinstance(config.classifier, tuple | list) else (config.classifier,)
    side = int(data["input_size"][-1])
    fixed = _has_tokens(network) and getattr(network, "pos_embed", None) is not None
    return EncoderCard(
        name=f"timm:{model}",
        architecture=f"timm:{base}",
        dim=int(network.num_features if pooling == "mean_norm" else network.head_hidden_size),
        source=WeightSource("hub", str(config.hf_hub_id), "model.safetensors"),
        trained_on=f"trained as timm states for {model}",
        settings={"img_size": side} if fixed else {},
        input_size=side,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        resize="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        pooling=pooling,  # type: ignore[arg-type]  # one of the two words above
        bfloat16=pooling == "mean_norm" or _has_tokens(network),
        ignored=("head.pre_logits.", "head.fc.") if pooling == "mean_norm" else tuple(f"{c}." for c in classifier if c),
        licence=str(config.license or "see its page on the hub"),
        citation=f"timm model {model} ({config.paper_name or config.origin_url or 'see its page on the hub'})",
    )


def _official_mambaout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """yuweihao/MambaOut's names to timm's; whatever is not of a MambaOut stays as it is."""
    if "downsample_layers.0.conv1.weight" not in tensors:
        return tensors
    out = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        name = re.sub(r"^downsample_layers\.0\.", "stem.", name)
        name = re.sub(r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample.", name)
        name = re.sub(r"^head\.fc1\.", "head.pre_logits.fc.", name)
        name = re.sub(r"^head\.norm\.", "head.pre_logits.norm.", name)
        name = re.sub(r"^head\.fc2\.", "head.fc.", name)
        out[re.sub(r"^norm\.", "head.norm.", name)] = tensor
    return out
