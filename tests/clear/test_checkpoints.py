from __future__ import annotations

import argparse
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clear.card import write_card
from clear.checkpoints import digest_of, load_strictly, read_tensors, unwrap
from clear.encoders import ENCODERS
from clear.errors import WeightsError
from clear.frozen import load_encoder


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_pytorch_files_of_tensors_are_read(tmp_path: Path, wrap) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(small().state_dict()), path)
    tensors = read_tensors(path)
    assert list(tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert torch.equal(tensors["0.weight"], small().state_dict()["0.weight"])


def test_safetensors_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    save_file(small().state_dict(), path)
    assert torch.equal(read_tensors(path)["0.bias"], small().state_dict()["0.bias"])


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, dump in (("torch.pth", torch.save), ("plain.pkl", lambda o, p: Path(p).write_bytes(pickle.dumps(o)))):
        dump({"a": Bomb()}, tmp_path / name)
        with pytest.raises(WeightsError, match="cannot be opened without running code"):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 30, 200])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"weights\.safetensors"):
        read_tensors(path)


def test_loading_is_strict_and_names_the_tensor() -> None:
    state = dict(small().state_dict())
    with pytest.raises(WeightsError, match=r"here: does not fit this encoder: missing 0\.bias"):
        load_strictly(small(), {k: v for k, v in state.items() if k != "0.bias"}, "here")
    with pytest.raises(WeightsError, match="surplus extra"):
        load_strictly(small(), {**state, "extra": torch.zeros(1)}, "here")
    with pytest.raises(WeightsError, match=r"0\.bias has shape \(3,\); expected \(2,\)"):
        load_strictly(small(), {**state, "0.bias": torch.zeros(3)}, "here")
    with pytest.raises(WeightsError, match=r"0\.bias holds values that are not finite"):
        load_strictly(small(), {**state, "0.bias": torch.tensor([0.0, float("nan")])}, "here")


OTHER_KINDS = {
    "int8": lambda t: t.to(torch.int8),
    "uint8": lambda t: t.to(torch.uint8),
    "int64": lambda t: t.long(),
    "bool": lambda t: t > 0,
    "complex64": lambda t: t.to(torch.complex64),
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "sparse float32": lambda t: t.to_sparse(),
    "without values float32": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_weights_of_another_kind_of_number_are_refused(kind: str) -> None:
    state = dict(small().state_dict())
    odd = OTHER_KINDS[kind](state["0.weight"])
    with pytest.raises(WeightsError, match=rf"here: tensor 0\.weight is (dense )?{kind}; expected dense float16"):
        load_strictly(small(), {**state, "0.weight": odd}, "here")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_become_float32(dtype: torch.dtype) -> None:
    network, state = small(), small().state_dict()
    load_strictly(network, {name: tensor.to(dtype) for name, tensor in state.items()}, "here")
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert torch.allclose(network.state_dict()["0.weight"], state["0.weight"], rtol=1e-2)


def test_a_value_that_float32_does_not_hold_is_refused() -> None:
    state = {name: tensor.double() for name, tensor in small().state_dict().items()}
    state["0.bias"][0] = 1e300
    with pytest.raises(WeightsError, match=r"tensor 0\.bias holds values that are not finite as float32"):
        load_strictly(small(), state, "here")


def test_counters_are_whole_numbers_and_stay_so() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(2))

    state = {**network().state_dict(), "0.num_batches_tracked": torch.tensor(7, dtype=torch.int32)}
    loaded = network()
    load_strictly(loaded, state, "here")
    assert loaded.state_dict()["0.num_batches_tracked"].dtype == torch.int64
    assert int(loaded.state_dict()["0.num_batches_tracked"]) == 7
    for odd in (torch.tensor(7.0), torch.tensor(True)):
        with pytest.raises(WeightsError, match=r"0\.num_batches_tracked is dense (float32|bool); expected dense whole"):
            load_strictly(network(), {**state, "0.num_batches_tracked": odd}, "here")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("kind", ["sparse float32", "without values float32"])
def test_a_file_of_tensors_that_are_not_dense_is_refused_with_the_tensors_name(tmp_path: Path, kind: str) -> None:
    state = dict(small().state_dict())
    torch.save({**state, "0.weight": OTHER_KINDS[kind](state["0.weight"])}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=rf"weights\.pth: tensor 0\.weight is {kind}; expected dense values"):
        read_tensors(tmp_path / "weights.pth")


def test_entries_without_a_name_or_values_are_named(tmp_path: Path) -> None:
    for odd, message in (({1: torch.ones(1)}, "entry 1 is Tensor"), ({"step": 3}, "entry 'step' is int")):
        torch.save({"1": torch.ones(1), **odd}, tmp_path / "weights.pth")
        with pytest.raises(WeightsError, match=f"expected only tensors with names; {message}"):
            read_tensors(tmp_path / "weights.pth")


def test_tensors_know_their_file(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": small().state_dict()}, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        found = read_tensors(tmp_path / name)
        assert found.origin == str(tmp_path / name)
        assert found.keys() == small().state_dict().keys()


def test_half_precision_files_load_as_float32_and_the_digest_is_of_the_values() -> None:
    network = small()
    half = {name: tensor.half() for name, tensor in network.state_dict().items()}
    load_strictly(network, half, "here")
    assert network.state_dict()["0.weight"].dtype == torch.float32
    before = digest_of(network)
    load_strictly(network, half, "here")
    assert digest_of(network) == before
    with torch.no_grad():
        network[0].bias[0] += 1e-3
    assert digest_of(network) != before


MOCO = ("mambaout", "vit_conv", "vmamba")


@pytest.fixture(scope="module")
def moco_states(shared_data: Path) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts with the names and shapes that the CLEAR/MoCo training script writes, and random values."""
    listing = json.loads((shared_data / "fixtures" / "moco_checkpoint_keys.json").read_text(encoding="utf-8"))
    draw = torch.Generator().manual_seed(0)
    return {
        arch: {
            name: torch.tensor(3) if name.endswith("num_batches_tracked") else torch.randn(shape, generator=draw)
            for name, shape in entry["keys"].items()
        }
        for arch, entry in listing["archs"].items()
    }


def official(shared_data: Path, arch: str) -> set[str]:
    """Names of the tiny encoder without its own head."""
    file = {"mambaout": "mambaout_official_tiny", "vit_conv": "vit_conv_tiny", "vmamba": "vmamba_official_tiny"}[arch]
    head = "classifier.head." if arch == "vmamba" else "head."
    with np.load(shared_data / "fixtures" / f"{file}.npz", allow_pickle=False) as fixture:
        names = {key[3:] for key in fixture.files if key.startswith("sd/")}
    return {name for name in names if not name.startswith(head)}


@pytest.mark.parametrize("branch", [None, "base", "momentum"])
@pytest.mark.parametrize("arch", MOCO)
def test_one_encoder_of_a_moco_checkpoint_stays_without_its_projector(
    arch: str, branch: str | None, moco_states, shared_data: Path, tmp_path: Path
) -> None:
    torch.save({"epoch": 7, "arch": arch, "state_dict": moco_states[arch], "scaler": {}}, tmp_path / "c.pth.tar")
    tensors = read_tensors(tmp_path / "c.pth.tar", branch)
    assert tensors.keys() == official(shared_data, arch)
    prefix = f"module.{branch or 'base'}_encoder."
    assert all(torch.equal(tensor, moco_states[arch][prefix + name]) for name, tensor in tensors.items())


def test_a_moco_checkpoint_with_a_part_of_no_known_name_is_refused(moco_states) -> None:
    state = {**moco_states["mambaout"], "module.queue": torch.ones(3)}
    with pytest.raises(WeightsError, match="x: a MoCo checkpoint with tensors of no known part: queue"):
        unwrap(state, None, "x")
    with pytest.raises(WeightsError, match="x: has no teacher encoder; expected one of base, momentum"):
        unwrap(moco_states["mambaout"], "teacher", "x")
    only_base = {name: tensor for name, tensor in moco_states["mambaout"].items() if "momentum" not in name}
    with pytest.raises(WeightsError, match="x: has no momentum encoder; expected one of base"):
        unwrap(only_base, "momentum", "x")


@pytest.mark.parametrize("branch", [None, "teacher", "student"])
def test_dino_checkpoints_with_their_arguments_give_one_backbone(tmp_path: Path, branch: str | None) -> None:
    own = {"blocks.0.norm1.weight": torch.arange(3.0), "head_norm.weight": torch.ones(2)}
    file = {
        "teacher": {f"backbone.{name}": tensor for name, tensor in own.items()} | {"head.mlp.0.bias": torch.ones(1)},
        "student": {f"module.backbone.{name}": -tensor for name, tensor in own.items()}
        | {"module.head.mlp.0.bias": torch.ones(1)},
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "epoch": 100,
    }
    torch.save(file, tmp_path / "checkpoint.pth")
    tensors = read_tensors(tmp_path / "checkpoint.pth", branch)
    sign = -1 if branch == "student" else 1
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensor, sign * own[name]) for name, tensor in tensors.items())


def test_what_the_arguments_beside_a_checkpoint_may_hold_is_plain(tmp_path: Path) -> None:
    file = {"teacher": {"w": torch.ones(1)}, "args": argparse.Namespace(callback=Bomb())}
    torch.save(file, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match="cannot be opened without running code"):
        read_tensors(tmp_path / "checkpoint.pth")


def test_a_branch_is_refused_where_there_is_none(tmp_path: Path) -> None:
    torch.save({"teacher": {"w": torch.ones(1)}}, tmp_path / "teacher.pth")
    with pytest.raises(WeightsError, match=r"teacher\.pth: has no student; expected one of teacher"):
        read_tensors(tmp_path / "teacher.pth", "student")
    save_file({"w": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match=r"holds one encoder only; leave out the branch 'momentum'"):
        read_tensors(tmp_path / "plain.safetensors", "momentum")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_of_whole_checkpoints_go_and_those_of_a_part_stay(prefix: str) -> None:
    whole = {f"{prefix}{name}": tensor for name, tensor in small().state_dict().items()}
    assert unwrap(whole, None, "x").keys() == small().state_dict().keys()
    part = {**whole, "other": torch.ones(1)}
    assert unwrap(part, None, "x").keys() == part.keys()


@pytest.mark.parametrize("damage", ["missing", "renamed", "misshapen"])
@pytest.mark.parametrize("arch", MOCO)
def test_a_damaged_moco_checkpoint_names_the_tensor_by_its_encoder(
    arch: str, damage: str, moco_states, tmp_path: Path
) -> None:
    victim, own = {
        "mambaout": ("stages.2.1.fc2.weight", "network.stages.2.blocks.1.fc2.weight"),
        "vit_conv": ("blocks.1.mlp.fc2.weight",) * 2,
        "vmamba": ("layers.2.blocks.1.op.out_proj.weight",) * 2,
    }[arch]
    state = dict(moco_states[arch])
    tensor = state.pop(f"module.base_encoder.{victim}")
    if damage == "renamed":
        state[f"module.base_encoder.{victim}_"] = tensor
    if damage == "misshapen":
        state[f"module.base_encoder.{victim}"] = tensor[:, 1:]
    torch.save({"state_dict": state}, tmp_path / "c.pth.tar")
    card = ENCODERS[f"{arch.replace('_', '-')}-moco"]
    if arch == "vit_conv":  # 48 wide: no published size, so its card says what it is
        settings = {"embed_dim": 48, "depth": 2, "num_heads": 3}
        card = replace(card, dim=48, settings=settings, input_size=64, any_size=False)
    write_card(card, tmp_path)
    with pytest.raises(WeightsError) as error:
        load_encoder(str(tmp_path), tmp_path / "c.pth.tar", device="cpu")
    assert f"missing {own}" in str(error.value) or f"tensor {own} has shape" in str(error.value)
    assert ("surplus" in str(error.value)) == (damage == "renamed")
