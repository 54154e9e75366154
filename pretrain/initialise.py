"""Reproducible random networks: where pretraining starts, and what `mambaout-lecl` ships until it has been trained.

python -m pretrain.initialise clear/weights/mambaout-lecl
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from clear.backbones import build
from clear.card import EncoderCard
from clear.encoders import ENCODERS
from pretrain.export import export_encoder


def random_network(card: EncoderCard, seed: int = 0) -> nn.Module:
    """The card's network with fresh weights that depend on `seed` alone.

    Convolutions and linear layers are drawn from a normal distribution scaled to keep the variance of what flows
    through them (He et al. 2015, fan-in), so that an untrained network still tells its inputs apart; the libraries'
    own starts are meant for training and shrink the signal to almost nothing.
    """
    network = build(card)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
    return network


def main(folder: str) -> None:
    """Write the untrained `mambaout-lecl` to `folder`."""
    card = ENCODERS["mambaout-lecl"]
    print(export_encoder(card, random_network(card), Path(folder), half=True))


if __name__ == "__main__":
    main(sys.argv[1])
