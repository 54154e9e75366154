"""Reference numbers of the published classes, reached as a user reaches them: a file and a card in, an encoder out.

Tolerances and names are those of fixtures/README.md; the module-level comparisons stand in tests/clear/backbones.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from clear.backbones import build, fitted_card
from clear.backbones import convert as rename
from clear.card import EncoderCard, write_card
from clear.checkpoints import Checkpoint, load_strictly
from clear.encoders import ENCODERS
from clear.errors import WeightsError
from clear.frozen import Encoder, load_encoder
from clear.models import convert
from clear.volume_input import VolumeInput

RTOL = 1e-5

Tensors = dict[str, Tensor]
Arrays = Mapping[str, NDArray[Any]]
Wrap = Callable[[Tensors], Any]


def _surplus(tensors: Tensors, *names: str) -> Tensors:
    """The tensors with others among them, which are no part of the image encoder."""
    return {**tensors, **{name: torch.ones(2, 2) for name in names}}


def moco(tensors: Tensors) -> dict[str, Any]:
    """A checkpoint of MoCo v3 and CLEAR: two encoders with projectors, the momentum one of other values."""
    classifier = ("head.", "classifier.head.")
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(classifier)}
    projector = "classifier.head.0.weight" if "patch_embed.0.weight" in tensors else "head.0.weight"
    state = {f"module.base_encoder.{name}": tensor for name, tensor in own.items()}
    state |= {f"module.momentum_encoder.{name}": tensor + 1 for name, tensor in own.items()}
    surplus = (f"module.base_encoder.{projector}", f"module.momentum_encoder.{projector}", "module.predictor.0.weight")
    return {"epoch": 3, "arch": "x", "state_dict": _surplus(state, *surplus), "optimizer": {"state": {}, "lr": 0.1}}


def official_model(tensors: Tensors) -> dict[str, Any]:
    return {"model": tensors}


def open_clip(tensors: Tensors) -> Tensors:
    return _surplus(tensors, "logit_scale", "text.transformer.embeddings.word_embeddings.weight")


def sam2(tensors: Tensors) -> dict[str, Any]:
    return {"model": _surplus(tensors, "memory_attention.layers.0.weight", "sam_mask_decoder.iou_token.weight")}


def dino(tensors: Tensors) -> dict[str, Any]:
    """A DINO training's checkpoint: student and teacher with heads, and its arguments."""
    heads = ("module.head.mlp.0.weight", "module.head.last_layer.weight_v")
    teacher = _surplus({f"module.backbone.{name}": tensor for name, tensor in tensors.items()}, *heads)
    student = _surplus({f"module.backbone.{name}": tensor + 1 for name, tensor in tensors.items()}, *heads)
    return {"student": student, "teacher": teacher, "epoch": 5, "args": argparse.Namespace(arch="vit_small")}


def dinov2(tensors: Tensors) -> dict[str, Any]:
    backbone = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    return {"teacher": _surplus(backbone, "dino_head.mlp.0.weight", "ibot_head.mlp.0.weight")}


def merlin(tensors: Tensors) -> Tensors:
    return _surplus(tensors, "encode_text.text_encoder.embeddings.weight", "logit_scale")


def ctclip(tensors: Tensors) -> Tensors:
    """As DistributedDataParallel names them."""
    whole = _surplus(tensors, "text_transformer.embeddings.word_embeddings.weight")
    return {f"module.{name}": tensor for name, tensor in whole.items()}


def on_grid(tokens: NDArray[Any], rows: int | None = None) -> NDArray[Any]:
    """(N, T, d) to (N, h, w, d), of a square unless the rows are told."""
    rows = rows or round(tokens.shape[1] ** 0.5)
    return tokens.reshape(len(tokens), rows, tokens.shape[1] // rows, -1)


@dataclass(frozen=True)
class Case:
    """One fixture: the card that stands for its constructor, and what the encoder must give.

    base, changes: a registered card and what the tiny network changes of it. wrap: the authors' file. size: suffix of
    the input and outputs. expected: outputs of the encoder as (key or function of the arrays, absolute tolerance).
    victim: a tensor by its official name and by the name that a message gives it. untold: settings that no tensor
    tells, or one alone; with these, a card that takes any size must fit too.
    """

    fixture: str
    base: str
    changes: Mapping[str, Any]
    wrap: Wrap
    expected: Mapping[str, tuple[str | Callable[[Arrays], NDArray[Any]], float]]
    victim: tuple[str, str]
    size: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    untold: tuple[str, ...] = ("num_heads",)

    @property
    def card(self) -> EncoderCard:
        return replace(ENCODERS[self.base], settings=dict(self.settings), **self.changes)

    def arrays(self, folder: Path) -> Arrays:
        with np.load(folder / "fixtures" / f"{self.fixture}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key != "meta_json"}


def tensors_of(arrays: Arrays) -> Tensors:
    return {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("sd/")}


def _vit(
    name: str,
    base: str,
    size: int | tuple[int, int],
    depth: int,
    heads: int,
    width: int,
    suffix: str = "",
) -> Case:
    """size: of the input, where it is oblong (rows, columns); the card is of a square then."""
    block = "blocks.1.mlp.fc1.weight"
    patch = ENCODERS[base].architecture.partition("patch")[2].partition("_")[0]
    side, rows = (size, size) if isinstance(size, int) else (max(size), size[0])
    return Case(
        fixture=name,
        base=base,
        changes={"dim": width, "input_size": side},
        settings={"img_size": side, "embed_dim": width, "depth": depth, "num_heads": heads},
        wrap=dinov2 if "dinov2" in name else dino,
        expected={
            "forward": ("out/cls", 5e-5),
            "feature_map": (lambda a: on_grid(a[f"out/patch_tokens{suffix}"], rows // int(patch)), 1e-4),
            "last_attention": ("out/last_attention", 5e-5),
        },
        victim=(block, f"network.{block}"),
        size=suffix,
    )


def _vmamba(name: str, size: int) -> Case:
    def normed(a: Arrays) -> NDArray[Any]:
        """The fixture's map is before the final norm, ours after it."""
        features, weight, bias = (
            torch.from_numpy(a[key])
            for key in ("out/feature_map_nhwc", "sd/classifier.norm.weight", "sd/classifier.norm.bias")
        )
        return functional.layer_norm(features, weight.shape, weight, bias, 1e-5).numpy()

    return Case(
        fixture=name,
        base="vmamba-lecl",
        changes={"input_size": size},
        wrap=moco if name.endswith("tiny") else official_model,
        expected={"forward": ("out/embedding", 5e-5), "feature_map": (normed, 5e-5)},
        victim=("layers.1.blocks.0.op.x_proj_weight",) * 2,
        untold=(),
    )


def _merlin(output: str, key: str, dim: int) -> Case:
    name = "encode_image.i3_resnet.layer2.0.conv2.weight"
    return Case(
        fixture="merlin_image_tiny",
        base="merlin",
        changes={"dim": dim},
        settings={
            "output": output,
            "layers": [1, 2, 1, 1],
            "planes": [2, 3, 4, 6],
            "stem": 4,
            "contrastive_dim": 5,
            "class_nb": 7,
        },
        wrap=merlin,
        expected={
            "forward": (key, 1e-5),
            "feature_map": (lambda a: np.moveaxis(a["out/feature_map"], 1, -1), 2e-5),
        },
        victim=(name, name),
        untold=("output",),
    )


CT_CLIP_VOLUME = cast("VolumeInput", ENCODERS["ct-clip"].volume)


def _ctclip(output: str, key: str) -> Case:
    name = "visual_transformer.enc_temporal_transformer.layers.1.1.to_kv.weight"
    return Case(
        fixture="ctclip_ctvit_tiny",
        base="ct-clip",
        changes={"dim": 10, "volume": replace(CT_CLIP_VOLUME, shape=(16, 24, 24))},
        settings={
            "output": output,
            "codebook_size": 48,
            "dim": 20,
            "dim_head": 8,
            "heads": 2,
            "image_size": 24,
            "patch_size": 8,
            "spatial_depth": 2,
            "temporal_depth": 2,
            "temporal_patch_size": 4,
            "dim_latent": 10,
        },
        wrap=ctclip,
        expected={"forward": (key, 1e-6), "feature_map": ("out/tokens_quantised", 1e-6)},
        victim=(name, name),
        untold=("output", "dim_latent"),
    )


CASES = {
    "mambaout": Case(
        fixture="mambaout_official_tiny",
        base="mambaout-lecl",
        changes={"input_size": 64},
        wrap=moco,
        expected={"forward": ("out/embedding", 2e-5), "feature_map": ("out/feature_map_nhwc", 5e-5)},
        victim=("stages.1.0.fc1.weight", "network.stages.1.blocks.0.fc1.weight"),
        untold=(),
    ),
    "vmamba": _vmamba("vmamba_official_tiny", 64),
    "vmamba-other-ratios": _vmamba("vmamba_official_tiny_b", 40),
    "vit-conv": Case(
        fixture="vit_conv_tiny",
        base="vit-conv-lecl",
        changes={"architecture": "vit_conv:small", "dim": 48, "input_size": 64, "any_size": False},
        settings={"embed_dim": 48, "depth": 2, "num_heads": 3},
        wrap=moco,
        expected={
            "forward": ("out/embedding", 1e-5),
            "feature_map": (lambda a: on_grid(a["out/tokens_after_norm"][:, 1:]), 1e-5),
        },
        victim=("patch_embed.proj.3.weight",) * 2,
    ),
    "biomedclip": Case(
        fixture="biomedclip_visual_tiny",
        base="biomedclip",
        changes={"dim": 20, "input_size": 32},
        settings={"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 8, "projection": 20},
        wrap=open_clip,
        expected={
            "forward": ("out/image_features", 1e-5),
            "feature_map": (lambda a: on_grid(a["out/tokens_after_norm"][:, 1:]), 1e-5),
        },
        victim=("visual.head.proj.weight", "head.proj.weight"),
        untold=("num_heads", "projection"),
    ),
    "biomedclip-normalised": Case(
        fixture="biomedclip_visual_tiny",
        base="biomedclip",
        changes={"dim": 20, "input_size": 32},
        settings={"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 8, "projection": 20, "normalise": True},
        wrap=open_clip,
        expected={"forward": ("out/image_features_l2", 1e-5)},
        victim=("visual.trunk.cls_token", "trunk.cls_token"),
        untold=("num_heads", "projection", "normalise"),
    ),
    "sam2": Case(
        fixture="sam2_image_encoder_tiny",
        base="sam2-t",
        changes={"dim": 12, "input_size": 64},
        settings={
            "embed_dim": 8,
            "global_att_blocks": [4],
            "num_heads": 1,
            "stages": [1, 2, 3, 2],
            "window_pos_embed_bkg_spatial_size": [5, 5],
            "window_spec": [4, 2, 6, 3],
            "d_model": 12,
        },
        wrap=sam2,
        expected={
            "forward": ("out/embedding", 2e-5),
            "feature_map": (lambda a: a["out/vision_features"].transpose(0, 2, 3, 1), 5e-5),
        },
        victim=("image_encoder.trunk.blocks.3.mlp.layers.1.weight", "trunk.blocks.3.mlp.fc2.weight"),
        untold=("num_heads", "global_att_blocks", "window_spec", "window_pos_embed_bkg_spatial_size"),
    ),
    "dino-16": _vit("dino_vit_tiny_patch16", "dino-s16", 80, 3, 3, 48),
    "dino-16-larger": _vit("dino_vit_tiny_patch16", "dino-s16", 128, 3, 3, 48, "_large"),
    "dino-8": _vit("dino_vit_tiny_patch8", "dino-s8", 48, 2, 3, 36),
    "dino-8-larger": _vit("dino_vit_tiny_patch8", "dino-s8", 72, 2, 3, 36, "_large"),
    "dinov2": _vit("dinov2_vit_tiny", "dinov2-s", 70, 3, 4, 48),
    "dinov2-larger": _vit("dinov2_vit_tiny", "dinov2-s", 112, 3, 4, 48, "_large"),
    "dinov2-registers": _vit("dinov2_vit_tiny_reg4", "dinov2-s-reg", 70, 3, 4, 48),
    "dinov2-registers-larger": _vit("dinov2_vit_tiny_reg4", "dinov2-s-reg", 112, 3, 4, 48, "_large"),
    "merlin": _merlin("embedding", "out/embedding", 24),
    "merlin-contrastive": _merlin("contrastive", "out/contrastive", 5),
    "ct-clip": _ctclip("latent", "out/image_latents"),
    "ct-clip-unnormalised": _ctclip("latent_unnormalised", "out/image_latents_unnormalised"),
}


OBLONG = {
    "dino-16": _vit("dino_vit_tiny_patch16", "dino-s16", (48, 112), 3, 3, 48, "_rect"),
    "dino-8": _vit("dino_vit_tiny_patch8", "dino-s8", (40, 64), 2, 3, 36, "_rect"),
    "dinov2": _vit("dinov2_vit_tiny", "dinov2-s", (42, 98), 3, 4, 48, "_rect"),
    "dinov2-registers": _vit("dinov2_vit_tiny_reg4", "dinov2-s-reg", (42, 98), 3, 4, 48, "_rect"),
}


def loaded(case: Case, tensors: Tensors, folder: Path, *, wrapped: bool = False) -> Encoder:
    """The encoder of a card.json and a file of these tensors, as `load_encoder` gives it for their paths."""
    write_card(case.card, folder)
    file = folder / ("theirs.pth" if wrapped else "theirs.safetensors")
    if wrapped:
        torch.save(case.wrap(tensors), file)
    else:
        save_file(tensors, file)
    return load_encoder(str(folder / "card.json"), file, device="cpu", precision="float32")


@pytest.mark.parametrize("wrapped", [False, True], ids=["safetensors", "as-published"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_file_of_the_published_class_gives_the_published_numbers(
    case: Case, wrapped: bool, shared_data: Path, tmp_path: Path
) -> None:
    arrays = case.arrays(shared_data)
    encoder = loaded(case, tensors_of(arrays), tmp_path, wrapped=wrapped)
    x = torch.from_numpy(arrays[f"in/x{case.size}"])
    for output, (key, tolerance) in case.expected.items():
        wanted = arrays[key + case.size] if isinstance(key, str) else key(arrays)
        with torch.inference_mode():
            found = getattr(encoder, output)(x).numpy()
        np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=tolerance, err_msg=output)


@pytest.mark.parametrize("case", OBLONG.values(), ids=list(OBLONG))
def test_positions_on_an_oblong_grid_give_the_published_numbers(case: Case, shared_data: Path) -> None:
    arrays = case.arrays(shared_data)
    x, network = torch.from_numpy(arrays[f"in/x{case.size}"]), cast("Any", build(case.card))
    network.network.set_input_size(img_size=tuple(x.shape[-2:]))
    load_strictly(network, rename(case.card, tensors_of(arrays), network), "file")
    for output, (key, tolerance) in case.expected.items():
        wanted = arrays[key + case.size] if isinstance(key, str) else key(arrays)
        with torch.inference_mode():
            found = getattr(network, output if output != "forward" else "__call__")(x).numpy()
        np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=tolerance, err_msg=output)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("damage", ["missing", "renamed", "misshapen"])
def test_one_wrong_tensor_stops_the_loading_and_is_named(
    case: Case, damage: str, shared_data: Path, tmp_path: Path
) -> None:
    tensors = tensors_of(case.arrays(shared_data))
    official, own = case.victim
    victim = tensors.pop(official)
    stem, _, last = official.rpartition(".")
    if damage == "renamed":
        tensors[f"{stem}.re{last}"] = victim
    if damage == "misshapen":
        tensors[official] = torch.cat([victim, victim], dim=-1)
    with pytest.raises(WeightsError) as error:
        loaded(case, tensors, tmp_path)
    message = str(error.value)
    assert str(tmp_path / "theirs.safetensors") in message
    assert own in message
    if damage == "renamed":
        assert f"{own.rpartition('.')[0]}.re{last}" in message
    if damage == "misshapen":
        assert str(tuple(victim.shape)) in message


NATIVE = {name: case for name, case in CASES.items() if not case.size}
DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "wider": lambda t: torch.cat([t, t], dim=-1) if t.ndim else t[None],
    "longer": lambda t: torch.cat([t, t]) if t.ndim else t.expand(2),
    "of another kind": lambda t: t.to(torch.int8) if t.is_floating_point() else t.float(),
}


def cards(case: Case) -> list[EncoderCard]:
    """The case's card of one size, taking any size but stating its own, and stating only what no tensor tells."""
    untold = {name: case.settings[name] for name in case.untold if name in case.settings}
    cards = [case.card, replace(case.card, any_size=True), replace(case.card, any_size=True, settings=untold)]
    return [card for i, card in enumerate(cards) if card not in cards[:i]]


def named_in(message: str, names: Iterable[str]) -> bool:
    """Whether one of the names is there as a whole, not as the end or beginning of another."""
    return any(re.search(rf"(?<![\w.]){re.escape(name)}(?!\w|\.\w)", message) for name in names)


@pytest.mark.parametrize("case", NATIVE.values(), ids=list(NATIVE))
def test_every_tensor_is_needed_and_named_when_it_is_damaged(case: Case, shared_data: Path) -> None:
    tensors = tensors_of(case.arrays(shared_data))
    for card in cards(case):
        fitted = fitted_card(card, tensors)
        networks = {json.dumps([fitted.architecture, dict(fitted.settings)]): build(fitted)}

        def load(tensors: Tensors, card: EncoderCard = card, networks: dict[str, Any] = networks) -> None:
            """As `load_encoder` does, but building each network once."""
            file = Checkpoint(tensors, "theirs.pth")
            found = fitted_card(card, file)
            identity = json.dumps([found.architecture, dict(found.settings)])
            network = networks.setdefault(identity, None) or networks.setdefault(identity, build(found))
            load_strictly(network, rename(found, file, network), file.origin)

        load(tensors)
        network = next(iter(networks.values()))
        own = rename(fitted, tensors, network).keys()
        covered: set[str] = set()
        for name, tensor in tensors.items():
            rest = {other: tensors[other] for other in tensors if other != name}
            if not (lost := own - rename(fitted, rest, network).keys()):
                continue  # of a classifier, a text tower or the training: no part of the encoder
            covered |= lost
            names = {name, *lost, *(other.removeprefix("network.") for other in lost)}
            damaged = {"missing": rest, "renamed": {**rest, f"{name}_": tensor}}
            damaged |= {damage: {**rest, name: change(tensor)} for damage, change in DAMAGES.items()}
            for damage, file in damaged.items():
                with pytest.raises(WeightsError) as error:
                    load(file)
                message = str(error.value)
                assert message.startswith("theirs.pth: "), (damage, name, message)
                assert named_in(message, names), (damage, name, message)
        assert covered == own


@pytest.mark.parametrize("case", NATIVE.values(), ids=list(NATIVE))
def test_a_published_file_converted_to_a_card_gives_the_same_numbers(
    case: Case, shared_data: Path, tmp_path: Path
) -> None:
    arrays = case.arrays(shared_data)
    write_card(case.card, tmp_path / "like")
    torch.save(case.wrap(tensors_of(arrays)), tmp_path / "theirs.pth")
    card = convert(tmp_path / "theirs.pth", tmp_path / "card", arch=str(tmp_path / "like" / "card.json"))
    encoder = load_encoder(str(tmp_path / "card" / "card.json"), device="cpu", precision="float32")
    assert (card.name, card.dim) == ("theirs", encoder.dim)
    key, tolerance = case.expected["forward"]
    with torch.inference_mode():
        found = encoder.forward(torch.from_numpy(arrays["in/x"])).numpy()
    np.testing.assert_allclose(found, arrays[str(key)], rtol=RTOL, atol=tolerance)
