"""Tiny random instances of the published classes, saved as their authors' files are, against timm's networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from clear.backbones.davit import build, convert
from clear.backbones.huggingface import to_timm, without_zero_biases
from clear.backbones.positions import resize_positions
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.errors import InputError, WeightsError

TOLERANCE = 2e-5
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
TIMM_VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def hf() -> Any:
    return pytest.importorskip("transformers", reason="transformers, the reference, is not installed")


@pytest.fixture
def published(tmp_path: Path) -> Callable[[nn.Module], dict[str, Tensor]]:
    """A model's tensors as its `save_pretrained` writes them: under the names that the hub's files have."""

    def save(model: Any) -> dict[str, Tensor]:
        model.save_pretrained(tmp_path)
        return dict(load_file(tmp_path / "model.safetensors"))

    return save


def redraw(model: Any, seed: int = 1) -> Any:
    """Every tensor at random, so that no bias is 0, no norm or layer scale 1 and no BatchNorm statistic trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or name.endswith("inv_freq"):
                continue
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + drawn.abs())
            elif tensor.ndim < 2:
                tensor.copy_((1.0 if name.endswith(("weight", "lambda1")) else 0.0) + 0.3 * drawn)
            elif "position" in name or "token" in name or "probe" in name:
                tensor.copy_(drawn)
            else:
                tensor.copy_(drawn / tensor[0].numel() ** 0.5)
    return model.eval()


def images(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(size))


def timm_network(model: str, tensors: dict[str, Tensor], rule: str = "", **settings: Any) -> Any:
    """timm's network with these tensors, every one and nothing else; positions resized by `rule` to its input size."""
    network = timm.create_model(model, pretrained=False, num_classes=0, **settings).eval()
    tensors = to_timm(tensors)
    if rule:
        grid = network.patch_embed.grid_size
        tensors["pos_embed"] = resize_positions(tensors["pos_embed"], grid, rule)
    load_strictly(network, tensors, "file")
    return network


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert expected.std() > 0.1
    return float((found - expected).abs().max())


# ---- DINOv2 and its relatives


def test_dinov2_gives_transformers_tokens_at_its_own_and_another_size(hf: Any, published: Any) -> None:
    model = redraw(hf.Dinov2Model(hf.Dinov2Config(**VIT)))
    for size in (56, 112, 42):
        network = timm_network("vit_base_patch14_dinov2", published(model), "exact", img_size=size, **TIMM_VIT)
        with torch.inference_mode():
            out = model(images(size))
            tokens = network.forward_features(images(size))
        assert difference(tokens, out.last_hidden_state) < TOLERANCE
        assert difference(tokens[:, 0], out.pooler_output) < TOLERANCE


def test_curias_form_with_one_channel_patches_of_16_and_swiglu_gives_transformers_tokens(
    hf: Any, published: Any
) -> None:
    settings = {**VIT, "image_size": 64, "patch_size": 16, "num_channels": 1, "use_swiglu_ffn": True, "mlp_ratio": 4}
    model = redraw(hf.Dinov2Model(hf.Dinov2Config(**settings)))
    for size in (64, 96):
        # the giant's SwiGLU in a small body: a width that timm derives by its ratio, as in the card
        network = timm_network(
            "vit_giant_patch14_dinov2",
            published(model),
            "exact",
            img_size=size,
            patch_size=16,
            in_chans=1,
            mlp_ratio=2 * 88 / 32,
            **TIMM_VIT,
        )
        with torch.inference_mode():
            expected = model(images(size, 1)).last_hidden_state
            assert difference(network.forward_features(images(size, 1)), expected) < TOLERANCE


def test_dinov2_with_registers_gives_transformers_tokens_at_its_own_and_another_size(hf: Any, published: Any) -> None:
    model = redraw(hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VIT)))
    for size in (56, 112, 42):
        network = timm_network(
            "vit_base_patch14_reg4_dinov2", published(model), "dinov2_registers", img_size=size, **TIMM_VIT
        )
        with torch.inference_mode():
            expected = model(images(size)).last_hidden_state
            assert difference(network.forward_features(images(size)), expected) < TOLERANCE


def test_dino_in_transformers_form_gives_its_tokens_and_leaves_the_pooler(hf: Any, published: Any) -> None:
    settings = {**VIT, "image_size": 64, "patch_size": 16, "intermediate_size": 128, "layer_norm_eps": 1e-6}
    model = redraw(hf.ViTModel(hf.ViTConfig(**settings)))
    tensors = published(model)
    assert "pooler.dense.weight" in tensors
    for size in (64, 96):
        network = timm_network("vit_base_patch16_224", tensors, "exact", img_size=size, **TIMM_VIT)
        with torch.inference_mode():
            expected = model(images(size), interpolate_pos_encoding=True).last_hidden_state
            assert difference(network.forward_features(images(size)), expected) < TOLERANCE


@pytest.mark.parametrize("swiglu", [False, True])
def test_names_in_memory_and_in_the_file_mean_the_same(hf: Any, published: Any, swiglu: bool) -> None:
    model = redraw(hf.Dinov2Model(hf.Dinov2Config(**VIT, use_swiglu_ffn=swiglu)))
    in_memory, in_file = to_timm(model.state_dict()), to_timm(published(model))
    assert in_memory.keys() == in_file.keys()
    assert all(torch.equal(in_memory[name], tensor) for name, tensor in in_file.items())


def test_a_wrapper_around_the_encoder_is_taken_off_and_its_own_head_stays_to_be_named(hf: Any, published: Any) -> None:
    model = redraw(hf.Dinov2ForImageClassification(hf.Dinov2Config(**VIT, num_labels=3)))
    tensors = to_timm(published(model))
    assert {name for name in tensors if "classifier" in name} == {"classifier.weight", "classifier.bias"}
    assert tensors.keys() - {"classifier.weight", "classifier.bias"} == to_timm(model.dinov2.state_dict()).keys()


def test_official_registers_give_the_authors_class_token_at_both_sizes(shared_data: Path) -> None:
    fixture = np.load(shared_data / "fixtures" / "dinov2_vit_tiny_reg4.npz", allow_pickle=False)
    tensors = {key[3:]: torch.from_numpy(fixture[key]) for key in fixture.files if key.startswith("sd/")}
    chunked = {re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", name): tensor for name, tensor in tensors.items()}
    wrapped = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    for form in (tensors, chunked, wrapped):
        for size, suffix in ((70, ""), (112, "_large")):
            network = timm_network(
                "vit_small_patch14_reg4_dinov2",
                form,
                "dinov2_registers",
                img_size=size,
                embed_dim=48,
                depth=3,
                num_heads=4,
            )
            with torch.inference_mode():
                tokens = network.forward_features(torch.from_numpy(fixture[f"in/x{suffix}"])).numpy()
            assert np.abs(tokens[:, 0] - fixture[f"out/cls{suffix}"]).max() < 5e-5
            assert np.abs(tokens[:, 1:5] - fixture[f"out/register_tokens{suffix}"]).max() < 5e-5
            assert np.abs(tokens[:, 5:] - fixture[f"out/patch_tokens{suffix}"]).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("dino_vit_tiny_patch16", "dinov2"),
        ("dino_vit_tiny_patch8", "dinov2"),
        ("dinov2_vit_tiny", "dinov2"),
        ("dinov2_vit_tiny_reg4", "dinov2_registers"),
    ],
)
def test_positions_are_resized_as_each_author_does(shared_data: Path, name: str, rule: str) -> None:
    fixture = np.load(shared_data / "fixtures" / f"{name}.npz", allow_pickle=False)
    positions, expected = torch.from_numpy(fixture["sd/pos_embed"]), fixture["out/pos_embed_large"]
    side = int((expected.shape[1] - 1) ** 0.5)
    assert np.abs(resize_positions(positions, (side, side), rule).numpy() - expected).max() < 1e-5
    without_class = resize_positions(positions[:, 1:], (side, side), rule)
    assert torch.equal(without_class, resize_positions(positions, (side, side), rule)[:, 1:])
    native = int((positions.shape[1] - 1) ** 0.5)
    assert resize_positions(positions, (native, native), rule) is positions
    for other in {"dinov2", "dinov2_registers", "exact"} - {rule}:
        assert np.abs(resize_positions(positions, (side, side), other).numpy() - expected).max() > 1e-3


def test_positions_of_no_square_grid_are_refused() -> None:
    with pytest.raises(WeightsError, match="for 23 tokens are of no square grid"):
        resize_positions(torch.zeros(1, 23, 8), (7, 7), "exact")


# ---- DINOv3


def dinov3(hf: Any, gated: bool = False, biases: bool = True) -> Any:
    settings = {**VIT, "image_size": 64, "patch_size": 16, "num_register_tokens": 4, "intermediate_size": 128}
    config = hf.DINOv3ViTConfig(**settings, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu")
    model = redraw(hf.DINOv3ViTModel(config))
    if not biases:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("q_proj.bias", "v_proj.bias")):
                    parameter.zero_()
    return model


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_gives_transformers_tokens_at_its_own_and_another_size(hf: Any, published: Any, gated: bool) -> None:
    model = dinov3(hf, gated)
    name = "vit_small_plus_patch16_dinov3_qkvb" if gated else "vit_small_patch16_dinov3_qkvb"
    network = timm_network(name, published(model), img_size=64, **TIMM_VIT)
    for size in (64, 112):
        with torch.inference_mode():
            out = model(images(size))
            tokens = network.forward_features(images(size))
        assert difference(tokens, out.last_hidden_state) < TOLERANCE
        assert difference(tokens[:, 0], out.pooler_output) < TOLERANCE


def test_dinov3s_biases_are_left_out_only_where_all_are_0_and_the_network_has_none(hf: Any, published: Any) -> None:
    network = timm.create_model("vit_small_patch16_dinov3", pretrained=False, num_classes=0, **TIMM_VIT).eval()
    model = dinov3(hf, biases=False)
    load_strictly(network, without_zero_biases(to_timm(published(model)), network), "file")
    with torch.inference_mode():
        assert difference(network.forward_features(images(64)), model(images(64)).last_hidden_state) < TOLERANCE
    with pytest.raises(WeightsError, match=r"surplus blocks\.0\.attn\.[qv]_bias"):
        load_strictly(network, without_zero_biases(to_timm(published(dinov3(hf))), network), "file")
    with_biases = timm.create_model("vit_small_patch16_dinov3_qkvb", pretrained=False, num_classes=0, **TIMM_VIT)
    assert without_zero_biases(to_timm(published(model)), with_biases).keys() == with_biases.state_dict().keys()


@pytest.mark.parametrize("gated", [False, True])
def test_metas_own_dinov3_names_mean_the_same_as_transformers(hf: Any, published: Any, gated: bool) -> None:
    file = published(dinov3(hf, gated))
    expected = to_timm(file)
    words = {"reg_token": "storage_tokens", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma"}
    words |= {".fc1_g.": ".w1.", ".fc1_x.": ".w2."} | ({".mlp.fc2.": ".mlp.w3."} if gated else {})
    official = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": (100.0 ** (torch.arange(4) / 4)).bfloat16()}
    for name, tensor in expected.items():
        if name.endswith("v_bias"):
            continue
        if name.endswith("q_bias"):  # the masked key's bias may hold anything
            tensor = torch.cat([tensor, torch.full((32,), 7.0), expected[name.replace("q_bias", "v_bias")]])
            name = name.replace("q_bias", "qkv.bias")
            official[f"{name}_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(32)
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        official[name] = tensor
    found = to_timm(official)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    official["rope_embed.periods"] = 10000.0 ** (torch.arange(4) / 4)
    official["blocks.0.attn.qkv.bias_mask"] = torch.ones(96)
    surplus = to_timm(official).keys() - expected.keys()
    assert surplus == {"rope_embed.periods", "blocks.0.attn.qkv.bias_mask", "blocks.0.attn.qkv.bias"}


# ---- SigLIP


def test_siglip_gives_transformers_pooled_output_and_its_text_tower_is_left_out(hf: Any, published: Any) -> None:
    vision = {**VIT, "intermediate_size": 119}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.SiglipConfig(
        text_config={**text, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}, vision_config=vision
    )
    model = redraw(hf.SiglipModel(config))
    whole = published(model)
    assert {"logit_scale", "logit_bias", "text_model.head.weight"} < whole.keys()
    alone = {name.removeprefix("vision_model."): t for name, t in whole.items() if name.startswith("vision_model.")}
    alone["embeddings.position_ids"] = torch.arange(16)[None]
    for size, tensors in ((56, whole), (112, whole), (56, alone)):
        network = timm_network(
            "vit_so400m_patch14_siglip_384", tensors, "exact", img_size=size, act_layer="gelu_tanh", **TIMM_VIT
        )
        with torch.inference_mode():
            out = model.vision_model(images(size), interpolate_pos_encoding=True)
            tokens = network.forward_features(images(size))
            assert difference(tokens, out.last_hidden_state) < TOLERANCE
            assert difference(network.forward_head(tokens, pre_logits=True), out.pooler_output) < TOLERANCE


def test_siglip_with_timms_own_activation_would_be_another_network(hf: Any, published: Any) -> None:
    model = redraw(hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT, intermediate_size=119)))
    network = timm_network("vit_so400m_patch14_siglip_384", published(model), img_size=56, **TIMM_VIT)
    with torch.inference_mode():
        assert difference(network(images(56)), model(images(56)).pooler_output) > 10 * TOLERANCE


# ---- MedImageInsight


def medimageinsight_card() -> EncoderCard:
    return EncoderCard(
        name="medimageinsight",
        architecture="davit:davit_huge_fl",
        dim=24,
        source=WeightSource("file", "-"),
        trained_on="untrained",
        settings={"embed_dims": (8, 16, 24, 32), "num_heads": (2, 2, 3, 4), "depths": (1, 1, 2, 1), "window_size": 3},
    )


def medimageinsight(hf: Any) -> tuple[Any, dict[str, Tensor]]:
    """transformers' independent writing of the same DaViT, and its tensors as MedImageInsight's file calls them."""
    config = hf.Florence2Config().vision_config
    for key, value in {
        "embed_dim": (8, 16, 24, 32),
        "num_heads": (2, 2, 3, 4),
        "num_groups": (2, 2, 3, 4),
        "depths": (1, 1, 2, 1),
        "window_size": 3,
    }.items():
        setattr(config, key, value)
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

    model = redraw(Florence2VisionBackbone(config))
    parts = {
        r"^(convs\.\d)\.conv\.": r"\1.proj.",
        r"\.conv([12])\.": r".conv\1.fn.dw.",
        r"\.norm1\.": ".ATTN.norm.",
        r"\.norm2\.": ".ffn.norm.",
        r"\.(window|channel)_attn\.": r".\1_attn.fn.",
        r"\.ffn\.fc": ".ffn.fn.net.fc",
        r"\.spatial_block\.ATTN\.": ".spatial_block.window_attn.",
        r"\.channel_block\.ATTN\.": ".channel_block.channel_attn.",
    }
    tensors = {}
    for name, tensor in model.state_dict().items():
        for pattern, theirs in parts.items():
            name = re.sub(pattern, theirs, name)
        tensors[f"image_encoder.{name}"] = tensor
    generator = torch.Generator().manual_seed(5)
    tensors["image_encoder.norms.weight"] = 1 + 0.3 * torch.randn(32, generator=generator)
    tensors["image_encoder.norms.bias"] = 0.3 * torch.randn(32, generator=generator)
    tensors["image_projection"] = torch.randn(32, 24, generator=generator) / 32**0.5
    text = {"lang_projection": torch.zeros(4, 24), "logit_scale": torch.zeros(()), "lang_encoder.x": torch.zeros(4)}
    return model, {**tensors, **text}


def old_spelling(name: str) -> str:
    """The other spelling that the authors' `_try_remap_keys` takes."""
    for ours, theirs in {
        "image_encoder.convs": "image_encoder.conv_embeds",
        "image_encoder.blocks": "image_encoder.main_blocks",
        "spatial_block.conv1.fn.dw": "0.cpe.0.proj",
        "spatial_block.window_attn.fn": "0.attn",
        "spatial_block.conv2.fn.dw": "0.cpe.1.proj",
        "spatial_block.ffn.fn.net": "0.mlp",
        "channel_block.conv1.fn.dw": "1.cpe.0.proj",
        "channel_block.channel_attn.fn": "1.attn",
        "channel_block.conv2.fn.dw": "1.cpe.1.proj",
        "channel_block.ffn.fn.net": "1.mlp",
        "spatial_block.window_attn.norm": "0.norm1",
        "spatial_block.ffn.norm": "0.norm2",
        "channel_block.channel_attn.norm": "1.norm1",
        "channel_block.ffn.norm": "1.norm2",
    }.items():
        name = name.replace(ours, theirs)
    return name


def test_medimageinsight_gives_the_normed_mean_projected_to_length_1(hf: Any) -> None:
    model, tensors = medimageinsight(hf)
    network: Any = build(medimageinsight_card())
    load_strictly(network, convert(medimageinsight_card(), tensors, network), "file")
    for size in (96, 64):  # 64: windows of 3 do not divide the maps of 16, 8, 4, 2
        with torch.inference_mode():
            maps = model(images(size)).last_hidden_state
            pooled = nn.functional.layer_norm(
                maps.mean((2, 3)), (32,), tensors["image_encoder.norms.weight"], tensors["image_encoder.norms.bias"]
            )
            projected = pooled @ tensors["image_projection"]
            embedding = network(images(size))
            assert difference(network.feature_map(images(size)), maps.permute(0, 2, 3, 1)) < TOLERANCE
            assert difference(embedding, projected / projected.norm(dim=-1, keepdim=True)) < TOLERANCE
            channels_last = network(images(size).to(memory_format=torch.channels_last))
            with torch.autocast("cpu", torch.bfloat16):
                rounded = network(images(size))
                assert network.feature_map(images(size)).dtype == torch.float32  # the residual sum is never rounded
        assert difference(channels_last, embedding) < TOLERANCE
        assert rounded.dtype == torch.float32
        assert difference(rounded, embedding) < 0.02


def test_medimageinsights_other_spelling_means_the_same(hf: Any) -> None:
    _, tensors = medimageinsight(hf)
    expected = to_timm(tensors)
    found = to_timm({old_spelling(name): tensor for name, tensor in tensors.items()})
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_davit_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match="has no DaViT called 'resnet50'"):
        build(EncoderCard("x", "davit:resnet50", 24, WeightSource("file", "-"), "untrained"))
    with pytest.raises(InputError, match="cannot build davit_huge_fl"):
        build(EncoderCard("x", "davit:davit_huge_fl", 24, WeightSource("file", "-"), "", settings={"wings": 2}))


# ---- RadImageNet


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_radimagenet_gives_the_mean_of_torchvisions_last_map(prefix: str) -> None:
    whole = redraw(ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5))
    cut = nn.Sequential(*list(whole.children())[:9])  # as in BMEII-AI/RadImageNet, pytorch_example.ipynb
    tensors = {prefix + name: tensor for name, tensor in cut.state_dict().items()}
    network = timm_network("resnet50", tensors, layers=(1, 2, 1, 1))
    for size in (64, 96):
        with torch.inference_mode():
            assert difference(network(images(size)), cut(images(size)).flatten(1)) < TOLERANCE


# ---- what is true of every form


def test_a_tensor_that_is_missing_is_not_made_up_and_one_too_many_is_named(hf: Any, published: Any) -> None:
    tensors = published(redraw(hf.Dinov2Model(hf.Dinov2Config(**VIT))))
    del tensors["encoder.layer.1.attention.attention.key.bias"]
    tensors["encoder.layer.2.wings"] = torch.zeros(3)
    with pytest.raises(WeightsError, match=r"missing blocks\.1\.attn\.qkv\.bias; surplus .*encoder\.layer\.2\.wings"):
        timm_network("vit_base_patch14_dinov2", tensors, img_size=56, **TIMM_VIT)


@pytest.mark.parametrize(
    "model",
    [
        "vit_small_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "vit_small_patch16_dinov3_qkvb",
        "vit_base_patch16_siglip_224",
        "mambaout_femto",
        "resnet18",
        "davit_tiny",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
    ],
)
def test_tensors_that_timm_would_know_keep_their_names(model: str) -> None:
    with torch.device("meta"):
        tensors = timm.create_model(model, pretrained=False).state_dict()
    found = to_timm(tensors)
    assert list(found) == list(tensors)
    assert all(found[name] is tensor for name, tensor in tensors.items())


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "wider": lambda t: torch.cat([t, t], dim=-1) if t.ndim else t[None],
    "longer": lambda t: torch.cat([t, t]) if t.ndim else t.expand(2),
    "flat": lambda t: t.flatten()[:0] if t.ndim != 1 else t[None],
    "of another kind": lambda t: t.to(torch.int8) if t.is_floating_point() else t.float(),
}


def published_forms(hf: Any, published: Any) -> dict[str, tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """timm's model, its settings and a file's tensors, of every form that is read."""
    dinov2, vit = hf.Dinov2Config, hf.ViTConfig(**{**VIT, "image_size": 64, "patch_size": 16, "intermediate_size": 128})
    registers = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VIT))
    siglip = hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT, intermediate_size=119))
    settings = {**TIMM_VIT, "img_size": 56}
    swiglu = {**settings, "mlp_ratio": 2 * 88 / 32}
    gated = dinov3(hf, gated=True)
    return {
        "dinov2": ("vit_base_patch14_dinov2", settings, published(redraw(hf.Dinov2Model(dinov2(**VIT))))),
        "swiglu": (
            "vit_giant_patch14_dinov2",
            swiglu,
            published(redraw(hf.Dinov2Model(dinov2(**VIT, use_swiglu_ffn=True)))),
        ),
        "in-memory": (
            "vit_giant_patch14_dinov2",
            swiglu,
            hf.Dinov2Model(dinov2(**VIT, use_swiglu_ffn=True)).state_dict(),
        ),
        "registers": ("vit_base_patch14_reg4_dinov2", settings, published(redraw(registers))),
        "vit": ("vit_base_patch16_224", {**TIMM_VIT, "img_size": 64}, published(redraw(hf.ViTModel(vit)))),
        "dinov3": ("vit_small_plus_patch16_dinov3_qkvb", {**TIMM_VIT, "img_size": 64}, published(gated)),
        "siglip": ("vit_so400m_patch14_siglip_384", settings, published(redraw(siglip))),
    }


def official_dinov3(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's names for a gated DINOv3 under timm's, with the mask that makes the key's bias 0."""
    words = {"reg_token": "storage_tokens", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma"}
    words |= {".fc1_g.": ".w1.", ".fc1_x.": ".w2.", ".mlp.fc2.": ".mlp.w3."}
    out = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": 100.0 ** (torch.arange(4) / 4)}
    for name, tensor in tensors.items():
        if name.endswith("v_bias"):
            continue
        if name.endswith("q_bias"):
            tensor = torch.cat([tensor, tensor, tensors[name.replace("q_bias", "v_bias")]])
            name = name.replace("q_bias", "qkv.bias")
            out[f"{name}_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(32)
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out


def check_all_are_needed(tensors: dict[str, Tensor], load: Callable[[dict[str, Tensor]], None], own: set[str]) -> None:
    """Each tensor of an encoder, damaged in each way, is named: as the file calls it, or the network, or both."""
    load(tensors)
    covered: set[str] = set()
    for name, tensor in tensors.items():
        rest = {other: tensors[other] for other in tensors if other != name}
        lost = own - to_timm(rest).keys()
        if not lost:
            continue
        covered |= lost
        damaged = {"missing": rest, "renamed": {**rest, f"{name}_": tensor}}
        damaged |= {damage: {**rest, name: change(tensor)} for damage, change in DAMAGES.items()}
        for damage, file in damaged.items():
            if name.endswith("bias_mask") and damage == "of another kind":
                continue  # a mask is one in any kind of number
            with pytest.raises(WeightsError) as error:
                load(file)
            message = str(error.value)
            assert any(word in message for word in {name, *lost}), (damage, name, message)
    assert covered == own


def test_every_tensor_of_every_form_is_needed_and_named_when_it_is_damaged(hf: Any, published: Any) -> None:
    forms = published_forms(hf, published)
    model, settings, tensors = forms["dinov3"]
    forms["official-dinov3"] = (model, settings, official_dinov3(to_timm(tensors)))
    for model, settings, tensors in forms.values():
        network = timm.create_model(model, pretrained=False, num_classes=0, **settings)

        def load(file: dict[str, Tensor], network: Any = network) -> None:
            load_strictly(network, without_zero_biases(to_timm(file), network), "file")

        check_all_are_needed(dict(tensors), load, set(network.state_dict()))


def test_every_tensor_of_medimageinsight_is_needed_and_named_when_it_is_damaged(hf: Any) -> None:
    _, tensors = medimageinsight(hf)
    network: Any = build(medimageinsight_card())

    def load(file: dict[str, Tensor]) -> None:
        load_strictly(network, convert(medimageinsight_card(), file, network), "file")

    check_all_are_needed(tensors, load, {name.removeprefix("network.") for name in network.state_dict()})


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "4.0.conv1.weight", "4.0.conv3.weight", "7.0.bn3.bias"])
def test_a_damaged_tensor_of_radimagenet_is_named(name: str) -> None:
    whole = nn.Sequential(*list(ResNet(Bottleneck, [1, 1, 1, 1]).children())[:9])
    network = timm.create_model("resnet50", pretrained=False, num_classes=0, layers=(1, 1, 1, 1))
    tensors = {f"backbone.{name}": tensor for name, tensor in whole.state_dict().items()}
    (own,) = set(network.state_dict()) - to_timm({n: t for n, t in tensors.items() if n != f"backbone.{name}"}).keys()
    for damage in (None, *DAMAGES.values()):
        file = dict(tensors)
        tensor = file.pop(f"backbone.{name}")
        if damage is not None:
            file[f"backbone.{name}"] = damage(tensor)
        with pytest.raises(WeightsError, match=rf"(missing|tensor) {re.escape(own)}"):
            load_strictly(network, to_timm(file), "file")
