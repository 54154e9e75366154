"""Heads behind an encoder during pretraining; none of them is exported.

MoCo v3's projector and predictor (facebookresearch/moco-v3, `MoCo._build_mlp`) and DINO's head
(facebookresearch/dino, `DINOHead`; DINOv2's is the same). Tensor names are the published ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.distributed import AllReducedBatchNorm


def wide(tensor: Tensor) -> Tensor:
    """At least float32: half precision is widened, float64 stays."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def moco_mlp(layers: int, inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear layers without bias, each followed by BatchNorm and ReLU, the last by BatchNorm without scale and shift.

    MoCo v3's projector has 3 layers and its predictor 2 (paper, section 4 and appendix A); statistics are those of the
    batches of all processes.
    """
    modules: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        width = outputs if last else hidden
        modules += [
            nn.Linear(inputs if layer == 0 else hidden, width, bias=False),
            AllReducedBatchNorm(width, affine=not last),
        ]
        if not last:
            modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)


class DinoHead(nn.Module):
    """MLP with GELU to a bottleneck, unit length, then a linear layer of unit rows: (N, d) to (N, K) logits.

    Caron et al. 2021, appendix C. batch_norm: after the hidden layers, for convolutional networks. norm_last: the rows
    of the last layer stay of unit length (weight_g, their length, is 1 and not trained).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        layers: int = 3,
        hidden: int = 2048,
        bottleneck: int = 256,
        batch_norm: bool = False,
        norm_last: bool = True,
    ) -> None:
        super().__init__()
        if layers <= 1:
            self.mlp: nn.Module = nn.Linear(inputs, bottleneck)
        else:
            modules: list[nn.Module] = []
            for layer in range(layers - 1):
                modules.append(nn.Linear(inputs if layer == 0 else hidden, hidden))
                if batch_norm:
                    modules.append(AllReducedBatchNorm(hidden))
                modules.append(nn.GELU())
            self.mlp = nn.Sequential(*modules, nn.Linear(hidden, bottleneck))
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = NormedLinear(bottleneck, outputs)
        self.last_layer.weight_g.requires_grad_(not norm_last)

    def forward(self, x: Tensor, *, freeze_last: bool = False) -> Tensor:
        """(N, d) to (N, K) float32 logits; freeze_last: no gradient reaches the last layer's weights.

        Under autocast the unit vectors and their products are in float32: a temperature of 0.04 would make a tenth of
        what bfloat16 rounds off a cosine.
        """
        bottleneck = self.bottleneck(x)
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.last_layer(bottleneck, freeze=freeze_last)
        return logits

    def bottleneck(self, x: Tensor) -> Tensor:
        """(N, d) to unit vectors (N, bottleneck), float32."""
        return functional.normalize(wide(self.mlp(x)), dim=-1)


class NormedLinear(nn.Module):
    """A linear layer without bias whose row k is weight_g[k] times the unit vector of weight_v[k].

    torch's own weight norm is either deprecated and not copyable or has other tensor names than DINO's checkpoints.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1))
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach().clone())

    def forward(self, x: Tensor, *, freeze: bool = False) -> Tensor:
        """(N, inputs) to (N, outputs); freeze: as constants, so that weights get no gradient."""
        weight = self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return functional.linear(x, weight.detach() if freeze else weight)
