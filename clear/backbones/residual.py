"""The sum that runs past all blocks of a network, kept in float32 under bfloat16 autocast."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def keep_float32(*modules: nn.Module) -> None:
    """What these modules give is widened to float32, and with it every sum that begins there.

    A vision transformer's sum is float32 by its positions. Rounding it after every block doubles the error of
    MambaOut's embeddings; the products stay bfloat16.
    """
    for module in modules:
        module.register_forward_hook(_widen)


def _widen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()
