from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clear.backbones import fitted_card
from clear.backbones.variants import AnotherFamily
from clear.backbones.vmamba import MODELS, VSSM, build, convert, variant
from clear.card import EncoderCard, WeightSource
from clear.checkpoints import load_strictly
from clear.errors import InputError, WeightsError

TINY: dict[str, dict[str, Any]] = {
    "vmamba_official_tiny": {"depths": [1, 1, 2, 1], "dims": [16, 32, 48, 64]},
    "vmamba_official_tiny_b": {
        "depths": [2, 1],
        "dims": [16, 24],
        "ssm_d_state": 4,
        "ssm_ratio": 1.0,
        "mlp_ratio": 2.0,
    },
}
SMALL_SECOND = {"depths": (1, 1), "dims": (12, 20)}


def card_for(model: str = "vssm", dim: int = 768, **settings: Any) -> EncoderCard:
    return EncoderCard(
        name="tiny",
        architecture=f"vmamba:{model}",
        dim=dim,
        source=WeightSource("file", "-"),
        trained_on="untrained",
        settings=settings,
        pooling="mean",
    )


def loaded(card: EncoderCard, tensors: dict[str, Tensor]) -> Any:
    network = build(card)
    load_strictly(network, convert(card, tensors, network), "fixture")
    return network


def redrawn(network: nn.Module, seed: int = 0) -> Any:
    """Every parameter random and of a trained network's size: no bias 0, no norm weight 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if name.endswith(("A_logs", "dt_projs_bias")) or (parameter.ndim == 1 and name.endswith("weight")):
                parameter.add_(noise, alpha=0.3)
            elif parameter.ndim == 1:
                parameter.copy_(noise * 0.3)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return network.eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and lose much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=list(TINY))
def official(
    request: pytest.FixtureRequest, shared_data: Path
) -> tuple[dict[str, Any], dict[str, Tensor], EncoderCard]:
    fixture = np.load(shared_data / "fixtures" / f"{request.param}.npz", allow_pickle=False)
    arrays = {key: fixture[key] for key in fixture.files}
    tensors = {key[3:]: torch.from_numpy(array) for key, array in arrays.items() if key.startswith("sd/")}
    settings = TINY[request.param]
    return arrays, tensors, card_for(dim=settings["dims"][-1], **settings)


def assert_close(found: Tensor, wanted: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, atol=5e-5, rtol=1e-5)


def test_it_gives_the_authors_maps_and_embedding(official: Any) -> None:
    arrays, tensors, card = official
    network = loaded(card, tensors)
    before_norm: list[Tensor] = []
    network.classifier["norm"].register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
    x = torch.from_numpy(arrays["in/x"])
    with torch.inference_mode():
        embedded = network.patch_embed(x)
        assert_close(embedded, arrays["out/patch_embed_nhwc"])
        assert_close(network.layers[0]["blocks"](embedded), arrays["out/block_stage0_nhwc"])
        normed = network.feature_map(x)
        assert_close(before_norm[0], arrays["out/feature_map_nhwc"])
        embedding = network(x)
    assert_close(embedding, arrays["out/embedding"])
    assert_close(normed.mean((1, 2)), arrays["out/embedding"])
    logits = embedding @ tensors["classifier.head.weight"].T + tensors["classifier.head.bias"]
    assert_close(logits, arrays["out/logits"])


def test_a_channels_last_input_gives_the_same(official: Any) -> None:
    arrays, tensors, card = official
    network = loaded(card, tensors).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        x = torch.from_numpy(arrays["in/x"]).contiguous(memory_format=torch.channels_last)
        assert_close(network(x), arrays["out/embedding"])


def test_exchanging_any_two_directions_moves_the_embedding_beyond_the_tolerance(official: Any) -> None:
    arrays, tensors, card = official
    x = torch.from_numpy(arrays["in/x"])
    for first, second in itertools.combinations(range(4), 2):
        order = list(range(4))
        order[first], order[second] = second, first
        mixed = dict(tensors)
        for name, tensor in tensors.items():
            if name.endswith(("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")):
                mixed[name] = tensor.view(4, -1)[order].view_as(tensor)
        with torch.inference_mode():
            moved = loaded(card, mixed)(x).numpy() - arrays["out/embedding"]
        assert np.abs(moved).max() > 20 * 5e-5, (first, second)


def test_the_checkpoint_itself_says_which_member_it_is(official: Any) -> None:
    _, tensors, card = official
    found = variant(card_for(), tensors)
    assert found.dim == card.dim
    stated = {k: tuple(v) if isinstance(v, list) else v for k, v in card.settings.items()}
    assert found.told.items() >= stated.items()
    loaded(found.fit(card_for()), tensors)


def test_what_moco_training_writes_fits_after_unwrapping(shared_data: Path) -> None:
    listing = json.loads((shared_data / "fixtures" / "moco_checkpoint_keys.json").read_text())["archs"]["vmamba"]
    prefix = "module.base_encoder."
    shapes = {key[len(prefix) :]: shape for key, shape in listing["keys"].items() if key.startswith(prefix)}
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    assert "classifier.head.7.running_var" in tensors  # the projector, which is none of the encoder's
    card = variant(card_for(), tensors).fit(card_for())
    assert (card.architecture, card.dim, card.settings["depths"]) == ("vmamba:vssm", 64, (1, 1, 2, 1))
    network = loaded(card, tensors)
    assert set(network.state_dict()) == {name for name in tensors if not name.startswith("classifier.head.")}

    tensors["layers.2.blocks.1.op.A_log"] = tensors.pop("layers.2.blocks.1.op.A_logs")
    with pytest.raises(WeightsError, match=r"missing layers\.2\.blocks\.1\.op\.A_logs; surplus layers\.2\.\S+A_log$"):
        loaded(card, tensors)


def official_shapes(depths: tuple[int, ...], dims: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of VSSM() in MzeroMiko/VMamba without the head: S 16, twice the channels, MLP four times."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.0.weight": (dims[0], 3, 4, 4),
        "patch_embed.0.bias": (dims[0],),
        "patch_embed.2.weight": (dims[0],),
        "patch_embed.2.bias": (dims[0],),
        "classifier.norm.weight": (dims[-1],),
        "classifier.norm.bias": (dims[-1],),
    }
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        inner, rank = 2 * dim, dim // 16
        for j in range(depth):
            shapes |= {
                f"layers.{i}.blocks.{j}.{name}": shape
                for name, shape in {
                    "norm.weight": (dim,),
                    "norm.bias": (dim,),
                    "op.in_proj.weight": (2 * inner, dim),
                    "op.conv2d.weight": (inner, 1, 3, 3),
                    "op.conv2d.bias": (inner,),
                    "op.x_proj_weight": (4, rank + 32, inner),
                    "op.dt_projs_weight": (4, inner, rank),
                    "op.dt_projs_bias": (4, inner),
                    "op.A_logs": (4 * inner, 16),
                    "op.Ds": (4 * inner,),
                    "op.out_norm.weight": (inner,),
                    "op.out_norm.bias": (inner,),
                    "op.out_proj.weight": (dim, inner),
                    "norm2.weight": (dim,),
                    "norm2.bias": (dim,),
                    "mlp.fc1.weight": (4 * dim, dim),
                    "mlp.fc1.bias": (4 * dim,),
                    "mlp.fc2.weight": (dim, 4 * dim),
                    "mlp.fc2.bias": (dim,),
                }.items()
            }
        if i + 1 < len(dims):
            shapes |= {
                f"layers.{i}.downsample.1.weight": (dims[i + 1], dim, 2, 2),
                f"layers.{i}.downsample.1.bias": (dims[i + 1],),
                f"layers.{i}.downsample.3.weight": (dims[i + 1],),
                f"layers.{i}.downsample.3.bias": (dims[i + 1],),
            }
    return shapes


def test_what_clear_trained_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        network = build(card_for())
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == official_shapes((2, 2, 9, 2), (96, 192, 384, 768))


@pytest.mark.parametrize(
    ("model", "dim", "parameters"),
    [  # with the head of 1000 classes; MzeroMiko/VMamba, analyze/tp.py, tp.log, tp2.log
        ("tiny", 768, 30_249_064),
        ("small", 768, 50_147_752),
        ("base", 1024, 88_557_800),
        ("tiny_s2l5", 768, 30_705_832),
        ("vanilla_tiny", 768, 22_893_448),
        ("vanilla_small", 768, 44_417_416),
        ("vanilla_base", 1024, 76_254_056),
    ],
)
def test_published_models_have_the_published_number_of_parameters(model: str, dim: int, parameters: int) -> None:
    with torch.device("meta"):
        network = build(card_for(model, dim))
    assert sum(p.numel() for p in network.parameters()) + 1000 * (dim + 1) == parameters


@pytest.mark.parametrize("model", list(MODELS))
def test_every_published_model_is_recognised_by_its_tensors(model: str) -> None:
    with torch.device("meta"):
        network = VSSM(**MODELS[model])
    found = variant(card_for(), network.state_dict())
    assert (found.architecture, found.dim, found.settings) == (f"vmamba:{model}", network.num_features, {})


def merged(x: Tensor) -> Tensor:
    """Swin's patch merging, (N, C, H, W) to (N, 4 C, H/2, W/2), for even sides."""
    return torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]], dim=1)


def twin(sd: dict[str, Tensor], x: Tensor) -> Tensor:
    """Embedding from the paper's equations, channel-first, position by position; which module exists sd says."""

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = sd[f"{name}.weight"][:, None, None], sd[f"{name}.bias"][:, None, None]
        return (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt() * weight + bias

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.conv2d(x, sd[f"{name}.weight"][..., None, None], sd.get(f"{name}.bias"))

    def strided(name: str, x: Tensor) -> Tensor:
        weight = sd[f"{name}.weight"]
        side = weight.shape[-1]
        stride, padding = (2, 1) if side == 3 else (side, 0)
        return functional.conv2d(x, weight, sd[f"{name}.bias"], stride=stride, padding=padding)

    def scanned(name: str, x: Tensor) -> Tensor:
        n, d, height, width = x.shape
        rank = sd[f"{name}.dt_projs_weight"].shape[2]
        a = -torch.exp(sd[f"{name}.A_logs"]).view(4, d, -1)
        by_row = [(i, j) for i in range(height) for j in range(width)]
        by_column = [(i, j) for j in range(width) for i in range(height)]
        y = torch.zeros_like(x)
        for k, path in enumerate((by_row, by_column, by_row[::-1], by_column[::-1])):
            state = x.new_zeros(n, d, a.shape[2])
            for i, j in path:
                u = x[:, :, i, j]
                projected = u @ sd[f"{name}.x_proj_weight"][k].T
                low_rank, b, c = projected.split([rank, a.shape[2], a.shape[2]], dim=1)
                steps = low_rank @ sd[f"{name}.dt_projs_weight"][k].T + sd[f"{name}.dt_projs_bias"][k]
                delta = functional.softplus(steps)[:, :, None]
                state = torch.exp(delta * a[k]) * state + delta * b[:, None, :] * u[:, :, None]
                y[:, :, i, j] += (state * c[:, None, :]).sum(2) + sd[f"{name}.Ds"].view(4, d)[k] * u
        return y

    x = norm("patch_embed.2", strided("patch_embed.0", x))
    if "patch_embed.5.weight" in sd:
        x = norm("patch_embed.7", strided("patch_embed.5", functional.gelu(x)))
    for i in itertools.count():
        if f"layers.{i}.blocks.0.norm.weight" not in sd:
            return norm("classifier.norm", x).mean((2, 3))
        for j in itertools.count():
            block = f"layers.{i}.blocks.{j}"
            if f"{block}.norm.weight" not in sd:
                break
            inner = linear(f"{block}.op.in_proj", norm(f"{block}.norm", x))
            d = len(sd[f"{block}.op.out_norm.weight"])
            inner, gate = inner[:, :d], inner[:, d:]
            weight, bias = sd[f"{block}.op.conv2d.weight"], sd.get(f"{block}.op.conv2d.bias")
            inner = functional.silu(functional.conv2d(inner, weight, bias, padding=1, groups=d))
            inner = norm(f"{block}.op.out_norm", scanned(f"{block}.op", inner))
            if gate.shape[1]:
                inner = inner * functional.silu(gate)
            x = x + linear(f"{block}.op.out_proj", inner)
            if f"{block}.mlp.fc1.weight" in sd:
                hidden = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
                x = x + linear(f"{block}.mlp.fc2", hidden)
        down = f"layers.{i}.downsample"
        if f"{down}.2.weight" in sd:
            x = linear(f"{down}.2", norm(f"{down}.1", merged(x)))
        elif f"{down}.3.weight" in sd:
            x = norm(f"{down}.3", strided(f"{down}.1", x))
    raise AssertionError


@pytest.mark.parametrize("model", ["vssm", "tiny", "tiny_s2l5", "vanilla_tiny"])
def test_every_generation_follows_the_equations(model: str) -> None:
    network = redrawn(build(card_for(model, 20, **SMALL_SECOND)))
    x = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = twin({name: tensor.double() for name, tensor in network.state_dict().items()}, x.double())
        assert float(wanted.std()) > 0.1
        assert torch.allclose(network(x).double(), wanted, atol=2e-5)


def test_patch_merging_fills_odd_borders_with_zeros() -> None:
    merge = build(card_for("vanilla_tiny", 20, **SMALL_SECOND)).layers[0]["downsample"][0]
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    padded = functional.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))
    assert torch.equal(merge(x), merged(padded).permute(0, 2, 3, 1))


def test_older_names_and_convolutions_in_place_of_products_are_understood() -> None:
    card = card_for("vanilla_tiny", 20, **SMALL_SECOND)
    network = redrawn(build(card))
    older: dict[str, Tensor] = {"head.weight": torch.zeros(7, 20), "head.bias": torch.zeros(7)}
    for name, tensor in network.state_dict().items():
        name = name.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        name = name.replace(".norm.", ".ln_1.") if ".blocks." in name else name
        name = name.replace(".op.", ".self_attention.").removeprefix("classifier.")
        name = name.replace("downsample.1.", "downsample.norm.").replace("downsample.2.", "downsample.reduction.")
        older[name] = tensor[..., None, None] if name.endswith("_proj.weight") else tensor
    assert {"norm.weight", "patch_embed.proj.weight", "layers.0.downsample.reduction.weight"} < set(older)
    assert {"layers.1.blocks.0.ln_1.weight", "layers.1.blocks.0.self_attention.out_norm.bias"} < set(older)
    again = loaded(fitted_card(replace(card_for(), any_size=True), older), older)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("model", ["vssm", "tiny"])
def test_bfloat16_stays_within_five_percent_after_centring(model: str) -> None:
    network = redrawn(build(card_for(model, 192, dims=(24, 48, 96, 192))))
    x = torch.randn(6, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(x)
    assert rounded.dtype == torch.float32
    exact, rounded = exact - exact.mean(0), rounded - rounded.mean(0)
    assert float(((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 0.05


def test_training_reaches_every_parameter_and_does_so_in_bfloat16_too() -> None:
    network = redrawn(build(card_for("vssm", 20, **SMALL_SECOND)))
    x = torch.randn(3, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    target = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))

    def gradients(enabled: bool) -> dict[str, Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = (network(x) * target).sum()
        loss.backward()
        return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}

    exact, rounded = gradients(False), gradients(True)
    for name, gradient in exact.items():
        assert float(gradient.norm()) > 0, name
        assert float((rounded[name] - gradient).norm()) < 0.1 * float(gradient.norm()), name


def test_gradients_are_those_of_the_equations() -> None:
    network = redrawn(build(card_for("vssm", 6, depths=(1,), dims=(6,), ssm_d_state=3))).double()
    x = torch.randn(2, 3, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*network.named_parameters(), strict=True)
    target = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((network(x) * target).sum(), parameters)
    wanted = torch.autograd.grad((twin(dict(network.named_parameters()), x) * target).sum(), parameters)
    for name, ours, theirs in zip(names, found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-9), name


def test_a_new_network_starts_as_mamba_does() -> None:
    op = build(card_for("vssm", 20, **SMALL_SECOND)).layers[1]["blocks"][0].op
    steps = functional.softplus(op.dt_projs_bias.detach())
    assert float(steps.min()) >= 0.001 - 1e-6
    assert float(steps.max()) <= 0.1 + 1e-6
    assert torch.allclose(torch.exp(op.A_logs), torch.arange(1.0, 17.0).expand(160, 16))
    assert torch.equal(op.Ds, torch.ones(160))


def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(InputError, match="encoder tiny: no VMamba 'giant'; expected one of vssm, tiny, small"):
        build(card_for("giant"))
    with pytest.raises(InputError, match="the card says d = 99, but vssm has 20"):
        build(card_for("vssm", 99, **SMALL_SECOND))
    for wrong in ({"wings": 2}, {"dims": (8,)}, {"forward_type": "v9"}, {"patchembed_version": "v9"}):
        with pytest.raises(InputError, match="encoder tiny: VMamba cannot be built with"):
            build(card_for("vssm", 20, **SMALL_SECOND | wrong))
    with pytest.raises(InputError, match="downsample_version 'v9'"):
        build(card_for("vssm", 20, **SMALL_SECOND, downsample_version="v9"))
    with pytest.raises(AnotherFamily, match=r"not a VMamba checkpoint: it has no layers\.0\.blocks\.0\.op\.\*"):
        variant(card_for(), {"cls_token": torch.zeros(1, 1, 8)})
