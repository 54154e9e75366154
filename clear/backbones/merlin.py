"""Merlin's image encoder: a ResNet-152 inflated to three dimensions, for abdominal CT as one volume.

Written from the structure of StanfordMIMI/Merlin, class `I3ResNet` (Blankemeier et al., Nature 2026), with its tensor
names untouched: `encode_image.i3_resnet.*`. A checkpoint also holds a text encoder and two heads on the global mean;
of these, only the head that the card's output needs is part of the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from clear.backbones.building import building
from clear.backbones.renaming import renamed
from clear.backbones.variants import AnotherFamily, At, Sizes, Variant, counts
from clear.errors import InputError

if TYPE_CHECKING:
    from clear.card import EncoderCard

PREFIX = "encode_image.i3_resnet."
EXPANSION = 4  # a bottleneck's output over its width
# output: the head that gives it, and the setting that says how wide it is
HEADS = {
    "embedding": None,
    "contrastive": ("contrastive_head", "contrastive_dim"),
    "phenotypes": ("classifier", "class_nb"),
}
SETTINGS: dict[str, Any] = {
    "output": "embedding",
    "layers": (3, 8, 36, 3),
    "planes": (64, 128, 256, 512),
    "stem": 64,
    "contrastive_dim": 512,
    "class_nb": 1692,
}
MODELS = {"i3_resnet152": SETTINGS}
# tensors of the whole model that no image embedding needs, beside the heads
NOT_IMAGE = ("encode_text.", "logit_scale")


class MerlinEncoder(nn.Module):
    """Merlin's embedding of a volume.

    output: `embedding`, the global mean of the last map (2048 values); `contrastive`, that mean through the head that
    was aligned with reports (512 values, not normalised); `phenotypes`, 1692 logits.
    """

    pools_map = True

    def __init__(
        self,
        output: str,
        layers: tuple[int, ...],
        planes: tuple[int, ...],
        stem: int,
        contrastive_dim: int,
        class_nb: int,
    ) -> None:
        super().__init__()
        if min(*layers, *planes, stem, contrastive_dim, class_nb) < 1:
            raise ValueError("all numbers must be positive")
        head = HEADS[output]
        self.head = head[0] if head else None
        widths = {"contrastive_dim": contrastive_dim, "class_nb": class_nb}
        self.dim = widths[head[1]] if head else EXPANSION * planes[-1]
        heads = {head[0]: self.dim} if head else {}
        self.encode_image = nn.ModuleDict({"i3_resnet": I3ResNet(layers, planes, stem, heads)})

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, x, y, z), grown to the patient's right, front and head, in 0..1, to (N, d)."""
        return self._embed(self.encode_image["i3_resnet"](x))

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, 1, x, y, z) to the last map, channels last: (N, z / 32, x / 32, y / 32, 2048), halves rounded up."""
        maps: Tensor = self.encode_image["i3_resnet"](x)
        return maps.movedim(1, -1)

    def embed_map(self, features: Tensor) -> Tensor:
        """(N, t, h, w, 2048) of `feature_map` to (N, d): their mean, through the head of the card's output."""
        return self._embed(features.movedim(-1, 1))

    def _embed(self, maps: Tensor) -> Tensor:
        pooled = maps.mean(dim=(2, 3, 4))
        if self.head is None:
            return pooled
        head: nn.Conv3d = getattr(self.encode_image["i3_resnet"], self.head)
        return functional.linear(pooled, head.weight.flatten(1), head.bias).float()


class I3ResNet(nn.Module):
    """The inflated ResNet up to its last map, with the heads named in `heads` (name to width) as 1x1x1 convolutions."""

    def __init__(self, layers: tuple[int, ...], planes: tuple[int, ...], stem: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, stem, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(stem)
        channels = stem
        for i, (depth, width) in enumerate(zip(layers, planes, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(channels, width, stride=2 if i and not j else 1))
                channels = EXPANSION * width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.n_layers = len(layers)
        for name, width in heads.items():
            self.add_module(name, nn.Conv3d(channels, width, 1))

    def stem(self, x: Tensor) -> Tensor:
        """(N, 1, x, y, z) to (N, stem, z / 2, x / 4, y / 4).

        The published class repeats the grey channel three times. Summing the kernel over its three inputs is the same
        product at a third of the work and of the memory.
        """
        weight = self.conv1.weight.float().sum(dim=1, keepdim=True)
        x = x.permute(0, 1, 4, 2, 3)
        x = functional.conv3d(x, weight, None, self.conv1.stride, self.conv1.padding)
        x = functional.relu_(self.bn1(x))
        return functional.max_pool3d(x, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, x, y, z) to the last map (N, C, t, h, w): t along z, h along x, w along y; float32."""
        x = self.stem(x).float()
        for i in range(self.n_layers):
            x = getattr(self, f"layer{i + 1}")(x)
        return x


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 (which carries the stride, in all three directions), 1x1x1, each normalised, plus the shortcut.

    The sum that runs through all fifty blocks is kept in float32 under autocast.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.conv1 = nn.Conv3d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(wide)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != wide:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels, wide, 1, stride=stride, bias=False), nn.BatchNorm3d(wide)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, t, h, w) to (N, 4 width, t', h', w')."""
        y = functional.relu_(self.bn1(self.conv1(x)))
        y = functional.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y)).float()
        return functional.relu_(y + (x if self.downsample is None else self.downsample(x)))


def build(card: EncoderCard) -> nn.Module:
    """The card's network in eval mode, with weights as constructed. Settings: see SETTINGS.

    Raises InputError when the model or a setting is unknown, or the width is not the card's dim.
    """
    _, _, model = card.architecture.partition(":")
    if model not in MODELS:
        raise InputError(f"encoder {card.name}: merlin has no model {model!r}; expected {', '.join(MODELS)}")
    settings = {**MODELS[model], **card.settings}
    if surplus := sorted(set(settings) - set(SETTINGS)):
        raise InputError(
            f"encoder {card.name}: unknown setting(s) {', '.join(surplus)}; merlin knows {', '.join(SETTINGS)}"
        )
    if settings["output"] not in HEADS:
        raise InputError(f"encoder {card.name}: output is {settings['output']!r}; expected one of {', '.join(HEADS)}")
    with building(card, f"merlin cannot build {model}"):
        network = MerlinEncoder(**settings)
    if network.dim != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but {model} gives {network.dim}")
    return network.eval()


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's tensors without the text encoder and without heads that the card's output does not use.

    The image encoder alone may stand without `encode_image.i3_resnet.`.
    """
    own = network.state_dict()
    unused = tuple(f"{PREFIX}{head[0]}." for head in HEADS.values() if head and f"{PREFIX}{head[0]}.weight" not in own)
    return {
        name: tensor
        for name, tensor in _official(tensors).items()
        if not name.startswith(card.ignored) and not name.startswith(NOT_IMAGE) and not name.startswith(unused)
    }


def variant(card: EncoderCard, tensors: Mapping[str, Tensor]) -> Variant:
    """What the card must say for a network that takes these tensors; its output is the card's, else `embedding`.

    Raises AnotherFamily when they are not Merlin's, WeightsError naming the tensor that does not fit the others.
    """
    names = _official(tensors)
    layers = counts([name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)], r"layer(\d+)\.(\d+)\.")
    kernels = [tensor.ndim for name, tensor in names.items() if name.startswith(PREFIX) and "conv" in name]
    if not layers or 2 * kernels.count(5) <= len(kernels):
        raise AnotherFamily(f"not Merlin's weights: expected tensors named {PREFIX}*, with kernels of three dimensions")
    sizes = Sizes(names)
    norm = ("weight", "bias", "running_mean")
    stem = sizes.agreed("its stem", At(f"{PREFIX}conv1.weight", 0), *(At(f"{PREFIX}bn1.{name}", 0) for name in norm))
    planes = []
    for i in range(len(layers)):
        block = f"{PREFIX}layer{i + 1}.0."
        norms = [At(f"{block}bn1.{name}", 0) for name in norm]
        planes.append(sizes.agreed(f"the planes of layer {i + 1}", At(f"{block}conv1.weight", 0), *norms))
    told: dict[str, Any] = {"layers": layers, "planes": tuple(planes), "stem": stem}
    widths = {"embedding": EXPANSION * planes[-1]}
    settings = {**SETTINGS, **told}
    chosen = card.settings.get("output", SETTINGS["output"])
    for output, (head, setting) in ((output, head) for output, head in HEADS.items() if head):
        kinds = [At(f"{PREFIX}{head}.{kind}", 0) for kind in ("weight", "bias")]
        if output == chosen:
            told[setting] = settings[setting] = widths[output] = sizes.agreed("the output", *kinds)
        elif (weight := names.get(kinds[0].name)) is not None and weight.ndim:
            settings[setting] = len(weight)
    return Variant(
        "merlin:i3_resnet152",
        widths.get(chosen, widths["embedding"]),
        {name: value for name, value in settings.items() if value != SETTINGS[name] or name == "output"},
        told,
    )


def _official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under their official names, where the image encoder stands alone."""
    alone = re.compile(r"(conv1|bn1|layer\d+|contrastive_head|classifier)\.")
    return renamed(tensors, lambda name: PREFIX + name if alone.match(name) else name)
