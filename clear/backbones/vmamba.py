"""VMamba: a hierarchy of blocks that scan the image along four paths with a selective state space model.

Liu et al., VMamba: Visual State Space Model, NeurIPS 2024, arXiv 2401.10166; MzeroMiko/VMamba, class VSSM. Maps are
channel-last throughout and state-dict names are the official ones, untouched. The classifier is not built: the
embedding is the mean over positions of the normed last map, what the official head sees.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones.building import building
from clear.backbones.renaming import renamed
from clear.backbones.selective_scan import DIRECTIONS, scan_image
from clear.backbones.variants import AnotherFamily, At, Sizes, Variant, any_named, counts, ratio
from clear.errors import InputError, WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

# Names of the first release (2024-01), which VSSM._load_from_state_dict there also reads, and today's.
_OLDER_NAMES = (
    ("patch_embed.proj.", "patch_embed.0."),
    ("patch_embed.norm.", "patch_embed.2."),
    (".ln_1.", ".norm."),
    (".self_attention.", ".op."),
    (".downsample.norm.", ".downsample.1."),
    (".downsample.reduction.", ".downsample.2."),
)
_PRODUCTS = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")

_VANILLA = {"mlp_ratio": 0.0, "downsample_version": "v1"}  # forward_type v0 there: the arithmetic of v2
_SECOND = {
    "ssm_d_state": 1,
    "ssm_conv_bias": False,
    "forward_type": "v05_noz",
    "patchembed_version": "v2",
    "downsample_version": "v3",
}
_BASE_DIMS = (128, 256, 512, 1024)

# What CLEAR trained (VSSM's own defaults) and what VMamba published on ImageNet: arguments that differ from VSSM's.
# `tiny`, `small` and `base` are the paper's; the names in brackets there count state expansion and stage-3 blocks.
MODELS: dict[str, dict[str, Any]] = {
    "vssm": {},
    "tiny": _SECOND | {"depths": (2, 2, 8, 2), "ssm_ratio": 1.0, "drop_path_rate": 0.2},  # s1l8
    "small": _SECOND | {"depths": (2, 2, 15, 2), "drop_path_rate": 0.3},  # s2l15
    "base": _SECOND | {"depths": (2, 2, 15, 2), "dims": _BASE_DIMS, "drop_path_rate": 0.6},  # s2l15
    "tiny_s2l5": _SECOND | {"depths": (2, 2, 5, 2), "drop_path_rate": 0.2},
    "small_s1l20": _SECOND | {"depths": (2, 2, 20, 2), "ssm_ratio": 1.0, "drop_path_rate": 0.3},
    "base_s1l20": _SECOND | {"depths": (2, 2, 20, 2), "dims": _BASE_DIMS, "ssm_ratio": 1.0, "drop_path_rate": 0.5},
    "vanilla_tiny": _VANILLA | {"drop_path_rate": 0.2},
    "vanilla_small": _VANILLA | {"depths": (2, 2, 27, 2), "drop_path_rate": 0.3},
    "vanilla_base": _VANILLA | {"depths": (2, 2, 27, 2), "dims": _BASE_DIMS, "drop_path_rate": 0.6},
}


def build(card: EncoderCard) -> nn.Module:
    """The card's VSSM in eval mode, with weights as constructed; `settings` replace arguments of its model.

    Raises InputError when there is no such model or setting, or the width is not the card's dim.
    """
    _, _, model = card.architecture.partition(":")
    if model not in MODELS:
        raise InputError(f"encoder {card.name}: no VMamba {model!r}; expected one of {', '.join(MODELS)}")
    with building(card, "VMamba cannot be built"):
        network = VSSM(card.channels, **MODELS[model] | dict(card.settings))
    if network.num_features != card.dim:
        raise InputError(f"encoder {card.name}: the card says d = {card.dim}, but {model} has {network.num_features}")
    return network.eval()


def convert(card: EncoderCard, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A VMamba checkpoint, or a MoCo encoder made of one, under the network's names, without classifier or projector.

    Older releases named some modules otherwise, and stored products as 1 x 1 convolutions.
    """
    ignored = ("classifier.head.", *card.ignored)
    return {name: tensor for name, tensor in _todays(tensors).items() if not name.startswith(ignored)}


def variant(card: EncoderCard, tensors: Mapping[str, Tensor]) -> Variant:
    """The VSSM that an unwrapped checkpoint fits.

    Raises AnotherFamily when it is no VMamba, WeightsError naming the tensor that does not fit the others.
    """
    named = _todays(tensors)
    if not any_named(named, r"layers\.\d+\.blocks\.\d+\.op\."):
        begin = ", ".join(list(named)[:3])
        raise AnotherFamily(f"not a VMamba checkpoint: it has no layers.0.blocks.0.op.*; its tensors begin {begin}")
    sizes = Sizes(named)
    depths = counts(named, r"layers\.(\d+)\.blocks\.(\d+)\.")
    blocks = [f"layers.{stage}.blocks.{block}." for stage, depth in enumerate(depths) for block in range(depth)]
    dims, inner = [], []
    for stage in range(len(depths)):
        op = f"layers.{stage}.blocks.0.op."
        norms = [At(f"layers.{stage}.blocks.0.norm.{kind}", 0) for kind in ("weight", "bias")]
        dims.append(
            sizes.agreed(
                f"the width of stage {stage}", *norms, At(f"{op}in_proj.weight", 1), At(f"{op}out_proj.weight", 0)
            )
        )
        places = [At(f"{op}{name}", 0) for name in ("out_norm.weight", "out_norm.bias", "conv2d.weight")]
        inner.append(sizes.agreed(f"the channels of stage {stage}", *places, At(f"{op}out_proj.weight", 1)))
    widths = [inner[int(block.split(".")[1])] for block in blocks]
    ranks = [math.ceil(dims[int(block.split(".")[1])] / 16) for block in blocks]
    states = sizes.agreed(
        "the number of states",
        *(At(f"{block}op.A_logs", 1) for block in blocks),
        *(At(f"{block}op.x_proj_weight", 1, 2, rank) for block, rank in zip(blocks, ranks, strict=True)),
    )
    gates = [At(f"{block}op.in_proj.weight", 0, width) for block, width in zip(blocks, widths, strict=True)]
    first = "layers.0.blocks.0."
    has_mlp = any_named(named, r"layers\.\d+\.blocks\.\d+\.mlp\.")
    hidden = 0
    if has_mlp:
        layers = [At(f"{first}mlp.{name}", int("fc2" in name)) for name in ("fc1.weight", "fc1.bias", "fc2.weight")]
        hidden = sizes.agreed("the width of layers", *layers)
    settings = {
        "depths": depths,
        "dims": tuple(dims),
        "ssm_d_state": states,
        "ssm_ratio": ratio(inner[0], dims[0]),
        "ssm_conv_bias": any_named(named, r"layers\.\d+\.blocks\.\d+\.op\.conv2d\.bias"),
        "forward_type": "v2" if sizes.agreed("the gate", *gates) == 2 else "v05_noz",
        "mlp_ratio": ratio(hidden, dims[0]),
        "patchembed_version": "v2" if any_named(named, r"patch_embed\.[57]\.") else "v1",
        "downsample_version": _downsample_of(sizes, len(dims)),
    }
    usual = {name: parameter.default for name, parameter in inspect.signature(VSSM).parameters.items()}
    for model, preset in MODELS.items():
        if (usual | preset).items() >= settings.items():
            return Variant(f"vmamba:{model}", dims[-1], told=settings)
    return Variant("vmamba:vssm", dims[-1], settings, settings)


def _downsample_of(sizes: Sizes, stages: int) -> str:
    """v1: a norm and a product; v2, v3: a convolution of 2 or 3 pixels and a norm; of one stage: any version."""
    if stages == 1:
        return "v2"
    if not any_named(sizes.tensors, r"layers\.\d+\.downsample\.3\."):
        return "v1"
    kernels = [f"layers.{stage}.downsample.1.weight" for stage in range(stages - 1)]
    side = sizes.agreed("the kernel between stages", *(At(name, axis) for name in kernels for axis in (2, 3)))
    if side not in (2, 3):
        raise WeightsError(f"tensor {kernels[0]} has shape {sizes.shape(kernels[0], 4)}; expected a kernel of 2 or 3")
    return f"v{side}"


def _todays(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def rename(name: str) -> str:
        for older, current in _OLDER_NAMES:
            name = name.replace(older, current)
        return f"classifier.{name}" if name.startswith(("norm.", "head.")) else name

    return {
        name: tensor.flatten(1) if name.endswith(_PRODUCTS) and tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in renamed(tensors, rename).items()
    }


class VSSM(nn.Module):
    """The encoder. Arguments bear the official names; a forward_type that ends in `_noz` has no gate."""

    pools_map = True
    inner_channels_last = True

    def __init__(
        self,
        in_chans: int = 3,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_conv_bias: bool = True,
        forward_type: str = "v2",
        mlp_ratio: float = 4.0,
        patchembed_version: str = "v1",
        downsample_version: str = "v2",
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or forward_type not in ("v2", "v05_noz"):
            raise ValueError(f"depths {depths} and dims {dims} must be of one length, forward_type v2 or v05_noz")
        self.num_features = dims[-1]
        self.patch_embed = _patch_embed(patchembed_version, in_chans, dims[0])
        drops = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = nn.Sequential()
            for _ in range(depth):
                op = SS2D(dim, ssm_d_state, ssm_ratio, conv_bias=ssm_conv_bias, gate=forward_type == "v2")
                blocks.append(VSSBlock(dim, op, mlp_ratio, drops.pop(0)))
            last = stage == len(dims) - 1
            down = nn.Identity() if last else _downsample(downsample_version, dim, dims[stage + 1])
            self.layers.append(nn.ModuleDict({"blocks": blocks, "downsample": down}))
        self.classifier = nn.ModuleDict({"norm": nn.LayerNorm(dims[-1])})
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, d)."""
        return self.embed_map(self.feature_map(x))

    @property
    def inner_stage(self) -> nn.Module:
        """The second stage, whose map has a cell for 8 pixels: 4 of a patch, halved once."""
        blocks: nn.Module = self.layers[1]["blocks"]  # type: ignore[index]
        return blocks

    def feature_map(self, x: Tensor) -> Tensor:
        """The normed last map, (N, H/32, W/32, d) for four stages."""
        x = _at_least_float32(self.patch_embed(x))
        layer: Any
        for layer in self.layers:
            x = _at_least_float32(layer["downsample"](layer["blocks"](x)))
        normed: Tensor = self.classifier["norm"](x)
        return normed

    def embed_map(self, features: Tensor) -> Tensor:
        """(N, h, w, d) of `feature_map` to (N, d): their mean."""
        return features.mean(dim=(1, 2))


class VSSBlock(nn.Module):
    """x + scan(norm(x)), then x + MLP(norm(x)); the first generation had no MLP. Maps (N, H, W, C)."""

    def __init__(self, dim: int, op: SS2D, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = op
        self.drop_path = DropPath(drop_path)
        self.mlp: nn.ModuleDict | None = None
        if mlp_ratio > 0:
            hidden = int(dim * mlp_ratio)
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same. The sum stays float32 under autocast, since its first term is."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.mlp is not None:
            hidden = functional.gelu(self.mlp["fc1"](self.norm2(x)))
            x = x + self.drop_path(self.mlp["fc2"](hidden))
        return x


class SS2D(nn.Module):
    """The 2D selective scan: every position hears from all others along four paths, each with parameters of its own.

    Paths: row by row, column by column, and both backwards. D = ssm_ratio * dim channels, S states each; step sizes
    come from R = ceil(dim / 16) numbers a position. VMamba, section 4.2 and class SS2D (v2).
    """

    def __init__(self, dim: int, states: int, ssm_ratio: float, *, conv_bias: bool, gate: bool) -> None:
        super().__init__()
        channels, rank = int(ssm_ratio * dim), math.ceil(dim / 16)
        self.gate, self.rank, self.states = gate, rank, states
        self.in_proj = nn.Linear(dim, 2 * channels if gate else channels, bias=False)
        self.conv2d = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=conv_bias)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, rank + 2 * states, channels))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, channels, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, channels))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * channels, states))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * channels))
        for parameter in (self.A_logs, self.Ds):  # rates and skips do not decay, as in the authors' code
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # read by `pretrain.optimiser`
        self.out_norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, dim, bias=False)
        self._start()

    def _start(self) -> None:
        """Mamba's start: A = -1..-S (S4D-Real), steps log-uniform in 0.001..0.1, projections uniform."""
        nn.init.uniform_(self.x_proj_weight, -(bound := self.x_proj_weight.shape[2] ** -0.5), bound)
        nn.init.uniform_(self.dt_projs_weight, -(bound := self.rank**-0.5), bound)
        with torch.no_grad():
            steps = torch.exp(torch.empty_like(self.dt_projs_bias).uniform_(math.log(1e-3), math.log(0.1)))
            self.dt_projs_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus of it gives the steps
            self.A_logs.copy_(torch.arange(1.0, self.states + 1).log().expand_as(self.A_logs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        x = self.in_proj(x)
        gate = None
        if self.gate:
            x, gate = x.chunk(2, dim=-1)
        x = functional.silu(self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        y: Tensor = self.out_norm(self.scan(x))
        if gate is not None:
            y = y * functional.silu(gate)
        out: Tensor = self.out_proj(y)
        return out

    def scan(self, x: Tensor) -> Tensor:
        """The sum over the four paths, (N, H, W, D) to the same, in the parameters' precision whatever x has."""
        a = -torch.exp(self.A_logs).view(DIRECTIONS, -1, self.A_logs.shape[1]).transpose(1, 2).contiguous()
        skip = self.Ds.view(DIRECTIONS, -1)
        return scan_image(x, self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, a, skip)


class _ChannelLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _ChannelFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class _Merge(nn.Module):
    """The four neighbours of a 2 x 2 square side by side, (N, H, W, C) to (N, H/2, W/2, 4 C); zeros at odd borders."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)


def _patch_embed(version: str, channels: int, dim: int) -> nn.Sequential:
    if version == "v1":
        return nn.Sequential(nn.Conv2d(channels, dim, 4, stride=4), _ChannelLast(), nn.LayerNorm(dim))
    if version == "v2":
        return nn.Sequential(
            nn.Conv2d(channels, dim // 2, 3, stride=2, padding=1),
            _ChannelLast(),
            nn.LayerNorm(dim // 2),
            _ChannelFirst(),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
            _ChannelLast(),
            nn.LayerNorm(dim),
        )
    raise ValueError(f"patchembed_version {version!r}; expected v1 or v2")


def _downsample(version: str, dim: int, out: int) -> nn.Sequential:
    if version == "v1":
        return nn.Sequential(_Merge(), nn.LayerNorm(4 * dim), nn.Linear(4 * dim, out, bias=False))
    if version in ("v2", "v3"):
        conv = nn.Conv2d(dim, out, 2, stride=2) if version == "v2" else nn.Conv2d(dim, out, 3, stride=2, padding=1)
        return nn.Sequential(_ChannelFirst(), conv, _ChannelLast(), nn.LayerNorm(out))
    raise ValueError(f"downsample_version {version!r}; expected v1, v2 or v3")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
