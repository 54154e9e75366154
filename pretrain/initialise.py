"""Reproducible random networks: where pretraining starts, and what trained encoders are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clear.backbones import build
from clear.card import EncoderCard, WeightSource
from clear.encoders import ENCODERS
from clear.export import export_encoder
from clear.frozen import Encoder
from clear.phantoms import draw_patient
from clear.volume import Volume

# the small network that comes with the package under the paper's name (`pretrain.shipped`), before its training
UNTRAINED = replace(
    ENCODERS["mambaout-lecl"],
    name="filter-bank",
    architecture="timm:mambaout_femto",
    dim=288,
    source=WeightSource("file", "weights.safetensors", "weights.safetensors"),
    trained_on="untrained: filters set by hand, the rest random",
    input_size=128,
    resize="bilinear",
    bfloat16=False,
    any_size=False,
    licence="Apache-2.0",
    unverified="",
)


def random_network(card: EncoderCard, seed: int = 0) -> nn.Module:
    """The card's network with its library's own random start, which depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(card)


def filter_bank_network(card: EncoderCard, seed: int = 0) -> nn.Module:
    """A MambaOut that has learned nothing, but whose first layers are filters that tell tissues and blobs apart.

    The library's start has no biases, so its LayerNorms discard how bright a flat region is, which in CT is the tissue.
    Here the stem is a bank of intensity ramps with thresholds spread over the input's range, the depthwise filters of
    the first stage are Gaussians and centre-surround filters (differences of Gaussians, Marr and Hildreth 1980) of
    random scale, and each downsampling averages and rotates its channels. The later blocks keep the library's start.
    """
    network = random_network(card, seed)
    draw = torch.Generator().manual_seed(seed)
    body: Any = network.network
    with torch.no_grad():
        _intensity_ramps(body.stem.conv1, draw)
        _normal(body.stem.conv2, 1.5, draw)
        for module in body.stages[0].blocks.modules():
            if isinstance(module, nn.Conv2d):
                _blob_filters(module, draw)
            elif isinstance(module, nn.Linear):
                _normal(module, 3.0, draw)
        for stage in body.stages:
            for module in stage.downsample.modules():
                if isinstance(module, nn.Conv2d):
                    _rotated_average(module, draw)
    return network


def _intensity_ramps(conv: nn.Conv2d, draw: torch.Generator) -> None:
    """Each channel a rising or falling ramp of the local mean, with a threshold of its own; gain 6."""
    n, channels, height, width = conv.weight.shape
    sign = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    texture = torch.randn(n, height, width, generator=draw) * 0.15
    texture -= texture.mean((1, 2), keepdim=True)
    filters = (1 / (height * width) + texture) * sign[:, None, None] * 6.0
    conv.weight.copy_((filters / channels)[:, None].expand_as(conv.weight))
    _bias(conv).copy_(-sign * 6.0 * torch.linspace(-2.1, 2.3, n))


def _blob_filters(conv: nn.Conv2d, draw: torch.Generator) -> None:
    """Depthwise filters in threes: a Gaussian, bright blobs, dark blobs; scales of 0.5 to 2.5 pixels."""
    half = conv.weight.shape[-1] // 2
    steps = torch.arange(-half, half + 1.0)
    squared = steps[:, None] ** 2 + steps[None, :] ** 2
    for channel in range(len(conv.weight)):
        scale = 0.5 + 2.0 * float(torch.rand((), generator=draw))
        centre, surround = (torch.exp(-squared / (2 * s**2)) for s in (scale, 1.6 * scale))
        centre, surround = centre / centre.sum(), surround / surround.sum()
        conv.weight[channel, 0] = (surround, 3 * (centre - surround), 3 * (surround - centre))[channel % 3]
    _bias(conv).normal_(0.0, 0.5, generator=draw)


def _rotated_average(conv: nn.Conv2d, draw: torch.Generator) -> None:
    """Every output the mean over the window of a random rotation of the channels, variance kept."""
    outputs, inputs, height, width = conv.weight.shape
    rotation = nn.init.orthogonal_(torch.empty(outputs, inputs), generator=draw) * (outputs / inputs) ** 0.5
    conv.weight.copy_(rotation[:, :, None, None].expand_as(conv.weight) / (height * width))
    _bias(conv).zero_()


def _normal(module: nn.Conv2d | nn.Linear, gain: float, draw: torch.Generator) -> None:
    """Weights of variance gain² / fan-in, biases of standard deviation 0.5."""
    module.weight.normal_(0.0, gain / module.weight[0].numel() ** 0.5, generator=draw)
    _bias(module).normal_(0.0, 0.5, generator=draw)


def _bias(module: nn.Conv2d | nn.Linear) -> torch.Tensor:
    if module.bias is None:
        raise ValueError("expected a layer with a bias; this start is for MambaOut")
    return module.bias


def centre_embeddings(network: nn.Module, card: EncoderCard, volumes: Sequence[Volume]) -> None:
    """Shift and scale the final norm so that each embedding value has mean 0 and deviation 1 over these volumes.

    A random network gives every slice nearly the same embedding, which half precision then rounds away. This is the
    data-dependent start of Krähenbühl et al. 2016; it learns nothing but two numbers a value.
    """
    encoder = Encoder(card, network, "", device="cpu", precision="float32")
    embeddings = torch.from_numpy(np.concatenate([encoder.encode(volume) for volume in volumes]))
    norm: Any = network.get_submodule("network.head.norm")
    with torch.no_grad():
        deviation = embeddings.std(0)
        norm.bias.sub_(embeddings.mean(0)).div_(deviation)
        norm.weight.div_(deviation)


def write_untrained(folder: Path, seed: int = 0) -> Path:
    """Write a filter bank as an encoder card, its embeddings centred on three synthetic patients; the card's path."""
    network = filter_bank_network(UNTRAINED, seed)
    patients = [draw_patient(seed=10_000, index=index, matrix=256, slices=14) for index in range(3)]
    centre_embeddings(network, UNTRAINED, [patient.series[0].volume for patient in patients])
    return export_encoder(UNTRAINED, network, folder, half=True, overwrite=True)
