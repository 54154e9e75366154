"""Networks from timm (huggingface/pytorch-image-models), without their classifiers.

timm's own `num_classes=0` is not always the embedding: MambaOut's head keeps an MLP four times the width
(yuweihao/MambaOut, class MlpHead). So the pooling is ours, by the card, and the rest of the head is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clear.backbones.building import LIBRARY_ERRORS, building, check_run
from clear.backbones.huggingface import to_timm, without_zero_biases
from clear.backbones.positions import resize_positions
from clear.backbones.renaming import renamed
from clear.backbones.residual import keep_float32
from clear.backbones.stem import fold_stem
from clear.backbones.variants import AnotherFamily, At, Sizes, Variant, any_named, counts, ratio
from clear.backbones.vit_attention import last_attention, patch_map, through_attention
from clear.checkpoints import check_kind
from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

INNER_PIXELS = 8  # a side of a cell of the inner map that explanations use
_STAGED = (  # the whole embedding goes through the output of each of their stages, and no border is lost on the way
    *("MambaOut", "ResNet", "ResNetV2", "ConvNeXt", "SwinTransformer", "SwinTransformerV2"),
    *("EfficientNet", "MobileNetV3", "RegNet", "DenseNet"),
)
_HEAD_WIDTH, _MOCO_HEADS = 64, 12  # see `variant`
_RUN = ("VisionTransformer", "Eva", "MambaOut", "ResNet")  # known to run without values, see `check_run`

# Models whose settings say all that tells them from one another: any of them can stand for the others
_PLAIN_VIT = re.compile(r"timm:vit_(tiny|small|base|large)_patch\d+_(224|384|(reg\d+_)?dinov2)")
_PLAIN_MAMBAOUT = re.compile(r"timm:mambaout_(femto|kobe|tiny|small|base)")


class TimmEncoder(nn.Module):
    """A timm network and the pooling that makes one embedding of a slice.

    Tensor names are timm's own, with `network.` in front. prefix_tokens: class token and registers before the patches.
    rounds_weights: every product runs under autocast, so its weights may be rounded beforehand.
    reads_class_token: the embedding is made of the class token; pools_map: it is made of `feature_map` alone.
    patch_size: pixels a patch of a vision transformer, else 0. inner_stage: the module whose map has a cell for 8
    pixels, channels in front or (inner_channels_last) last; None for a network that is not known to
    pass everything through it.
    """

    rounds_weights = True

    def __init__(self, network: Any, pooling: str) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
        is_vit = isinstance(
            network, VisionTransformer | Eva
        )  # others attend over channels, or with tokens of their own
        self.patch_size = int(network.patch_embed.patch_size[0]) if is_vit else 0
        has_token = is_vit and getattr(network, "cls_token", None) is not None
        native_token = pooling == "native" and getattr(network, "global_pool", "") == "token"
        self.reads_class_token = has_token and (native_token or pooling in ("class_token", "class_patch_mean"))
        own = pooling == "native" and not self.prefix_tokens and hasattr(network, "forward_head")
        self.pools_map = own or pooling in ("mean_norm", "mean", "patch_mean")
        self.inner_channels_last = _channels_last(network)
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
            return self.embed_map(features)
        if self.pooling == "mean":
            return features.mean(dim=(1, 2) if _channels_last(self.network) else (2, 3))
        first, patches = features[:, 0], features[:, self.prefix_tokens :].mean(dim=1)  # (N, T, d), normed
        return {
            "class_token": first,
            "patch_mean": patches,
            "class_patch_mean": torch.cat([first, patches], dim=1),
        }[self.pooling]

    @property
    def inner_stage(self) -> nn.Module | None:
        if type(self.network).__name__ not in _STAGED:
            return None
        stages = [each for each in self.network.feature_info if each["reduction"] == INNER_PIXELS]
        return self.network.get_submodule(stages[-1]["module"]) if stages else None

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, h, w, d) last map: patch tokens after the final norm, or a convolutional network's before its pooling."""
        if _has_tokens(self.network):
            return patch_map(self.network, x)
        features: Tensor = self.network.forward_features(x)
        if features.ndim != 4:
            raise InputError(f"{type(self.network).__name__} has no map of the slice that can be looked at")
        return features if _channels_last(self.network) else features.permute(0, 2, 3, 1)

    def embed_map(self, features: Tensor) -> Tensor:
        """(N, h, w, d) of `feature_map` to (N, d), as `forward` pools it; only where `pools_map`."""
        if self.pooling == "native":
            if _has_tokens(self.network):
                features = features.flatten(1, 2)
            elif not _channels_last(self.network):
                features = features.permute(0, 3, 1, 2)
            embeddings: Tensor = self.network.forward_head(features)
            return embeddings
        pooled = features.mean(dim=(1, 2))
        if self.pooling == "mean_norm":
            pooled = self.network.head["norm"](pooled)
        return pooled

    def last_attention(self, x: Tensor) -> Tensor:
        """(N, heads, T, T) of the last block; InputError for a network without attention."""
        return last_attention(self.network, x)

    def through_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(embeddings (N, d), attention of the last block as the leaf of their graph)."""
        return through_attention(self, self.network, x)


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
    with building(card, f"timm cannot build {model}"):
        network = timm.create_model(model, pretrained=False, in_chans=card.channels, **dict(card.settings))
        _check_pooling(card, network)
        _check_input(card, network)
        encoder = TimmEncoder(network, card.pooling).eval()
        width = int(network.head_hidden_size if card.pooling == "native" else network.num_features)
    width *= 2 if card.pooling == "class_patch_mean" else 1
    if width != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but {model} has {width}")
    if type(network).__name__ in _RUN:
        check_run(card, encoder, (1, card.channels, card.input_size, card.input_size))
    return encoder


def _check_input(card: EncoderCard, network: Any) -> None:
    """Raises InputError where the network takes one size of input only, and the card prepares another."""
    patches = getattr(network, "patch_embed", None)
    wanted = getattr(patches, "img_size", None)
    if wanted and getattr(patches, "strict_img_size", False) and tuple(wanted) != (card.input_size, card.input_size):
        raise InputError(
            f"encoder {card.name}: its network takes {' x '.join(map(str, wanted))} pixels, but the card's input_size "
            f'is {card.input_size}; expected settings with "img_size": {card.input_size}'
        )


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
    if card.positions != "native" and key in out and key in own and _on_another_grid(out[key], own[key]):
        patches: Any = network.get_submodule("network.patch_embed")
        out[key] = resize_positions(out[key], patches.grid_size, card.positions)
    if card.stem_mean:
        out = fold_stem(card, out, network)
    return without_zero_biases(out, network)


def _on_another_grid(positions: Tensor, own: Tensor) -> bool:
    """Whether positions are the network's but for their number; others stay as they are, for the strict load."""
    return positions.ndim == 3 and positions.shape[::2] == own.shape[::2] and positions.shape[1] != own.shape[1]


def variant(card: EncoderCard, tensors: Mapping[str, Tensor]) -> Variant:
    """What the card must say for a network that takes these tensors, read off their names and shapes.

    MambaOut: depths and dims. ViT: width, depth, patch size, registers, layer scale and grid. Heads are in no tensor:
    unless the card states them they are taken as 64 wide, as in most published ViTs, and as 12 in MoCo v3's, known by
    its fixed sine positions whose first row is 0 (facebookresearch/moco-v3, vits.py). Raises AnotherFamily when the
    tensors are of neither, WeightsError naming the tensor that is missing or does not fit the others.
    """
    named = _official_mambaout(to_timm(tensors))
    if any_named(named, r"stem\.(conv|norm)[12]\.") and any_named(named, r"stages\.\d+\.blocks\.\d+\.(fc[12]|conv)\."):
        return _mambaout_variant(card, named)
    plain = any_named(named, r"blocks\.\d+\.attn\.qkv\.") and any_named(named, r"patch_embed\.proj\.(weight|bias)$")
    others = r"blocks\.\d+\.(gamma_|attn\.[qkv]_bias|attn\.rel)|attn_pool\.|norm_pre\.|rel_pos"
    if plain and not any_named(named, others):
        return _vit_variant(card, named)
    begin = ", ".join(list(named)[:3])
    raise AnotherFamily(f"not the tensors of a MambaOut or a ViT, whose size can be read off them; they begin {begin}")


def _mambaout_variant(card: EncoderCard, named: Mapping[str, Tensor]) -> Variant:
    sizes = Sizes(named)
    depths = counts(named, r"stages\.(\d+)\.blocks\.(\d+)\.")
    dims = []
    for stage in range(len(depths)):
        block = f"stages.{stage}.blocks.0."
        places = [At(f"{block}{name}", 0) for name in ("norm.weight", "norm.bias", "fc2.weight", "fc2.bias")]
        dims.append(sizes.agreed(f"the width of stage {stage}", *places, At(f"{block}fc1.weight", 1)))
    told = {"depths": depths, "dims": tuple(dims)}
    stands_for = _PLAIN_MAMBAOUT.fullmatch(card.architecture) or not card.architecture.startswith("timm:mambaout")
    native = card.pooling == "native"  # timm's own embedding: its head's hidden layer, four times as wide
    return Variant(
        architecture="timm:mambaout_tiny" if stands_for else card.architecture,
        dim=dims[-1] * (4 if native else 1),
        settings=told,
        told=told,
        ignored=("head.fc.",) if native else ("head.pre_logits.", "head.fc."),
    )


def _vit_variant(card: EncoderCard, named: Mapping[str, Tensor]) -> Variant:
    sizes = Sizes(named)
    first = "blocks.0."
    width = sizes.agreed(
        "the width",
        At("patch_embed.proj.weight", 0),
        At("cls_token", 2),
        At("pos_embed", 2),
        At(f"{first}norm1.weight", 0),
        At(f"{first}mlp.fc1.weight", 1),
        At(f"{first}mlp.fc2.weight", 0),
        *([At("reg_token", 2)] if "reg_token" in named else []),
    )
    patch = sizes.agreed("the patch size", At("patch_embed.proj.weight", 2), At("patch_embed.proj.weight", 3))
    layers = [At(f"{first}mlp.{name}", int("fc2" in name)) for name in ("fc1.weight", "fc1.bias", "fc2.weight")]
    if _is_gated(*(named.get(place.name) for place in layers)):
        raise WeightsError("a ViT with gated layers, whose settings cannot be read off its tensors; use --arch")
    hidden = sizes.agreed("the width of layers", *layers)
    registers = sizes.shape("reg_token", 3)[1] if "reg_token" in named else 0
    if not registers and (match := re.search(r"_reg(\d+)_", card.architecture)):
        raise WeightsError(f"tensor reg_token is missing; the card's {card.architecture} has {match[1]} registers")
    sizes.shape("pos_embed", 3)
    check_kind("pos_embed", named["pos_embed"], whole=False)
    fixed_positions = not registers and not bool(named["pos_embed"][:, 0].count_nonzero())
    has_scale = any_named(named, r"blocks\.\d+\.ls[12]\.gamma")
    told = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": counts(named, r"(blocks)\.(\d+)\.")[0],
        "mlp_ratio": ratio(hidden, width),
        "reg_tokens": registers,
        "init_values": 1.0 if has_scale else None,
    }
    settings = {
        **told,
        "img_size": card.input_size,
        "num_heads": _MOCO_HEADS if fixed_positions else max(1, width // _HEAD_WIDTH),
        "no_embed_class": registers > 0,
    }
    if has_scale and card.settings.get("init_values"):
        del told["init_values"]  # what layer scales began with: any number, once they are loaded
    stands_for = _PLAIN_VIT.fullmatch(card.architecture) or not card.architecture.startswith("timm:vit_")
    return Variant(
        architecture="timm:vit_small_patch16_224" if stands_for else card.architecture,
        dim=width * (2 if card.pooling == "class_patch_mean" else 1),
        settings=settings,
        told=told,
        witnesses={"reg_tokens": "reg_token"} if registers else {},
        positions="dinov2_registers" if registers else "dinov2",
        ignored=("head.",),
    )


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
    try:
        with torch.device("meta"):
            network = timm.create_model(model, pretrained=False)
            pooling = "mean_norm" if type(network).__name__ == "MambaOut" else "native"
            dim = int(network.num_features if pooling == "mean_norm" else network.head_hidden_size)
            TimmEncoder(network, pooling)
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"--model timm:{model}: not a network that gives one embedding of an image by itself "
            f"({type(error).__name__}: {error}); choose another of timm.list_models()"
        ) from error
    classifier = config.classifier if isinstance(config.classifier, tuple | list) else (config.classifier,)
    side = int(data["input_size"][-1])
    fixed = _has_tokens(network) and getattr(network, "pos_embed", None) is not None
    return EncoderCard(
        name=f"timm:{model}",
        architecture=f"timm:{base}",
        dim=dim,
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


def _is_gated(fc1: Tensor | None, bias: Tensor | None, fc2: Tensor | None) -> bool:
    """Whether a block's first layer gives values and gates, twice what its second takes."""
    if fc1 is None or bias is None or fc2 is None or fc2.ndim != 2:
        return False
    return tuple(fc1.shape[:1]) == tuple(bias.shape) == (2 * fc2.shape[1],)


def _official_mambaout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """yuweihao/MambaOut's names to timm's; whatever is not of a MambaOut stays as it is."""
    if not any_named(tensors, r"downsample_layers\.(0\.(conv|norm)[12]|\d+\.(conv|norm))\."):
        return tensors

    def rename(name: str) -> str:
        name = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        name = re.sub(r"^downsample_layers\.0\.", "stem.", name)
        name = re.sub(r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample.", name)
        name = re.sub(r"^head\.fc1\.", "head.pre_logits.fc.", name)
        name = re.sub(r"^head\.norm\.", "head.pre_logits.norm.", name)
        name = re.sub(r"^head\.fc2\.", "head.fc.", name)
        return re.sub(r"^norm\.", "head.norm.", name)

    return renamed(tensors, rename)
